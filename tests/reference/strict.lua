-- Models saved here, for tests/reference/strict.py to load: build/cab run tests/reference/strict.lua FOLDER
local cab = require "cab"
local core = cab.core
local folder = arg[1]

local function model(name, description, extra, images)
  local m = description:build(extra)
  core.no_grad(function() -- values that are not those of a new model
    for _, p in ipairs(m:parameters()) do p.tensor:copy(p.tensor + core.normal(p.tensor:shape(), 0, 0.05, 7, p.name)) end
  end)
  local logits = core.no_grad(function() return (m:forward(images)) end)
  core.save(("%s/%s.safetensors"):format(folder, name), m:state(), { format = "pt" })
  core.save(("%s/%s.io.safetensors"):format(folder, name), { images = images, logits = logits })
end

local images = core.normal({ 2, 3, 32, 32 }, 0, 1, 1, "images")
model("vim", cab.models.vim { dim = 32, depth = 4, patch = 8, state = 8, decay = "s4d" }, { image = 32, classes = 10 }, images)
model("vit", cab.models.vit { dim = 32, depth = 2, heads = 2, patch = 8 }, { image = 32, classes = 10 }, images)
model("vit_distilled", cab.models.vit { dim = 32, depth = 2, heads = 2, patch = 8, distilled = true }, { image = 32, classes = 10 }, images)
