--- Vim-Tiny from DeiT-Tiny at 224 px with the attention bridge, on a part of ImageNet: the setting of arXiv:2510.19266, table 1.
--- cab run recipes/vim_tiny.lua preset=1%        1, 5, 10 or 20 % of each class, all with the same number of steps
--- cab run recipes/vim_tiny.lua preset=soft      without the bridge; preset=vanilla: labels alone, smoothed by 0.1
--- cab run recipes/vim_tiny.lua preset=reuse     the teacher's weights where they fit, then soft labels; preset=mohawk: three stages, the first
---                                               two a tenth of the epochs each (the paper does not say how long its were)
---
--- Teacher and data: see `missing` below. The colour jitter of the published arguments takes effect where data.augment= is empty:
--- beside RandAugment that pipeline leaves it out, and so does this one. On CIFAR-10: recipes/vim_tiny_cifar.lua.
local cab = require "cab"

local function part(fraction, epochs)
  return function(r) r.data.fraction, r.stages[1].epochs = fraction, epochs end
end

return cab.recipe {
  data = cab.data.imagenet { root = "data/imagenet", fraction = 0.1, size = 224, flip = true, augment = "rand-m9-mstd0.5-inc1", jitter = 0.3,
    erase = 0.25, mixup = 0.8, cutmix = 1, switch = 0.5, crop_ratio = 0.875, threads = 8 },
  teacher  = cab.models.vit { size = "tiny", weights = "data/deit_tiny.safetensors" },
  student  = cab.models.vim { size = "tiny", state = 16, decay = "identity" },
  stages   = { { loss = { soft = 1, align = { "attention_bridge", hidden = 128, weight = 3 } }, epochs = 300 } },
  optim    = { "adamw", lr = 6.25e-5, low = 1e-5, start = 1e-6, weight_decay = 0.05, beta1 = 0.9, beta2 = 0.999, eps = 1e-8,
    schedule = "cosine", warmup = 5, cooldown = 10, ema = 0.99996 },   -- lr: 5e-4 batch / 512
  batch    = 64, seed = 0, precision = "f32",     -- on a GPU tf32 or bf16 is faster: precision=bf16
  eval     = { every = 10 },
  presets  = {
    ["1%"] = part(0.01, 3000), ["5%"] = part(0.05, 600), ["10%"] = part(0.10, 300), ["20%"] = part(0.20, 150),
    soft = function(r) r.stages[1].loss = { soft = 1 } end,
    reuse = function(r) r.stages[1].loss = { weight_reuse = 1 } end,
    mohawk = function(r)
      local n = r.stages[1].epochs
      r.stages = { { loss = { mohawk_orientation = 1 }, epochs = n / 10 }, { loss = { mohawk_hidden = 1 }, epochs = n / 10 },
        { loss = { mohawk_transfer = { weight = 1, hard = 0 } }, epochs = n * 8 / 10 } }
    end,
    vanilla = function(r) r.stages[1].loss, r.teacher = { vanilla = { weight = 1, smoothing = 0.1 } }, nil end,
  },
  missing  = {
    data = "Put ILSVRC 2012 there as data/imagenet/train/n01440764/*.JPEG and data/imagenet/val/n01440764/*.JPEG (links will do); "
      .. "then: cab run recipes/vim_tiny.lua preset=10%",
    teacher = "Put DeiT-Tiny (deit_tiny_patch16_224 of timm, 5.7 M parameters, ImageNet's mean and std) there; "
      .. "then: cab run recipes/vim_tiny.lua preset=10%",
  },
}
