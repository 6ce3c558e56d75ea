--- A teacher for CIFAR-10 at its own 32 px: a ViT of patch 4, D 192, depth 12, from scratch. The studies of CIFAR-10 distil from its
--- weights. About 3 minutes on an H100: cab run recipes/teacher_cifar32.lua precision=bf16
local cab = require "cab"
return cab.recipe {
  data    = cab.data.folder { root = "data/cifar10", size = 32, mean = { 0.4914, 0.4822, 0.4465 }, std = { 0.247, 0.2435, 0.2616 },
    scale = { 0.5, 1 }, crop_ratio = 1, flip = true, augment = "rand-m9-mstd0.5-inc1", threads = 14 },
  student = cab.models.vit { image = 32, patch = 4, dim = 192, depth = 12, heads = 3 },
  stages  = { { loss = { vanilla = { weight = 1, smoothing = 0.1 } }, epochs = 120 } },
  optim   = { "adamw", lr = 1e-3, low = 1e-6, weight_decay = 0.05, schedule = "cosine", warmup = 5, clip = 1 },
  batch   = 250, seed = 0, precision = "f32",     -- on a GPU tf32 or bf16 is faster: precision=bf16
  eval    = { every = 20 },
  export  = "data/teacher_cifar32.safetensors",
  missing = {
    data = "Put CIFAR-10 there as images, data/cifar10/train/airplane/*.jpg and data/cifar10/test/airplane/*.jpg "
      .. "(mkdir -p data/cifar10 && tar xf cifar10-jpeg.tar.xz -C data/cifar10); then: cab run recipes/teacher_cifar32.lua",
  },
}
