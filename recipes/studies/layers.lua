--- Which teacher layer for which student layer? A student of 4 layers, a teacher of 6. 21 runs of about a minute on two cores.
local cab = require "cab"
local steps = 1000
local function arm(name, align) return { name = name, stages = { { loss = { soft = 1, align = align }, steps = steps } } } end
local function bridge(more)
  local align = { "attention_bridge", weight = 3 }
  for k, v in pairs(more or {}) do align[k] = v end
  return align
end
return cab.study {
  about = "Layer maps",
  base  = "recipes/vim_fashion.lua",
  arms = {
    { name = "soft", stages = { { loss = { soft = 1 }, steps = steps } } },
    { name = "proportional", stages = arm("", bridge()).stages, pairs = "proportional" },
    { name = "last", stages = arm("", bridge()).stages, pairs = { "last", k = 4 } },
    { name = "stride", stages = arm("", bridge()).stages, pairs = { "stride", k = 1 } },
    { name = "reversed", stages = arm("", bridge()).stages, pairs = { "manual", 6, 4, 3, 1 } },
    { name = "learned", stages = arm("", bridge()).stages, pairs = { "learned" } },
    { name = "search", stages = arm("", bridge()).stages, pairs = { "search" } },
  },
  seeds = { 0, 1, 2 }, against = "soft",
}
