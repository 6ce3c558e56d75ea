--- GPT-2: pre-norm transformer, learned positions, causal attention, tanh GELU; parameter names and layouts of the published
--- checkpoints. Source: Radford et al. 2019, "Language models are unsupervised multitask learners".
local core = require "cab.core"
local nn = require "cab.nn"
local taps = require "cab.taps"
local build = require "cab.models.build"
local documents = require "cab.models.documents"
local language = require "cab.models.language"
local options = require "cab.options"
local op = core.ops

local SIZES = {
  distil = { dim = 768, depth = 6, heads = 12 }, small = { dim = 768, depth = 12, heads = 12 },
  medium = { dim = 1024, depth = 24, heads = 16 }, large = { dim = 1280, depth = 36, heads = 20 }, xl = { dim = 1600, depth = 48, heads = 25 },
}
local M = {
  kind = "gpt2", sizes = SIZES,
  options = language.schema(SIZES, "small", {
    heads = { "integer", min = 1 }, ratio = { "integer", default = 4, min = 1 }, positions = { "integer", default = 1024, min = 1 },
    tied = { "boolean", default = true },                                             -- the head is the embedding table
    layout = { "string", default = "in_out", one_of = { "in_out", "out_in" } },       -- of weights: GPT-2 [in,out], minGPT [out,in]
  }),
}
local TAPS = taps.declare { "q", "k", "v", "attention", "input", "hidden", "logits" }

-- A linear of either layout; residual branches begin smaller, by the number of them.
local function linear(o, I, O, branch)
  local init, in_out = nn.trunc_normal(branch and 0.02 * (2 * o.depth) ^ -0.5 or 0.02), o.layout == "in_out"
  local m = nn.module("linear", {
    forward = function(self, x) return op.linear(x, in_out and self.weight:permute(2, 1) or self.weight, self.bias) end,
  })
  m.weight = nn.param(in_out and { I, O } or { O, I }, init)
  m.bias = nn.param({ O }, nn.constant(0), false)
  return m
end

local function block(o)
  local D, m = o.dim, nn.module("block", {})
  m.ln_1 = nn.layer_norm(D, 1e-5)
  m.attn = nn.group("attention", { c_attn = linear(o, D, 3 * D), c_proj = linear(o, D, D, true) }, "c_attn", "c_proj")
  m.ln_2 = nn.layer_norm(D, 1e-5)
  m.mlp = nn.group("mlp", { c_fc = linear(o, D, o.ratio * D), c_proj = linear(o, o.ratio * D, D, true) }, "c_fc", "c_proj")
  return m
end

local GPT2 = {}

--- ids i32[b,l] -> y [b,l,D] after the last norm, taps: q, k, v [b,l,H*P] as they enter the score product, attention [b,H,l,l],
--- input and hidden [b,l,D] (residual stream before and after the block) by layer. o: see language.enter.
---@param ids cab.Tensor
---@param wanted? table<string, true>
---@param o? table
function GPT2:body(ids, wanted, o)
  local put, out = taps.collector(wanted)
  local _, _, run = language.enter(self, ids, o)
  local T, D = self.transformer, self.width
  local places = documents.positions(run, ids)
  local x = build.cast(op.embedding(ids, T.wte.weight) + op.embedding(places, T.wpe.weight), self.activations)
  return language.layers(self, run, { put, out }, x, T.ln_f, function(i, branch, residual)
    local B = T.h[i]
    local y, sum = B.ln_1(branch, residual)
    if i > 1 then put("hidden", i - 1, sum) end
    put("input", i, sum)
    local q, k, v = B.attn.c_attn(y):split(3, { D, D, D })
    put("q", i, q) put("k", i, k) put("v", i, v)
    local a, map = language.attend(q, k, v, self.heads, run, i, wanted and wanted.attention)
    put("attention", i, map)
    y, sum = B.ln_2(B.attn.c_proj(a), sum)
    return B.mlp.c_proj(op.gelu(B.mlp.c_fc(y), { approx = "tanh" })), sum
  end)
end

function GPT2:head() return self.tied and self.transformer.wte.weight or self.lm_head.weight end

function GPT2:mixers()
  local list = {}
  for i = 1, self.depth do
    list[i] = { cache = function(_, b, capacity, dtype, device) return language.attention_cache(b, capacity, self.width, dtype, device) end }
  end
  return list
end

--- A file of a model with a tied head may hold it a second time.
function GPT2:adapt(tensors, prefix)
  if not self.tied then return tensors end
  return language.untie(self, tensors, prefix .. "lm_head.weight", prefix .. "transformer.wte.weight")
end

--- @param o table resolved options
function M.new(o)
  local D = o.dim
  if D % o.heads ~= 0 then options.fail(2, "model-heads", ("gpt2: dim %d is not a multiple of heads %d"):format(D, o.heads)) end
  local m = nn.module("gpt2", language.class(GPT2))
  m.taps, m.depth, m.heads, m.width, m.vocab, m.positions, m.tied = TAPS, o.depth, o.heads, D, o.vocab, o.positions, o.tied
  local t = nn.module("transformer", {})
  t.wte = nn.embedding(o.vocab, D)
  t.wpe = nn.embedding(o.positions, D, false)
  t.h = nn.list(o.depth, function() return block(o) end)
  t.ln_f = nn.layer_norm(D, 1e-5)
  m.transformer = t
  if not o.tied then m.lm_head = nn.linear(D, o.vocab, { bias = false, init = nn.trunc_normal(0.02) }) end
  return m
end

return language.described(M)
