--- Methods by share of the data, CIFAR-10 at 32 px: the arms of recipes/studies/methods.lua. 36 runs, 8 minutes of one H100:
--- cab sweep recipes/studies/methods_cifar.lua precision=bf16
local cab = require "cab"
return cab.study {
  about = "CIFAR-10 at 32 px: methods by share of the training images",
  base  = "recipes/vim_cifar32.lua",
  arms = {
    { name = "vanilla", stages = { { loss = { vanilla = 1 }, steps = 1200 } } },
    { name = "soft", stages = { { loss = { soft = 1 }, steps = 1200 } } },
    { name = "paper", set = { "stages.1.loss.align.map=softmax" } },
    { name = "bridge" },
    { name = "hidden", set = { 'stages.1.loss.align.onto={"B":"hidden","C":"hidden"}' } },
    { name = "all", set = { "stages.1.loss.align.weight=10", 'stages.1.loss.align.onto={"B":"k","C":"q","x":"v","hidden":"hidden"}' } },
  },
  vary = { ["data.fraction"] = { 0.01, 0.1 } }, seeds = { 0, 1, 2 }, against = "soft",
}
