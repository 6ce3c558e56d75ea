--- A teacher for CIFAR-10 at 224 px: the ViT-Tiny of ImageNet with a new head, fine-tuned. Its weights are what
--- recipes/vim_tiny_cifar.lua distils from; any folder of images does with data.root=DIR, any ViT with student.weights=FILE.
local cab = require "cab"
return cab.recipe {
  data    = cab.data.folder { root = "data/cifar10", size = 224, mean = 0.5, std = 0.5, scale = { 0.4, 1 }, crop_ratio = 1, flip = true,
    mixup = 0.8, cutmix = 1, threads = 8 },
  student = cab.models.vit { size = "tiny", weights = "data/vit_tiny_patch16_224.safetensors", refit = "head" },
  stages  = { { loss = { vanilla = { weight = 1, smoothing = 0.1 } }, epochs = 5 } },
  optim   = { "adamw", lr = 1e-4, low = 1e-6, weight_decay = 0.05, schedule = "cosine", warmup = 0.5, clip = 1 },
  batch   = 128, seed = 0, precision = "f32",     -- on a GPU tf32 or bf16 is faster: precision=bf16
  eval    = { every = 1 },
  export  = "data/teacher_cifar.safetensors",
  missing = {
    data = "Put CIFAR-10 there as images, data/cifar10/train/airplane/*.jpg and data/cifar10/test/airplane/*.jpg "
      .. "(mkdir -p data/cifar10 && tar xf cifar10-jpeg.tar.xz -C data/cifar10); then: cab run recipes/teacher_cifar.lua",
    student = "Put timm's vit_tiny_patch16_224 of ImageNet-1k there (5.7 M parameters, mean = std = 0.5); then: cab run recipes/teacher_cifar.lua",
  },
}
