--- Small dense systems, solved in Lua in f64: of the size of a student's state, not of a model's width.
local core = require "cab.core"
local options = require "cab.options"
local M = {}

--- Inverse of the lower Cholesky factor of a symmetric positive definite matrix [n,n], as rows of numbers.
---@param rows number[][]
---@return number[][] L^-1, lower triangular with zeros above
function M.factor_inverse(rows)
  local n, L, inverse = #rows, {}, {}
  for i = 1, n do
    L[i] = {}
    for j = 1, i do
      local sum = rows[i][j]
      for k = 1, j - 1 do sum = sum - L[i][k] * L[j][k] end
      if i == j and (sum <= 0 or sum ~= sum) then
        options.fail(76, "not-positive-definite", ("a matrix of %d rows is not positive definite at row %d: raise lambda"):format(n, i))
      end
      L[i][j] = i == j and sum ^ 0.5 or sum / L[j][j]
    end
  end
  for i = 1, n do
    inverse[i] = {}
    for j = 1, n do
      local sum = i == j and 1.0 or 0.0
      for k = j, i - 1 do sum = sum - L[i][k] * inverse[k][j] end
      inverse[i][j] = j <= i and sum / L[i][i] or 0.0
    end
  end
  return inverse
end

--- Inverse of a symmetric positive definite matrix. @param matrix cab.Tensor f64 [n,n] @return cab.Tensor f64 [n,n] on the CPU
function M.inverse(matrix)
  local f = core.tensor(M.factor_inverse(matrix:to("cpu"):totable()), "f64")
  return core.ops.matmul(f:permute(2, 1), f)
end

return M
