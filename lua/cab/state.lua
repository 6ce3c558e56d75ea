--- What training adds to weights and what a checkpoint holds: moments, averages, statistics; whole, or of each rank its part.
local core = require "cab.core"
local check = require "cab.check"
local dist = require "cab.dist"
local M = {}

--- Moments and averages of all parameters, before the first step.
---@param self Job
function M.add(self)
  if dist.size > 1 and self.recipe.dist.shard then
    self.shard = require "cab.shard".new(self)
    return
  end
  for _, p in ipairs(self.params) do
    local shape, dtype, device = p.tensor:shape(), p.tensor:dtype(), p.tensor:device()
    p.m, p.v = core.zeros(shape, dtype, device), core.zeros(shape, dtype, device)
    p.average = p.averaged and p.tensor:detach():clone() or nil
  end
end

--- AdamW with clipping and averages over all parameters, as the recipe says; goes on from their moments.
---@param self Job
---@return userdata optimizer of core.optimizer
function M.optimizer(self)
  local o = self.recipe.optim
  local all = { params = {}, m = {}, v = {}, average = {}, decay = {}, born = {}, beta1 = o.beta1, beta2 = o.beta2, eps = o.eps }
  for i, p in ipairs(self.params) do
    all.params[i], all.m[i], all.v[i], all.average[i] = p.tensor, p.m or false, p.v or false, p.average or false
    if self.shard then
      all.from = all.from or {}
      all.from[i] = p.from
    end
    all.decay[i], all.born[i] = p.decay and o.weight_decay or 0, p.born or 0
  end
  return core.optimizer(all)
end

--- Everything a checkpoint holds: weights, moments, averages, statistics. Of a sharded job, for all ranks to call: moments and
--- averages are on rank 0's CPU.
---@param self Job
---@param own? boolean only what this process has whole
---@return table name -> tensor
function M.all(self, own)
  local out = {}
  for _, p in ipairs(self.params) do
    out[(p.student and "student." or "") .. p.name] = p.tensor
    if not self.shard then
      out["adam.m." .. p.name], out["adam.v." .. p.name], out["average." .. p.name] = p.m, p.v, p.average
    end
  end
  for name, t in pairs(self.pairs and self.pairs:statistics() or {}) do out[name] = t end
  if self.shard and not own then self.shard:state(out) end
  return out
end

--- Takes a checkpoint's tensors back; faults (65) unless names and shapes are those of this recipe.
---@param self Job
---@param tensors table
---@param path string for messages
function M.restore(self, tensors, path)
  local seen = {}
  if self.pairs then
    local statistics = {}
    for name, t in pairs(tensors) do
      if name:find("^pairs%.") then statistics[name] = t:to(self.device) end
    end
    self.pairs:restore(statistics)
  end
  local state, shapes = self:state(true), self:state(true)
  if self.shard then self.shard:names(shapes) end
  for name, t in pairs(shapes) do
    local from = tensors[name]
    if not from then check.fail(65, ("%s: '%s' is missing: of another recipe"):format(path, name), { file = path, id = "checkpoint" }) end
    local a, b = table.concat(from:shape(), ","), table.concat(t:shape(), ",")
    if a ~= b then
      check.fail(65, ("%s: '%s' is [%s], expected [%s]"):format(path, name, a, b), { file = path, id = "checkpoint" })
    end
    seen[name] = true
  end
  for name in pairs(tensors) do
    if not seen[name] and not name:find("^pairs%.") then
      check.fail(65, ("%s: unexpected '%s': of another recipe"):format(path, name), { file = path, id = "checkpoint" })
    end
  end
  core.no_grad(function()
    for name, t in pairs(state) do t:copy(tensors[name]) end
    if self.shard then self.shard:take(tensors) end
  end)
end

--- Calls fn with the averaged weights in place of the student's, if there are averages.
---@param self Job
---@param fn fun(): any
---@return any what fn returns
function M.averaged(self, fn)
  local raw = {}
  local function swap(back)
    core.no_grad(function()
      for i, p in ipairs(self.params) do
        if p.averaged then
          if not back then raw[i] = p.tensor:detach():clone() end
          if back then p.tensor:copy(raw[i]) elseif p.average then (p.own or p.tensor):copy(p.average) end
        end
      end
      if self.shard and not back then self.shard:gathered() end
    end)
  end
  swap(false)
  local ok, result = pcall(fn)
  swap(true)
  if not ok then error(result, 0) end
  return result
end

return M
