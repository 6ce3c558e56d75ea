--- `cab check`: a recipe built, audited and measured, and nothing trained.
local core = require "cab.core"
local check = require "cab.check"
local audits = require "cab.audit"
local jobs = require "cab.job"
local plans = require "cab.plan"
local steps = require "cab.step"
local M = {}

local function quiet() end

-- What a file returns, as runs {name?, recipe}: a recipe, or each of a comparison's.
local function runs_of(path, overrides)
  local value = require "cab.commands.run".chunk(path, {})
  if require "cab.compare".is(value) then return value:override(overrides).runs end
  if require "cab.recipe".is(value) then return { { recipe = value:override(overrides) } } end
  check.fail(2, path .. ": returns neither cab.recipe{...} nor cab.compare{...}", { id = "recipe" })
end

-- Seconds and bytes of a whole step of a stage: the second of two, whose first has library calls and caches to make.
local function measure(job, stage, number, stepper)
  local seconds, bytes
  for i = 1, 2 do
    local scope <close> = core.scope() -- luacheck: ignore scope
    local live = core.memory(job.device).live
    core.reset_peak(job.device)
    local begun = core.now()
    stepper:run(scope, stage, number, { step = stage.first + i - 1, lr = 0, clip = job.recipe.optim.clip, keep = 0 })
    core.sync(job.device)
    seconds, bytes = core.now() - begun, core.memory(job.device).peak - live
    job:clear_gradients()
  end
  return seconds, bytes
end

--- Audits every stage of a resolved recipe and measures a step of each; weights stay as they are.
---@param r table resolved recipe
---@return {notes: string[], audits: Audit[], plan: Plan, faults: string[]}
function M.recipe(r)
  local _run <close> = core.scope() -- luacheck: ignore _run
  local job = jobs.build(r)
  job:measure()
  local stepper = steps.new(job, quiet)
  local feed = job.data:loader("train", { batch = r.batch, seed = r.seed, epoch = 0 })
  local scope <close> = core.scope()
  stepper:take(scope, feed)
  local out, seconds, most = { notes = job.notes, audits = {}, faults = {} }, 0, 0
  for number, stage in ipairs(job.stages) do
    stepper:begin(stage, number)
    local audit = audits.stage(job, number, stepper:part())
    out.audits[number] = audit
    table.move(audit.faults, 1, #audit.faults, #out.faults + 1, out.faults)
    if #audit.faults == 0 then
      local spent, bytes = measure(job, stage, number, stepper)
      audit.step = spent
      seconds, most = seconds + spent * (stage.last - stage.first + 1), math.max(most, bytes)
    end
  end
  out.plan = plans.new(job, most, seconds / job.steps)
  feed:close()
  stepper:close()
  if job.data.close then job.data:close() end
  return out
end

local function plain(run, found)
  local list = {}
  for i, a in ipairs(found.audits) do list[i] = { terms = a.terms, faults = a.faults, warnings = a.warnings, count = a.count } end
  return { name = run.name, stages = list, plan = found.plan, faults = found.faults }
end

local function say(run, found)
  if run.name then print(run.name .. ":") end
  for _, note in ipairs(found.notes) do print(note) end
  for i, audit in ipairs(found.audits) do
    print(("stage %d: %s; %d of a batch of %d"):format(i, audits.line(audit), audit.count, run.recipe.resolved.batch))
    print(audits.table(audit) .. "\n")
    for _, text in ipairs(audit.warnings) do print("warning: " .. text) end
  end
  print(plans.table(found.plan) .. "\n")
end

-- M.recipe, and what to try where a step does not fit.
local function found_of(r)
  local ok, found = pcall(M.recipe, r)
  if ok then return found end
  if check.code(found) == 71 and type(found) == "table" then
    found.message = ("a step of batch %d does not fit: %s; try accumulate=%d, or batch=%d"):format(r.batch, found.message, 2 * r.accumulate,
      math.max(1, r.batch // 2))
  end
  error(found, 0)
end

--- @param o table recipe, overrides, json
---@return integer exit code
function M.main(o)
  local list, faults = {}, {}
  for i, run in ipairs(runs_of(o.recipe, o.overrides)) do
    local found = found_of(run.recipe.resolved)
    list[i] = plain(run, found)
    if not o.json then say(run, found) end
    for _, text in ipairs(found.faults) do faults[#faults + 1] = run.name and ("%s: %s"):format(run.name, text) or text end
  end
  if o.json then print(core.json_encode(require "cab.runs".plain(list))) end
  if #faults > 0 then check.fail(2, table.concat(faults, "; "), { id = "audit" }) end
  return 0
end

return M
