--- A run in memory, for the prompt: steps when asked for, models and their taps to look at, a strategy's file edited between steps.
---   recipe = cab.open "recipes/quickstart.lua"
---   recipe:step(10); recipe.student.layers[3].B; recipe:eval(); recipe:plot()
local core = require "cab.core"
local check = require "cab.check"
local control = require "cab.control"
local folders = require "cab.folder"
local options = require "cab.options"
local schedule = require "cab.schedule"
local steps = require "cab.step"
local lfs = require "lfs"
local M = {}

---@class Session
---@field path string the recipe's file
---@field recipe table resolved
---@field job Job
---@field steps integer done
---@field loss? number of the last step
---@field terms table<string, number> of the last step, before their weights
---@field history table[] a row a step: step, loss, grad_norm, lr, seconds, "loss.NAME"
---@field student table as model: .layers[i].TAP of the last batch, .logits
---@field teacher? table
local Session = {}

local function is_tap(model, name)
  for _, known in ipairs(model.taps.names) do if known == name then return true end end
  return model.taps.directional[name:gsub("_b$", "")] or false
end

-- What a forward pass on the last batch gives of one tap: a list by layer, or the logits.
local function tap(session, role, name)
  local batch, job = rawget(session, "batch"), session.job
  if not batch then check.fail(1, "no batch yet: take a step first, as recipe:step()", { id = "session" }) end
  local model, key = job[role], name:gsub("_b$", "")
  local _, taps
  core.no_grad(function()
    if job.text then _, taps = model:body(batch.images, { [key] = true }, { segment = batch.labels })
    else _, taps = model:forward(batch.images, { [key] = true }) end
  end)
  return taps[name]
end

-- recipe.student: the model, with `layers[i].TAP` of the last batch.
local function view(session, role)
  local model = session.job[role]
  if not model then return nil end
  local function layer(i)
    return setmetatable({}, {
      __index = function(_, name)
        if type(name) ~= "string" then return nil end
        if not is_tap(model, name) then
          check.fail(1, ("layers[%d]: %s"):format(i, check.unknown("tap", name, model.taps.names)), { id = "tap" })
        end
        return tap(session, role, name)[i]
      end,
      __tostring = function() return ("%s layer %d: taps %s"):format(model.kind, i, table.concat(model.taps.names, " ")) end,
    })
  end
  local layers = {}
  for i = 1, model.depth do layers[i] = layer(i) end
  return setmetatable({ layers = layers, model = model }, {
    __index = function(_, name)
      if name == "logits" then return tap(session, role, name) end
      return model[name]
    end,
    __tostring = function() return ("%s: %d layers, %d parameters, taps %s"):format(model.kind, model.depth, model:size(), table.concat(model.taps.names, " ")) end,
  })
end

-- A recipe of a file's value: itself, or of a comparison the run asked for, or the first that aligns, or the first.
local function choose(path, value, name)
  if require "cab.recipe".is(value) then return value end
  if not require "cab.compare".is(value) then check.fail(2, path .. ": returns no recipe", { id = "recipe" }) end
  local names, first = {}, nil
  for i, run in ipairs(value.runs) do
    names[i] = run.name
    if run.name == name then return run.recipe, name end
    if not first and run.recipe.resolved.stages[1].loss.align then first = run end
  end
  if name then check.fail(2, ("%s: %s"):format(path, check.unknown("run", name, names)), { id = "recipe" }) end
  first = first or value.runs[1]
  return first.recipe, first.name
end

--- Opens a recipe file. o: overrides ("optim.lr=1e-3", as a list), run = a run's name of a comparison.
---@param path string
---@param o? table
---@return Session
function M.open(path, o)
  o = o or {}
  local recipe, name = choose(path, core.loadfile(path)(path), o.run)
  local overrides = table.move(o, 1, #o, 1, {})
  local self = M.of(recipe:override(overrides).resolved, path)
  self.job:measure()
  self.run, self.overrides = name, overrides
  for _, line in ipairs(self.job.notes) do print(line) end
  return self
end

--- The same of a resolved recipe, before its targets are measured.
---@param resolved table
---@param path string that it is known by
---@return Session
function M.of(resolved, path)
  local job = require "cab.job".build(resolved)
  local self = setmetatable({ path = path, overrides = {}, recipe = resolved, job = job, steps = 0, terms = {}, history = {}, files = {} }, Session)
  self.stepper = steps.new(job, print)
  for i, made in ipairs(job.strategies) do self.files[i] = M.stamp(made.strategy.class) end
  return self
end

--- The file that a strategy's class came from and when it was last written.
---@param class table
---@return {file: string, time: integer}?
function M.stamp(class)
  local info = type(class.loss) == "function" and debug.getinfo(class.loss, "S")
  local file = info and info.source:match "^@(.*)"
  local attributes = file and lfs.attributes(file)
  return attributes and { file = file, time = attributes.modification, size = attributes.size } or nil
end

local methods = {}

-- Text that the prompt prints as it is.
local function note(text) return setmetatable({ text = text }, { __tostring = function(t) return t.text end, __name = "cab.note" }) end

-- One whole step: SIGINT waits for its end.
local function one(self)
  local job, r, step = self.job, self.recipe, self.steps + 1
  if step > job.steps then check.fail(1, ("the recipe's %d steps are done"):format(job.steps), { id = "session" }) end
  local epoch, at = (step - 1) // job.per_epoch, (step - 1) % job.per_epoch
  if not self.loader or self.epoch ~= epoch then
    if self.loader then self.loader:close() end
    self.loader, self.epoch = job.data:loader("train", { batch = r.batch, seed = r.seed, epoch = epoch, start = at }), epoch
  end
  local scope <close> = core.scope() -- luacheck: ignore scope
  local begun = core.now()
  local stage, number = job:stage(step)
  if not self.stepper:take(scope, self.loader) then check.fail(70, "the loader ended early") end
  if step == stage.first then self.stepper:begin(stage, number) end
  local o, lr = r.optim, schedule.rate(stage.schedule, step - stage.origin)
  self.stepper:run(scope, stage, number, { step = step, lr = lr, clip = o.clip, keep = math.min(o.ema, (1 + step) / (10 + step)) })
  local v = self.stepper:values(step)
  self.batch = { images = self.stepper:images(), labels = self.stepper.batch.labels }
  for _, t in pairs(self.batch) do scope:keep(t) end
  job:clear_gradients()
  self.steps, self.loss, self.terms = step, v.loss, v.terms
  local row = steps.row(job, step, v)
  row.seconds, row.skipped = core.now() - begun, v.step and true or nil
  self.history[#self.history + 1] = row
  return row
end

-- True if the file of a strategy was written since it was read.
local function edited(self, i)
  local old, new = self.files[i], M.stamp(self.job.strategies[i].strategy.class)
  return old and new and (old.time ~= new.time or old.size ~= new.size)
end

--- Takes n steps. Ctrl-C ends after a whole one: all is as if fewer had been asked for. A strategy's file that was edited is read first.
---@param n? integer 1
---@return table text
function methods:step(n)
  n = n or 1
  if math.type(n) ~= "integer" or n < 1 then check.fail(1, "step: a whole number from 1 on", { id = "session" }) end
  for i in ipairs(self.job.strategies) do
    if edited(self, i) then print(self:reload(true)) break end
  end
  local before, begun, row = core.interrupted(), core.now(), nil
  local done, stopped = 0, false
  for _ = 1, math.min(n, self.job.steps - self.steps) do
    row = core.whole(one, self)
    done = done + 1
    if core.interrupted() ~= before then stopped = true break end
  end
  if not row then check.fail(1, ("the recipe's %d steps are done"):format(self.job.steps), { id = "session" }) end
  local text = ("step %d of %d  %s  |gradient| %.3g  %.0f ms a step"):format(self.steps, self.job.steps, require "cab.progress".losses(row), row.grad_norm,
    1000 * (core.now() - begun) / done)
  return note(stopped and text .. ("  (interrupted after %d of %d; go on with :step())"):format(done, n) or text)
end

--- The evaluation of the recipe on the test data.
---@return table text
function methods:eval()
  local row = require "cab.eval".job(self.job, (self.job:stage(math.max(1, self.steps))))
  self.last = row
  return note(table.concat(require "cab.eval".words(row), "  "))
end

--- Reads the files of the strategies again, and goes on with what they say now: weights, moments and steps stay.
---@param only_edited? boolean leave those alone that were not written since
---@return table text
function methods:reload(only_edited)
  local done = {}
  for i, made in ipairs(self.job.strategies) do
    local s, stamp = made.strategy, self.files[i]
    if stamp and (not only_edited or edited(self, i)) then
      local class
      if lfs.attributes(self.path) and stamp.file == self.path then
        local recipe = choose(self.path, core.loadfile(self.path)(self.path), self.run):override(self.overrides)
        for _, stage in ipairs(recipe.resolved.stages) do
          local term = stage.loss[made.name]
          class = class or term and type(term.strategy) == "table" and term.strategy
        end
      else class = core.loadfile(stamp.file)() end
      if type(class) ~= "table" or not class.is_strategy then check.fail(2, stamp.file .. ": returns no strategy", { id = "reload" }) end
      class.name = class.name or s.class.name
      s:become(class, self.job.pairs, { seed = self.recipe.seed, prefix = s.prefix, device = self.job.device })
      self.files[i] = M.stamp(class)
      done[#done + 1] = ("%s of %s"):format(made.name, stamp.file)
    end
  end
  self.job:announce() -- another file may need other taps
  self.stepper:close()
  for _, p in ipairs(self.job.params) do p.born = p.born or (self.steps > 0 and 1 or nil) end
  self.stepper = steps.new(self.job, print)
  return note(#done > 0 and "read again: " .. table.concat(done, ", ") or "no strategy's file to read")
end

--- Draws the loss so far at the terminal, or into a file.
---@param file? string .png or .svg
---@return table text
function methods:plot(file)
  local list = {}
  for _, name in ipairs(options.names(self.history[1] or {})) do
    if name == "loss" or name:find "^loss%." then
      local s = { name = name, points = {} }
      for i, row in ipairs(self.history) do s.points[i] = { row.step, row[name] } end
      list[#list + 1] = s
    end
  end
  return note(require "cab.show".series(list, file, { title = self.path, x = "step", y = "loss" }))
end

--- Writes the run as it is into a new run folder, from which `cab resume` goes on.
---@param path string
---@return string
function methods:save(path)
  local folder = folders.open(path)
  require "cab.train".describe(folder, self.job, { source = { file = self.path, text = folders.read(self.path), overrides = self.overrides, run = self.run } })
  for _, row in ipairs(self.history) do
    row.seconds = nil
    folder:metric(row)
  end
  local born = self.stepper:born()
  folder:save(self.steps, self.job:state(), { born = next(born) and born or nil, control = control.state(self.job) }, self.recipe.checkpoint.keep)
  folder:close()
  return note(("step %d in %s: cab resume %s"):format(self.steps, path, path))
end

--- Goes to the state of a run folder's checkpoint.
---@param path string
---@param step integer
function methods:restore(path, step)
  local tensors, manifest = folders.view(path):at(step)
  self.job:restore(tensors, ("%s/checkpoints/step-%d.safetensors"):format(path, step))
  for _, p in ipairs(self.job.params) do p.born = manifest.meta and manifest.meta.born and manifest.meta.born[p.name] end
  control.restore(self.job, (manifest.meta or {}).control)
  self.stepper:close()
  self.stepper, self.steps, self.history = steps.new(self.job, print), step, {}
  if self.loader then self.loader:close() end
  self.loader = nil
end

--- One step.
---@return table row
function methods:one() return core.whole(one, self) end

--- Frees models, moments and loaders.
function methods:close()
  if self.loader then self.loader:close() end
  self.loader = nil
  self.stepper:close()
end

function Session.__index(self, key)
  if methods[key] then return methods[key] end
  if key == "student" or key == "teacher" then
    local v = view(self, key)
    rawset(self, key, v)
    return v
  end
end

Session.__name = "cab.session"
function Session.__tostring(self)
  local loss = self.loss and ("loss %.4f"):format(self.loss) or "not begun"
  return ("%s%s: step %d of %d, %s; :step(n) :eval() :plot() :reload() :save(DIR), .student.layers[i].TAP"):format(self.path,
    self.run and " (" .. self.run .. ")" or "", self.steps, self.job.steps, loss)
end

M.methods = methods
return M
