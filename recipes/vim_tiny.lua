--- Vim-Tiny from DeiT-Tiny at 224 px with the attention bridge, on a tenth of ImageNet. Source: arXiv:2510.19266, table 1.
---
--- Data: ROOT/train/CLASS/*.jpg and ROOT/test/CLASS/*.jpg (data.test=val where it is named so), any sizes; PNG too.
--- Teacher: a DeiT-Tiny with timm's names and as many classes as the data, as safetensors in teacher.weights; data.mean and
--- data.std are ImageNet's, as DeiT wants them.
---
--- On CIFAR-10, scaled up, with an untrained teacher: what the speed is measured with, not a result.
---   mkdir -p data/cifar10 && tar xf cifar10-jpeg.tar.xz -C data/cifar10     # train/airplane/..., test/airplane/...
---   cab run recipes/vim_tiny.lua data.root=data/cifar10 data.fraction=1 teacher.weights= stages.1.epochs=1 precision=bf16
local cab = require "cab"
return cab.recipe {
  data      = cab.data.folder { root = "data/imagenet", fraction = 0.1, size = 224, crop = "resized", flip = true, threads = 8 },
  teacher   = cab.models.vit { size = "tiny", weights = "data/deit_tiny.safetensors" },
  student   = cab.models.vim { size = "tiny", state = 16, decay = "identity" },
  stages    = { { loss = { soft = 1, align = { "attention_bridge", hidden = 128, weight = 3 } }, epochs = 300 } },
  optim     = { "adamw", lr = 6.25e-5, low = 1e-5, start = 1e-6, weight_decay = 0.05, schedule = "cosine", warmup = 5, cooldown = 10,
    ema = 0.99996 },                        -- lr: 5e-4 batch / 512
  batch     = 64, seed = 0, precision = "tf32",
  eval      = { every = 10 },
}
