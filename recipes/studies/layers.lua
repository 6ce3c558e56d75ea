--- Which teacher layer for which student layer? A student of 4 layers, a teacher of 6. 21 runs of about a minute on two cores.
local cab = require "cab"
return cab.study {
  about = "Layer maps",
  base  = "recipes/vim_fashion.lua",
  arms = {
    { name = "soft", stages = { { loss = { soft = 1 }, steps = 1000 } } },
    { name = "proportional", pairs = "proportional" },
    { name = "last", pairs = { "last", k = 4 } },
    { name = "stride", pairs = { "stride", k = 1 } },
    { name = "reversed", pairs = { "manual", 6, 4, 3, 1 } },
    { name = "learned", pairs = { "learned" } },
    { name = "search", pairs = { "search" } },
  },
  seeds = { 0, 1, 2 }, against = "soft",
}
