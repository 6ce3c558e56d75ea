--- Methods by share of the data, CIFAR-10 at 32 px: hard labels, soft labels, the paper's preset (softmax maps), our default bridge,
--- the control (the teacher's hidden states through the same bridge: is B/C <- K/Q special?), and all taps at once (also x onto v and
--- hidden onto hidden, weight 10). 36 runs, 8 minutes of one H100: cab sweep recipes/studies/methods_cifar.lua precision=bf16
local cab = require "cab"
local steps = 1200
local function arm(name, align) return { name = name, stages = { { loss = { soft = 1, align = align }, steps = steps } } } end
return cab.study {
  about = "CIFAR-10 at 32 px: methods by share of the training images",
  base  = "recipes/vim_cifar32.lua",
  arms = {
    { name = "vanilla", stages = { { loss = { vanilla = 1 }, steps = steps } } },
    { name = "soft",    stages = { { loss = { soft = 1 }, steps = steps } } },
    arm("paper", { "attention_bridge", weight = 3, map = "softmax" }),
    arm("bridge", { "attention_bridge", weight = 3 }),
    arm("hidden", { "attention_bridge", weight = 3, onto = { B = "hidden", C = "hidden" } }),
    arm("all", { "attention_bridge", weight = 10, onto = { B = "k", C = "q", x = "v", hidden = "hidden" } }),
  },
  vary = { ["data.fraction"] = { 0.01, 0.1 } }, seeds = { 0, 1, 2 }, against = "soft",
}
