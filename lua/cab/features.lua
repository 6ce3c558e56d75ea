--- Feature maps of a learned linear attention, a head each, for the teacher layers in use: phi(q) phi(k)' in place of
--- exp(q k' / sqrt P). Sources: arXiv 2402.04347 (the pair of softmaxes), 2604.14191 (then into a Mamba).
local core = require "cab.core"
local mixing = require "cab.mixing"
local nn = require "cab.nn"
local options = require "cab.options"
local op = core.ops
local M = {}

M.kinds = { "hedgehog", "linear" }
M.distances = { "cosine", "cross_entropy" }

local Features = {}

-- [b,l,H*P] -> [b,H,l,P], and back.
local function split(x, heads) return x:reshape(x:size(1), x:size(2), heads, x:size(3) // heads):permute(1, 3, 2, 4) end
local function join(x) return x:permute(1, 3, 2, 4):reshape(x:size(1), x:size(3), x:size(2) * x:size(4)) end

-- phi of one layer's q or k, [b,H,l,P] -> [b,H,l,F].
local function phi(self, layer, name, x)
  local b, H, l, P = x:size(1), x:size(2), x:size(3), x:size(4)
  local y = op.matmul(x:permute(2, 1, 3, 4):reshape(H, b * l, P), self["layer" .. layer][name])
  y = y:reshape(H, b, l, y:size(3)):permute(2, 1, 3, 4)
  if self.kind == "linear" then return y end
  return core.concat({ op.softmax(y), op.softmax(-y) }, 4)
end

--- The features of a tap [b,l,H*P]: [b,l,H*F], without gradient to the map.
---@param layer integer of the teacher
---@param name "q"|"k"
function Features:of(layer, name, x)
  if not self["layer" .. layer] or (name ~= "q" and name ~= "k") then
    options.fail(2, "map-learned", ("map 'learned' is of q and k of the layers in use, not of '%s' of layer %d"):format(name, layer))
  end
  return core.no_grad(function() return join(phi(self, layer, name, split(x, self.heads))) end)
end

-- 0 where row t sees column s, 1 where not, [l,l].
local function ahead(l, dtype, device)
  local at = core.arange(l):to("f64")
  return op.relu(1 - op.relu(1 - (at:reshape(1, l) - at:reshape(l, 1)))):to(dtype):to(device)
end

-- Mean of 1 - cosine of the outputs of both attentions, or the cross-entropy of their rows; one layer's q, k, v [b,l,H*P].
local function distance(self, layer, q, k, v, segment)
  local b, l, H = q:size(1), q:size(2), self.heads
  local rows = op.matmul(phi(self, layer, "q", split(q, H)), phi(self, layer, "k", split(k, H)):permute(1, 2, 4, 3))
  if self.causal then rows = rows * (1 - ahead(l, q:dtype(), q:device())) end
  if segment then
    local s = segment:to(q:dtype())
    rows = rows * op.relu(1 - op.abs(s:reshape(b, 1, l, 1) - s:reshape(b, 1, 1, l)))
  end
  local target = core.no_grad(function()
    return mixing.whole(mixing.attention { q = q, k = k, heads = H, causal = self.causal, segment = segment })
  end)
  if self.distance == "cosine" then return op.cosine(op.matmul(rows, split(v, H)), core.no_grad(op.matmul, target, split(v, H))) end
  rows = rows / (op.sum(rows, { dim = 4 }):reshape(b, H, l, 1) + 1e-30)
  return op.sum(target * op.log(rows + 1e-30)) * (-1 / (b * H * l))
end

--- Mean over the teacher layers in use of the distance between linear and softmax attention. Trains the maps alone.
---@param pairs table in an open step with the teacher's q, k, v
---@return cab.Tensor
function Features:loss(pairs)
  local now, sum = pairs.now.teacher, nil
  local segment = pairs.now.about and pairs.now.about.segment
  for _, layer in ipairs(self.used) do
    local function tap(name) return now[name][layer]:detach():to(pairs.dtype) end
    local d = distance(self, layer, tap "q", tap "k", tap "v", segment)
    sum = sum and sum + d or d
  end
  return sum / #self.used
end

--- The weight [H,P,F] of a layer. @param name "q"|"k"
function Features:weight(layer, name) return self["layer" .. layer][name] end

-- Both maps begin as the identity, as far as F goes (of "hedgehog": of half the features).
local function eye(shape, _, _, dtype)
  local H, P, F = table.unpack(shape)
  local at, to = core.arange(P):to("f64"):reshape(P, 1), core.arange(F):to("f64"):reshape(1, F)
  return op.relu(1 - op.abs(at - to)):reshape(1, P, F):expand({ H, P, F }):clone():to(dtype)
end

--- @param pairs table
--- @param o {kind: string, features: integer, distance: string} features: F a head
---@return table features
function M.new(pairs, o)
  local H, P = pairs.heads, pairs.dim // pairs.heads
  local F = o.kind == "hedgehog" and o.features / 2 or o.features
  if math.tointeger(F) == nil then options.fail(2, "features", ("hedgehog features come in pairs, %d is odd"):format(o.features)) end
  if o.kind == "linear" and o.distance == "cross_entropy" then
    options.fail(2, "features", "distance = 'cross_entropy' needs positive features: kind = 'hedgehog'")
  end
  local m, seen = nn.module("features", Features), {}
  m.heads, m.kind, m.distance, m.width, m.causal, m.used = H, o.kind, o.distance, H * o.features, pairs.tokens == nil, {}
  for _, entry in ipairs(pairs) do
    if not seen[entry.teacher] then
      seen[entry.teacher] = true
      table.insert(m.used, entry.teacher)
      local layer = nn.module("layer", {})
      layer.q, layer.k = nn.param({ H, P, math.tointeger(F) }, eye), nn.param({ H, P, math.tointeger(F) }, eye)
      m["layer" .. entry.teacher] = layer
    end
  end
  return m
end

return M
