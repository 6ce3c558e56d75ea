--- Which taps? B alone, C alone, both, one bridge for both, x onto v, all four; and the decay, identity or s4d. 27 runs of about a
--- minute on two cores.
local cab = require "cab"
return cab.study {
  about = "Which taps are aligned, and the decay",
  base  = "recipes/vim_fashion.lua",
  arms = {
    { name = "soft", stages = { { loss = { soft = 1 }, steps = 1000 } } },
    { name = "B", set = { 'stages.1.loss.align.onto={"B":"k"}' } },
    { name = "C", set = { 'stages.1.loss.align.onto={"C":"q"}' } },
    { name = "both" },
    { name = "shared", set = { "stages.1.loss.align.share=taps" } },
    { name = "with-x", set = { 'stages.1.loss.align.onto={"B":"k","C":"q","x":"v"}' } },
    { name = "all", set = { 'stages.1.loss.align.onto={"B":"k","C":"q","x":"v","hidden":"hidden"}' } },
    { name = "soft-s4d", stages = { { loss = { soft = 1 }, steps = 1000 } }, set = { "student.decay=s4d" } },
    { name = "both-s4d", set = { "student.decay=s4d" } },
  },
  seeds = { 0, 1, 2 }, against = "soft",
}
