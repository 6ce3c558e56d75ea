--- Which kernel map of the targets? 24 runs of about a minute on two cores.
local cab = require "cab"
local steps = 1000
local function arm(name, align) return { name = name, stages = { { loss = { soft = 1, align = align }, steps = steps } } } end
local function bridge(more)
  local align = { "attention_bridge", weight = 3 }
  for k, v in pairs(more or {}) do align[k] = v end
  return align
end
return cab.study {
  about = "Kernel maps of the targets",
  base  = "recipes/vim_fashion.lua",
  arms = {
    { name = "soft", stages = { { loss = { soft = 1 }, steps = steps } } },
    arm("standard", bridge { map = "standard" }),
    arm("none", bridge { map = "none" }),
    arm("softmax", bridge { map = "softmax" }),
    arm("softmax-features", bridge { map = "softmax_features" }),
    arm("relu", bridge { map = "relu" }),
    arm("exp", bridge { map = "exp" }),
    arm("elu", bridge { map = "elu" }),
  },
  seeds = { 0, 1, 2 }, against = "soft",
}
