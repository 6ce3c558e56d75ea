--- ViT / DeiT: pre-norm transformer, class token first, exact GELU; parameter names of timm. Distilled: a second token after
--- it with a head of its own, the logits are the mean of both heads.
--- Source: arXiv:2010.11929, arXiv:2012.12877.
local core = require "cab.core"
local nn = require "cab.nn"
local taps = require "cab.taps"
local build = require "cab.models.build"
local options = require "cab.options"
local op = core.ops

local SIZES = {
  tiny = { dim = 192, depth = 12, heads = 3 }, small = { dim = 384, depth = 12, heads = 6 },
  base = { dim = 768, depth = 12, heads = 12 }, large = { dim = 1024, depth = 24, heads = 16 },
}
local M = {
  kind = "vit", sizes = SIZES,
  options = build.schema(SIZES, { heads = { "integer", min = 1 }, ratio = { "integer", default = 4, min = 1 },
    distilled = { "boolean", default = false } }),
}
local TAPS = taps.declare { "q", "k", "v", "attention", "input", "hidden", "logits" }

local function linear(I, O)
  return nn.linear(I, O, { init = nn.trunc_normal(0.02), bias_init = nn.constant(0) })
end

local function plain(kind, children)
  local m = nn.module(kind, {})
  for _, c in ipairs(children) do m[c[1]] = c[2] end
  return m
end

-- A block without its norms' joins: those are fused with the residual sums in forward.
local function block(D, ratio)
  return plain("block", {
    { "norm1", nn.layer_norm(D) },
    { "attn", plain("attention", { { "qkv", linear(D, 3 * D) }, { "proj", linear(D, D) } }) },
    { "norm2", nn.layer_norm(D) },
    { "mlp", plain("mlp", { { "fc1", linear(D, ratio * D) }, { "fc2", linear(ratio * D, D) } }) },
  })
end

-- Attention of q, k, v [b,l,D], or by a map [b,H,l,l] that is given; the map too if asked for.
local function attend(q, k, v, heads, given, map)
  if not given then return op.attention(q, k, v, { heads = heads, map = map }) end
  local b, l, D = v:size(1), v:size(2), v:size(3)
  local y = op.matmul(given, v:reshape(b, l, heads, D // heads):permute(1, 3, 2, 4))
  return y:permute(1, 3, 2, 4):reshape(b, l, D), given
end

local ViT = {}

--- images [b,C,H,W] -> logits [b,classes], taps: q, k, v [b,l,H*P] (heads side by side), attention [b,H,l,l], input
--- and hidden [b,l,D] (residual stream before and after the block) by layer; logits. With bf16 activations the taps are bf16, but for hidden and logits.
---@param images cab.Tensor
---@param wanted? table<string, true>
function ViT:forward(images, wanted)
  local put, out = taps.collector(wanted)
  local D, dtype = self.width, self.activations
  local b, pixels = build.enter(self, images)
  local x = op.patch_embed(pixels, self.patch_embed.proj.weight, self.patch_embed.proj.bias)
  local class = build.cast(self.cls_token, dtype):expand { b, 1, D }
  local parts = self.distilled and { class, build.cast(self.dist_token, dtype):expand { b, 1, D }, x } or { class, x }
  x = core.concat(parts, 2) + build.cast(self.pos_embed, dtype)
  local lent = self.borrow and self.borrow(images) -- by layer, what comes from a teacher: pairs:lend
  local residual, y -- x: the last branch's output, not yet added to the residual stream
  for i = 1, self.depth do
    local scope <close> = core.scope()
    local B, passed = self.blocks[i], { x, residual }
    y, residual = B.norm1(x, residual)
    if i > 1 then put("hidden", i - 1, residual) end
    put("input", i, residual)
    local q, k, v = B.attn.qkv(y):split(3, { D, D, D })
    if lent then q, k, v = lent[i].q or q, lent[i].k or k, lent[i].v or v end
    put("q", i, q) put("k", i, k) put("v", i, v)
    local a, map = attend(q, k, v, self.heads, lent and lent[i].attention, wanted and wanted.attention or false)
    put("attention", i, map)
    y, residual = B.norm2(B.attn.proj(a), residual)
    x = B.mlp.fc2(op.gelu(B.mlp.fc1(y)))
    build.keep(scope, out, i, passed, x, residual)
  end
  y, residual = self.norm(x, residual)
  put("hidden", self.depth, residual)
  local logits = self.head(y:slice(2, 1, 1):reshape(b, D))
  if self.distilled then logits = (logits + self.head_dist(y:slice(2, 2, 2):reshape(b, D))) / 2 end
  logits = build.cast(logits, self.dtype)
  put("logits", nil, logits)
  return logits, out
end

--- @param o table resolved options
function M.new(o)
  local D = o.dim
  if D % o.heads ~= 0 then
    options.fail(2, "model-heads", ("vit: dim %d is not a multiple of heads %d"):format(D, o.heads))
  end
  local m = nn.module("vit", ViT)
  m.taps, m.depth, m.heads, m.width, m.directions = TAPS, o.depth, o.heads, D, { "" }
  m.tap_size = { q = D, k = D, v = D, hidden = D }
  m.side = build.side(o)
  m.distilled, m.class_positions = o.distilled, o.distilled and { 1, 2 } or { 1 }
  m.tokens = m.side * m.side + #m.class_positions
  m.place_class = function() return m.class_positions end
  local fan = o.channels * o.patch * o.patch
  m.cls_token = nn.param({ 1, 1, D }, nn.trunc_normal(0.02), false)
  if o.distilled then m.dist_token = nn.param({ 1, 1, D }, nn.trunc_normal(0.02), false) end
  m.pos_embed = nn.param({ 1, m.tokens, D }, nn.trunc_normal(0.02), false)
  local proj = plain("patch", {
    { "weight", nn.param({ D, o.channels, o.patch, o.patch }, nn.lecun(fan)) },
    { "bias", nn.param({ D }, nn.constant(0), false) },
  })
  m.patch_embed = plain("patch_embed", { { "proj", proj } })
  m.blocks = nn.list(o.depth, function() return block(D, o.ratio) end)
  m.norm = nn.layer_norm(D)
  m.head = linear(D, o.classes)
  if o.distilled then m.head_dist = linear(D, o.classes) end
  return m
end

return build.described(M)
