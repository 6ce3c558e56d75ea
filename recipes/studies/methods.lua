--- Methods by share of the data, Fashion-MNIST: hard labels, soft labels, the paper's preset (softmax maps), our default bridge, the control
--- (the teacher's hidden states through the same bridge: is B/C <- K/Q special?), and all taps at once (also x onto v and hidden onto
--- hidden, weight 10). 72 runs of about a minute on two cores, of seconds on a GPU.
local cab = require "cab"
return cab.study {
  about = "Fashion-MNIST: methods by share of the training images",
  base  = "recipes/vim_fashion.lua",
  arms = {
    { name = "vanilla", stages = { { loss = { vanilla = 1 }, steps = 1000 } } },
    { name = "soft", stages = { { loss = { soft = 1 }, steps = 1000 } } },
    { name = "paper", set = { "stages.1.loss.align.map=softmax" } },
    { name = "bridge" },
    { name = "hidden", set = { 'stages.1.loss.align.onto={"B":"hidden","C":"hidden"}' } },
    { name = "all", set = { "stages.1.loss.align.weight=10", 'stages.1.loss.align.onto={"B":"k","C":"q","x":"v","hidden":"hidden"}' } },
  },
  vary = { ["data.fraction"] = { 0.01, 0.05, 0.1, 0.2 } }, seeds = { 0, 1, 2 }, against = "soft",
}
