--- How large a teacher? Of 0.03, 0.3 (the embedded one) and 0.7 million parameters; the two others first: cab run recipes/teachers_fashion.lua.
--- 18 runs of about a minute on two cores.
local cab = require "cab"
local function vit(o)
  o.image, o.patch = 28, 4
  return function(r) r.teacher = cab.models.vit(o) end
end
local teachers = {
  small  = vit { dim = 32, depth = 2, heads = 2, weights = "runs/teacher_fashion_small.safetensors" },
  middle = vit { dim = 64, depth = 6, heads = 4, weights = "data/teacher_fashion.safetensors" },
  large  = vit { dim = 96, depth = 6, heads = 6, weights = "runs/teacher_fashion_large.safetensors" },
}
local missing = { teacher = "First: cab run recipes/teachers_fashion.lua" }
return cab.study {
  about = "The size of the teacher",
  base  = "recipes/vim_fashion.lua",
  arms = {
    { name = "soft", presets = teachers, missing = missing, stages = { { loss = { soft = 1 }, steps = 1000 } } },
    { name = "bridge", presets = teachers, missing = missing },
  },
  vary = { preset = { "small", "middle", "large" } }, seeds = { 0, 1, 2 }, against = "soft",
}
