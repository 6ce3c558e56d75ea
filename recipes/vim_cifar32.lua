--- A Vision Mamba from a ViT on CIFAR-10 at its own 32 px: what the studies of CIFAR-10 start from, and 12 seconds on an H100.
--- cab run recipes/vim_cifar32.lua data.fraction=0.01 precision=bf16
local cab = require "cab"
return cab.recipe {
  data    = cab.data.folder { root = "data/cifar10", fraction = 0.1, size = 32, mean = { 0.4914, 0.4822, 0.4465 }, std = { 0.247, 0.2435, 0.2616 },
    scale = { 0.6, 1 }, crop_ratio = 1, flip = true, threads = 8 },
  teacher = cab.models.vit { image = 32, patch = 4, dim = 192, depth = 12, heads = 3, weights = "data/teacher_cifar32.safetensors" },
  student = cab.models.vim { image = 32, patch = 4, dim = 192, depth = 12, state = 16, decay = "identity" },
  stages  = { { loss = { soft = 1, align = { "attention_bridge", weight = 3 } }, steps = 1200 } },
  optim   = { "adamw", lr = 5e-4, weight_decay = 0.05, schedule = "cosine", warmup = "3 %", clip = 1 },
  batch   = 125, seed = 0, precision = "f32",     -- on a GPU tf32 or bf16 is faster: precision=bf16
  missing = {
    data = "Put CIFAR-10 there as images, data/cifar10/train/airplane/*.jpg and data/cifar10/test/airplane/*.jpg "
      .. "(mkdir -p data/cifar10 && tar xf cifar10-jpeg.tar.xz -C data/cifar10); then: cab run recipes/teacher_cifar32.lua",
    teacher = "cab run recipes/teacher_cifar32.lua makes it; then: cab run recipes/vim_cifar32.lua",
  },
}
