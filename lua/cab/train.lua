--- The only training loop. A step is: forward, terms, backward, guard, clip, AdamW, average. State is the step counter,
--- the weights, the moments, the averages and the target statistics; the order of data is a function of (seed, epoch, index),
--- so resuming needs nothing else and is exact in the middle of an epoch.
local core = require "cab.core"
local check = require "cab.check"
local options = require "cab.options"
local folders = require "cab.folder"
local jobs = require "cab.job"
local schedule = require "cab.schedule"
local evaluate = require "cab.eval"
local audits = require "cab.audit"
local control = require "cab.control"
local plans = require "cab.plan"
local progress = require "cab.progress"
local steps = require "cab.step"
local runs = require "cab.runs"
local dist = require "cab.dist"
local manifests = require "cab.manifest"
local M = {}

local finite = steps.finite

local function number_text(x) return finite(x) and x or tostring(x) end

---@class Run
local Run = {}
Run.__index = Run

function Run:say(text)
  self.bar:line(text)
  self.folder:log(text)
end

-- Writes nan-report.json about a step that must not stand.
function Run:report(step, fields)
  local r, job = self.job.recipe, self.job
  local epoch, batch = (step - 1) // job.per_epoch, (step - 1) % job.per_epoch
  local row = { step = step, stage = select(2, job:stage(step)), epoch = epoch, batch = batch, seed = r.seed, seen_at = self.at,
    samples = { first = batch * r.batch, count = r.batch, order = "permutation of (seed, epoch)" } }
  for k, v in pairs(fields) do row[k] = v end
  self.folder:json("nan-report.json", row)
  self.bad = step
end

-- After steps whose numbers were not finite, the first of them v.step: writes the report, then 76, or a warning where the
-- recipe's guard skips them. Weights and moments are as if those steps had not been.
function Run:nonfinite(v)
  local r, job = self.job.recipe, self.job
  local feed <close> = v.step < self.at and dist.loader(job.data, { batch = r.batch, seed = r.seed, epoch = job:pass((v.step - 1) // job.per_epoch),
    start = (v.step - 1) % job.per_epoch }) or nil
  local bad, terms = self.stepper:blame(job:stage(v.step), v, feed, (v.step - 1) % job.per_epoch)
  for name, x in pairs(terms) do terms[name] = number_text(x) end
  self:report(v.step, { terms = terms, grad_norm = number_text(v.norm), first_bad = bad, skipped = v.skipped })
  self.skipped = self.skipped + v.skipped
  local text = ("step %d: %s '%s' is not finite"):format(v.step, bad.what, bad.tensor)
  if r.guard.nonfinite ~= "skip" or self.skipped > r.guard.skips then
    check.fail(76, ("%s; see %s/nan-report.json"):format(text, self.folder.path), { id = "nonfinite" })
  end
  self:say(("warning: %s; %s"):format(text, v.skipped == 1 and "step skipped" or v.skipped .. " steps skipped"))
end

-- Ends the run with 76 where the gradient's norm is more than guard.spike times the median of those looked at before it (10 to 50).
function Run:spike(step, norm)
  local past, limit = self.norms, self.job.recipe.guard.spike
  if limit > 0 and #past >= 10 then
    local sorted = {}
    for i, p in ipairs(past) do sorted[i] = p.norm end
    table.sort(sorted)
    local median = sorted[#sorted // 2 + 1]
    if norm > limit * median then
      self:report(step, { grad_norm = norm, median = median, first_bad = { what = "gradient", tensor = "global norm", bad = 1 } })
      check.fail(76, ("step %d: the gradient's norm is %.4g, more than %g times the median %.4g; see %s/nan-report.json"):format(step, norm, limit,
        median, self.folder.path), { id = "spike" })
    end
  end
  past[#past + 1] = { step = step, norm = norm }
  if #past > 50 then table.remove(past, 1) end
end

-- Reads back what the step found and looks whether it is finite. Returns the row for metrics.jsonl.
function Run:inspect(step)
  local v = self.stepper:values(step)
  if v.step then self:nonfinite(v) end
  if not finite(v.loss) or not finite(v.norm) then
    return { step = step, skipped = true, loss = tostring(v.loss), grad_norm = tostring(v.norm) }
  end
  self.skipped = 0
  self:spike(step, v.norm)
  return steps.row(self.job, step, v)
end

-- One step. Returns its row where it was looked at: always on the CPU, on a GPU only where that is worth the wait.
function Run:step(step)
  local scope <close> = core.scope()
  local job, o, stepper = self.job, self.job.recipe.optim, self.stepper
  local stage, number = job:stage(step)
  self:take(scope, step)
  self.asked = stepper:meet(step, core.interrupted() > 0)
  if step == stage.first then
    stepper:begin(stage, number)
    self:first(stage, number)
  end
  stepper:run(scope, stage, number, { step = step, lr = schedule.rate(stage.schedule, step - stage.origin), clip = o.clip,
    keep = math.min(o.ema, (1 + step) / (10 + step)) }) -- averages follow quickly at first
  local row = (job.device == "cpu" or self:is_read(step) or self:is_stop(step)) and self:inspect(step) or nil
  job:clear_gradients()
  if row and not row.skipped and self:is_eval(step) and job.recipe.eval.shares and #stage.terms > 1 then
    self.shares, self.conflict = job:shares(stage, stepper.batch.images, stepper.batch.labels, stepper.batch.targets)
  end
  return row
end

-- The first step of a stage: the gradient audit, whose faults end the run, and before the very first step the plan.
function Run:first(stage, number)
  local job = self.job
  local audit = audits.stage(job, number, self.stepper:part())
  self.peak = math.max(self.peak, audit.peak)
  if #audit.faults > 0 then
    local more = #audit.faults > 1 and ("; and %d more: see cab check"):format(#audit.faults - 1) or ""
    check.fail(2, audit.faults[1] .. more, { id = "audit" })
  end
  self:say(("audit of stage %d: %s"):format(number, audits.line(audit)))
  for _, text in ipairs(audit.warnings) do self:say("warning: " .. text) end
  if stage.first == 1 then self:say("plan: " .. plans.line(plans.new(job, audit.activations, audit.step))) end
end

-- Has the stepper take the batch of a step; loaders are opened at the right place of the right epoch.
function Run:take(scope, step)
  local job, r = self.job, self.job.recipe
  local epoch, at = (step - 1) // job.per_epoch, (step - 1) % job.per_epoch
  if not self.loader or self.epoch ~= epoch then
    if self.loader then self:close_loader() end
    self.loader = dist.loader(job.data, { batch = r.batch, seed = r.seed, epoch = job:pass(epoch), start = at })
    self.epoch = epoch
  end
  if not self.stepper:take(scope, self.loader, at) then
    check.fail(70, ("the loader ended at batch %d of epoch %d, expected %d"):format(at, epoch, job.per_epoch))
  end
end

function Run:close_loader()
  local complaints = self.loader:complaints()
  if complaints then self:say(("warning: epoch %d: %s"):format(self.epoch, complaints)) end
  self.waited = self.waited + self.loader:waited()
  self.loader:close()
  self.loader = nil
end

-- The share of time since the last call (less evaluations) that steps stood waiting for their batch.
function Run:data_wait()
  local waited = self.waited + (self.loader and self.loader:waited() or 0)
  local spent = core.now() - self.marked
  local share = (waited - self.waited_before) / math.max(spent, 1e-9)
  self.waited_before = waited
  return share, spent
end

-- A line of speed.jsonl: what differs from run to run, and so is kept from metrics.jsonl.
function Run:speed(step)
  local now, waited = core.now(), self.waited + (self.loader and self.loader:waited() or 0)
  local last = self.clocked
  self.clocked = { step = step, at = now, waited = waited }
  if not last then return end
  local spent, job, memory = math.max(now - last.at, 1e-9), self.job, core.memory(self.job.device)
  local count = (step - last.step) * job.recipe.batch * (job.text and job.data.length or 1)
  self.folder:speed { step = step, seconds = spent, rate = count / spent, wait = (waited - last.waited) / spent, live = memory.live, peak = memory.peak }
end

function Run:is_eval(step)
  local job = self.job
  if step == job.steps then return true end
  return job.eval_every > 0 and step % job.eval_every == 0
end

function Run:is_stop(step) return self.asked or (dist.size == 1 and core.interrupted() > 0) or step == self.stop_after end

-- Steps whose numbers are wanted or that are followed by something that relies on them.
function Run:is_read(step)
  local r = self.job.recipe
  return step == 1 or step % r.log == 0 or self:is_eval(step) or (r.checkpoint.every > 0 and step % r.checkpoint.every == 0)
end

function Run:evaluate(step)
  local job = self.job
  local share, spent = self:data_wait()
  self.folder:log(("step %d: waited for data %.1f %% of %.2f s"):format(step, 100 * share, spent))
  local row = evaluate.job(job, (job:stage(step)))
  local decided = control.update(job, step, row)
  local score, parts = row.score, evaluate.words(row)
  if self.shares then
    row.share = {}
    for _, name in ipairs(options.names(self.shares)) do
      row.share[name] = self.shares[name].share
      parts[#parts + 1] = ("%s %.0f %% of the gradient"):format(name, 100 * self.shares[name].share)
    end
    row.conflict = next(self.conflict) and self.conflict or nil
    self.shares = nil
  end
  self:say(("step %d  %s"):format(step, table.concat(parts, "  ")))
  for _, text in ipairs(decided) do self:say(text) end
  if row.complaints then self:say("warning: evaluation: " .. row.complaints) end
  local seconds = row.seconds
  row.seconds, row.score, row.complaints = nil, nil, nil -- times differ from run to run; the log has them
  self.folder:metric { step = step, eval = row }
  self.last = row
  self.folder:log(("evaluation took %.2f s"):format(seconds))
  if score > (self.best or -math.huge) then
    self.best, self.best_step = score, step
    local name, known = evaluate.known(job, score)
    local function keep() core.save(self.folder.path .. "/best.safetensors", job.student:state(),
      { kind = job.recipe.student.kind, step = tostring(step), [name] = ("%.4f"):format(known) }) end
    local function write() dist.first("best weights", keep) end
    if row.average then job:averaged(write) else write() end
  end
  self.marked, self.clocked = core.now(), nil
end

function Run:save(step)
  local born = self.stepper:born()
  local begun = core.now()
  local state = self.job:state()
  local ok, e = pcall(dist.first, "checkpoint", function() self.folder:save(step, state,
    { born = next(born) and born or nil, best = self.best, best_step = self.best_step, skipped = self.skipped, device = self:device(),
      seconds = self.spent + core.now() - self.begun, control = control.state(self.job) },
    self.job.recipe.checkpoint.keep) end)
  if ok then
    self.failed, self.saved = 0, step
    return self.folder:log(("checkpoint of step %d, %.2f s"):format(step, core.now() - begun))
  end
  self.failed = (self.failed or 0) + 1
  if check.code(e) ~= 74 or self.failed >= 3 then error(e, 0) end
  self:say("warning: " .. tostring(e) .. "; training goes on")
end

-- Takes the newest checkpoint; metrics are cut to it. Returns its step, 0 if there is none, and its meta.
local function restore(self, how)
  local tensors, manifest = dist.first("checkpoint", function()
    self.folder:sweep()
    return self.folder:load(how == "latest-good", function(text) self:say("warning: " .. text) end)
  end)
  if not manifest then
    self.folder:cut(0)
    return 0, {}
  end
  self.job:restore(dist.tensors("checkpoint", tensors), ("%s/checkpoints/step-%d.safetensors"):format(self.folder.path, manifest.step))
  local meta = manifest.meta or {}
  for _, p in ipairs(self.job.params) do p.born = meta.born and meta.born[p.name] end
  control.restore(self.job, meta.control)
  self.best, self.best_step, self.skipped, self.spent = meta.best, meta.best_step, meta.skipped or 0, meta.seconds or 0
  local _, last = dist.first("metrics", function()
    for _, row in ipairs(self.folder:cut(manifest.step)) do self.last = row.eval or self.last end
    return nil, self.last
  end)
  self.last = last or self.last
  self.saved = manifest.step
  return manifest.step, meta
end

local function same_recipe(self)
  local path = self.folder.path
  local other = runs.unlike(path, self.job.recipe)
  if #other > 0 then
    local steps_there = self.folder:checkpoints()
    check.fail(2, ("%s was made with another '%s': resume it with the same recipe%s\n%s"):format(path, other[1][1], #steps_there > 0
      and (", or begin a new run from its checkpoint with --fork %s@%d"):format(path, steps_there[#steps_there]) or "", runs.say(other)))
  end
end

local function resume(self, how)
  dist.first("recipe", function() same_recipe(self) end)
  local step, meta = restore(self, how)
  if step == 0 then return 0 end
  self:say(("resumed at step %d"):format(step))
  if meta.device and meta.device ~= self:device() then
    self:say(("warning: the steps before ran on %s, these run on %s: results differ in the last digits from a run on one device"):format(
      core.escape(meta.device), self:device()))
  end
  return step
end

-- After a step that must not stand: back to the newest checkpoint if the recipe's guard says so, once for each such step; the
-- error goes on otherwise. Returns the checkpoint's step.
local function rewind(self, e)
  local id = type(e) == "table" and e.id
  local may = self.job.recipe.guard.nonfinite == "rewind" and self.saved and not self.rewound[self.bad]
  if not may or (id ~= "nonfinite" and id ~= "spike") then error(e, 0) end
  self.rewound[self.bad] = true
  self:say(("warning: %s; back to the checkpoint of step %d"):format(e.message, self.saved))
  self.stepper:close()
  if self.loader then self:close_loader() end
  self.job:clear_gradients()
  self.folder.lines = {}
  local first = restore(self, true)
  while #self.norms > 0 and self.norms[#self.norms].step > first do table.remove(self.norms) end
  self.stepper = steps.new(self.job, function(text) self:say(text) end)
  return first
end

-- "cuda:0, NVIDIA H100 (sm_90), tf32"
local function device_of(job) return ("%s, %s, %s"):format(job.device, job.chip, job.recipe.precision) end
function Run:device() return device_of(self.job) end

--- Writes what a run folder says of itself: recipe, source, manifest.
---@param folder Folder
---@param job Job
---@param o table source, fork
function M.describe(folder, job, o)
  folder:json("manifest.json", manifests.new(job, device_of(job), o))
  if o.source then core.write_file(folder.path .. "/source.lua", o.source.text) end
  folder:json("recipe.json", { recipe = runs.encodable(job.recipe), student = runs.encodable(job.student.options),
    teacher = job.teacher and runs.encodable(job.teacher.options) or nil, parameters = job.student:size(), steps = job.steps })
end

local function begin(self, o)
  self.job:measure()
  if dist.rank == 0 then M.describe(self.folder, self.job, o) end
end

-- Another run's state at a step, and its metrics up to there, in place of a first step. Returns the step.
local function fork(self, text)
  local from = manifests.checkpoint(text)
  local tensors, manifest = folders.view(from.run):at(from.step)
  self.job:restore(tensors, from.file)
  local meta = manifest.meta or {}
  for _, p in ipairs(self.job.params) do p.born = meta.born and meta.born[p.name] end
  control.restore(self.job, meta.control)
  for _, row in ipairs((folders.metrics(from.run .. "/metrics.jsonl"))) do
    if (row.step or 0) <= from.step then self.folder:metric(row) end
  end
  local other = runs.unlike(from.run, self.job.recipe)
  self:say(("forked from %s at step %d%s"):format(from.run, from.step, #other > 0 and ", with\n" .. runs.say(other) or ""))
  if from.step >= self.job.steps then
    check.fail(2, ("--fork %s: this recipe has %d steps only"):format(text, self.job.steps), { id = "usage" })
  end
  return from.step
end

-- What this run computes on, and what it should not hide.
local function introduce(self)
  local job = self.job
  self:say("on " .. self:device())
  for _, text in ipairs(dist.notes(job.recipe, job.device)) do self:say(text) end
  if job.fallback then self.folder:log("no GPU: " .. job.fallback) end
  for _, note in ipairs(job.notes) do self:say(note) end
  local held, decided = job.data.count.validation, "best weights"
  for _, stage in ipairs(job.stages) do if control.wanted(stage) then decided = "best weights, adaptive weights and ends of stages" end end
  self:say(held and ("%s are decided on %d held-out %s"):format(decided, held, job.text and "rows" or "images")
    or ("%s are decided on the test data: data.validation is 0"):format(decided))
end

-- Steps first+1 .. last. True if a signal (or stop_after) ended them early.
local function loop(self, first)
  local job, r, text = self.job, self.job.recipe, ""
  local step = first
  while step < job.steps do -- a condition may end a stage, and so the run, early
    step = step + 1
    self.at = step
    local row = self:step(step)
    self.done = step
    if row and (step % r.log == 0 or step == 1 or self:is_eval(step) or row.skipped) then
      self.folder:metric(row)
      self:speed(step)
    end
    if row then text = progress.losses(row) end
    self.bar:tick(step, job.text and r.batch * job.data.length or r.batch, text, row and row.loss)
    if r.dist.check > 0 and step % r.dist.check == 0 then dist.compare(job:tensors()) end
    if self:is_eval(step) then self:evaluate(step) end
    local stop = row and step < job.steps and self:is_stop(step) -- nothing is saved unseen
    if stop or step == job.steps or (r.checkpoint.every > 0 and step % r.checkpoint.every == 0) then self:save(step) end
    if stop then return true, step end
  end
end

-- The charts that the recipe asks for, into the run's folder. The run is over: one that cannot be drawn is a warning.
local function draw(self, names)
  for _, what in ipairs(names) do
    local path = self.folder.path
    local drawn, why = pcall(require "cab.charts".draw, what, path, ("%s/%s.png"):format(path, what))
    self:say(drawn and ("chart %s.png"):format(what) or "warning: " .. (type(why) == "table" and why.message or tostring(why)))
  end
end

---@class RunResult
---@field path string run folder
---@field top1? number of the last evaluation; of text, perplexity
---@field validation? table the same on what data.validation holds out
---@field best number best top1, of the held-out images where there are some; of text, the best evaluation's loss, negative
---@field steps integer
---@field seconds number
---@field device string "cpu", "cuda:0"
---@field peak integer bytes in tensors on the device at most

--- Trains a resolved recipe. A run that fails before its first step leaves no folder.
--- Faults: 2 recipe, 65 damaged checkpoint, 74 locked or full, 75 stopped and resumable, 76 numerics.
---@param r table resolved recipe
---@param o? table out (folder), resume (true or "latest-good"), quiet, name, chart, fork ("RUN@STEP"), source (as of cab.runs.source),
--- stop_after (a step: as if a signal came then)
---@return RunResult
function M.run(r, o)
  o = o or {}
  local name = r.name ~= "" and r.name or o.name or "run"
  dist.open(r.dist)
  dist.preflight(r)
  local folder, path = dist.first("folder", function()
    local at = o.out or folders.choose(name, o.resume)
    return folders.open(at, o.resume), at
  end)
  path = path or folder.path
  if dist.rank > 0 then o = setmetatable({ quiet = true }, { __index = o }) end
  local _run <close> = core.scope()
  local self = setmetatable({ folder = folder or folders.none(path), stop_after = o.stop_after, waited = 0, waited_before = 0,
    skipped = 0, norms = {}, rewound = {}, peak = 0, spent = 0, begun = core.now() }, Run)
  self.bar = progress.new { total = 1, name = name, quiet = o.quiet }
  core.catch_signals(true)
  local ok, stopped, at = pcall(function()
    self.job = jobs.build(r, { cached = true })
    if self.job.cache then self.job.cache:fill(self.job, function(text) self:say(text) end) end
    core.trim(self.job.device) -- buffers of an earlier run have other sizes
    core.reset_peak(self.job.device)
    if not o.resume then begin(self, o) end
    local first = o.resume and resume(self, o.resume) or 0
    local _, from = dist.first("manifest", function() return nil, o.resume and folders.manifest(path).fork or o.fork end)
    if first == 0 and o.resume then begin(self, { source = o.source, fork = from }) end
    local forked = first == 0 and from
    if forked then first = fork(self, from) end
    self.bar = progress.new { total = self.job.steps, step = first, name = name, quiet = o.quiet, unit = self.job.text and "tokens", chart = o.chart,
      device = self.job.device }
    self:say(("%s: %d steps, %d training %s, %d parameters, %s"):format(name, self.job.steps, self.job.data.count.train,
      self.job.text and ("rows of %d tokens"):format(self.job.data.length) or "images", self.job.student:size(), path))
    introduce(self)
    dist.equalise("state", self.job:state(true))
    self.stepper = steps.new(self.job, function(text) self:say(text) end)
    if forked then self:save(first) end
    self.marked = core.now()
    while true do
      local whole, ended, step = pcall(loop, self, first)
      if whole then
        self.lengths = not ended and evaluate.generalisation(self.job) or nil
        return ended, step
      end
      first = rewind(self, ended)
    end
  end)
  self.bar:clear()
  if self.stepper then self.stepper:close() end
  if self.loader then self:close_loader() end
  core.catch_signals(false)
  if not ok and self.at and check.code(stopped) == 69 then -- nothing on the device can be saved
    stopped.message = ("step %d: %s; the last checkpoint is %s"):format(self.at, stopped.message, self.saved and "of step " .. self.saved or "none")
  end
  if not ok then pcall(self.folder.log, self.folder, "error: " .. tostring(stopped)) end
  if not ok and not o.resume and not self.done and not self.bad then self.folder:remove() end
  if ok and not stopped and r.export ~= "" then dist.first("export", function() M.export(self, r.export) end) end
  if ok and not stopped and dist.rank == 0 then draw(self, r.draw) end
  local memory = self.job and core.memory(self.job.device)
  if ok then
    memory.peak = math.max(memory.peak, self.peak)
    self:say(("at most %.1f MiB in tensors on %s, %.1f MiB held for them at the end"):format(memory.peak / (1 << 20), self.job.device,
      (memory.live + memory.cached) / (1 << 20)))
  end
  local closed, why = pcall(self.folder.close, self.folder)
  if not ok then error(stopped, 0) end
  if not closed then error(why, 0) end
  if stopped then check.fail(75, ("stopped after step %d; go on with --resume --out %s"):format(at, path), { id = "stopped" }) end
  local last, seconds = self.last or {}, self.spent + core.now() - self.begun
  if self.job.data.close then self.job.data:close() end
  local result = { path = path, name = name, validation = last.validation, top1 = last.top1, top5 = last.top5,
    perplexity = last.perplexity,
    parameters = self.job.student:size(), loss = last.loss, r2 = last.r2, average = last.average,
    lengths = self.lengths,
    best = self.best, best_step = self.best_step, steps = self.job.steps, seconds = seconds, images_per_second = not self.job.text and self.bar:rate() or nil,
    tokens_per_second = self.job.text and self.bar:rate() or nil,
    device = self.job.device, peak = memory.peak }
  if self.done then self.folder:json("result.json", runs.plain(result)) end
  self.bar:summary(result)
  return result
end

--- Copies the best weights to a file of their own.
---@param self table a run
---@param path string
function M.export(self, path)
  local tensors, meta = core.load(self.folder.path .. "/best.safetensors")
  if path:find "/" then folders.make(path:match "^(.*)/") end
  core.save(path, tensors, meta)
  local name, known = evaluate.known(self.job, self.best)
  self:say(("best weights (%s %.2f) in %s"):format(name, known, path))
end

return M
