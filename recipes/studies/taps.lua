--- Which taps? B alone, C alone, both, one bridge for both, x onto v, all four; and the decay, identity or s4d. 27 runs of about a
--- minute on two cores.
local cab = require "cab"
local steps = 1000
local function arm(name, align) return { name = name, stages = { { loss = { soft = 1, align = align }, steps = steps } } } end
local function bridge(more)
  local align = { "attention_bridge", weight = 3 }
  for k, v in pairs(more or {}) do align[k] = v end
  return align
end
return cab.study {
  about = "Which taps are aligned, and the decay",
  base  = "recipes/vim_fashion.lua",
  arms = {
    { name = "soft", stages = { { loss = { soft = 1 }, steps = steps } } },
    arm("B", bridge { onto = { B = "k" } }),
    arm("C", bridge { onto = { C = "q" } }),
    arm("both", bridge()),
    arm("shared", bridge { share = "taps" }),
    arm("with-x", bridge { onto = { B = "k", C = "q", x = "v" } }),
    arm("all", bridge { onto = { B = "k", C = "q", x = "v", hidden = "hidden" } }),
    { name = "soft-s4d", stages = { { loss = { soft = 1 }, steps = steps } }, set = { "student.decay=s4d" } },
    { name = "both-s4d", stages = arm("", bridge()).stages, set = { "student.decay=s4d" } },
  },
  seeds = { 0, 1, 2 }, against = "soft",
}
