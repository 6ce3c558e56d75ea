--- How much alignment? Weights 0.1 to 100 of the default bridge. 24 runs of about a minute on two cores.
local cab = require "cab"
return cab.study {
  about = "The weight of the alignment",
  base  = "recipes/vim_fashion.lua",
  arms = {
    { name = "soft", stages = { { loss = { soft = 1 }, steps = 1000 } } },
    { name = "w0.1", set = { "stages.1.loss.align.weight=0.1" } },
    { name = "w0.3", set = { "stages.1.loss.align.weight=0.3" } },
    { name = "w1", set = { "stages.1.loss.align.weight=1" } },
    { name = "w3", set = { "stages.1.loss.align.weight=3" } },
    { name = "w10", set = { "stages.1.loss.align.weight=10" } },
    { name = "w30", set = { "stages.1.loss.align.weight=30" } },
    { name = "w100", set = { "stages.1.loss.align.weight=100" } },
  },
  seeds = { 0, 1, 2 }, against = "soft",
}
