--- The teacher of the demo: a small ViT on the 10000 embedded images of clothes. Its weights are in data/.
local cab = require "cab"
return cab.recipe {
  data    = cab.data.fashion { flip = true, pad = 1 },
  student = cab.models.vit { image = 28, patch = 4, dim = 64, depth = 6, heads = 4 },
  stages  = { { loss = { vanilla = { weight = 1, smoothing = 0.1 } }, epochs = 60 } },
  optim   = { "adamw", lr = 1.5e-3, weight_decay = 0.05, schedule = "cosine", warmup = 2, clip = 1 },
  batch   = 100, seed = 0,
  eval    = { every = 5 },
  export  = "data/teacher_fashion.safetensors",
}
