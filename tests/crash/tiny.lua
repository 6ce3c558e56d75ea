--- A run of a second or two that writes a checkpoint after each step: something to kill.
local cab = require "cab"
return cab.recipe {
  data = cab.data.fashion { fraction = 0.02, flip = true },
  teacher = cab.models.vit { image = 28, patch = 7, dim = 16, depth = 2, heads = 2 },
  student = cab.models.vim { image = 28, patch = 7, dim = 16, depth = 2, state = 4 },
  stages = { { loss = { soft = 1, align = { "attention_bridge", hidden = 8, weight = 2 } }, steps = 60 } },
  optim = { "adamw", lr = 1e-2, warmup = 0.2, clip = 1, ema = 0.9 },
  batch = 40, log = 1, eval = { every = 0, batch = 500 }, checkpoint = { every = 1 },
}
