--- With how few images does it help? Batches of 20, so that 20 images are one. 24 runs of half a minute on two cores.
local cab = require "cab"
return cab.study {
  about = "The smallest share of the training images at which the bridge helps",
  base  = "recipes/vim_fashion.lua",
  arms = {
    { name = "soft", stages = { { loss = { soft = 1 }, steps = 1000 } }, batch = 20 },
    { name = "bridge", batch = 20 },
  },
  vary = { ["data.fraction"] = { 0.002, 0.005, 0.02, 0.1 } }, seeds = { 0, 1, 2 }, against = "soft",
}
