--- What language models share: options, the check of ids, attention with a cache, the head. A model has body(ids, wanted, o) ->
--- y [b,l,D] after its last norm, taps; the rest stands here.
local core = require "cab.core"
local options = require "cab.options"
local build = require "cab.models.build"
local documents = require "cab.models.documents"
local op = core.ops
local M = {}

--- The options that every language model has; `more` are the model's own.
function M.schema(sizes, default, more)
  local schema = {
    size = { "string", default = default, one_of = options.names(sizes) }, vocab = { "integer", min = 1 }, dim = { "integer", min = 1 },
    depth = { "integer", min = 1 }, seed = { "integer", min = 0 }, dtype = { "string", one_of = { "f32", "f64" } }, weights = { "string" },
  }
  for k, v in pairs(more) do schema[k] = v end
  return schema
end

--- The model that comes out of M.new, described by a recipe.
function M.described(def)
  def.fallback = { vocab = 50257, seed = 0, dtype = "f32" }
  return build.described(def)
end

--- Checks ids i32[b,l] and prepares what the layers read: { segment?, place?, documents?, cache?, past }.
---@param model table
---@param o? table segment i32[b,l] (documents of packed rows), cache (from model:cache)
---@return integer b
---@return integer l
---@return table
function M.enter(model, ids, o)
  local s, dtype = ids:shape(), ids:dtype()
  if #s ~= 2 or s[2] < 1 or dtype ~= "i32" then
    options.fail(1, "model-ids", ("%s: ids are %s[%s], expected i32[b,l]"):format(model.kind, dtype, table.concat(s, ",")))
  end
  local cache, segment = o and o.cache, o and o.segment
  local past = cache and cache.past or 0
  if model.positions and past + s[2] > model.positions then
    options.fail(1, "model-positions", ("%s: %d tokens, the model has %d positions"):format(model.kind, past + s[2], model.positions))
  end
  if cache and past + s[2] > cache.capacity then
    options.fail(1, "model-cache", ("%s: %d tokens, the cache holds %d"):format(model.kind, past + s[2], cache.capacity))
  end
  if cache and segment then options.fail(1, "model-cache", model.kind .. ": segments are for whole sequences, not for a cache") end
  return s[1], s[2], documents.run { segment = segment, place = segment and op.places(segment), cache = cache, past = past }
end

--- What a layer reads that runs alone, outside model:body. @param o? table segment i32[b,l]
function M.alone(o)
  local segment = o and o.segment
  return documents.run { segment = segment, place = segment and op.places(segment), past = 0 }
end

-- One query [b,1,D] against the cached keys and values: [b,1,D].
local function attend_last(cache, q, heads, known)
  local b, D = q:size(1), q:size(3)
  local P = D // heads
  local function side(t) return t:slice(2, 1, known):reshape(b, known, heads, P):permute(1, 3, 2, 4) end
  local scores = op.matmul(q:reshape(b, heads, 1, P), side(cache.k):permute(1, 2, 4, 3)) * P ^ -0.5
  return op.matmul(op.softmax(scores), side(cache.v)):reshape(b, 1, D)
end

--- Causal attention of one layer: q, k, v [b,l,D] -> [b,l,D], map [b,H,l,l] if asked for.
function M.attend(q, k, v, heads, o, layer, map)
  local cache = o.cache and o.cache[layer]
  if cache then
    local l = q:size(2)
    cache.k:slice(2, o.past + 1, o.past + l):copy(k)
    cache.v:slice(2, o.past + 1, o.past + l):copy(v)
    if o.past > 0 and l > 1 then options.fail(1, "model-cache", "after the first tokens, a cache takes one token at a time") end
    if o.past > 0 then return attend_last(cache, q, heads, o.past + 1) end
  end
  if map and o.documents then
    options.fail(1, "model-attention", "attention maps are for rows of one document each")
  elseif map then
    return op.attention(q, k, v, { heads = heads, causal = true, map = true })
  end
  return (op.attention(q, k, v, o.place, { heads = heads, causal = true }))
end

--- Room for the keys and values of `capacity` tokens.
function M.attention_cache(b, capacity, width, dtype, device)
  return { k = core.zeros({ b, capacity, width }, dtype, device), v = core.zeros({ b, capacity, width }, dtype, device) }
end

--- Methods of every language model. A model has head() -> weight [V,D], bias [V] or nil.
M.methods = {}

--- y of body -> logits [..,vocab]; rows that only pad the table are left out.
function M.methods:logits(y)
  local w, b = self:head()
  local logits = build.cast(op.linear(y, w, b), self.dtype)
  return w:size(1) > self.vocab and logits:slice(logits:rank(), 1, self.vocab) or logits
end

--- ids i32[b,l] -> logits [b,l,vocab], taps. o: see M.enter.
---@param ids cab.Tensor
---@param wanted? table<string, true>
---@param o? table
function M.methods:forward(ids, wanted, o)
  local y, out = self:body(ids, wanted, o)
  local logits = self:logits(y)
  if wanted and wanted.logits then out.logits = logits end
  return logits, out
end

--- What generation keeps of b sequences of up to `capacity` tokens; pass it as o.cache, a prompt first, then one token at a time.
function M.methods:cache(b, capacity)
  local device = self:parameters()[1].tensor:device()
  local cache = { past = 0, capacity = capacity }
  for i, mixer in ipairs(self:mixers()) do cache[i] = mixer:cache(b, capacity, self.activations, device) end
  return cache
end

--- The table of methods of a model's module: `own` and those of above.
function M.class(own)
  for name, f in pairs(M.methods) do own[name] = own[name] or f end
  return own
end

--- `tensors` without the head, where a file holds it beside the embedding table that it is; 65 if they differ.
function M.untie(model, tensors, head, embedding)
  local a, b = tensors[head], tensors[embedding]
  if not (a and b) then return tensors end
  if table.concat(a:shape(), ",") ~= table.concat(b:shape(), ",") or op.mse(a, b):item() ~= 0 then
    options.fail(65, "tied-head", ("%s: '%s' is not '%s', but in this model the head is the embedding table"):format(model.kind, head, embedding))
  end
  local copy = {}
  for name, t in pairs(tensors) do copy[name] = t end
  copy[head] = nil
  return copy
end

--- Rows of an embedding table: vocab, rounded up to a multiple of `pad`.
function M.padded(vocab, pad) return (vocab + pad - 1) // pad * pad end

--- Runs the layers of model:body, each in a scope of its own: x, residual = step(i, x, residual), where x is the output of a
--- branch and residual the sum that it is yet to be added to. Returns the output of the last norm, and the taps.
---@param model table depth
---@param run table of M.enter
---@param collected table[] { put, out } of taps.collector
---@param x cab.Tensor
---@param norm cab.Module
---@param step fun(i: integer, x: cab.Tensor, residual?: cab.Tensor): cab.Tensor, cab.Tensor
function M.layers(model, run, collected, x, norm, step)
  local put, out = table.unpack(collected)
  local residual
  for i = 1, model.depth do
    local scope <close> = core.scope()
    local passed = { x, not (out.hidden or out.input) and residual or nil }
    x, residual = step(i, x, residual)
    build.keep(scope, out, i, passed, x, residual)
  end
  local y, sum = norm(x, residual)
  put("hidden", model.depth, sum)
  if run.cache then run.cache.past = run.past + y:size(2) end
  return y, out
end

return M
