--- `cab new`: small commented files that run as they are.
local core = require "cab.core"
local check = require "cab.check"
local lfs = require "lfs"
local M = {}

local files = {
  recipe = [==[
--- NAME: a Vision Mamba learns from a ViT, by soft labels and the attention bridge. Train it: cab run FILE
--- Other values without editing: cab run FILE optim.lr=2e-3 stages.1.loss.align=10. All keys: docs/recipe.md.
local cab = require "cab"
return cab.recipe {
  data    = cab.data.fashion { fraction = 0.05 },       -- 50 images a class of the embedded Fashion-MNIST; yours: cab.data.folder { root = "DIR" }
  teacher = cab.models.vit { image = 28, patch = 4, dim = 64, depth = 6, heads = 4, weights = "data/teacher_fashion.safetensors" },
  student = cab.models.vim { image = 28, patch = 4, dim = 32, depth = 4, state = 16 },
  pairs   = "proportional",                             -- which student layer learns from which teacher layer
  stages  = {                                           -- one after the other; each has its own losses
    { loss = { soft = 1, align = { "attention_bridge", weight = 3 } }, epochs = 5 },
  },
  optim   = { "adamw", lr = 1e-3, weight_decay = 0.05, schedule = "cosine", warmup = 1, clip = 1 },
  batch   = 50, seed = 0,
  eval    = { every = 1 },                              -- epochs
}
]==],
  strategy = [==[
--- NAME: aligns the student's hidden states with the teacher's, layer by layer. Try it: cab run FILE
--- In a recipe: local mine = dofile "FILE", then loss = { soft = 1, align = { mine, weight = 3 } }.
local cab = require "cab"
local op, nn = cab.op, cab.nn
local NAME = cab.strategy {
  name    = "NAME",
  needs   = { teacher = { "hidden" }, student = { "hidden" } }, -- taps; a name that a model does not have is an error
  options = { cosine = false },                                 -- align = { mine, cosine = true }
}
function NAME:build(pairs)                                      -- modules made here are trained and saved with the student
  self.lift = nn.list(pairs, function() return nn.linear(pairs.width, pairs.dim) end)
end
function NAME:loss(pairs)
  local sum, n = 0, 0
  for i, s, t in pairs:each() do                                -- t: teacher layer of student layer s, in the student's token order
    local lifted = self.lift[i](s.hidden)                       -- [batch, tokens, teacher's width]
    sum = sum + (self.cosine and op.cosine(lifted, t.hidden) or self:fit(lifted, t.hidden)) -- fit: mean square, with R2 for free
    n = n + 1
  end
  return sum / n
end
return NAME
]==],
  model = [==[
--- NAME: a student with linear attention, y = C (B' x) / tokens. Try it: cab run FILE
--- In a recipe: local NAME = dofile "FILE", then student = NAME { dim = 64, depth = 4 }. How a model is made: docs/models-howto.md.
local cab = require "cab"
local nn, op = cab.nn, cab.op
local Model = {}
--- images [b,C,H,W] -> logits [b,classes], taps by layer: B, C [b,l,N], hidden [b,l,D]
function Model:forward(images, wanted)
  local put, out = cab.taps.collector(wanted)                   -- a tap nobody asked for costs nothing
  local b, pixels = cab.models.enter(self, images)
  local D, N = self.width, self.state_size
  local patches = op.patch_embed(pixels, self.patch.weight, self.patch.bias)
  local x = cab.concat({ self.cls_token:expand { b, 1, D }, patches }, 2) + self.pos_embed
  for i, layer in ipairs(self.layers) do
    local v, B, C = layer.inner(layer.norm(x)):split(3, { D, N, N })
    put("B", i, B) put("C", i, C)
    x = x + layer.outer(op.silu(op.matmul(C, op.matmul(B:permute(1, 3, 2), v)) / self.tokens))
    put("hidden", i, x)
  end
  local logits = self.head(self.norm(x:slice(2, 1, 1):reshape(b, D)))
  put("logits", nil, logits)
  return logits, out
end
return cab.models.define {
  kind = "NAME", options = { state = { "integer", default = 16, min = 1 } }, -- beside the options of every image model
  new = function(o)
    local D, m = o.dim or 64, nn.module("NAME", Model)
    m.depth, m.width, m.state_size, m.side = o.depth or 4, D, o.state, cab.models.side(o)
    m.tokens, m.class_positions, m.place_class = m.side * m.side + 1, { 1 }, function() return { 1 } end
    m.taps, m.tap_size = cab.taps.declare { "B", "C", "hidden", "logits" }, { B = o.state, C = o.state, hidden = D }
    m.patch = nn.group("patch", { weight = nn.param({ D, o.channels, o.patch, o.patch }, nn.lecun(o.channels * o.patch * o.patch)),
      bias = nn.param({ D }, nn.constant(0), false) }, "weight", "bias")
    m.cls_token = nn.param({ 1, 1, D }, nn.trunc_normal(0.02), false)
    m.pos_embed = nn.param({ 1, m.tokens, D }, nn.trunc_normal(0.02), false)
    m.layers = nn.list(m.depth, function()
      return nn.group("layer", { norm = nn.layer_norm(D), inner = nn.linear(D, D + 2 * o.state), outer = nn.linear(D, D) }, "norm", "inner", "outer")
    end)
    m.norm, m.head = nn.layer_norm(D), nn.linear(D, o.classes)
    return m
  end,
}
]==],
}
M.kinds = { "model", "recipe", "strategy" }

--- Writes NAME.lua of a kind; an existing file is never replaced.
---@param kind string
---@param name string "mine" or "folder/mine.lua"
---@return string path
function M.write(kind, name)
  if not files[kind] then check.fail(2, "cab new: " .. check.unknown("kind", kind, M.kinds), { id = "usage" }) end
  local path = name:find "%.lua$" and name or name .. ".lua"
  local word = path:match "([^/]+)%.lua$"
  if not word or not word:find "^[%a_][%w_]*$" or load("local " .. word) == nil then
    check.fail(2, ("cab new: '%s' is no name: letters, digits and _, no word of Lua's"):format(core.escape(name)), { id = "usage" })
  end
  if lfs.symlinkattributes(path) then check.fail(2, path .. " exists; it is not replaced", { id = "usage", file = path }) end
  core.write_file(path, (files[kind]:gsub("NAME", word):gsub("FILE", (path:gsub("%%", "%%%%")))))
  return path
end

return M
