--- When to stop aligning? Never, after 30 or 50 % of the steps, adaptively, or first and alone; by share of the data. The adaptive arm
--- gives up a tenth of its training images: they decide. 54 runs of about a minute on two cores.
local cab = require "cab"
return cab.study {
  about = "Alignment that ends, by share of the training images",
  base  = "recipes/vim_fashion.lua",
  arms = {
    { name = "soft", stages = { { loss = { soft = 1 }, steps = 1000 } } },
    { name = "always" },
    { name = "first-30", stages = { { loss = { soft = 1, align = { "attention_bridge", weight = 3 } }, steps = 300 }, { loss = { soft = 1 }, steps = 700 } } },
    { name = "first-50", stages = { { loss = { soft = 1, align = { "attention_bridge", weight = 3 } }, steps = 500 }, { loss = { soft = 1 }, steps = 500 } } },
    { name = "adaptive", stages = { { loss = { soft = 1, align = { "attention_bridge", weight = { "adaptive", to = 3 } } }, steps = 1000 } },
      set = { "eval.every=10 %", "data.validation=0.1" } },
    { name = "alone-30", stages = { { loss = { align = { "attention_bridge", weight = 3 } }, steps = 300 }, { loss = { soft = 1 }, steps = 700 } } },
  },
  vary = { ["data.fraction"] = { 0.01, 0.1, 1 } }, seeds = { 0, 1, 2 }, against = "soft",
}
