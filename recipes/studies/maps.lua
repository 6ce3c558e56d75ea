--- Which kernel map of the targets? 24 runs of about a minute on two cores.
local cab = require "cab"
return cab.study {
  about = "Kernel maps of the targets",
  base  = "recipes/vim_fashion.lua",
  arms = {
    { name = "soft", stages = { { loss = { soft = 1 }, steps = 1000 } } },
    { name = "standard", set = { "stages.1.loss.align.map=standard" } },
    { name = "none", set = { "stages.1.loss.align.map=none" } },
    { name = "softmax", set = { "stages.1.loss.align.map=softmax" } },
    { name = "softmax-features", set = { "stages.1.loss.align.map=softmax_features" } },
    { name = "relu", set = { "stages.1.loss.align.map=relu" } },
    { name = "exp", set = { "stages.1.loss.align.map=exp" } },
    { name = "elu", set = { "stages.1.loss.align.map=elu" } },
  },
  seeds = { 0, 1, 2 }, against = "soft",
}
