--- Means of few repetitions, with what they are worth.
local M = {}

local t975 = { 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228 }

--- The 97.5 % quantile of Student's t: tabled up to 10 degrees of freedom, then Fisher's expansion about the normal quantile
--- (Abramowitz and Stegun, 26.7.5; to 0.001).
---@param degrees integer
---@return number
function M.t975(degrees)
  local z, v = 1.959964, degrees
  return t975[v] or z + (z ^ 3 + z) / (4 * v) + (5 * z ^ 5 + 16 * z ^ 3 + 3 * z) / (96 * v ^ 2)
    + (3 * z ^ 7 + 19 * z ^ 5 + 17 * z ^ 3 - 15 * z) / (384 * v ^ 3)
end

---@class Summary
---@field n integer
---@field mean number
---@field sd? number sample standard deviation, from two values on
---@field low? number the 95 % confidence interval of the mean, by Student's t
---@field high? number

--- Summary of some numbers; nil of none.
---@param values number[]
---@return Summary?
function M.summary(values)
  local n, sum, squares = #values, 0, 0
  if n == 0 then return nil end
  for _, v in ipairs(values) do sum = sum + v end
  local out = { n = n, mean = sum / n }
  if n < 2 then return out end
  for _, v in ipairs(values) do squares = squares + (v - out.mean) ^ 2 end
  out.sd = math.sqrt(squares / (n - 1))
  local half = M.t975(n - 1) * out.sd / math.sqrt(n)
  out.low, out.high = out.mean - half, out.mean + half
  return out
end

--- "71.36 ± 0.45", "71.36" of one value, "" of none.
---@param s Summary?
---@return string
function M.shown(s)
  if not s then return "" end
  return s.sd and ("%.2f ± %.2f"):format(s.mean, s.sd) or ("%.2f"):format(s.mean)
end

--- "[70.2, 72.5]", "" where there are not two values.
---@param s Summary?
---@return string
function M.interval(s) return s and s.low and ("[%.2f, %.2f]"):format(s.low, s.high) or "" end

return M
