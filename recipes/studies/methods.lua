--- Methods by share of the data, Fashion-MNIST: the arms of recipes/studies/methods_cifar.lua on the embedded images. 72 runs of about
--- a minute on two cores, of seconds on a GPU.
local cab = require "cab"
local steps = 1000
local function arm(name, align) return { name = name, stages = { { loss = { soft = 1, align = align }, steps = steps } } } end
return cab.study {
  about = "Fashion-MNIST: methods by share of the training images",
  base  = "recipes/vim_fashion.lua",
  arms = {
    { name = "vanilla", stages = { { loss = { vanilla = 1 }, steps = steps } } },
    { name = "soft",    stages = { { loss = { soft = 1 }, steps = steps } } },
    arm("paper", { "attention_bridge", weight = 3, map = "softmax" }),
    arm("bridge", { "attention_bridge", weight = 3 }),
    arm("hidden", { "attention_bridge", weight = 3, onto = { B = "hidden", C = "hidden" } }),
    arm("all", { "attention_bridge", weight = 10, onto = { B = "k", C = "q", x = "v", hidden = "hidden" } }),
  },
  vary = { ["data.fraction"] = { 0.01, 0.05, 0.1, 0.2 } }, seeds = { 0, 1, 2 }, against = "soft",
}
