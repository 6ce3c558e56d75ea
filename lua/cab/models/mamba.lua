--- Mamba and Mamba-2 language models in the layout of mamba_ssm: norm, mixer, residual sum; the head is the embedding table.
--- Source: arXiv:2312.00752, arXiv:2405.21060.
local core = require "cab.core"
local nn = require "cab.nn"
local taps = require "cab.taps"
local build = require "cab.models.build"
local language = require "cab.models.language"
local options = require "cab.options"
local recurrent = require "cab.models.recurrent"
local selective = require "cab.models.selective"
local op = core.ops

-- ---- the mixer of Mamba-2 ------------------------------------------------------------------------------------------------

local Mixer2 = {}

-- y [b,l,E] normalised in each of its groups: w y / sqrt(mean of squares).
local function group_norm(self, y)
  if self.groups == 1 then return (self.norm(y)) end
  local b, l, E = y:size(1), y:size(2), self.E
  local ones = core.ones({ E // self.groups }, self.norm.weight:dtype(), y:device())
  local normal = op.rms_norm(y:reshape(b, l, self.groups, E // self.groups), ones, { eps = self.norm.eps })
  return normal:reshape(b, l, E) * build.cast(self.norm.weight, y:dtype())
end

--- in_proj: [z | x | B | C | dt]; x, B, C through the convolution and SiLU.
function Mixer2:forward(h, put, wanted, i, run)
  local E, S, H = self.E, self.groups * self.N, self.heads
  local z, mixed, raw = self.in_proj(h):split(3, { E, E + 2 * S, H })
  local x, B, C = recurrent.conv(self.conv1d, mixed, true, run, i):split(3, { E, S, S })
  local dt = op.softplus(raw + build.cast(self.dt_bias, raw:dtype()))
  put("x", i, x) put("B", i, B) put("C", i, C) put("dt", i, dt) put("z", i, z)
  local a = dt * build.cast(-op.exp(self.A_log), dt:dtype())
  local args = { x = x, a = a, B = B, C = C, dt = dt, D = self.D, groups = self.groups, chunk = self.chunk, decay = "log" }
  local y = recurrent.ssd(args, run, i)
  for _, name in ipairs { "matrix", "mixing" } do
    if wanted and wanted[name] then put(name, i, recurrent.tiles(args)) end
  end
  return self.out_proj(group_norm(self, op.gate(y, z)))
end

function Mixer2:cache(b, _, dtype, device)
  local E, H, N = self.E, self.heads, self.N
  return { tail = core.zeros({ b, self.width - 1, E + 2 * self.groups * N }, dtype, device),
    state = core.zeros({ b, H, E // H, N }, dtype == "bf16" and "f32" or dtype, device) }
end

-- log of U(1, 16), one for each head.
local function rates(shape, seed, name, dtype) return op.log(core.uniform(shape, 1, 16, seed, name, "f64")):to(dtype) end

local function mixer2(o)
  local D, E, G, N = o.dim, o.dim * o.expand, o.groups, o.state
  if E % o.head ~= 0 or E // o.head % G ~= 0 then
    options.fail(2, "model-heads", ("mamba2: width %d, heads of %d and %d groups do not divide"):format(E, o.head, G))
  end
  local m, H = nn.module("mixer", Mixer2), E // o.head
  m.E, m.heads, m.groups, m.N, m.width, m.chunk = E, H, G, N, o.conv, o.chunk
  m.dt_bias = nn.param({ H }, selective.dt_bias, false)
  m.A_log = nn.param({ H }, rates, false)
  m.D = nn.param({ H }, nn.constant(1), false)
  m.in_proj = nn.linear(D, 2 * E + 2 * G * N + H, { bias = false })
  m.conv1d = nn.conv1d(E + 2 * G * N, o.conv)
  m.norm = nn.rms_norm(E)
  m.out_proj = nn.linear(E, D, { bias = false, init = nn.kaiming(E, o.depth ^ -0.5) })
  return m
end

-- ---- the model -----------------------------------------------------------------------------------------------------------

local LM = {}

--- ids i32[b,l] -> y [b,l,D] after the last norm, taps by layer: B, C, x as they enter the scan, dt (after softplus), z [b,l,*];
--- matrix (Mamba: [b,l,l], the mean over channels, no gradient; Mamba-2: recurrent.tiles); hidden [b,l,D] (residual stream after
--- the layer). o: see language.enter.
---@param ids cab.Tensor
---@param wanted? table<string, true>
---@param o? table
function LM:body(ids, wanted, o)
  local put, out = taps.collector(wanted)
  local _, _, run = language.enter(self, ids, o)
  local x = build.cast(op.embedding(ids, self.backbone.embedding.weight), self.activations)
  return language.layers(self, run, { put, out }, x, self.backbone.norm_f, function(i, branch, residual)
    local L = self.backbone.layers[i]
    local y, sum = L.norm(branch, residual)
    if i > 1 then put("hidden", i - 1, sum) end
    return L.mixer(y, put, wanted, i, run), sum
  end)
end

--- Layer i alone, on a residual stream of its own: input [b,l,D] -> the stream after the layer, taps of the layer.
function LM:layer(i, input, wanted, o)
  local put, out = taps.collector(wanted)
  local L = self.backbone.layers[i]
  local y = build.cast((L.norm(input)), self.activations)
  return input + build.cast(L.mixer(y, put, wanted, i, language.alone(o)), input:dtype()), out
end

function LM:head() return self.backbone.embedding.weight end

function LM:mixers()
  local list = {}
  for i = 1, self.depth do list[i] = self.backbone.layers[i].mixer end
  return list
end

--- A file may hold the head, which is the embedding table, a second time.
function LM:adapt(tensors, prefix)
  return language.untie(self, tensors, prefix .. "lm_head.weight", prefix .. "backbone.embedding.weight")
end

-- The kind of model whose layers have mixer(o).
local function kind(name, sizes, more, mixer, bridge_width)
  local M = { kind = name, sizes = sizes, options = language.schema(sizes, "130m", more) }
  more.pad = { "integer", default = 8, min = 1 } -- the table's rows are a multiple of this
  more.conv, more.expand = { "integer", default = 4, min = 2, max = 8 }, { "integer", default = 2, min = 1 }
  for k, v in pairs(more) do M.options[k] = v end
  local TAPS = taps.declare { "B", "C", "dt", "x", "z", "matrix", "mixing", "hidden", "logits" }
  function M.new(o)
    local m, b = nn.module(name, language.class(LM)), nn.module("backbone", {})
    m.taps, m.depth, m.width, m.vocab, m.state_size = TAPS, o.depth, o.dim, o.vocab, bridge_width(o)
    local E = o.dim * o.expand
    m.groups, m.tap_size = o.groups or 1, { B = m.state_size, C = m.state_size, x = E, z = E, dt = o.head and E // o.head or E, hidden = o.dim }
    b.embedding = nn.embedding(language.padded(o.vocab, o.pad), o.dim)
    b.layers = nn.list(o.depth, function()
      return nn.group("layer", { mixer = mixer(o), norm = nn.rms_norm(o.dim) }, "mixer", "norm")
    end)
    b.norm_f = nn.rms_norm(o.dim)
    m.backbone = b
    return m
  end
  return language.described(M)
end

local function sizes(...)
  local list = {}
  for _, s in ipairs { ... } do list[s[1]] = { dim = s[2], depth = s[3] } end
  return list
end

return {
  mamba = kind("mamba", sizes({ "130m", 768, 24 }, { "370m", 1024, 48 }, { "790m", 1536, 48 }, { "1.4b", 2048, 48 }, { "2.8b", 2560, 64 }),
    { state = { "integer", default = 16, min = 1, max = 256 }, rank = { "integer", min = 1 },
      decay = { "string", default = "s4d", one_of = { "identity", "s4d" } } },
    function(o) return selective.new(o) end, function(o) return o.state end),
  mamba2 = kind("mamba2", sizes({ "130m", 768, 24 }, { "370m", 1024, 48 }, { "780m", 1536, 48 }, { "1.3b", 2048, 48 }, { "2.7b", 2560, 64 }),
    { state = { "integer", default = 128, min = 1, max = 256 }, head = { "integer", default = 64, min = 1, max = 256 },
      groups = { "integer", default = 1, min = 1 }, chunk = { "integer", default = 64, min = 1, max = 256 } },
    mixer2, function(o) return o.groups * o.state end),
}
