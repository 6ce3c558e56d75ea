-- audit.lua [RECIPE [OVERRIDES...]]: what the gradient audit adds to a run that has just begun, in steps. In processes of their own, one
-- after the other: the first steps of a run with the audit before them and without it; the median of the later ones is a step.
local core = require "cab.core"
local runs, steps = require "cab.runs", require "cab.step"
local COUNT, PAIRS = 12, 3

-- Seconds of the audit (0 without) and of each of the first steps.
local function measure(path, overrides, with)
  local recipe = require "cab.commands.run".chunk(path, {})
  if require "cab.compare".is(recipe) then recipe = recipe.runs[#recipe.runs].recipe end
  local job = require "cab.job".build(recipe:override(overrides).resolved)
  job:measure()
  local stepper = steps.new(job, function() end)
  local feed = job.data:loader("train", { batch = job.recipe.batch, seed = job.recipe.seed, epoch = 0 })
  local times = { audit = 0, steps = {} }
  for step = 1, COUNT do
    local scope <close> = core.scope() -- luacheck: ignore scope
    stepper:take(scope, feed)
    local stage, number = job:stage(step)
    core.sync(job.device)
    local begun = core.now()
    if step == 1 then
      stepper:begin(stage, number)
      if with then
        require "cab.audit".stage(job, 1, stepper:part())
        core.sync(job.device)
        times.audit = core.now() - begun
        begun = core.now()
      end
    end
    stepper:run(scope, stage, number, { step = step, lr = 0, clip = job.recipe.optim.clip, keep = 0 })
    core.sync(job.device)
    times.steps[step] = core.now() - begun
    job:clear_gradients()
  end
  return times
end

local child = arg[1] == "with" or arg[1] == "without"
if child then return print(core.json_encode(measure(arg[2], table.move(arg, 3, #arg, 1, {}), arg[1] == "with"))) end

local words = #arg > 0 and table.move(arg, 1, #arg, 1, {}) or { "recipes/vim_fashion.lua", "batch=64" }
local function process(which)
  local quoted = {}
  for i, word in ipairs(words) do quoted[i] = "'" .. word .. "'" end
  local pipe <close> = io.popen(("build/cab run tests/bench/audit.lua %s %s"):format(which, table.concat(quoted, " ")))
  return core.json_decode(pipe:read "a")
end
local function median(list)
  table.sort(list)
  return list[(#list + 1) // 2]
end

local audits, firsts, alone, warm = {}, {}, {}, {}
for i = 1, PAIRS do
  local with, without = process "with", process "without"
  audits[i], firsts[i], alone[i] = with.audit, with.audit + with.steps[1], without.steps[1]
  for k = 4, COUNT do warm[#warm + 1] = with.steps[k]; warm[#warm + 1] = without.steps[k] end
end
local step = median(warm)
print(("%s: a step %.1f ms; the audit, first thing of its process, %.1f ms: %.2f steps; first step alone %.1f ms, with the audit before it %.1f ms: "
  .. "it adds %.2f steps (goal: at most 2)"):format(table.concat(words, " "), 1e3 * step, 1e3 * median(audits), median(audits) / step,
  1e3 * median(alone), 1e3 * median(firsts), (median(firsts) - median(alone)) / step))
