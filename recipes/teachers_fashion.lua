--- Teachers of other sizes beside recipes/teacher_fashion.lua's, for recipes/studies/teacher_size.lua: ViTs of 0.03 and 0.7 million
--- parameters on the 10000 embedded images. A quarter of an hour on two cores, half a minute on a GPU.
local cab = require "cab"
return cab.compare {
  pictures = 0,
  base = {
    data  = cab.data.fashion { flip = true, pad = 1 },
    optim = { "adamw", lr = 1.5e-3, weight_decay = 0.05, schedule = "cosine", warmup = "4 %", clip = 1 },
    stages = { { loss = { vanilla = { weight = 1, smoothing = 0.1 } }, steps = 3000 } },
    batch = 100, seed = 0,
  },
  runs = {
    { name = "small", student = cab.models.vit { image = 28, patch = 4, dim = 32, depth = 2, heads = 2 }, export = "runs/teacher_fashion_small.safetensors" },
    { name = "large", student = cab.models.vit { image = 28, patch = 4, dim = 96, depth = 6, heads = 6 }, export = "runs/teacher_fashion_large.safetensors" },
  },
}
