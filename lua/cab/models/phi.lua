--- Phi-1.5 and Phi-2: attention and MLP side by side off one norm, rotary positions on part of each head, biases everywhere;
--- parameter names of the published checkpoints. Source: arXiv:2309.05463.
local core = require "cab.core"
local nn = require "cab.nn"
local taps = require "cab.taps"
local build = require "cab.models.build"
local language = require "cab.models.language"
local options = require "cab.options"
local op = core.ops

local SIZES = { ["1.5"] = { dim = 2048, depth = 24, heads = 32, rotary = 32 }, ["2"] = { dim = 2560, depth = 32, heads = 32, rotary = 32 } }
local M = {
  kind = "phi", sizes = SIZES,
  options = language.schema(SIZES, "1.5", {
    heads = { "integer", min = 1 }, ratio = { "integer", default = 4, min = 1 }, positions = { "integer", default = 2048, min = 1 },
    rotary = { "integer", min = 2 },          -- elements of a head that turn; default: half of it
    base = { "number", default = 10000 },     -- of the angles
  }),
}
local TAPS = taps.declare { "q", "k", "v", "attention", "input", "hidden", "logits" }

local function linear(I, O) return nn.linear(I, O, { init = nn.trunc_normal(0.02), bias_init = nn.constant(0) }) end
M.linear = linear

--- y + MLP: D -> ratio D -> D with tanh GELU.
function M.mlp(D, ratio)
  local m = nn.module("mlp", { forward = function(self, y) return self.fc2(op.gelu(self.fc1(y), { approx = "tanh" })) end })
  m.fc1, m.fc2 = linear(D, ratio * D), linear(ratio * D, D)
  return m
end

local Attention = {}

function Attention:forward(y, put, wanted, i, run)
  local turn = { heads = self.heads, width = self.rotary, base = self.base, start = run.past }
  local q, k, v = op.rotary(self.q_proj(y), turn), op.rotary(self.k_proj(y), turn), self.v_proj(y)
  put("q", i, q) put("k", i, k) put("v", i, v)
  local a, map = language.attend(q, k, v, self.heads, run, i, wanted and wanted.attention)
  put("attention", i, map)
  return self.dense(a)
end

function Attention:cache(b, capacity, dtype, device) return language.attention_cache(b, capacity, self.width, dtype, device) end

--- @param o table kind, dim, heads, rotary?, base
function M.attention(o)
  local D, H = o.dim, o.heads
  if D % H ~= 0 then options.fail(2, "model-heads", ("%s: dim %d is not a multiple of heads %d"):format(o.kind, D, H)) end
  local m = nn.module("attention", Attention)
  m.heads, m.width, m.base, m.rotary = H, D, o.base, o.rotary or D // H // 4 * 2
  for _, name in ipairs { "q_proj", "k_proj", "v_proj", "dense" } do m[name] = linear(D, D) end
  return m
end

--- Layers whose mixer and MLP stand side by side: body of Phi and Phi-Mamba. embedding, layers, norm: the modules.
function M.body(model, ids, wanted, o, embedding, layers, norm)
  local put, out = taps.collector(wanted)
  local _, _, run = language.enter(model, ids, o)
  local x = build.cast(op.embedding(ids, embedding.weight), model.activations)
  return language.layers(model, run, { put, out }, x, norm, function(i, branch, residual)
    local L = layers[i]
    local y, sum = L.input_layernorm(branch, residual)
    if i > 1 then put("hidden", i - 1, sum) end
    put("input", i, sum)
    return (L.self_attn or L.mixer)(y, put, wanted, i, run) + L.mlp(y), sum
  end)
end

local Phi = {}

--- ids i32[b,l] -> y [b,l,D] after the last norm, taps: q, k (after rotary), v [b,l,H*P], attention [b,H,l,l], input and
--- hidden [b,l,D] (residual stream before and after the block) by layer. o: see language.enter.
---@param ids cab.Tensor
---@param wanted? table<string, true>
---@param o? table
function Phi:body(ids, wanted, o)
  return M.body(self, ids, wanted, o, self.model.embed_tokens, self.model.layers, self.model.final_layernorm)
end

function Phi:head() return self.lm_head.weight, self.lm_head.bias end

function Phi:mixers()
  local list = {}
  for i = 1, self.depth do list[i] = self.model.layers[i].self_attn end
  return list
end

--- @param o table resolved options
function M.new(o)
  o.kind = M.kind
  local m, inner = nn.module("phi", language.class(Phi)), nn.module("model", {})
  m.taps, m.depth, m.heads, m.width, m.vocab, m.positions = TAPS, o.depth, o.heads, o.dim, o.vocab, o.positions
  inner.embed_tokens = nn.embedding(o.vocab, o.dim)
  inner.layers = nn.list(o.depth, function()
    local parts = { input_layernorm = nn.layer_norm(o.dim, 1e-5), self_attn = M.attention(o), mlp = M.mlp(o.dim, o.ratio) }
    return nn.group("layer", parts, "input_layernorm", "self_attn", "mlp")
  end)
  inner.final_layernorm = nn.layer_norm(o.dim, 1e-5)
  m.model = inner
  m.lm_head = linear(o.dim, o.vocab)
  return m
end

return language.described(M)
