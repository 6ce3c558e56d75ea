--- The gradient audit: which parameters and taps does each loss term reach, and how strongly? A declared edge that carries no
--- gradient is a fault that names it. One pass a term and one of all together, which tells what a step costs, on so few rows that
--- they are one step's: a stage is audited at the cost of two steps at most, the first of a process included.
local core = require "cab.core"
local jobs = require "cab.job"
local nn = require "cab.nn"
local options = require "cab.options"
local weighting = require "cab.weighting"
local M = {}

---@class AuditTerm
---@field norm number L2 norm of the weighted gradient on all parameters
---@field student number the same on the student's
---@field share number of the sum over terms of `student`, 0 .. 1
---@field groups table<string, number> parameter group -> norm
---@field taps table<string, number[]> the student's taps that the term declares -> norm by layer (false: no such tap there)

---@class Audit
---@field terms table<string, AuditTerm>
---@field order string[] names of the terms
---@field groups string[] parameter groups, the student's first
---@field faults string[] declared edges without gradient
---@field warnings string[]
---@field count integer images or rows in each pass
---@field seconds number all passes
---@field step number seconds of a whole step's forwards and backwards, by the last pass, which finds memory and libraries ready; 0 with faults
---@field activations integer bytes that a whole batch, or part of one, needs besides what was there, gradients included

--- Parameters as an audit counts them together: "layers.*.mixer.in_proj" of a student, "aligner.proj_B" of a bridge.
---@param p table of job.params
---@return string
function M.group(p)
  if p.student then return p.name:match "%." and (p.name:gsub("%.%d+%f[.]", ".*"):gsub("%.[^.]*$", "")) or p.name end
  return p.name:match "^[^.]+%.[^.]+" or p.name
end

-- The first `count` of a batch.
local function part(batch, count)
  local out = {}
  for name, t in pairs(batch) do out[name] = t:size(1) > count and t:slice(1, 1, count) or t end
  return out
end

-- Each tap plus a zero that keeps what gradient comes by: name -> list by layer of those zeros; `cut` names taps without history.
local function probe(taps, leaves, cut)
  local out = {}
  for name, list in pairs(taps) do
    out[name] = list
    if type(list) == "table" then
      out[name], leaves[name] = {}, {}
      for layer, x in pairs(list) do
        out[name][layer] = x
        if type(x) == "userdata" then
          cut[name .. "." .. layer] = not x.requires_grad or nil
          local leaf = core.zeros(x:shape(), x:dtype(), x:device())
          leaf.requires_grad = true
          leaves[name][layer], out[name][layer] = leaf, x + leaf
        end
      end
    end
  end
  return out
end

-- Runs f with pairs:step handing out probed taps.
local function probed(job, leaves, cut, f)
  local pairs_of = job.pairs
  if not pairs_of then return f() end
  local step = pairs_of.step
  rawset(pairs_of, "step", function(self, taps, ...) return step(self, taps and probe(taps, leaves, cut), ...) end)
  local ok, value = pcall(f)
  rawset(pairs_of, "step", nil)
  if not ok then error(value, 0) end
  return value
end

-- Parameters of modules that lie in the strategy's fields, "lifts.1.weight" -> tensor.
local function held(strategy)
  local out, seen = {}, {}
  local function walk(value, name)
    if nn.is_module(value) then
      for _, p in ipairs(value:parameters(name .. ".")) do out[p.name] = p.tensor end
    elseif type(value) == "table" and getmetatable(value) == nil and not seen[value] then
      seen[value] = true
      for k, v in pairs(value) do walk(v, name == "" and tostring(k) or name .. "." .. tostring(k)) end
    end
  end
  for k, v in next, strategy do
    if k ~= "module" and k ~= "class" and k ~= "given" and k ~= "fits" then walk(v, tostring(k)) end
  end
  return out
end

-- L2 norm of a tap's gradient, which may be bf16; 0 where none came.
local function tap_norm(leaf)
  local g = leaf.grad
  return g and core.no_grad(function() return core.ops.sum(core.ops.square(g:to "f32")):item() ^ 0.5 end) or 0
end

-- Layers that a tap is asked of: those with an entry in the layer map.
local function asked(job)
  local out = {}
  for _, entry in ipairs(job.pairs or {}) do out[entry.layer] = true end
  return out
end

local function trains_all(job)
  for _, p in ipairs(job.params) do if p.student and not p.tensor.requires_grad then return false end end
  return true
end

-- Faults of the taps that a term declares, and their norms.
local function look_at_taps(job, who, term, leaves, cut, faults)
  local norms, s = {}, term.strategy
  for _, declared in ipairs(s.needs.student or {}) do
    for _, name in ipairs { declared, declared .. "_b" } do
      local sum, layers = 0, {}
      for layer = 1, job.student.depth or 0 do
        local leaf = leaves[name] and leaves[name][layer]
        layers[layer] = leaf and tap_norm(leaf) or false
        sum = sum + (layers[layer] or 0)
        if leaf and cut[name .. "." .. layer] and asked(job)[layer] and trains_all(job) then
          faults[#faults + 1] = ("%s: tap '%s' of the student's layer %d is detached: its gradient goes nowhere"):format(who, name, layer)
        end
      end
      if leaves[name] and next(leaves[name]) then
        norms[name] = layers
        if sum == 0 and s.given.detach ~= true then
          faults[#faults + 1] = ("%s: no gradient reaches tap '%s', which its strategy declares in needs.student"):format(who, name)
        end
      end
    end
  end
  return norms
end

-- Faults of the term's own parameters: left out of the optimizer, or without gradient.
local function look_at_own(who, term, known, faults)
  for name, tensor in pairs(held(term.strategy)) do
    if tensor.requires_grad and not known[tensor] then
      faults[#faults + 1] = ("%s: parameter '%s' of its strategy is not in the optimizer: assign the module to a field of self in build, "
        .. "a list as cab.nn.list"):format(who, name)
    end
  end
  local sums, any = {}, {}
  for _, p in ipairs(term.strategy:parameters()) do
    if p.tensor.requires_grad then
      local child = p.name:match "^[^.]+%.[^.]+%.%d+%f[.]" or p.name:match "^[^.]+%.[^.]+" or p.name
      sums[child] = (sums[child] or 0) + core.grad_norm { p.tensor }
      any[child] = true
    end
  end
  for _, child in ipairs(options.names(any)) do
    if sums[child] == 0 then faults[#faults + 1] = ("%s: its own parameters '%s' get no gradient"):format(who, child) end
  end
end

-- Norm of each parameter group, times the term's weight.
local function groups_of(job, weight)
  local by, out = {}, {}
  for _, p in ipairs(job.params) do
    local g = M.group(p)
    by[g] = by[g] or {}
    table.insert(by[g], p.tensor)
  end
  for g, list in pairs(by) do out[g] = weight * core.grad_norm(list) end
  return out
end

-- One term's pass. Returns what it reached.
local function pass(job, stage, number, i, batch, audit)
  local scope <close> = core.scope()
  local leaves, cut, faults, term = {}, {}, audit.faults, stage.terms[i]
  local who = ("stage %d: loss term '%s'"):format(number, term.name)
  job:clear_gradients()
  local terms = probed(job, leaves, cut, function() return (job:losses(stage, batch.images, batch.labels, batch.targets)) end)
  local out = { norm = 0, student = 0, groups = {}, taps = {} }
  local value = terms[i].value
  if value.requires_grad then value:backward() end
  out.norm, out.student = term.weight * core.grad_norm(job:tensors()), term.weight * core.grad_norm(job:tensors(true))
  out.groups = groups_of(job, term.weight)
  if weighting.peak(term.schedule or term.weight) == 0 then
    faults[#faults + 1] = who .. " has weight 0: it does nothing; leave it out, or give it a weight"
  elseif out.norm == 0 then
    faults[#faults + 1] = who .. " reaches no parameter"
  end
  if value.requires_grad then
    local known = {}
    for _, p in ipairs(job.params) do known[p.tensor] = true end
    out.taps = look_at_taps(job, who, term, leaves, cut, faults)
    look_at_own(who, term, known, faults)
  end
  if out.norm > 0 and out.student == 0 then
    audit.warnings[#audit.warnings + 1] = who .. " reaches no parameter of the student, only its own"
  end
  job:clear_gradients()
  return out
end

-- A step without its update, and what a whole batch of such rows takes: the gradients of parameters do not grow with it.
local function measure(job, stage, batch, audit, times)
  local scope <close> = core.scope() -- luacheck: ignore scope
  core.sync(job.device)
  local live, begun, gradients = core.memory(job.device).live, core.now(), 0
  core.reset_peak(job.device)
  local total = jobs.total((job:losses(stage, batch.images, batch.labels, batch.targets)))
  if total.requires_grad then total:backward() end
  core.sync(job.device)
  audit.step = (core.now() - begun) * times * job.recipe.accumulate
  for _, p in ipairs(job.params) do gradients = gradients + (p.tensor.grad and p.tensor.grad:bytes() or 0) end
  audit.activations = math.floor(gradients + times * math.max(0, core.memory(job.device).peak - live - gradients))
  job:clear_gradients()
end

--- Audits a stage on a batch {images, labels?, targets?} as the stepper has it. Clears all gradients; weights stay.
---@param job Job
---@param number integer of the stage
---@param batch table
---@return Audit
function M.stage(job, number, batch)
  local stage, before = job.stages[number], core.memory(job.device).peak
  local whole = batch.images:size(1)
  local count = math.min(whole, math.max(2, whole // (#stage.terms + 1)))
  local audit = { terms = {}, order = {}, faults = {}, warnings = {}, count = count, seconds = core.now(), step = 0, activations = 0, groups = {} }
  local few <close> = core.scope() -- luacheck: ignore few
  batch = part(batch, count)
  if stage.schedule.lr == 0 then audit.faults[1] = ("stage %d trains nothing: its learning rate is 0"):format(number) end
  local sum = 0
  job.part = { first = 1, last = count } -- of what a cache holds of the batch
  local ok, e = pcall(function()
    for i, term in ipairs(stage.terms) do
      local t = pass(job, stage, number, i, batch, audit)
      audit.terms[term.name], audit.order[i], sum = t, term.name, sum + t.student
    end
    if #audit.faults == 0 then measure(job, stage, batch, audit, whole / count) end
  end)
  job.part = nil
  if not ok then error(e, 0) end
  local seen = {}
  for _, p in ipairs(job.params) do
    local g = M.group(p)
    if not seen[g] then audit.groups[#audit.groups + 1], seen[g] = g, true end
  end
  for _, t in pairs(audit.terms) do t.share = sum > 0 and t.student / sum or 0 end
  audit.seconds = core.now() - audit.seconds
  audit.peak = before
  return audit
end

--- The audit in one line: each term's share of the student's gradient, and the groups that it reaches most.
---@param audit Audit
---@return string
function M.line(audit)
  local parts = {}
  for i, name in ipairs(audit.order) do
    local t = audit.terms[name]
    parts[i] = ("%s %.0f %% of the student's gradient (norm %.3g)"):format(name, 100 * t.share, t.student)
  end
  local edges, live = 0, 0
  for _, t in pairs(audit.terms) do
    for _, layers in pairs(t.taps) do
      for _, norm in ipairs(layers) do
        if norm then edges, live = edges + 1, live + (norm > 0 and 1 or 0) end
      end
    end
  end
  if edges > 0 then parts[#parts + 1] = ("%d of %d taps"):format(live, edges) end
  if audit.step > 0 then parts[#parts + 1] = ("at the cost of %.1f steps"):format(audit.seconds / audit.step) end
  return table.concat(parts, ", ")
end

--- The audit as a table: a row a parameter group, norm and share of each term.
---@param audit Audit
---@return string
function M.table(audit)
  local header, rows = { "parameters" }, {}
  for _, name in ipairs(audit.order) do header[#header + 1] = name end
  for _, g in ipairs(audit.groups) do
    local row, sum = { g }, 0
    for _, name in ipairs(audit.order) do sum = sum + audit.terms[name].groups[g] end
    for _, name in ipairs(audit.order) do
      local norm = audit.terms[name].groups[g]
      row[#row + 1] = norm == 0 and "-" or ("%.3g  %3.0f %%"):format(norm, 100 * norm / sum)
    end
    rows[#rows + 1] = row
  end
  for _, name in ipairs(audit.order) do
    for _, tap in ipairs(options.names(audit.terms[name].taps)) do
      for layer, norm in ipairs(audit.terms[name].taps[tap]) do
        if norm then
          local row = { ("tap %s.%d"):format(tap, layer) }
          for i, other in ipairs(audit.order) do row[i + 1] = other == name and ("%.3g"):format(norm) or "" end
          rows[#rows + 1] = row
        end
      end
    end
  end
  return require "cab.report".table(header, rows)
end

--- Runs a loss alone and lists the parameters it leaves without gradient (none, or all zero). Clears all gradients.
---@param parameters { name: string, tensor: cab.Tensor }[]
---@param loss fun(): cab.Tensor
---@return string[] names in the order given
local function dead(parameters, loss)
  local list = {}
  local _ <close> = core.scope()
  for _, p in ipairs(parameters) do p.tensor.grad = nil end
  loss():backward()
  for _, p in ipairs(parameters) do
    local grad = p.tensor.grad
    local range = grad and grad:range()
    if not range or (range.min == 0 and range.max == 0) then list[#list + 1] = p.name end
    p.tensor.grad = nil
  end
  return list
end

return setmetatable(M, { __call = function(_, ...) return dead(...) end })
