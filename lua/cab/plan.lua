--- What a run will need: memory by class of tensor, whether it fits, a batch that would, and time. From one measured step.
local core = require "cab.core"
local dist = require "cab.dist"
local progress = require "cab.progress"
local term = require "cab.term"
local M = {}

local SPARE = 0.9 -- share of the memory at hand that a plan fills

---@class Plan
---@field rows table[] {class, bytes}
---@field bytes integer sum
---@field size integer bytes of memory on the device
---@field free integer bytes that this run may take of it
---@field fits boolean
---@field batch integer the largest batch that fits, as far as activations grow with it
---@field accumulate integer the least parts of the recipe's batch that fit
---@field step number seconds a step, as measured
---@field steps integer
---@field seconds number step * steps: training without evaluations
---@field captured boolean steps will be replayed as one graph, and cost less than the measured one

local function bytes_of(list, key)
  local n = 0
  for _, p in ipairs(list) do n = n + (p[key] and p[key]:bytes() or 0) end
  return n
end

-- Bytes that a process may still take on the CPU; nil where the system does not say.
local function available()
  local f <close> = io.open "/proc/meminfo"
  local kib = f and f:read "a":match "MemAvailable:%s*(%d+)"
  return kib and math.tointeger(tonumber(kib)) * 1024
end

--- The plan of a job.
---@param job Job
---@param activations integer bytes that a step takes beside what lies there before it
---@param seconds number of one step
---@return Plan
function M.new(job, activations, seconds)
  local student, own, gradients = {}, {}, 0
  for _, p in ipairs(job.params) do
    table.insert(p.student and student or own, p)
    if p.tensor.requires_grad then gradients = gradients + p.tensor:bytes() end
  end
  local memory = core.memory(job.device)
  local teacher = job.teacher and not job.teacher.absent and bytes_of(job.teacher:parameters(), "tensor") or 0
  local rows = { { "student", bytes_of(student, "tensor") }, { "teacher", teacher },
    { "strategies", bytes_of(own, "tensor") }, { "gradients", gradients },
    { "moments", bytes_of(job.params, "m") + bytes_of(job.params, "v") }, { "average", bytes_of(job.params, "average") },
    { "activations", math.max(0, activations - gradients) } }
  local known, sum = 0, 0
  for _, row in ipairs(rows) do
    if row[1] ~= "gradients" and row[1] ~= "activations" then known = known + row[2] end
  end
  rows[#rows + 1] = { "data and others", math.max(0, memory.live - known) }
  for _, row in ipairs(rows) do sum = sum + row[2] end
  local cpu = job.device == "cpu"
  local free = cpu and math.min(memory.size, (available() or memory.size) + memory.live + memory.cached) or memory.size
  local fixed = sum - rows[7][2]
  local parts, batch = dist.size * job.recipe.accumulate, job.recipe.batch
  local each = rows[7][2] * parts / batch -- of a row: activations are those of a part
  local most = math.max(0, math.floor((SPARE * free - fixed) / math.max(each, 1)))
  local accumulate = math.min(-(-batch // (dist.size * math.max(most, 1))), batch // dist.size)
  most = math.min(most * parts, job.data.count.train)
  return { accumulate = accumulate,
    rows = rows, bytes = sum, size = memory.size, free = free, fits = sum <= SPARE * free, batch = most > 8 and most // 8 * 8 or most,
    step = seconds, steps = job.steps, seconds = seconds * job.steps, captured = not cpu and job.recipe.capture }
end

--- A plan in one line.
---@param plan Plan
---@return string
function M.line(plan)
  local fits = plan.fits and "fits" or ("does not fit; try accumulate=%d, or batch=%d"):format(plan.accumulate, plan.batch)
  return ("%s of %s at hand, %s; %.3g s a step%s, about %s of training"):format(term.bytes(plan.bytes), term.bytes(plan.free), fits, plan.step,
    plan.captured and " until it is captured, then less" or "", progress.clock(plan.seconds))
end

--- A plan as a table of classes and what follows from it.
---@param plan Plan
---@return string
function M.table(plan)
  local rows = {}
  for _, row in ipairs(plan.rows) do rows[#rows + 1] = { row[1], term.bytes(row[2]), ("%.0f %%"):format(100 * row[2] / math.max(plan.bytes, 1)) } end
  rows[#rows + 1] = { "together", term.bytes(plan.bytes), "" }
  return ("%s\n%s; batches of up to %d fit"):format(require "cab.report".table({ "memory", "bytes", "share" }, rows), M.line(plan), plan.batch)
end

return M
