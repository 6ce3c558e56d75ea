--- Learning rates as functions of the step: constant or cosine, each with a linear warm-up and a flat end.
--- cosine: lr(t) = low + (high - low) (1 + cos(pi t / T)) / 2.
local check = require "cab.check"
local M = {}

M.names = { "constant", "cosine" }

---@class Schedule
---@field kind string "constant" or "cosine"
---@field lr number the highest rate
---@field low number the rate at the end of a cosine
---@field start number the rate at step 1 of the warm-up
---@field warmup integer steps of linear warm-up
---@field cooldown integer last steps at `low`
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
  if s.kind ~= "cosine" then check.usage("optim.schedule: " .. check.unknown("schedule", s.kind, M.names)) end
  local span = s.steps - s.warmup - s.cooldown
  local t = math.min(span, step - s.warmup)
  if span <= 0 then return s.lr end
  return s.low + (s.lr - s.low) * 0.5 * (1 + math.cos(math.pi * t / span))
end

return M
