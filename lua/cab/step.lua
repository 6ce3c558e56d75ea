--- One training step: teacher, student, losses, backward, update. A GPU runs it a few times as it comes and from then on replays
--- it as one graph, without Lua. What a captured step reads lies in fixed places: the staged batch, weights, moments, averages
--- and the optimizer's numbers. What it finds is read back only when `values` is asked for.
local core = require "cab.core"
local check = require "cab.check"
local jobs = require "cab.job"
local schedule = require "cab.schedule"
local options = require "cab.options"
local dist = require "cab.dist"
local M = {}

local EAGER = 2 -- runs as they come before a capture: by then libraries have their memory and all that is made once is made

function M.finite(x) return x == x and x ~= math.huge and x ~= -math.huge end
local finite = M.finite

--- The row of metrics.jsonl of a step: every loss term as it is and, where there are several, times its weight.
---@param job Job
---@param step integer
---@param v table of Step:values
---@return table
function M.row(job, step, v)
  local stage, number = job:stage(step)
  local row = { step = step, epoch = (step - 1) // job.per_epoch, stage = number, loss = v.loss,
    lr = schedule.rate(stage.schedule, step - stage.origin), grad_norm = v.norm }
  for name, x in pairs(v.terms) do row["loss." .. name] = x end
  for _, t in ipairs(stage.terms) do if t.schedule then row["weight." .. t.name] = t.weight end end
  for _, t in ipairs(#stage.terms > 1 and stage.terms or {}) do row["weighted." .. t.name] = t.weight * v.terms[t.name] end
  return row
end

---@class Step
---@field graph? userdata the captured step
---@field now table[] of each part of the batch {terms, total, share} and, where it is all of it, what the losses were made of
---@field refused boolean a loss was not finite, so there was no update
local Step = {}
Step.__index = Step

---@param job Job
---@param say fun(text: string)
---@return Step
function M.new(job, say)
  return setmetatable({ job = job, say = say, optimizer = job:optimizer(), can = job.recipe.capture and job.device ~= "cpu",
    reducer = dist.size > 1 and core.dist.reducer(job:tensors(), job.recipe.dist.bucket << 20) or nil,
    targets = job.text and dist.size * job.recipe.accumulate > 1 and core.zeros({ job.recipe.accumulate }, "f32", job.device) or nil,
    alike = 0, refused = false }, Step)
end

local function alike(t, u)
  if not (t and u) then return t == u end
  return t:dtype() == u:dtype() and table.concat(t:shape(), ",") == table.concat(u:shape(), ",")
end

--- Brings a batch to where the step reads it: on a GPU into the staged tensors; a batch of another shape has its own.
---@param scope any the step's: what outlives the step is kept out of it
---@param images any u8 or f32 [b,C,H,W] as a loader gives them, or ids i32[b,l]
---@param labels any i32[b]; of ids, segment? i32[b,l]
---@param targets? any f32[b,classes] of a mixed batch
function Step:place(scope, images, labels, targets)
  local device, staged = self.job.device, self.staged
  local batch = { images = images, labels = labels, targets = targets }
  self.batch, self.fixed = batch, false
  self.count = self.targets and dist.targets(labels) or images:size(1)
  self.sum = self.count
  if device == "cpu" then return end
  self.fixed = true
  for name, t in pairs(batch) do self.fixed = self.fixed and (not staged or alike(staged[name], t)) end
  if staged and self.fixed then
    for name, t in pairs(batch) do staged[name]:copy(t) end
    self.batch = staged
  else
    self.batch = {}
    for name, t in pairs(batch) do self.batch[name] = t:to(device) end
    if self.fixed then
      for _, t in pairs(self.batch) do scope:keep(t) end
      self.staged = self.batch
    end
  end
end

--- Takes the next batch of a feed, without a detour where the staged tensors fit it.
---@param scope any as for place
---@param feed Feed
---@param at? integer batches of the feed's epoch before this one, where the teacher's taps are cached
---@return boolean false at the end of the data
function Step:take(scope, feed, at)
  local staged, cache = self.staged, self.job.cache
  local taken = staged and not self.targets and feed:into(staged.images, staged.labels, staged.targets)
  if taken then
    self.batch, self.fixed, self.count = staged, true, staged.images:size(1)
    self.sum = self.count
  else
    local images, labels, targets = feed:raw()
    if images then self:place(scope, images, labels, targets) end
    taken = images ~= nil
  end
  if taken and cache then cache:take(feed, at) end
  return taken
end

--- Among several ranks: all are at this step. True if one was asked to stop.
---@param step integer
---@param stop boolean
---@return boolean
function Step:meet(step, stop)
  local any
  self.sum, any = dist.step(step, self.count, stop)
  return any
end

--- The images of the batch, normalised.
function Step:images() return self.job.data:normalise(self.batch.images) end

--- The first part of the batch, normalised: {images, labels?, targets?}.
---@return table
function Step:part()
  local p = dist.parts(self.batch, self.job.recipe.accumulate)[1]
  return { images = self.job.data:normalise(p.images), labels = p.labels, targets = p.targets }
end

-- What the parts of this batch weigh among those of all ranks. Images count by rows. A mean over targets is made one by rows: with
-- `targets` for the number of its own, a part's share of rows times its mean is its sum over all targets. They differ from step to
-- step, so a captured one reads them.
local function weigh(self)
  local job, rows = self.job, self.batch.images:size(1)
  job.whole = { rows = self.sum }
  if not self.targets then return end
  job.whole = { rows = dist.size > 1 and job.recipe.batch or rows, targets = self.targets }
  local list = {}
  for k, p in ipairs(dist.parts(self.batch, self.targets:size(1))) do
    list[k] = math.max(1, self.sum) * (p.last - p.first + 1) / job.whole.rows
  end
  while #list < self.targets:size(1) do list[#list + 1] = 1 end
  self.targets:copy(core.tensor(list, "f32"))
end

-- Teacher, student, losses of a part: launches only.
local function forward(self, stage, part, share)
  local images = self.job.data:normalise(part.images)
  local terms, logits, taps = self.job:losses(stage, images, part.labels, part.targets)
  local total = jobs.total(terms)
  if share ~= 1 then total = total * share end -- sums over parts and ranks are the whole batch's means
  return { images = images, terms = terms, logits = logits, taps = taps, total = total, share = share }
end

-- The parts of the batch one after the other, forward and backward; gradients add up and are summed over the ranks while the last part
-- makes them. look(part): true refuses to go on.
local function passes(self, stage, look)
  local list, refused = {}, false
  if self.reducer then self.reducer:begin() end
  dist.each(self.job, self.batch, function(part, share)
    local whole = part.last - part.first + 1 == self.batch.images:size(1)
    local scope <close> = not whole and core.scope() or nil
    local now = forward(self, stage, part, share)
    if scope then
      for _, t in ipairs(now.terms) do scope:keep(t.value) end
      now = { terms = now.terms, total = scope:keep(now.total), share = share }
    end
    list[#list + 1] = now
    refused = look ~= nil and look(now)
    if not refused then now.total:backward() end
    return refused or nil
  end)
  if self.reducer then self.reducer:finish() end
  return list, refused
end

-- The same on all ranks, or of each its part.
local function update(self)
  self.optimizer:step()
  if self.job.shard then self.job.shard:gather() end
end

-- On the CPU a loss that is not finite stops here; a GPU is not asked, nor is one rank of several: the update refuses gradients
-- that are not finite.
local function eager(self, stage)
  local look = self.job.device == "cpu" and not self.reducer and function(now) return not finite(now.total:item()) end or nil
  self.now, self.refused = passes(self, stage, look)
  if not self.refused then update(self) end
end

-- True if there is a graph now. The state is as before either way: nothing has run.
local function capture(self, scope, stage)
  local job, kept = self.job, nil
  dist.settle(job.device)
  core.trim(job.device) -- the graph's memory is its own: what the steps before left is given back for it
  local ok, graph = pcall(core.capture, job.device, function()
    local _inner <close> = core.scope()
    kept = passes(self, stage)
    update(self)
    for k, now in ipairs(kept) do
      kept[k] = { terms = now.terms, total = scope:keep(now.total), share = now.share }
      for _, t in ipairs(now.terms) do scope:keep(t.value) end
    end
  end)
  job:clear_gradients()
  job.part = nil
  if ok then
    self.graph, self.kept = graph, kept
    return true
  end
  local code = check.code(graph)
  if code ~= 69 and code ~= 71 then error(graph, 0) end
  self.can = false
  self.say("step not captured: " .. tostring(graph))
  return false
end

-- What a captured step holds as it was: the stage's terms and those weights that never change.
local function key_of(self, stage, number)
  local key = { number, self.batch.images:size(1) / self.job.whole.rows }
  for _, t in ipairs(stage.terms) do key[#key + 1] = t.scale and t.name or ("%s=%.17g"):format(t.name, t.weight) end
  return table.concat(key, " ")
end

-- Frees the graph: the next steps run as they come.
local function drop(self)
  if not self.graph then return end
  self.graph:close()
  for _, now in ipairs(self.kept) do
    for _, t in ipairs(now.terms) do t.value:close() end
    now.total:close()
  end
  self.graph, self.kept = nil, nil
end

-- From now on only what the stage trains wants gradients.
local function enter(self, stage)
  if self.stage == stage then return end
  self.job:enter(stage)
  self.stage = stage
end

--- Before the first step of a stage: what its strategies write, and say.
---@param stage table
---@param number integer of the stage
function Step:begin(stage, number)
  enter(self, stage)
  for _, text in ipairs(self.job:begin(stage)) do self.say(("stage %d: %s"):format(number, text)) end
end

--- Runs the step on the batch taken. numbers: of the optimizer, {lr=, step=, clip=, keep=}.
---@param scope any as for place
---@param stage table
---@param number integer of the stage
---@param numbers table
function Step:run(scope, stage, number, numbers)
  enter(self, stage)
  self.job:weigh(stage, number, numbers.step)
  weigh(self)
  local key = key_of(self, stage, number)
  if key ~= self.key then
    if self.reducer then self.reducer:forget() end
    if self.fixed or self.reducer then
      drop(self)
      self.key, self.alike = key, 0
    end
  end
  self.optimizer:set(numbers)
  if self.job.pairs then self.job.pairs:anneal(numbers.step / self.job.planned) end
  local ready = self.fixed and self.can and self.alike >= EAGER
  if ready and (self.graph or capture(self, scope, stage)) then
    self.graph:replay()
    self.now, self.refused = self.kept, false
    return
  end
  eager(self, stage)
  if self.fixed then self.alike = self.alike + 1 end
end

-- The sums over all ranks in place of this one's shares.
local function together(v)
  local names = options.names(v.terms)
  local numbers = { v.loss }
  for i, name in ipairs(names) do numbers[i + 1] = v.terms[name] end
  numbers = dist.sum("losses", numbers)
  v.loss = numbers[1]
  for i, name in ipairs(names) do v.terms[name] = numbers[i + 1] end
end

-- The loss terms over the parts: name -> number.
local function terms_of(list)
  local out = {}
  for _, now in ipairs(list) do
    for _, t in ipairs(now.terms) do out[t.name] = (out[t.name] or 0) + now.share * t.value:item() end
  end
  return out
end

--- Loss, terms and gradient norm of the last run; of the runs since the last call, the first whose numbers were not finite
--- (nil: none), how many were not updated, and the parameter whose gradient was found bad. Waits for the device.
---@param step integer the run's
---@return {loss: number, terms: table<string, number>, norm: number, step?: integer, skipped: integer, parameter?: string}
function Step:values(step)
  if self.reducer and self.job.device ~= "cpu" then core.dist.watch("gradients") end
  local v = { loss = 0, terms = terms_of(self.now), skipped = 1, norm = 0 / 0, step = step }
  for _, now in ipairs(self.now) do v.loss = v.loss + now.total:item() end
  if self.refused then return v end
  local skipped
  v.norm, skipped = self.optimizer:norm()
  core.dist.watch()
  if self.reducer then together(v) end
  v.skipped = skipped and skipped.count or 0
  v.step = skipped and skipped.step or not finite(v.loss) and step or nil
  v.parameter = skipped and skipped.parameter and self.job.params[skipped.parameter].name
  return v
end

-- The first tensor with NaN or Inf, in the order of computation.
local function first_bad(job, now)
  local function find(what, name, t)
    local bad = t and t:range().bad or 0
    return bad > 0 and { what = what, tensor = name, bad = bad } or nil
  end
  local found = not job.text and find("input", "images", now.images) or nil
  for _, p in ipairs(job.params) do found = found or find("weight", p.name, p.tensor) end
  for layer = 1, job.student.depth or 0 do
    for _, name in ipairs(options.names(now.taps)) do
      local tap = now.taps[name]
      local one = type(tap) == "table" and tap[layer]
      found = found or find("tap", name .. "." .. layer, type(one) == "userdata" and one or nil) -- a matrix in tiles is none
    end
  end
  found = found or find("output", "logits", now.logits)
  for _, t in ipairs(now.terms) do
    found = found or not finite(t.value:item()) and { what = "loss", tensor = t.name, bad = 1 } or nil
  end
  for i = #job.params, 1, -1 do
    local p = job.params[i]
    found = found or find("gradient", p.name, p.tensor.grad)
  end
  return found
end

--- What was not finite first, {what, tensor, bad}, and the loss terms then. A replayed step is run again as it comes, without
--- the update; an earlier one with the batch of its feed and, if updates followed, with later weights.
---@param stage table of that step
---@param v table from values
---@param feed? Feed at that step, if it is not the last run
---@param at? integer batches of the feed's epoch before that step
---@return table
---@return table<string, number>
function Step:blame(stage, v, feed, at)
  local list, batch, found = self.now, self.batch, nil
  if feed or not list[1].taps then
    if feed then
      if self.job.cache then self.job.cache:take(feed, at) end
      local images, labels, targets = feed:next()
      batch = { images = images, labels = labels, targets = targets }
    end
    list = {}
    self.job:clear_gradients()
    dist.each(self.job, batch, function(part, share)
      local now = forward(self, stage, part, share)
      now.total:backward()
      list[#list + 1], found = now, found or first_bad(self.job, now)
    end)
  end
  found = found or #list == 1 and first_bad(self.job, list[1]) or nil
  return found or { what = "gradient", tensor = v.parameter or "global norm", bad = 1 }, terms_of(list)
end

--- Parameters and the steps of their first gradients: what a checkpoint must hold of the optimizer beside the moments.
---@return table<string, integer>
function Step:born()
  local out = {}
  for i, step in ipairs(self.optimizer:born()) do
    if step > 0 then out[self.job.params[i].name] = step end
  end
  return out
end

--- The end of training: graph and optimizer go, the job stays.
function Step:close()
  drop(self)
  if self.reducer then self.reducer:close() end
  self.optimizer:close()
end

return M
