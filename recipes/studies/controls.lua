--- Does it matter what the bridge is fitted to? The teacher's q and k, those of another image, fixed random numbers, its hidden states;
--- and other tensors of the student onto the same q and k. 24 runs of about a minute on two cores.
local cab = require "cab"
local steps = 1000
local function arm(name, align) return { name = name, stages = { { loss = { soft = 1, align = align }, steps = steps } } } end
local function bridge(more)
  local align = { "attention_bridge", weight = 3 }
  for k, v in pairs(more or {}) do align[k] = v end
  return align
end
return cab.study {
  about = "Controls: other targets, other taps",
  base  = "recipes/vim_fashion.lua",
  arms = {
    { name = "soft", stages = { { loss = { soft = 1 }, steps = steps } } },
    arm("bridge", bridge()),
    arm("other-image", bridge { control = "other_image" }),
    arm("random", bridge { control = "random" }),
    arm("hidden", bridge { onto = { B = "hidden", C = "hidden" } }),
    arm("from-x", bridge { onto = { x = "k" } }),
    arm("from-z", bridge { onto = { z = "q" } }),
    arm("from-hidden", bridge { onto = { hidden = "hidden" } }),
  },
  seeds = { 0, 1, 2 }, against = "soft",
}
