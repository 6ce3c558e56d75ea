--- What kind of bridge? Linear, two and three layers, narrow and wide, one for all layers, frozen at random, detached as published, solved
--- in closed form, one a head. 33 runs of about a minute on two cores.
local cab = require "cab"
return cab.study {
  about = "Kinds of bridge",
  base  = "recipes/vim_fashion.lua",
  arms = {
    { name = "soft", stages = { { loss = { soft = 1 }, steps = 1000 } } },
    { name = "linear", set = { "stages.1.loss.align.depth=1" } },
    { name = "mlp2" },
    { name = "mlp3", set = { "stages.1.loss.align.depth=3" } },
    { name = "narrow", set = { "stages.1.loss.align.hidden=32" } },
    { name = "wide", set = { "stages.1.loss.align.hidden=512" } },
    { name = "one-for-all", set = { "stages.1.loss.align.share=layers" } },
    { name = "frozen", set = { "stages.1.loss.align.frozen=true" } },
    { name = "detached", set = { "stages.1.loss.align.detach=true" } },
    { name = "ridge", set = { "stages.1.loss.align.kind=ridge" } },
    { name = "heads", set = { "stages.1.loss.align.heads=each" } },
  },
  seeds = { 0, 1, 2 }, against = "soft",
}
