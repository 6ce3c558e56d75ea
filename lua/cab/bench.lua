--- `cab bench`: what a training step of a recipe costs on this machine, and where the time goes.
local core = require "cab.core"
local check = require "cab.check"
local schedule = require "cab.schedule"
local steps = require "cab.step"
local term = require "cab.term"
local M = {}

local function median(list)
  table.sort(list)
  return list[(#list + 1) // 2]
end

-- Median seconds of f over n calls, after one that does not count.
local function measured(device, n, f)
  local times = {}
  for i = 0, n do
    core.sync(device)
    local begun = core.now()
    do
      local scope <close> = core.scope() -- luacheck: ignore scope
      f()
    end
    core.sync(device)
    if i > 0 then times[i] = core.now() - begun end
  end
  return median(times)
end

--- Times whole steps and their parts: the batch, the teacher, the student with its losses, backward and update.
---@param r table resolved recipe
---@param o {steps: integer}
---@return table {device, batch, unit, seconds: table<string, number>, rate, memory}
function M.measure(r, o)
  local outer <close> = core.scope() -- luacheck: ignore outer
  local job = require "cab.job".build(r)
  job:measure()
  core.reset_peak(job.device)
  local stepper, stage, epoch = steps.new(job, function() end), job.stages[1], 0
  local loader = job.data:loader("train", { batch = r.batch, seed = r.seed, epoch = 0 })
  local function take(scope)
    while not stepper:take(scope, loader) do
      loader:close()
      epoch = epoch + 1
      loader = job.data:loader("train", { batch = r.batch, seed = r.seed, epoch = epoch })
    end
  end
  local step, seconds, waits, times = 0, {}, {}, {}
  for i = 1, o.steps + 3 do -- three to warm up: a GPU captures the third
    local scope <close> = core.scope()
    core.sync(job.device)
    local begun = core.now()
    take(scope)
    local taken = core.now()
    step = step + 1
    stepper:run(scope, stage, 1, { step = step, lr = schedule.rate(stage.schedule, math.min(step, job.steps)), clip = r.optim.clip, keep = 0 })
    job:clear_gradients()
    core.sync(job.device)
    if i > 3 then times[#times + 1], waits[#waits + 1] = core.now() - begun, taken - begun end
  end
  seconds.step, seconds.batch = median(times), median(waits)
  loader:close()
  local feed <close> = job.data:loader("train", { batch = r.batch, seed = r.seed, epoch = 0 })
  local images, labels, targets = feed:next()
  local part = require "cab.dist".parts({ images = images, labels = labels, targets = targets }, r.accumulate)[1]
  images, labels, targets = part.images, part.labels, part.targets
  local n = math.max(1, o.steps // 2)
  if job.teacher then
    seconds.teacher = r.accumulate * measured(job.device, n, function()
      core.no_grad(function()
        if job.text then job.teacher:body(images, stage.teacher_taps, { segment = labels }) else job.teacher:forward(images, stage.teacher_taps) end
      end)
    end)
  end
  seconds.forward = r.accumulate * measured(job.device, n, function() job:losses(stage, images, labels, targets) end) - (seconds.teacher or 0)
  seconds.backward = math.max(0, seconds.step - seconds.forward - (seconds.teacher or 0) - seconds.batch)
  stepper:close()
  local unit = job.text and "tokens" or "images"
  local out = { device = ("%s, %s, %s"):format(job.device, job.chip, r.precision), batch = r.batch, unit = unit, seconds = seconds,
    rate = r.batch * (job.text and job.data.length or 1) / seconds.step, memory = core.memory(job.device).peak, parameters = job.student:size() }
  if job.data.close then job.data:close() end
  return out
end

--- `cab bench`.
---@param o table recipe, overrides, steps, json
---@return integer exit code
function M.main(o)
  if o.steps < 1 then check.fail(2, "--steps: a whole number from 1 on", { id = "usage" }) end
  if o.recipe and o.recipe:find "^[%w_.]+=" then -- overrides of the quickstart
    table.insert(o.overrides, 1, o.recipe)
    o.recipe = nil
  end
  local path = o.recipe or core.library .. "/../recipes/quickstart.lua"
  local value = core.loadfile(path)(path)
  if require "cab.compare".is(value) then value = value.runs[#value.runs].recipe end
  if not require "cab.recipe".is(value) then check.fail(2, path .. ": returns no recipe", { id = "recipe" }) end
  local m = M.measure(value:override(o.overrides).resolved, o)
  if o.json then
    print(core.json_encode(m))
    return 0
  end
  print(("%s; batch %d, %d parameters; medians of %d steps"):format(m.device, m.batch, m.parameters, o.steps))
  local rows = {}
  for _, part in ipairs { { "step", "a whole step" }, { "batch", "  waiting for the batch" }, { "teacher", "  the teacher" },
    { "forward", "  the student and its losses" }, { "backward", "  backward and update (the rest)" } } do
    local s = m.seconds[part[1]]
    if s then rows[#rows + 1] = { part[2], ("%.2f ms"):format(1000 * s), ("%.0f %%"):format(100 * s / m.seconds.step) } end
  end
  print(require "cab.report".table({ "", "time", "share" }, rows))
  print(("%.0f %s a second, %s in tensors at most"):format(m.rate, m.unit, term.bytes(m.memory)))
  return 0
end

return M
