--- Learning rates as functions of the step: constant, cosine or wsd, each with a linear warm-up and a flat end.
--- cosine: lr(t) = low + (high - low) (1 + cos(pi t / T)) / 2. wsd (warm-up, stable, decay; arXiv:2404.06395): the highest rate until
--- the last `decay` steps, of which lr(t) = low + (high - low) (1 - sqrt(t / T)) (arXiv:2405.18392).
local check = require "cab.check"
local M = {}

M.names = { "constant", "cosine", "wsd" }

local scale = { [""] = 1, k = 1e3, K = 1e3, M = 1e6, B = 1e9, G = 1e9 }

--- A count such as 2e8, "200M", "1.5B".
---@param value number|string
---@param path string for messages
---@return number
function M.count(value, path)
  if type(value) == "number" then return value end
  local number, unit = value:match "^%s*([%d.]+e?%+?%d*)%s*([kKMBG]?)%s*$"
  if not tonumber(number) then check.usage(("%s is '%s', expected a count such as 2e8, \"200M\" or \"2B\""):format(path, value)) end
  return tonumber(number) * scale[unit]
end

--- A span as {amount, unit}: a number is epochs; "500 steps", "200M tokens", "10 %" (of all steps).
---@param value number|string
---@param path string
---@return table
function M.span(value, path)
  if type(value) == "number" then return { value, "epochs" } end
  local percent = value:match "^%s*([%d.]+)%s*%%%s*$"
  if tonumber(percent) and tonumber(percent) <= 100 then return { tonumber(percent) / 100, "share" } end
  local count, unit = value:match "^(.-)%s*(%a+)%s*$"
  if unit ~= "steps" and unit ~= "tokens" and unit ~= "epochs" then
    check.usage(("%s is '%s', expected epochs as a number, \"500 steps\", \"20M tokens\" or \"10 %%\""):format(path, value))
  end
  return { M.count(count, path), unit }
end

--- Steps of a span.
---@param value number|string
---@param path string
---@param facts table per_epoch (steps), tokens (of a step; nil where data has none), steps (all of them, for shares)
---@return integer
function M.steps(value, path, facts)
  local span = M.span(value, path)
  local amount, unit = span[1], span[2]
  if unit == "tokens" then return M.budget(amount, path, facts) end
  local factor = unit == "epochs" and facts.per_epoch or unit == "share" and facts.steps or 1
  return math.floor(amount * factor + 0.5)
end

--- Steps that see at least so many tokens.
---@param tokens number|string
---@param path string
---@param facts table tokens (of a step; nil where data has none)
---@return integer
function M.budget(tokens, path, facts)
  if not facts.tokens then check.usage(("%s is %s, but the data has no tokens"):format(path, tostring(tokens))) end
  return math.ceil(M.count(tokens, path) / facts.tokens)
end

---@class Schedule
---@field kind string "constant", "cosine" or "wsd"
---@field lr number the highest rate
---@field low number the rate at the end of a cosine
---@field start number the rate at step 1 of the warm-up
---@field warmup integer steps of linear warm-up
---@field cooldown integer last steps at `low`
---@field decay? integer steps of the fall of a wsd
---@field steps integer steps in all

--- The learning rate of a step.
---@param s Schedule
---@param step integer 1-based
---@return number
function M.rate(s, step)
  if step <= s.warmup then
    return s.start + (s.lr - s.start) * step / s.warmup
  end
  if s.kind == "constant" then return s.lr end
  if s.kind == "wsd" then
    local fall = s.steps - s.cooldown - s.decay
    if step <= fall then return s.lr end
    return s.low + (s.lr - s.low) * (1 - math.sqrt(math.min(1, (step - fall) / math.max(s.decay, 1))))
  end
  if s.kind ~= "cosine" then check.usage("optim.schedule: " .. check.unknown("schedule", s.kind, M.names)) end
  local span = s.steps - s.warmup - s.cooldown
  local t = math.min(span, step - s.warmup)
  if span <= 0 then return s.lr end
  return s.low + (s.lr - s.low) * 0.5 * (1 + math.cos(math.pi * t / span))
end

return M
