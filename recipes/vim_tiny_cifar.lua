--- Vim-Tiny on CIFAR-10 at 224 px, from the ViT-Tiny that recipes/teacher_cifar.lua fine-tunes. A tenth of the images, or
--- cab run recipes/vim_tiny_cifar.lua preset=soft      the same without the bridge: what the bridge is compared with
local cab = require "cab"
return cab.recipe {
  data    = cab.data.folder { root = "data/cifar10", fraction = 0.1, size = 224, mean = 0.5, std = 0.5, scale = { 0.4, 1 }, crop_ratio = 1,
    flip = true, threads = 8 },
  teacher = cab.models.vit { size = "tiny", weights = "data/teacher_cifar.safetensors" },
  student = cab.models.vim { size = "tiny", state = 16, decay = "identity" },
  stages  = { { loss = { soft = 1, align = { "attention_bridge", hidden = 128, weight = 3 } }, epochs = 60 } },
  optim   = { "adamw", lr = 5e-4, low = 1e-5, weight_decay = 0.05, schedule = "cosine", warmup = 3, clip = 1 },
  batch   = 64, seed = 0, precision = "f32",     -- on a GPU tf32 or bf16 is faster: precision=bf16
  eval    = { every = 10 },
  presets = { soft = function(r) r.stages[1].loss = { soft = 1 } end },
  missing = {
    data = "Put CIFAR-10 there as images, data/cifar10/train/airplane/*.jpg and data/cifar10/test/airplane/*.jpg "
      .. "(mkdir -p data/cifar10 && tar xf cifar10-jpeg.tar.xz -C data/cifar10); then: cab run recipes/teacher_cifar.lua",
    teacher = "cab run recipes/teacher_cifar.lua makes it; then: cab run recipes/vim_tiny_cifar.lua",
  },
}
