--- Vim: bidirectional Mamba for images; parameter names of the published checkpoints. Source: arXiv:2401.09417.
local core = require "cab.core"
local nn = require "cab.nn"
local options = require "cab.options"
local taps = require "cab.taps"
local build = require "cab.models.build"
local recompute = require "cab.recompute"
local mixing = require "cab.mixing"
local op = core.ops

local SIZES = { tiny = { dim = 192, depth = 24 }, small = { dim = 384, depth = 24 }, base = { dim = 768, depth = 24 } }
local M = {
  kind = "vim", sizes = SIZES,
  options = build.schema(SIZES, {
    state = { "integer", default = 16, min = 1, max = 256 }, expand = { "integer", default = 2, min = 1 },
    conv = { "integer", default = 4, min = 1, max = 8 }, rank = { "integer", min = 1 }, stride = { "integer", min = 1 },
    class_token = { "string", default = "middle", one_of = { "middle", "head", "double" } },
    decay = { "string", default = "identity", one_of = { "identity", "s4d" } },
    halve = { "boolean", default = true }, -- the mean of both directions, not their sum
    recompute = { "boolean", default = false }, -- backward runs the mixers again instead of keeping their tensors: a sixth of the memory
  }),
}
local TAPS = taps.declare({ "B", "C", "dt", "x", "z", "matrix", "mixing", "hidden", "logits" }, { "B", "C", "dt", "x", "matrix", "mixing" })
local WIDEST = 16 -- rank up to which the scan applies dt_proj: of more columns a product of their own is faster
local DIRECTIONS = { "", "_b" } -- forward, backward: the suffix of parameters and taps

-- b_dt with softplus(b_dt) = exp(U(log 1e-3, log 1e-1)): x + log(1 - exp(-x)), in f64.
local function dt_bias(shape, seed, name, dtype)
  local dt = op.exp(core.uniform(shape, math.log(1e-3), math.log(1e-1), seed, name, "f64"))
  return (dt + op.log(1 - op.exp(-dt))):to(dtype)
end

-- A_log [E,N]: -20 (A near 0, exp(delta A) near the identity) or log(1..N) in each row (S4D-real).
local decays = { identity = nn.constant(-20) }
function decays.s4d(shape, _, _, dtype)
  return op.log(core.arange(shape[2]):to("f64") + 1):expand(shape):clone():to(dtype)
end

local function conv(E, width)
  local m = nn.module("conv1d", {})
  m.weight = nn.param({ E, 1, width }, nn.kaiming(width))
  m.bias = nn.param({ E }, nn.kaiming(width), false)
  return m
end

local Mixer = {}

-- What one direction's scan reads, from x [b,l,E]: u, dt, A, B, C, D, bias, weight, named for op.scan_pair; whether softplus is to
-- come. The scan applies dt_proj, so that dt [b,l,E] reaches memory only where it is looked at. Taps in natural token order.
function Mixer:direction(x, suffix, put, wanted, layer, args)
  local reverse = suffix == "_b"
  local dt_proj, A_log = self["dt_proj" .. suffix], self[reverse and "A_b_log" or "A_log"]
  local cv = self["conv1d" .. suffix]
  local u = op.conv1d(x, cv.weight, cv.bias, { reverse = reverse })
  local low, B, C = self["x_proj" .. suffix](u):split(3, { self.rank, self.N, self.N })
  local dt, weight, bias, soft = low, dt_proj.weight, dt_proj.bias, true
  local wants = wanted or {}
  if wants.dt or wants.matrix or wants.mixing or self.rank > WIDEST then dt, weight = op.linear(low, weight), nil end
  if wants.dt then dt, bias, soft = op.softplus(dt + build.cast(bias, dt:dtype())), nil, false end
  local A = -op.exp(A_log)
  put("x", layer, u, suffix) put("B", layer, B, suffix) put("C", layer, C, suffix) put("dt", layer, dt, suffix)
  if wants.matrix then
    put("matrix", layer, op.scan_matrix(dt, A, B, C, bias, { softplus = soft, reverse = reverse }), suffix)
  end
  if wants.mixing then
    put("mixing", layer, mixing.scan { dt = dt, A = A, B = B, C = C, bias = bias, softplus = soft, reverse = reverse }, suffix)
  end
  local read = { u = u, dt = dt, A = A, B = B, C = C, D = self["D" .. suffix], bias = bias, weight = weight }
  for name, t in pairs(read) do args[name .. suffix] = t end
  args.softplus = soft
end

function Mixer:forward(h, put, wanted, layer)
  if self.recompute and wanted and wanted.mixing then options.fail(2, "model-recompute", "vim: the tap 'mixing' is not there with recompute = true") end
  local names
  -- What out_proj reads, then the taps that are wanted, which `names` tells.
  local function inner(input)
    local x, z = self.in_proj(input):split(3, { self.E, self.E })
    local args, found = {}, {}
    names = {}
    local function take(name, _, t, suffix)
      if wanted and wanted[name] then names[#names + 1], found[#found + 1] = { name, suffix }, t end
    end
    take("z", layer, z)
    for _, suffix in ipairs(DIRECTIONS) do self:direction(x, suffix, take, wanted, layer, args) end
    local y, y_b = op.scan_pair(args)
    return op.gate(y, z, y_b, { scale = self.scale }), table.unpack(found)
  end
  local out = self.recompute and core.grad_enabled() and { recompute(inner, h) } or { inner(h) }
  for i, name in ipairs(names) do put(name[1], layer, out[i + 1], name[2]) end
  return self.out_proj(out[1])
end

local function mixer(o)
  local D, E, N = o.dim, o.dim * o.expand, o.state
  local R = o.rank or math.ceil(D / 16)
  local m = nn.module("mixer", Mixer)
  m.E, m.N, m.rank, m.scale, m.recompute = E, N, R, o.halve and 0.5 or 1, o.recompute
  m.in_proj = nn.linear(D, 2 * E, { bias = false })
  for _, s in ipairs(DIRECTIONS) do
    m["conv1d" .. s] = conv(E, o.conv)
    m["x_proj" .. s] = nn.linear(E, R + 2 * N, { bias = false })
    m["dt_proj" .. s] = nn.linear(R, E, { bias_init = dt_bias })
    m[s == "" and "A_log" or "A_b_log"] = nn.param({ E, N }, decays[o.decay], false)
    m["D" .. s] = nn.param({ E }, nn.constant(1), false)
  end
  m.out_proj = nn.linear(E, D, { bias = false, init = nn.kaiming(E, o.depth ^ -0.5) })
  return m
end

local function layer(o)
  local m = nn.module("layer", {})
  m.mixer, m.norm = mixer(o), nn.rms_norm(o.dim)
  return m
end

local Vim = {}

-- Patches [b,M,D] with the class token(s) at self.class_positions.
function Vim:insert_class(x, b)
  local parts, start = {}, 1
  for i, p in ipairs(self.class_positions) do
    local before = p - i -- patches before this class token
    if before >= start then parts[#parts + 1] = x:slice(2, start, before) end
    parts[#parts + 1] = build.cast(self[self.class_names[i]], self.activations):expand { b, 1, self.width }
    start = math.max(start, before + 1)
  end
  if start <= x:size(2) then parts[#parts + 1] = x:slice(2, start, x:size(2)) end
  return core.concat(parts, 2)
end

-- The mean over class tokens of y [b,l,D] -> [b,D].
function Vim:read_class(y, b)
  local sum
  for _, p in ipairs(self.class_positions) do
    local c = y:slice(2, p, p):reshape(b, self.width)
    sum = sum and sum + c or c
  end
  return #self.class_positions > 1 and sum / #self.class_positions or sum
end

--- images [b,C,H,W] -> logits [b,classes], taps by layer: B, C [b,l,N] (before delta), dt (delta, after softplus), x (scan
--- input) [b,l,E], matrix [b,l,l] (implicit attention, no gradient), mixing (the same in tiles, cab.mixing, with gradients), each
--- also as NAME_b for the backward direction; z [b,l,E]; hidden [b,l,D] (residual stream after the layer); logits. With bf16
--- activations the taps are bf16, but for hidden and logits.
---@param images cab.Tensor
---@param wanted? table<string, true>
function Vim:forward(images, wanted)
  local put, out = taps.collector(wanted)
  local b, pixels = build.enter(self, images)
  local patch = self.patch_embed.proj
  local x = op.patch_embed(pixels, patch.weight, patch.bias, { stride = self.stride })
  x = self:insert_class(x, b) + build.cast(self.pos_embed, self.activations)
  local residual, y -- x: the last mixer's output, not yet added to the residual stream
  for i = 1, self.depth do
    local scope <close> = core.scope()
    local L, passed = self.layers[i], { x, not out.hidden and residual or nil }
    y, residual = L.norm(x, residual)
    if i > 1 then put("hidden", i - 1, residual) end
    x = L.mixer(y, put, wanted, i)
    build.keep(scope, out, i, passed, x, residual)
  end
  y, residual = self.norm_f(x, residual)
  put("hidden", self.depth, residual)
  local logits = build.cast(self.head(self:read_class(y, b)), self.dtype)
  put("logits", nil, logits)
  return logits, out
end

--- Layer i alone, on a residual stream of its own: input [b,l,D] -> the stream after the layer, taps of the layer by name and number.
---@param i integer
---@param input cab.Tensor
---@param wanted? table<string, true>
function Vim:layer(i, input, wanted)
  local put, out = taps.collector(wanted)
  local L = self.layers[i]
  local y = build.cast((L.norm(input)), self.activations)
  return input + build.cast(L.mixer(y, put, wanted, i), input:dtype()), out
end

-- Places of the class token(s) among `patches` patches, 1-based, and their parameter names.
local places = {
  middle = function(patches) return { patches // 2 + 1 } end,
  head = function() return { 1 } end,
  double = function(patches) return { 1, patches + 2 } end,
}

--- @param o table resolved options
function M.new(o)
  local D = o.dim
  local m = nn.module("vim", Vim)
  m.taps, m.depth, m.width, m.directions, m.state_size = TAPS, o.depth, D, DIRECTIONS, o.state
  m.tap_size = { B = o.state, C = o.state, dt = D * o.expand, x = D * o.expand, z = D * o.expand, hidden = D }
  m.side, m.stride, m.place_class = build.side(o), o.stride or o.patch, places[o.class_token]
  m.class_positions, m.mix_scale = m.place_class(m.side * m.side), o.halve and 0.5 or 1
  m.tokens = m.side * m.side + #m.class_positions
  m.class_names = o.class_token == "double" and { "cls_token_head", "cls_token_tail" } or { "cls_token" }
  for _, name in ipairs(m.class_names) do m[name] = nn.param({ 1, 1, D }, nn.trunc_normal(0.02), false) end
  m.pos_embed = nn.param({ 1, m.tokens, D }, nn.trunc_normal(0.02), false)
  local proj, holder = nn.module("patch", {}), nn.module("patch_embed", {})
  proj.weight = nn.param({ D, o.channels, o.patch, o.patch }, nn.lecun(o.channels * o.patch * o.patch))
  proj.bias = nn.param({ D }, nn.constant(0), false)
  holder.proj = proj
  m.patch_embed = holder
  m.layers = nn.list(o.depth, function() return layer(o) end)
  m.norm_f = nn.rms_norm(D)
  m.head = nn.linear(D, o.classes, { init = nn.trunc_normal(0.02), bias_init = nn.constant(0) })
  return m
end

return build.described(M)
