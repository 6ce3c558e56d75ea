--- Does it matter what the bridge is fitted to? The teacher's q and k, those of another image, fixed random numbers, its hidden states;
--- and other tensors of the student onto the same q and k. 24 runs of about a minute on two cores.
local cab = require "cab"
return cab.study {
  about = "Controls: other targets, other taps",
  base  = "recipes/vim_fashion.lua",
  arms = {
    { name = "soft", stages = { { loss = { soft = 1 }, steps = 1000 } } },
    { name = "bridge" },
    { name = "other-image", set = { "stages.1.loss.align.control=other_image" } },
    { name = "random", set = { "stages.1.loss.align.control=random" } },
    { name = "hidden", set = { 'stages.1.loss.align.onto={"B":"hidden","C":"hidden"}' } },
    { name = "from-x", set = { 'stages.1.loss.align.onto={"x":"k"}' } },
    { name = "from-z", set = { 'stages.1.loss.align.onto={"z":"q"}' } },
    { name = "from-hidden", set = { 'stages.1.loss.align.onto={"hidden":"hidden"}' } },
  },
  seeds = { 0, 1, 2 }, against = "soft",
}
