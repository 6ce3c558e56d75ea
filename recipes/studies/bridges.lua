--- What kind of bridge? Linear, two and three layers, narrow and wide, one for all layers, frozen at random, detached as published, solved
--- in closed form, one a head. 33 runs of about a minute on two cores.
local cab = require "cab"
local steps = 1000
local function arm(name, align) return { name = name, stages = { { loss = { soft = 1, align = align }, steps = steps } } } end
local function bridge(more)
  local align = { "attention_bridge", weight = 3 }
  for k, v in pairs(more or {}) do align[k] = v end
  return align
end
return cab.study {
  about = "Kinds of bridge",
  base  = "recipes/vim_fashion.lua",
  arms = {
    { name = "soft", stages = { { loss = { soft = 1 }, steps = steps } } },
    arm("linear", bridge { depth = 1 }),
    arm("mlp2", bridge()),
    arm("mlp3", bridge { depth = 3 }),
    arm("narrow", bridge { hidden = 32 }),
    arm("wide", bridge { hidden = 512 }),
    arm("one-for-all", bridge { share = "layers" }),
    arm("frozen", bridge { frozen = true }),
    arm("detached", bridge { detach = true }),
    arm("ridge", bridge { kind = "ridge" }),
    arm("heads", bridge { heads = "each" }),
  },
  seeds = { 0, 1, 2 }, against = "soft",
}
