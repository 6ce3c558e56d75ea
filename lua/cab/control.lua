--- What changes a run while it runs, at its evaluations: stages that end when a condition holds (`stop`), and terms of weight
--- { "adaptive" } that are lowered, and at last stopped, when they no longer help. Decisions are functions of the weights and of a
--- fixed batch that is not trained on: the first of data.validation where that is given, otherwise the first of the test images, which
--- then have a part in what they measure. Their state is in the checkpoint, so a resumed run decides alike.
local core = require "cab.core"
local options = require "cab.options"
local M = {}

---@class Control
---@field ends table<string, integer> stage number -> the step at which a condition ended it
---@field terms table<string, {scale: number, first?: number, best?: number, bad: integer, against: integer, stopped?: boolean}> "1.align" -> its state
---@field stages table<string, {first?: number, best?: number, bad: integer}> of `stop.plateau`

--- The state of a run that has not begun.
---@return Control
function M.new() return { ends = {}, terms = {}, stages = {} } end

---@param job Job
---@param number integer of a stage
---@param name string of a term
---@return table state of an adaptive term
function M.term(job, number, name)
  local key, all = ("%d.%s"):format(number, name), job.control.terms
  all[key] = all[key] or { scale = 1, bad = 0, against = 0 }
  return all[key]
end

-- Places in job.params by layer of the student.
local function student_layers(job)
  local by = {}
  for i, p in ipairs(job.params) do
    local layer = p.student and math.tointeger(tonumber(p.name:match "%.(%d+)%."))
    if layer then
      by[layer] = by[layer] or {}
      table.insert(by[layer], i)
    end
  end
  return by
end

-- The student's gradients of the sum of the terms that `wanted` picks, by place in job.params.
local function gradients(job, stage, images, labels, wanted)
  local scope <close> = core.scope() -- luacheck: ignore scope
  job:clear_gradients()
  local sum
  for _, t in ipairs((job:losses(stage, images, labels))) do
    if wanted(t) and t.value.requires_grad then sum = sum and sum + t.value * t.weight or t.value * t.weight end
  end
  if sum then sum:backward() end
  local out = require "cab.shares".gradients(job, scope)
  job:clear_gradients()
  return out
end

local function dot(a, b) return core.ops.sum(a * b):item() end

--- Cosine between the gradients of a term and of all others, by layer of the student: near 1 they pull together, below 0 against
--- each other. A layer that either does not reach has none (false).
---@param job Job
---@param stage table
---@param name string of the term
---@param images any
---@param labels any
---@return (number|false)[] by layer
---@return number? mean over layers that have one
function M.cosine(job, stage, name, images, labels)
  local one = gradients(job, stage, images, labels, function(t) return t.name == name end)
  local rest = gradients(job, stage, images, labels, function(t) return t.name ~= name end)
  local out, sum, count = {}, 0, 0
  core.no_grad(function()
    local scope <close> = core.scope() -- luacheck: ignore scope
    local first = math.huge
    local by = student_layers(job)
    for layer in pairs(by) do first = math.min(first, layer) end
    for layer, list in pairs(by) do
      local xy, xx, yy = 0, 0, 0
      for _, i in ipairs(list) do
        local a, b = one[i], rest[i]
        if a and b then xy, xx, yy = xy + dot(a, b), xx + dot(a, a), yy + dot(b, b) end
      end
      out[layer - first + 1] = xx > 0 and yy > 0 and xy / (xx * yy) ^ 0.5 or false
    end
  end)
  for _, c in ipairs(out) do if c then sum, count = sum + c, count + 1 end end
  return out, count > 0 and sum / count or nil
end

-- Losses and R2 of the stage's terms on the held-out batch.
local function values(job, stage, images, labels)
  local scope <close> = core.scope() -- luacheck: ignore scope
  local loss, r2 = {}, {}
  core.no_grad(function()
    for _, t in ipairs((job:losses(stage, images, labels))) do
      loss[t.name], r2[t.name] = t.value:item(), t.strategy:metrics().r2
    end
  end)
  return loss, r2
end

--- Whether a loss has stopped falling: true once `patience` evaluations in a row have not brought it below its best by `delta` of its
--- whole fall since the first. The share is of what there was to learn: a share of the best itself would ask for ever less as a loss
--- goes to 0.
---@param state {first?: number, best?: number, bad: integer} of the evaluations before; changed
---@param value number the loss
---@param delta number 0 to 1; 1: nothing is a fall
---@param patience integer
---@return boolean
function M.flat(state, value, delta, patience)
  state.first = state.first or value
  if not state.best or state.best - value > delta * (state.first - value) then state.best, state.bad = value, 0
  else state.bad = state.bad + 1 end
  return state.bad >= patience
end

-- Whether an adaptive term has stopped helping, and how one can tell.
local function idle(w, state, loss, mean)
  local plateau = w.watch ~= "cosine" and M.flat(state, loss, w.delta, w.patience)
  local against = false
  if w.watch ~= "plateau" and mean then
    state.against = mean < w.cosine and state.against + 1 or 0
    against = state.against >= w.patience
  end
  if plateau then return ("its held-out loss stays at %.4g"):format(state.best) end
  if against then return ("its gradient's mean cosine to the others' is %.3f"):format(mean) end
end

local function adapt(job, stage, number, term, found, said)
  local w, state = term.schedule, M.term(job, number, term.name)
  local why = idle(w, state, found.loss[term.name], found.mean[term.name])
  if not why then return end
  local before = state.scale
  state.scale, state.bad, state.against, state.best = before * w.factor, 0, 0, nil
  if state.scale >= w.floor and state.scale > 0 then
    said[#said + 1] = ("%s: weight down to %.4g: %s"):format(term.name, w.to * state.scale, why)
  elseif #stage.terms > 1 then
    state.stopped = true
    said[#said + 1] = ("%s: stopped: %s%s"):format(term.name, why, job.device ~= "cpu" and "; the step is captured anew" or "")
  else
    state.scale = before -- a stage keeps its last term
    said[#said + 1] = ("%s: kept, it is the stage's last term: %s"):format(term.name, why)
  end
end

-- Why a stage ends here, nil if it does not.
local function ended(job, stage, number, found, row)
  local c = stage.spec.stop
  if not c then return nil end
  local name = c.of
  local loss, r2 = found.loss[name], found.r2[name]
  if c.below and loss and loss < c.below then return ("the held-out loss of %s is %.4g, below %.4g"):format(name, loss, c.below) end
  if c.r2 and r2 and r2 >= c.r2 then return ("R2 of %s is %.3f, at least %.3f"):format(name, r2, c.r2) end
  local top1 = (row.validation or row).top1
  if c.top1 and top1 and top1 >= c.top1 then return ("top-1 is %.2f, at least %.2f"):format(top1, c.top1) end
  if c.plateau and loss then
    local all, key = job.control.stages, tostring(number)
    all[key] = all[key] or { bad = 0 }
    if M.flat(all[key], loss, c.delta, c.plateau) then return ("the held-out loss of %s stays at %.4g"):format(name, all[key].best) end
  end
end

--- True if an evaluation of the stage must measure for `update`.
---@param stage table
function M.wanted(stage)
  for _, t in ipairs(stage.terms) do if t.schedule and t.schedule.kind == "adaptive" then return true end end
  return stage.spec.stop ~= nil
end

--- After an evaluation: measures, decides, changes the job. Adds held_out and cosine to the row.
---@param job Job
---@param step integer
---@param row table of evaluate.job
---@return string[] what the run should say
function M.update(job, step, row)
  local stage, number = job:stage(step)
  if not M.wanted(stage) then return {} end
  local said, found = {}, { mean = {} }
  local evaluate = require "cab.eval"
  evaluate.held_out(job, evaluate.deciding(job), function(images, labels)
    found.loss, found.r2 = values(job, stage, images, labels)
    for _, term in ipairs(stage.terms) do
      if term.schedule and term.schedule.kind == "adaptive" and #stage.terms > 1 then
        local cosine
        cosine, found.mean[term.name] = M.cosine(job, stage, term.name, images, labels)
        row.cosine = row.cosine or {}
        row.cosine[term.name] = cosine
      end
    end
  end)
  row.held_out = found.loss
  row.mean_cosine = next(found.mean) and found.mean or nil
  for _, term in ipairs(table.move(stage.terms, 1, #stage.terms, 1, {})) do
    if term.schedule and term.schedule.kind == "adaptive" then adapt(job, stage, number, term, found, said) end
  end
  local why = step < stage.last and ended(job, stage, number, found, row)
  if why then
    job.control.ends[tostring(number)] = step
    said[#said + 1] = ("stage %d ends at step %d: %s"):format(number, step, why)
  end
  job:follow()
  return said
end

--- Names of terms that a stage has stopped.
---@param job Job
---@param number integer
---@return table<string, true>
function M.stopped(job, number)
  local out = {}
  for key, state in pairs(job.control.terms) do
    local stage, name = key:match "^(%d+)%.(.*)$"
    if state.stopped and tonumber(stage) == number then out[name] = true end
  end
  return out
end

--- The state as a checkpoint holds it, nil where nothing ever changed.
---@param job Job
function M.state(job)
  local c = job.control
  return (next(c.ends) or next(c.terms) or next(c.stages)) and c or nil
end

--- Takes a checkpoint's state back. Stages and terms that this recipe does not have are left alone.
---@param job Job
---@param state? table
function M.restore(job, state)
  local c = M.new()
  for _, field in ipairs(options.names(c)) do
    for k, v in pairs(state and state[field] or {}) do c[field][k] = v end
  end
  job.control = c
  job:follow()
end

return M
