--- Vision Mamba from a ViT on 100 images a class: hard labels, soft labels, and the attention bridge. arXiv:2510.19266.
local cab = require "cab"
local epochs = 40
return cab.compare {
  base = {
    data    = cab.data.fashion { fraction = 0.1 },
    teacher = cab.models.vit { image = 28, patch = 4, dim = 64, depth = 6, heads = 4, weights = "data/teacher_fashion.safetensors" },
    student = cab.models.vim { image = 28, patch = 4, dim = 64, depth = 4, state = 16, decay = "identity" },
    optim   = { "adamw", lr = 1e-3, weight_decay = 0.05, schedule = "cosine", warmup = 3, clip = 1 },
    batch   = 64, seed = 0,
    eval    = { every = 10 },
  },
  runs = {
    { name = "vanilla", stages = { { loss = { vanilla = 1 }, epochs = epochs } } },
    { name = "soft",    stages = { { loss = { soft = 1 }, epochs = epochs } } },
    { name = "bridge",  stages = { { loss = { soft = 1, align = { "attention_bridge", weight = 3 } }, epochs = epochs } } },
  },
}
