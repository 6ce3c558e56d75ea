--- How much of a teacher's layer is in a student's, without training: linear CKA (arXiv 1905.00414) and the R2 of a ridge bridge,
--- both from second moments over tokens, gathered batch by batch.
local core = require "cab.core"
local linalg = require "cab.linalg"
local op = core.ops
local M = {}

-- [b,l,D] -> [b*l,D]; [D,n] [n,E] -> f64 [D,E] on the CPU.
local function flat(x) return x:reshape(x:size(1) * x:size(2), x:size(3)) end
local function product(x, y) return op.matmul(x:permute(2, 1), y):to("cpu"):to "f64" end

---@class Moments sums over tokens of x, y, x x', y y', x y' for lists of x (student layers) and y (teacher layers)
local Moments = {}
Moments.__index = Moments

--- Sums over batches, empty: moments:add(xs, ys) for each batch, then moments:cka(i, t) or moments:ridge(i, t).
---@return table
function M.moments() return setmetatable({ n = 0, x = {}, y = {}, xx = {}, yy = {}, xy = {} }, Moments) end

local function add(list, key, value)
  if list[key] then list[key]:add_(value) else list[key] = value end
end

---@param xs cab.Tensor[] [b,l,D] by student layer
---@param ys cab.Tensor[] [b,l,E] by teacher layer
function Moments:add(xs, ys)
  core.no_grad(function()
    local ones = core.ones({ xs[1]:size(1) * xs[1]:size(2), 1 }, xs[1]:dtype(), xs[1]:device())
    self.n = self.n + ones:size(1)
    for _, side in ipairs { { "x", xs }, { "y", ys } } do
      for i, t in ipairs(side[2]) do
        add(self[side[1]], i, product(flat(t), ones))
        add(self[side[1] .. side[1]], i, product(flat(t), flat(t)))
      end
    end
    for i, x in ipairs(xs) do
      for t, y in ipairs(ys) do add(self.xy, i .. ">" .. t, product(flat(x), flat(y))) end
    end
  end)
end

-- The covariance of sums: xy/n - x y'/n^2.
local function centred(xy, x, y, n) return xy / n - op.matmul(x, y:permute(2, 1)) / (n * n) end

local function norm2(t) return op.sum(op.square(t)):item() end

--- |X'Y|^2 / (|X'X| |Y'Y|) of centred X, Y: 1 where one is a rotation and scaling of the other.
---@param i integer of xs
---@param t integer of ys
---@return number
function Moments:cka(i, t)
  local n = self.n
  local xy = centred(self.xy[i .. ">" .. t], self.x[i], self.y[t], n)
  local xx, yy = centred(self.xx[i], self.x[i], self.x[i], n), centred(self.yy[t], self.y[t], self.y[t], n)
  return norm2(xy) / math.max((norm2(xx) * norm2(yy)) ^ 0.5, 1e-300)
end

--- The share of Y's variance that the best linear bridge from X explains: |L^-1 X'Y|^2 / |Y|^2 with L L' = X'X + lambda mean(X^2) I.
--- What no trained linear bridge can exceed on these tokens.
---@param lambda? number default 1e-3
---@param i integer of xs
---@param t integer of ys
---@return number
function Moments:ridge(i, t, lambda)
  local n = self.n
  local rows, total = centred(self.xx[i], self.x[i], self.x[i], n):totable(), 0
  for d = 1, #rows do total = total + rows[d][d] / #rows end
  for d = 1, #rows do rows[d][d] = rows[d][d] + (lambda or 1e-3) * total + 1e-12 end
  local inverse = core.tensor(linalg.factor_inverse(rows), "f64")
  local explained = norm2(op.matmul(inverse, centred(self.xy[i .. ">" .. t], self.x[i], self.y[t], n)))
  local variance, yy = 0, centred(self.yy[t], self.y[t], self.y[t], n):totable()
  for d = 1, #yy do variance = variance + yy[d][d] end
  return explained / math.max(variance, 1e-300)
end

return M
