--- What recurrent mixers share: the causal convolution and the scan of Mamba-2, each in whole sequences, in packed documents and
--- a few tokens at a time from a cache; the mixing matrix in tiles.
local core = require "cab.core"
local options = require "cab.options"
local op = core.ops
local M = {}

--- The cache of a layer while tokens are generated, else nil. @param o? table of model:body
function M.cached(o, layer) return o and o.cache and o.cache[layer] end

--- conv (an nn.conv1d) over x [b,l,E]. The cache holds the last tokens before x.
function M.conv(conv, x, silu, o, layer)
  local cache = M.cached(o, layer)
  if cache then
    local before, l = cache.tail:size(2), x:size(2)
    local joined = core.concat({ cache.tail, x }, 2)
    cache.tail:copy(joined:slice(2, l + 1, l + before):clone())
    return conv(joined, { silu = silu }):slice(2, before + 1, before + l)
  end
  return op.conv1d(x, conv.weight, conv.bias, o and o.place, { silu = silu })
end

--- op.ssd of one layer; args are its own.
function M.ssd(args, o, layer)
  local cache = M.cached(o, layer)
  args.segment = o and o.segment
  if not cache then return (op.ssd(args)) end
  args.start = cache.state
  local y, state = op.ssd(args)
  cache.state:copy(state)
  return y
end

---@class Tiles the mixing matrix of a layer, made a few rows at a time; as cab.mixing takes them
local Tiles = { axis = 3 }
Tiles.__index = Tiles

local INPUTS = { "a", "B", "C", "dt", "D" }

--- M[t,s] = (C_t . B_s) exp(l_s+1 + .. + l_t) dt_s for s <= t, + D on the diagonal, so that y = M x. args: of op.ssd.
function M.tiles(args)
  local b, l, H = args.a:size(1), args.a:size(2), args.a:size(3)
  local self = setmetatable({ args = args, inputs = {}, length = l, heads = H, step = math.max(1, (1 << 22) // (b * H * l)) }, Tiles)
  for _, name in ipairs(INPUTS) do self.inputs[#self.inputs + 1] = args[name] end
  self.tensors = table.move(self.inputs, 1, #self.inputs, 1, {})
  self.tensors[#self.tensors + 1] = args.segment
  return self
end

--- The same of other tensors, in the order of `inputs`.
function Tiles:with(inputs)
  local args, i = {}, 0
  for name, value in pairs(self.args) do args[name] = value end
  for _, name in ipairs(INPUTS) do
    if args[name] then
      i = i + 1
      args[name] = inputs[i]
    end
  end
  return M.tiles(args)
end

function Tiles:part(first, last) return self:rows(first, last) end

-- l_1 + .. + l_t by token: [b,l,H] -> [b,H,l]. A scan that keeps all it has seen.
local function running(a, decay)
  local l = decay == "log" and a or -op.softplus(a)
  local one = core.ones({ a:size(1), a:size(2), 1 }, a:dtype(), a:device())
  return op.ssd { x = l, a = core.zeros(a:shape(), a:dtype(), a:device()), B = one, C = one, decay = "log" }:permute(1, 3, 2)
end

-- x [b,l,G*N] -> [b,H,l,N], each group once for each of its heads.
local function by_head(x, heads, groups)
  local b, l, N = x:size(1), x:size(2), x:size(3) // groups
  return x:reshape(b, l, groups, 1, N):expand { b, l, groups, heads // groups, N }:reshape(b, l, heads, N):permute(1, 3, 2, 4)
end

--- 0 where row t may look at s, a large negative number elsewhere; [rows, l] of the calling dtype.
local function causal_mask(first, last, l, dtype, device)
  local rows, cell = {}, {}
  for t = first, last do
    for s = 1, l do cell[s] = s <= t and 0.0 or -1e30 end
    rows[t - first + 1] = cell
    cell = {}
  end
  return core.tensor(rows, dtype, device)
end

--- Rows first..last, [b, heads, rows, l], differentiable.
function Tiles:rows(first, last)
  local a, args = self.args.a, self.args
  local b, l, H, G = a:size(1), a:size(2), a:size(3), args.groups or 1
  if first < 1 or last < first or last > l then
    options.fail(1, "tile", ("rows %d to %d of a mixing matrix of %d"):format(first, last, l))
  end
  local n, dtype, device = last - first + 1, a:dtype(), a:device()
  local sum = running(a, args.decay)
  local m = sum:slice(3, first, last):reshape(b, H, n, 1) - sum:reshape(b, H, 1, l)
  m = m + causal_mask(first, last, l, dtype, device)
  if args.segment then
    local s = args.segment:to(dtype)
    m = m - 1e30 * op.abs(s:slice(2, first, last):reshape(b, 1, n, 1) - s:reshape(b, 1, 1, l))
  end
  m = op.matmul(by_head(args.C:slice(2, first, last), H, G), by_head(args.B, H, G):permute(1, 2, 4, 3)) * op.exp(m)
  if args.dt then m = m * args.dt:permute(1, 3, 2):reshape(b, H, 1, l) end
  if not args.D then return m end
  local diagonal = op.relu(1 - op.abs(core.arange(l):to(dtype):to(device) - (core.arange(n):to(dtype):to(device) + (first - 1)):reshape(n, 1)))
  return m + args.D:reshape(H, 1, 1) * diagonal
end

return M
