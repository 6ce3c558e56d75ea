--- Phi-Mamba: Phi's blocks with a discrete Mamba-2 in place of attention; `attention` lists layers that keep it (a hybrid).
--- Parameter names of the published checkpoints. Source: arXiv:2408.10189.
local core = require "cab.core"
local build = require "cab.models.build"
local nn = require "cab.nn"
local taps = require "cab.taps"
local language = require "cab.models.language"
local options = require "cab.options"
local phi = require "cab.models.phi"
local recurrent = require "cab.models.recurrent"
local op = core.ops

local SIZES = { ["1.5b"] = { dim = 2048, depth = 24, heads = 32, state = 64 }, ["123m"] = { dim = 768, depth = 6, heads = 12, state = 64 } }
local M = {
  kind = "phi_mamba", sizes = SIZES,
  options = language.schema(SIZES, "123m", {
    heads = { "integer", min = 1 }, groups = { "integer", min = 1 }, -- heads of x; of B and C, default: as many
    state = { "integer", min = 1, max = 256 }, expand = { "integer", default = 1, min = 1 }, conv = { "integer", default = 4, min = 2, max = 8 },
    ratio = { "integer", default = 4, min = 1 }, chunk = { "integer", default = 64, min = 1, max = 256 },
    attention = { "table", default = {} },   -- layers (from 1) with Phi's attention
    rotary = { "integer", min = 2 }, base = { "number", default = 10000 },
  }),
}
local TAPS = taps.declare { "B", "C", "dt", "x", "z", "matrix", "mixing", "hidden", "logits" }

local Mixer = {}

--- in_proj: [x | B | C | z | a]; x, B, C through the convolution, without an activation. `a` has a product of its own: with its few
--- columns in them, rows of the others would not start on multiples of 16 bytes, which GPUs want.
function Mixer:forward(y, put, wanted, i, run)
  local E, S, H = self.E, self.groups * self.N, self.heads
  local zeros = function(n) return core.zeros({ n }, self.z_bias:dtype(), self.z_bias:device()) end
  local w, w_a = self.in_proj.weight:split(1, { 2 * E + 2 * S, H })
  local mixed, z = op.linear(y, w, core.concat({ zeros(E + 2 * S), self.z_bias }, 1)):split(3, { E + 2 * S, E })
  local a = op.linear(y, w_a)
  local x, B, C = recurrent.conv(self.conv1d, mixed, false, run, i):split(3, { E, S, S })
  put("x", i, x) put("B", i, B) put("C", i, C) put("z", i, z)
  if wanted and wanted.dt then put("dt", i, op.softplus(a)) end
  local args = { x = x, a = a, B = B, C = C, D = self.D, groups = self.groups, chunk = self.chunk }
  local mix = recurrent.ssd(args, run, i)
  for _, name in ipairs { "matrix", "mixing" } do
    if wanted and wanted[name] then put(name, i, recurrent.tiles(args)) end
  end
  return self.out_proj(op.gate(mix, z))
end

function Mixer:cache(b, _, dtype, device)
  local E, H, N = self.E, self.heads, self.N
  return { tail = core.zeros({ b, self.width - 1, E + 2 * self.groups * N }, dtype, device),
    state = core.zeros({ b, H, E // H, N }, dtype == "bf16" and "f32" or dtype, device) }
end

local function mixer(o)
  local D, E, H, G, N = o.dim, o.dim * o.expand, o.heads, o.groups or o.heads, o.state
  if E % H ~= 0 or H % G ~= 0 then
    options.fail(2, "model-heads", ("phi_mamba: width %d, %d heads and %d groups do not divide"):format(E, H, G))
  end
  local m = nn.module("mixer", Mixer)
  m.E, m.heads, m.groups, m.N, m.width, m.chunk = E, H, G, N, o.conv, o.chunk
  m.z_bias = nn.param({ E }, nn.constant(0), false)
  m.in_proj = nn.linear(D, 2 * E + 2 * G * N + H, { bias = false })
  m.conv1d = nn.conv1d(E + 2 * G * N, o.conv)
  m.D = nn.param({ H }, nn.constant(1), false)
  m.out_proj = nn.linear(E, D, { bias = false, init = nn.kaiming(E, o.depth ^ -0.5) })
  return m
end

local PhiMamba = {}

--- ids i32[b,l] -> y [b,l,D] after the last norm, taps by layer: B, C [b,l,groups*N] and x [b,l,E] as they enter the scan, z
--- [b,l,E], dt [b,l,heads] (softplus(a), the decay's rate), matrix (recurrent.tiles), hidden [b,l,D] (after the block). A layer
--- of a hybrid that kept its attention has no taps but hidden. o: see language.enter.
---@param ids cab.Tensor
---@param wanted? table<string, true>
---@param o? table
function PhiMamba:body(ids, wanted, o)
  return phi.body(self, ids, wanted, o, self.backbone.embedding, self.backbone.layers, self.backbone.final_layernorm)
end

--- Layer i alone, on a residual stream of its own: input [b,l,D] -> the stream after the block, taps of the layer.
function PhiMamba:layer(i, input, wanted, o)
  local put, out = taps.collector(wanted)
  local L, run = self.backbone.layers[i], language.alone(o)
  local y = build.cast((L.input_layernorm(input)), self.activations)
  return input + build.cast((L.self_attn or L.mixer)(y, put, wanted, i, run) + L.mlp(y), input:dtype()), out
end

function PhiMamba:head() return self.lm_head.weight, self.lm_head.bias end

function PhiMamba:mixers()
  local list = {}
  for i = 1, self.depth do
    local L = self.backbone.layers[i]
    list[i] = L.self_attn or L.mixer
  end
  return list
end

-- Layer numbers of a recipe as a set.
local function kept(o)
  local set = {}
  for _, i in ipairs(o.attention) do
    if not math.tointeger(i) or i < 1 or i > o.depth then
      options.fail(2, "model-attention", ("phi_mamba: attention names layer %s, expected 1 to %d"):format(tostring(i), o.depth))
    end
    set[math.tointeger(i)] = true
  end
  return set
end

--- @param o table resolved options
function M.new(o)
  o.kind = M.kind
  local m, b, attention = nn.module("phi_mamba", language.class(PhiMamba)), nn.module("backbone", {}), kept(o)
  m.taps, m.depth, m.width, m.vocab, m.state_size, m.attention = TAPS, o.depth, o.dim, o.vocab, (o.groups or o.heads) * o.state, attention
  m.groups, m.tap_size = o.groups or o.heads, { B = m.state_size, C = m.state_size, x = o.dim * o.expand, z = o.dim * o.expand, dt = o.heads, hidden = o.dim }
  b.embedding = nn.embedding(o.vocab, o.dim)
  b.layers = nn.list(o.depth, function(i)
    local L = nn.module("layer", {})
    L.input_layernorm = nn.layer_norm(o.dim, 1e-5)
    if attention[i] then L.self_attn = phi.attention(o) else L.mixer = mixer(o) end
    L.mlp = phi.mlp(o.dim, o.ratio)
    return L
  end)
  b.final_layernorm = nn.layer_norm(o.dim, 1e-5)
  m.backbone = b
  m.lm_head = phi.linear(o.dim, o.vocab)
  return m
end

return language.described(M)
