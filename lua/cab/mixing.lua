--- Mixing matrices M [b,H,l,l] (y_t = sum over s of M[t,s] x_s) a few rows or columns at a time, so that nothing of size l x l is
--- stored. A matrix in tiles has axis (3: part is rows, 4: columns), length l, heads H, step (a good size of part), inputs (the
--- tensors it is made of), with(inputs) -> the same of other tensors, and part(first, last, axis) -> [b,H,n,l] or [b,H,l,n].
local core = require "cab.core"
local options = require "cab.options"
local recompute = require "cab.recompute"
local op = core.ops
local M = {}

local TILE = 1 << 22 -- numbers in a part's largest tensor
local TINY = 1e-30 -- under roots and logarithms: no division by 0, no other digits

-- A copy of `self` with other inputs.
local function with(self, inputs)
  local copy = setmetatable({}, getmetatable(self))
  for k, v in pairs(self) do copy[k] = v end
  copy.inputs, copy.tensors = inputs, inputs
  return copy
end

-- 1 where row i of n is place first + i - 1 of l, else 0.
local function identity(first, n, l, dtype, device)
  local row = (core.arange(n):to("f64") + (first - 1)):reshape(n, 1)
  return op.relu(1 - op.abs(core.arange(l):to("f64"):reshape(1, l) - row)):to(dtype):to(device)
end

-- ---- selective scans ------------------------------------------------------------------------------------------------------

local Scan = {}
Scan.__index = Scan
Scan.with = with

--- The implicit attention of a selective scan, mean over channels, without the skip D: alpha[t,s] = mean_e C_t . prod exp(delta A)
--- (delta_s B_s) (arXiv 2403.01590). Column s is the scan's answer to an impulse at s. With gradients, unlike op.scan_matrix.
---@param o {dt: cab.Tensor, A: cab.Tensor, B: cab.Tensor, C: cab.Tensor, bias?: cab.Tensor, softplus: boolean, reverse?: boolean}
---@return table matrix in tiles
function M.scan(o)
  local b, l, E = o.dt:size(1), o.dt:size(2), o.dt:size(3)
  local inputs = { o.dt, o.A, o.B, o.C, o.bias }
  return setmetatable({ axis = 4, length = l, heads = 1, step = math.max(1, TILE // (b * l * E)), softplus = o.softplus, reverse = o.reverse or false,
    inputs = inputs, tensors = inputs }, Scan)
end

function Scan:part(first, last)
  local dt, A, B, C, bias = table.unpack(self.inputs)
  local b, l, E, n = dt:size(1), dt:size(2), dt:size(3), last - first + 1
  local function repeated(t) return t:reshape(1, b, l, t:size(3)):expand({ n, b, l, t:size(3) }):reshape(n * b, l, t:size(3)) end
  local impulse = identity(first, n, l, dt:dtype(), dt:device()):reshape(n, 1, l, 1):expand({ n, b, l, E }):reshape(n * b, l, E)
  local y = op.selective_scan(impulse, repeated(dt), A, repeated(B), repeated(C), nil, nil, bias, { softplus = self.softplus, reverse = self.reverse })
  local m = op.sum(y:dtype() == "bf16" and op.cast(y, { to = "f32" }) or y, { dim = 3 }) / E
  return m:reshape(n, b, l):permute(2, 3, 1):reshape(b, 1, l, n)
end

-- ---- sums, as of both directions ------------------------------------------------------------------------------------------

local Sum = {}
Sum.__index = Sum

--- scale (M_1 + M_2 + ..) of matrices in tiles along the same axis.
---@param list table[] matrices in tiles
---@param scale? number
---@return table matrix in tiles
function M.sum(list, scale)
  local inputs = {}
  for _, m in ipairs(list) do table.move(m.inputs, 1, #m.inputs, #inputs + 1, inputs) end
  return setmetatable({ axis = list[1].axis, length = list[1].length, heads = list[1].heads, step = list[1].step, list = list, scale = scale,
    inputs = inputs, tensors = inputs }, Sum)
end

function Sum:with(inputs)
  local list, from = {}, 1
  for i, m in ipairs(self.list) do
    list[i] = m:with(table.move(inputs, from, from + #m.inputs - 1, 1, {}))
    from = from + #m.inputs
  end
  return M.sum(list, self.scale)
end

function Sum:part(first, last)
  local sum
  for _, m in ipairs(self.list) do
    local p = m:part(first, last)
    sum = sum and sum + p or p
  end
  return self.scale == 1 and sum or sum * self.scale
end

-- ---- softmax attention ----------------------------------------------------------------------------------------------------

local Attention = {}
Attention.__index = Attention
Attention.with = with

local HIDDEN = -1e30 -- the score of what a row may not see

-- [b,l,H*P] -> [b,H,l,P]
local function by_head(x, heads) return x:reshape(x:size(1), x:size(2), heads, x:size(3) // heads):permute(1, 3, 2, 4) end

-- Scores of rows r1..r2 against columns c1..c2, [b,H,rows,columns].
local function scores(self, q, k, r1, r2, c1, c2)
  local P = q:size(3) // self.heads
  local s = op.matmul(by_head(q:slice(2, r1, r2), self.heads), by_head(k:slice(2, c1, c2), self.heads):permute(1, 2, 4, 3)) * P ^ -0.5
  local function range(a, z) return (core.arange(z - a + 1):to("f64") + a):to(q:dtype()):to(q:device()) end
  if self.causal then -- 0 where column <= row, else HIDDEN
    local ahead = range(c1, c2):reshape(1, c2 - c1 + 1) - range(r1, r2):reshape(r2 - r1 + 1, 1)
    s = s + HIDDEN * op.relu(1 - op.relu(1 - ahead))
  end
  if self.segment then
    local g, b = self.segment:to(q:dtype()), q:size(1)
    s = s + HIDDEN * op.abs(g:slice(2, r1, r2):reshape(b, 1, r2 - r1 + 1, 1) - g:slice(2, c1, c2):reshape(b, 1, 1, c2 - c1 + 1))
  end
  return s
end

-- log of the sum of exp(scores) of each row, [b,H,l]: s - log p is the same for every column of a row, so its mean under p.
local function log_sums(self, q, k)
  local l, parts = q:size(2), {}
  for first = 1, l, self.step do
    local scope <close> = core.scope()
    local s = scores(self, q, k, first, math.min(l, first + self.step - 1), 1, l)
    local p = op.softmax(s)
    parts[#parts + 1] = scope:keep(op.sum(p * (s - op.log(p + 1e-30)), { dim = 4 }))
  end
  return #parts > 1 and core.concat(parts, 3) or parts[1]
end

--- softmax(q k' / sqrt P) of each head (arXiv 1706.03762). place(x, dim): puts rows or columns into another token order.
---@param o {q: cab.Tensor, k: cab.Tensor, heads: integer, causal?: boolean, segment?: cab.Tensor, place?: fun(x: cab.Tensor, dim: integer): cab.Tensor}
---@return table matrix in tiles
function M.attention(o)
  local q, k, place = o.q, o.k, o.place or function(x) return x end
  local b, l = q:size(1), q:size(2)
  local self = setmetatable({ axis = 3, heads = o.heads, causal = o.causal, segment = o.segment, step = math.max(1, TILE // (b * o.heads * l)) }, Attention)
  local sums = log_sums(self, q, k)
  self.inputs = { place(q, 2), place(k, 2), place(sums, 3) }
  self.tensors, self.length = self.inputs, self.inputs[1]:size(2)
  return self
end

function Attention:part(first, last, axis)
  local q, k, sums = table.unpack(self.inputs)
  local r1, r2, c1, c2 = 1, self.length, first, last
  if (axis or self.axis) == 3 then r1, r2, c1, c2 = first, last, 1, self.length end
  local s = scores(self, q, k, r1, r2, c1, c2)
  return op.exp(s - sums:slice(3, r1, r2):reshape(s:size(1), s:size(2), r2 - r1 + 1, 1))
end

-- ---- what is made of them -------------------------------------------------------------------------------------------------

--- The whole matrix [b,H,l,l].
---@param m table matrix in tiles
---@return cab.Tensor
function M.whole(m)
  local parts = {}
  for first = 1, m.length, m.step do parts[#parts + 1] = m:part(first, math.min(m.length, first + m.step - 1)) end
  return #parts > 1 and core.concat(parts, m.axis) or parts[1]
end

-- Mean over heads, [b,1,..].
local function head_mean(x) return (op.sum(x, { dim = 2 }) / x:size(2)):reshape(x:size(1), 1, x:size(3), x:size(4)) end

--- Two maps [b,H,l,l] head by head, or their means over heads where they have not as many.
---@param a cab.Tensor
---@param b cab.Tensor
---@return cab.Tensor
---@return cab.Tensor
function M.same_heads(a, b)
  if a:size(2) == b:size(2) then return a, b end
  return head_mean(a), head_mean(b)
end

-- What `terms` gives for parts a of m and t of the target, [b,H,rows,columns] each, summed along every row: [b,H,l,k]. Part by part; what
-- a part needs for its gradient is computed again, not kept, so memory grows with l and not its square.
local function row_sums(m, target, mean, terms)
  if m.length ~= target.length then options.fail(1, "mixing", ("mixing matrices of %d and %d tokens"):format(m.length, target.length)) end
  local step, parts, trained = math.min(m.step, target.step), {}, false
  for _, t in ipairs(m.inputs) do trained = trained or t.requires_grad end
  for first = 1, m.length, step do
    local last = math.min(m.length, first + step - 1)
    local function sums(...)
      local scope <close> = core.scope() -- the part goes with it, or the step's scope would hold all parts
      local a = m:with({ ... }):part(first, last, m.axis)
      local t = core.no_grad(function() return target:part(first, last, m.axis) end)
      if mean then a, t = head_mean(a), head_mean(t) end
      local list = { terms(a, t) }
      for k, x in ipairs(list) do list[k] = op.sum(x, { dim = 4 }):reshape(x:size(1), x:size(2), x:size(3), 1) end
      return scope:keep(#list > 1 and core.concat(list, 4) or list[1])
    end
    parts[#parts + 1] = (trained and core.grad_enabled()) and recompute(sums, table.unpack(m.inputs)) or sums(table.unpack(m.inputs))
  end
  if m.axis == 3 then return #parts > 1 and core.concat(parts, 3) or parts[1] end
  local sum = parts[1]
  for k = 2, #parts do sum = sum + parts[k] end
  return sum
end

--- Mean over images and heads of |M - A|_F (arXiv 2408.10189, eq. 6), in tiles. heads: "each" compares head by head, "mean" the means
--- over heads, "auto" each where both have as many.
---@param m table a student's matrix in tiles
---@param target table a teacher's, without gradient
---@param heads? "auto"|"each"|"mean"
---@return cab.Tensor
function M.frobenius(m, target, heads)
  if heads == "each" and m.heads ~= target.heads then
    options.fail(2, "mixing-heads", ("heads = 'each': the student's mixing matrix has %d heads, the teacher's %d; use 'mean'"):format(m.heads, target.heads))
  end
  local rows = row_sums(m, target, heads == "mean" or m.heads ~= target.heads, function(a, t) return op.square(a - t) end)
  return op.mean(op.sqrt(op.sum(rows, { dim = 3 }) + TINY))
end

M.distances = { "cosine", "cross_entropy", "mse" }

--- How far a matrix is from attention, in tiles, head by head or by their means where both have not as many: cosine, mean over rows of
--- 1 - cosine; mse of all entries; cross_entropy of rows, with |m| of each row made to sum to 1.
---@param m table
---@param target table
---@param kind "cosine"|"cross_entropy"|"mse"
---@return cab.Tensor
function M.distance(m, target, kind)
  options.choice(kind, M.distances, "distance")
  local mean = m.heads ~= target.heads
  if kind == "mse" then return op.mean(row_sums(m, target, mean, function(a, t) return op.square(a - t) end)) / m.length end
  if kind == "cosine" then
    local dot, a2, t2 = row_sums(m, target, mean, function(a, t) return a * t, op.square(a), op.square(t) end):split(4, { 1, 1, 1 })
    return 1 - op.mean(dot / op.sqrt(a2 * t2 + TINY))
  end
  local size, crossed, whole = row_sums(m, target, mean, function(a, t)
    local abs = op.abs(a)
    return abs, t * op.log(abs + TINY), t
  end):split(4, { 1, 1, 1 })
  return op.mean(whole * op.log(size + TINY) - crossed)
end

return M
