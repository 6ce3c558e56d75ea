--- Weights of loss terms as functions of the step of their stage: weight = 3, or weight = { "cosine", from = 3, to = 0 }.
--- With s the step and n the steps of `over`, t = min(1, s / n): linear from + (to - from) t; cosine from + (to - from) (1 - cos(pi t)) / 2;
--- wsd (arXiv:2404.06395) from `from` to `to` over `warmup`, then `to`, then back over the last `decay`, both linear.
local check = require "cab.check"
local schedule = require "cab.schedule"
local M = {}

local weight, over = { "number", default = 1, min = 0 }, { "number|string", default = "100 %", min = 0 }
local zero = { "number", default = 0, min = 0 }

--- kind -> rules of its options. Spans are of the stage: epochs, "500 steps", "10 %".
M.kinds = {
  constant = { to = weight },
  linear = { from = zero, to = weight, over = over },
  cosine = { from = zero, to = weight, over = over },
  warmup = { to = weight, over = { "number|string", default = "10 %", min = 0 } },
  wsd = { from = zero, to = weight, warmup = { "number|string", default = "5 %", min = 0 }, decay = { "number|string", default = "20 %", min = 0 } },
  adaptive = {
    to       = weight,                                                -- at the stage's beginning
    watch    = { "string", default = "both", one_of = { "both", "plateau", "cosine" } },
    patience = { "integer", default = 2, min = 1 },                   -- evaluations in a row that find no help
    delta    = { "number", default = 0.05, min = 0, max = 1 },        -- share of its whole fall by which the held-out loss must fall to be help
    cosine   = { "number", default = 0, min = -1, max = 1 },          -- mean over layers below which the term works against the others
    factor   = { "number", default = 0, min = 0, max = 1 },           -- of the weight each time; 0 stops the term at once
    floor    = { "number", default = 0.1, min = 0, max = 1 },         -- below this share of `to` the term is stopped
  },
}

--- A weight as a recipe has it: a number, or a table with its kind and all its options.
---@param given number|table
---@param path string
---@return number|table
function M.resolve(given, path)
  if type(given) ~= "table" then return check.value({ "number", min = 0 }, given, path) end
  local set = check.copy(given)
  local kind = set[1] or set.kind
  set[1], set.kind = nil, nil
  if type(kind) ~= "string" or not M.kinds[kind] then check.usage(("%s: %s"):format(path, check.unknown("kind of weight", kind, M.kinds))) end
  local out = check.options(M.kinds[kind], set, path)
  for _, key in ipairs { "over", "warmup", "decay" } do if out[key] then schedule.span(out[key], path .. "." .. key) end end
  out.kind = kind
  return out
end

--- The largest weight that a schedule has.
---@param w number|table as resolved
---@return number
function M.peak(w) return type(w) == "number" and w or math.max(w.to, w.from or 0) end

--- A schedule with its spans in steps.
---@param w table as resolved
---@param path string
---@param facts table as for schedule.steps, `steps` those of the stage
---@return table
function M.compile(w, path, facts)
  local out = check.copy(w)
  for _, key in ipairs { "over", "warmup", "decay" } do
    if out[key] then out[key] = schedule.steps(out[key], path .. "." .. key, facts) end
  end
  out.steps = facts.steps
  return out
end

local function share(step, steps) return steps > 0 and math.min(1, step / steps) or 1 end

--- The weight at a step.
---@param w table compiled
---@param step integer of the stage, from 1
---@param scale? number of an adaptive one, 1 at first
---@return number
function M.at(w, step, scale)
  local from, to = w.from or 0, w.to
  if w.kind == "constant" then return to end
  if w.kind == "adaptive" then return to * (scale or 1) end
  if w.kind == "wsd" then
    local t = math.min(share(step, w.warmup), share(w.steps - step, w.decay))
    return from + (to - from) * t
  end
  local t = share(step, w.over)
  if w.kind == "cosine" then t = 0.5 * (1 - math.cos(math.pi * t)) end
  return from + (to - from) * t
end

return M
