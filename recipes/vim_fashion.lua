--- The bridge of recipes/quickstart.lua alone: what the studies of Fashion-MNIST start from. A minute on two cores.
local cab = require "cab"
return cab.recipe {
  data    = cab.data.fashion { fraction = 0.1 },
  teacher = cab.models.vit { image = 28, patch = 4, dim = 64, depth = 6, heads = 4, weights = "data/teacher_fashion.safetensors" },
  student = cab.models.vim { image = 28, patch = 4, dim = 64, depth = 4, state = 16, decay = "identity" },
  stages  = { { loss = { soft = 1, align = { "attention_bridge", weight = 3 } }, steps = 1000 } },
  optim   = { "adamw", lr = 1e-3, weight_decay = 0.05, schedule = "cosine", warmup = "8 %", clip = 1 },
  batch   = 64, seed = 0,
}
