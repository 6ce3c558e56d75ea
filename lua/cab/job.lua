--- What a recipe becomes: data, models, strategies of each stage, parameters with their moments. No loop here.
local core = require "cab.core"
local check = require "cab.check"
local control = require "cab.control"
local options = require "cab.options"
local state = require "cab.state"
local taps = require "cab.taps"
local weighting = require "cab.weighting"
local M = {}

---@class Job
---@field recipe table resolved recipe
---@field device string where everything is: "cpu", "cuda:0"
---@field chip string
---@field fallback? string why "auto" is the CPU
---@field notes string[] what a run should say before it begins
---@field text? table cab.text, where batches are ids
---@field whole? table of a step's batch: {rows: of all ranks, targets?: f32[parts]}
---@field part? table the part of it that is at work: {first, last: rows, targets?: f32[1]}
---@field params table[] {name, tensor, decay, m, v, average?, averaged, student: boolean, born?: step of the first gradient, of a checkpoint}
---@field shard? Shard where m, v and average are parts of them
local Job = {}
Job.__index = Job

local function same(a, b)
  if type(a) ~= "table" or type(b) ~= "table" or a.is_strategy then return a == b end
  for k, v in pairs(a) do if k ~= "weight" and not same(v, b[k]) then return false end end
  for k in pairs(b) do if k ~= "weight" and a[k] == nil then return false end end
  return true
end
M.same = same

-- One instance for each different term; stages that repeat a term with another weight share it.
local function instances(self)
  local made = {}
  for _, stage in ipairs(self.recipe.stages) do
    local s = { spec = stage, terms = {}, list = {} }
    for _, name in ipairs(options.names(stage.loss)) do
      local term, found = stage.loss[name], nil
      for _, m in ipairs(made) do if m.name == name and same(m.term, term) then found = m end end
      if not found then
        local set = check.copy(term)
        set.strategy, set.weight = nil, nil
        found = { name = name, term = term, strategy = require "cab.strategy".create(term.strategy, set) }
        local number = 1
        for _, m in ipairs(made) do if m.name == name then number = number + 1 end end
        local prefix = name == "align" and "aligner" or name
        found.prefix = number == 1 and prefix .. "." or prefix .. number .. "."
        found.strategy:prepare(self.pairs, { seed = self.recipe.seed, prefix = found.prefix, device = self.device })
        made[#made + 1] = found
      end
      local scheduled = type(term.weight) == "table" and term.weight or nil -- weighed anew each step
      s.terms[#s.terms + 1] = { name = name, weight = weighting.peak(term.weight), strategy = found.strategy, schedule = scheduled,
        scale = scheduled and core.full({ 1 }, 0, "f32", self.device) }
      s.list[#s.list + 1] = found.strategy
    end
    s.all = s.terms
    self.stages[#self.stages + 1] = s
  end
  self.strategies = made
end

local function add_parameters(self, list, student)
  for _, p in ipairs(list) do
    self.params[#self.params + 1] = { name = p.name, tensor = p.tensor, decay = p.decay, student = student,
      averaged = student and self.recipe.optim.ema > 0 }
  end
end

-- Lengths of the stages in steps, and each one's schedule: one over all stages, unless a stage brings its own rate.
local function plan(self)
  local r, spans = self.recipe, require "cab.schedule"
  local facts = { per_epoch = self.per_epoch, tokens = self.data.length and r.batch * self.data.length, steps = 0 }
  for i, s in ipairs(self.stages) do
    s.length = math.max(1, s.spec.steps or s.spec.tokens and spans.budget(s.spec.tokens, ("stages.%d.tokens"):format(i), facts)
      or math.floor(s.spec.epochs * facts.per_epoch + 0.5))
    s.before, facts.steps = facts.steps, facts.steps + s.length
  end
  self.planned = facts.steps
  local function with(steps) return { per_epoch = facts.per_epoch, tokens = facts.tokens, steps = steps } end
  local function schedule(steps, lr)
    local o = r.optim
    local function span(key) return spans.steps(o[key], "optim." .. key, with(steps)) end
    return { kind = o.schedule, lr = lr, low = math.min(o.low, lr), start = math.min(o.start, lr), steps = steps, warmup = span "warmup",
      decay = span "decay", cooldown = span "cooldown" }
  end
  self.eval_every = spans.steps(r.eval.every, "eval.every", facts)
  for i, s in ipairs(self.stages) do
    s.schedule = s.spec.lr and schedule(s.length, s.spec.lr) or schedule(self.planned, r.optim.lr)
    for _, t in ipairs(s.terms) do
      if t.schedule then t.schedule = weighting.compile(t.schedule, ("stages.%d.loss.%s.weight"):format(i, t.name), with(s.length)) end
    end
    if control.wanted(s) and self.eval_every == 0 then
      check.fail(2, ("stages.%d ends or weighs by what evaluations find: set eval.every"):format(i), { id = "recipe" })
    end
  end
end

-- Which taps the terms of a stage ask of both models, and whether any asks for the student's own pass.
local function ask(self, s)
  local list = {}
  s.apart = true
  for i, t in ipairs(s.terms) do list[i], s.apart = t.strategy, s.apart and t.strategy.apart or false end
  s.student_taps = taps.wanted(list, "student", self.student)
  s.teacher_taps = self.teacher and taps.wanted(list, "teacher", self.teacher)
end

--- Brings stages and terms in line with `control`: borders, where conditions ended stages early, and terms that were stopped. A
--- rate over all stages goes on where the next stage would have begun.
function Job:follow()
  local last = 0
  for i, s in ipairs(self.stages) do
    local stopped = control.stopped(self, i)
    s.first = last + 1
    s.last = math.min(last + s.length, self.control.ends[tostring(i)] or math.huge)
    s.origin = s.spec.lr and s.first - 1 or s.first - 1 - s.before
    last = s.last
    s.terms = {}
    for _, t in ipairs(s.all) do if not stopped[t.name] then s.terms[#s.terms + 1] = t end end
    ask(self, s)
  end
  self.steps = last
end

--- Sets the weights of a stage's terms for a step.
---@param stage table
---@param number integer of the stage
---@param step integer
function Job:weigh(stage, number, step)
  for _, t in ipairs(stage.terms) do
    if t.schedule then
      t.weight = weighting.at(t.schedule, step - stage.first + 1, t.schedule.kind == "adaptive" and control.term(self, number, t.name).scale)
      t.scale:fill(t.weight)
    end
  end
end

--- Calls f(...); where it finds a file missing, what the recipe says about that (its `missing`) is added to the fault.
---@param r table resolved recipe
---@param key string "data", "teacher" or "student"
function M.helped(r, key, f, ...)
  local ok, value = pcall(f, ...)
  if ok then return value end
  if check.code(value) == 74 and r.missing[key] then value.message = ("%s. %s"):format(value.message, r.missing[key]) end
  error(value, 0)
end

-- role: "teacher" or "student", the recipe's key.
local function model(role, spec, extra)
  local given = check.copy(spec)
  if given.weights and given.weights ~= "" then
    given.weights = require "cab.data".find(given.weights)
    local file = io.open(given.weights, "rb")
    if not file then
      check.fail(74, ("%s.weights: %s: no such file; give %s.weights=FILE, or %s.weights= (empty) for an untrained one"):format(
        role, given.weights, role, role), { file = given.weights, id = "weights" })
    end
    file:close()
  end
  local kind, text = require "cab".models[spec.kind], extra.vocab ~= nil
  if text ~= (kind.options.vocab ~= nil) then
    check.fail(2, ("the data is %s, but the %s is a %s, for %s"):format(text and "text" or "images", role, spec.kind,
      text and "images" or "text"), { id = "task" })
  end
  return require "cab.models.build".model(kind, given, extra)
end

local function choose_device(self)
  local r = self.recipe
  self.device, self.chip, self.fallback = core.device(require "cab.dist".device(r.device))
  if self.device == "cpu" and r.precision ~= "f32" then
    check.fail(2, ("precision is '%s', which needs a GPU, and device is '%s': set precision=f32, or device=cuda where there is one"):format(
      r.precision, r.device), { id = "precision" })
  end
  core.precision(self.device, r.precision == "f32" and "f32" or "tf32") -- in a bf16 run: of the products that are left in f32
end

-- "student.layers.*.mixer.*" as a Lua pattern: * stands for any text.
local function glob(text) return "^" .. text:gsub("[%^%$%(%)%%%.%[%]%+%-%?]", "%%%0"):gsub("%*", ".*") .. "$" end

-- What `train` of each stage leaves to be trained, by parameter; a pattern without a parameter is a fault.
local function choose(self)
  local names = {}
  for i, p in ipairs(self.params) do names[i] = (p.student and "student." or "") .. p.name end
  for number, s in ipairs(self.stages) do
    s.trained = {}
    for k, text in ipairs(s.spec.train or { "*" }) do
      local found, pattern = false, glob(text)
      for i, p in ipairs(self.params) do
        if names[i]:find(pattern) then found, s.trained[p] = true, true end
      end
      if not found then check.fail(2, ("stages.%d.train.%d: %s"):format(number, k, check.unknown("parameter", text, names)), { id = "train" }) end
    end
  end
  for _, p in ipairs(self.params) do p.free = p.tensor.requires_grad end -- not where a strategy froze it
end

-- The teacher; where its taps come from files that are all there, without weights.
local function build_teacher(self, extra, hollow)
  local r, cache = self.recipe, self.cache
  if not hollow then return M.helped(r, "teacher", model, "teacher", r.teacher, extra):freeze() end
  local o, spec = { hollow = cache:why() }, check.copy(cache.manifest.options)
  for k, v in pairs(extra) do o[k] = v end
  spec.weights = nil
  return require "cab.models.build".model(require "cab".models[r.teacher.kind], spec, o)
end

--- Opens data and builds the models.
---@param r table resolved recipe
---@param o? table cached: the taps of training batches come from the recipe's cache, which the caller fills (job.cache); whole: and
--- the teacher has its weights
---@return Job
function M.build(r, o)
  o = o or {}
  local self = setmetatable({ recipe = r, stages = {}, params = {}, notes = {}, control = control.new() }, Job)
  choose_device(self)
  if r.threads > 0 then core.threads(r.threads) end
  self.data = M.helped(r, "data", require "cab.data".build, r.data, self.device)
  self.text = self.data.vocab and require "cab.text" -- batches are ids
  self.per_epoch = self.data:batches(r.batch)
  if self.per_epoch == 0 then
    check.fail(2, ("batch is %d, there are only %d training %s"):format(r.batch, self.data.count.train, self.text and "rows" or "images"))
  end
  local extra = self.text and { vocab = self.data.vocab }
    or { classes = self.data.classes, channels = self.data.channels, image = self.data.size, mean = self.data.mean, std = self.data.std }
  extra.seed, extra.device, extra.precision = r.seed, self.device, r.precision
  for _, note in ipairs(self.data.notes or {}) do self.notes[#self.notes + 1] = note end
  self.student = M.helped(r, "student", model, "student", r.student, extra)
  self.cache = o.cached and require "cab.cache".open(r, self.data) or nil
  local hollow = self.cache and self.cache.manifest and not self.cache.live and not o.whole
  self.teacher = r.teacher and build_teacher(self, extra, hollow)
  if self.teacher then
    if (r.teacher.weights or "") == "" then self.notes[#self.notes + 1] = "warning: the teacher is untrained: teacher.weights names no file" end
    self.pairs = require "cab.pairs".new { student = self.student, teacher = self.teacher, map = r.pairs, device = self.device }
  end
  for _, role in ipairs { "student", "teacher" } do
    for _, note in ipairs(self[role] and self[role].notes or {}) do self.notes[#self.notes + 1] = ("%s: %s"):format(role, note) end
  end
  if self.text then self.text.preflight(self) end
  instances(self)
  self:announce()
  if self.cache then
    self.cache:plan(self)
    if hollow and #self.cache:lacks() > 0 then
      self.data:close()
      return M.build(r, { cached = true, whole = true })
    end
  end
  add_parameters(self, self.student:parameters(), true)
  for _, made in ipairs(self.strategies) do add_parameters(self, made.strategy:parameters(), false) end
  if self.pairs then add_parameters(self, self.pairs:parameters(), false) end
  state.add(self)
  choose(self)
  plan(self)
  self:follow()
  return self
end

--- What each stage asks of both models, after its strategies: taps, and whether the student runs over the batch at all.
function Job:announce()
  for _, s in ipairs(self.stages) do
    ask(self, s)
    for _, strategy in ipairs(s.list) do
      for _, name in ipairs(strategy:measures() and strategy.needs.teacher or {}) do
        self.measures = self.measures or {}
        self.measures[name] = true
      end
    end
  end
end

--- The epoch whose first images, or windows, measure the teacher: training never comes there.
M.SAMPLED = 1 << 30

--- Of how many batches, and of how many rows, up to `images` training images (all classes are among them) or 20000 tokens are.
---@param data table
---@param images integer
---@return integer batches
---@return integer rows of each
function M.sampled(data, images)
  local most = data.vocab and math.max(1, 5000 // data.length) or data.size > 64 and 20 or 100
  local batch = math.min(most, images, data.count.train) -- taps of all layers are held, in f64
  return data.vocab and math.min(4, data.count.train // batch) or math.min(images, data.count.train) // batch, batch
end

-- Calls f(next batch, its feed) over them, shuffled.
local function sample(self, images, f)
  local left, batch = M.sampled(self.data, images)
  local loader = self.data:loader("train", { batch = batch, seed = self.recipe.seed, epoch = M.SAMPLED })
  f(function()
    left = left - 1
    if left >= 0 then return loader:next() end
  end, loader)
  loader:close()
end

--- Before the first step: the layer map, where it is searched, and mean and deviation of the teacher's targets, of 1000 images.
function Job:measure()
  if self.pairs and self.pairs.map_name == "search" then
    sample(self, self.pairs.map_options.images, function(batches) self.pairs:search(batches) end)
    local list = {}
    for i, t in ipairs(self.pairs.map) do list[i] = i .. ">" .. t end
    self.notes[#self.notes + 1] = "layer map found: " .. table.concat(list, " ")
  end
  if not self.measures then return end
  sample(self, 1000, function(batches, loader)
    self.pairs:measure(self.cache and self.cache:reader(loader) or self.teacher, batches, self.measures)
  end)
end

--- Before the first step of a stage: strategies that write weights do so now; averages begin anew from what they wrote.
---@param stage table
---@return string[] what the run should say
function Job:begin(stage)
  local said = {}
  for _, term in ipairs(stage.terms) do
    local text = term.strategy:begin(self.pairs)
    if text then said[#said + 1] = text end
  end
  if #said > 0 then
    core.no_grad(function()
      for _, p in ipairs(self.params) do
        if p.average then p.average:copy(p.own or p.tensor) end
      end
    end)
  end
  return said
end

--- The epoch whose batches a run trains on in an epoch: another where a cache holds the views of some epochs only.
---@param epoch integer from 0
---@return integer
function Job:pass(epoch)
  local views = self.cache and self.cache.epochs or 0
  return views > 0 and epoch % views or epoch
end

--- Only what the stage trains wants gradients from now on.
---@param stage table
function Job:enter(stage)
  for _, p in ipairs(self.params) do p.tensor.requires_grad = p.free and stage.trained[p] or false end
end

---@param step integer
---@return table stage
---@return integer its number
function Job:stage(step)
  for i, s in ipairs(self.stages) do if step <= s.last then return s, i end end
  return self.stages[#self.stages], #self.stages
end

--- The losses of a batch. Inside the caller's scope. Strategies see labels or, of a mixed batch, the target.
---@param stage table
---@param images any f32[b,C,H,W], or ids i32[b,l]
---@param labels any i32[b]; of ids, segment? i32[b,l]
---@param target? any f32[b,classes] of a mixed batch
---@return table[] terms {name, weight, value: scalar tensor, strategy}
---@return any logits [b,classes]; of ids, nil
---@return table taps of the student
function Job:losses(stage, images, labels, target)
  if self.text then return self.text.losses(self, stage, images, labels) end
  local batch = { images = images, labels = not target and labels or nil, target = target }
  local teacher_taps
  local cached = self.cache and self.cache.now
  if cached then
    local now = self.cache:rows(self.part)
    batch.teacher, teacher_taps = now.logits, now.taps
  elseif stage.teacher_taps then
    batch.teacher, teacher_taps = core.no_grad(function() return self.teacher:forward(images, stage.teacher_taps) end)
  elseif self.teacher then -- logits only, and only for those that read them
    setmetatable(batch, { __index = function(t, key)
      if key ~= "teacher" then return nil end
      local logits = core.no_grad(function() return (self.teacher:forward(images)) end)
      rawset(t, key, logits)
      return logits
    end })
  end
  local logits, seen
  if not stage.apart then logits, seen = self.student:forward(images, stage.student_taps) end
  batch.logits = logits
  if self.pairs then self.pairs:step(seen, teacher_taps) end
  local terms = {}
  for i, term in ipairs(stage.terms) do
    terms[i] = { name = term.name, weight = term.weight, scale = term.scale, strategy = term.strategy, value = term.strategy:run(self.pairs, batch) }
  end
  return terms, logits, seen
end

--- sum of weight * value; a weight that changes is a tensor, so that a captured step reads it anew.
---@param terms table[] of Job:losses
---@return cab.Tensor scalar
function M.total(terms)
  local sum
  for _, t in ipairs(terms) do
    local part = t.scale and t.value:reshape(1) * require "cab.models.build".cast(t.scale, t.value:dtype()) or t.weight == 1 and t.value or t.value * t.weight
    sum = sum and sum + part or part
  end
  return sum
end

---@param only_student? boolean
---@return any[] tensors
function Job:tensors(only_student)
  local list = {}
  for _, p in ipairs(self.params) do if p.student or not only_student then list[#list + 1] = p.tensor end end
  return list
end

--- Forgets the gradients of all parameters.
function Job:clear_gradients()
  for _, p in ipairs(self.params) do p.tensor.grad = nil end
end

--- Gradient norms of the terms and their conflicts: cab.shares, as job:shares(stage, images, labels, target).
Job.shares = require "cab.shares".of

--- cab.state, as job:optimizer(), job:state(own), job:restore(tensors, path) and job:averaged(fn).
Job.optimizer, Job.state, Job.restore, Job.averaged = state.optimizer, state.all, state.restore, state.averaged

return M
