--- With how few images does it help? 24 runs of about a minute on two cores.
local cab = require "cab"
local steps = 1000
local function arm(name, align) return { name = name, stages = { { loss = { soft = 1, align = align }, steps = steps } } } end
local function bridge(more)
  local align = { "attention_bridge", weight = 3 }
  for k, v in pairs(more or {}) do align[k] = v end
  return align
end
return cab.study {
  about = "The smallest share of the training images at which the bridge helps",
  base  = "recipes/vim_fashion.lua",
  arms = {
    { name = "soft", stages = { { loss = { soft = 1 }, steps = steps } } },
    arm("bridge", bridge()),
  },
  vary = { ["data.fraction"] = { 0.002, 0.005, 0.02, 0.1 } }, seeds = { 0, 1, 2 }, against = "soft",
}
