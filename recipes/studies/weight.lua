--- How much alignment? Weights 0.1 to 100 of the default bridge. 24 runs of about a minute on two cores.
local cab = require "cab"
local steps = 1000
local function arm(name, align) return { name = name, stages = { { loss = { soft = 1, align = align }, steps = steps } } } end
local function bridge(more)
  local align = { "attention_bridge", weight = 3 }
  for k, v in pairs(more or {}) do align[k] = v end
  return align
end
return cab.study {
  about = "The weight of the alignment",
  base  = "recipes/vim_fashion.lua",
  arms = {
    { name = "soft", stages = { { loss = { soft = 1 }, steps = steps } } },
    arm("w0.1", bridge { weight = 0.1 }),
    arm("w0.3", bridge { weight = 0.3 }),
    arm("w1", bridge { weight = 1 }),
    arm("w3", bridge { weight = 3 }),
    arm("w10", bridge { weight = 10 }),
    arm("w30", bridge { weight = 30 }),
    arm("w100", bridge { weight = 100 }),
  },
  seeds = { 0, 1, 2 }, against = "soft",
}
