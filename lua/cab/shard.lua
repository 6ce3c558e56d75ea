--- dist.shard: each rank keeps moments and averages of its part of the parameters, updates that part, and all receive it. What is
--- computed for an element is what it would be whole, so the bits are the same. A checkpoint holds everything, as that of one process.
local core = require "cab.core"
local dist = require "cab.dist"
local M = {}

---@class Shard
---@field buffer userdata of core.dist.shard
---@field place integer[] where each parameter begins in the buffer, from 0
---@field border integer[] where each rank's part begins and, last, ends
local Shard = {}
Shard.__index = Shard

local KINDS = { m = "adam.m.", v = "adam.v.", average = "average." } -- of state, by their names in checkpoints

local function size(p) return p.tensor:count() end

-- Elements of a parameter that are rank r's: the first, from 0, and how many.
local function piece(self, i, p, r)
  local from = math.max(self.border[r + 1] - self.place[i], 0)
  local to = math.min(self.border[r + 2] - self.place[i], size(p))
  return from, math.max(to - from, 0)
end

--- Moves the parameters of a job together and gives each its part of the state: m, v and, where it is averaged, average (flat), and
--- own, the elements that are updated here, from element `from` on; none of it where the part is empty.
---@param job Job
---@return Shard
function M.new(job)
  collectgarbage() -- aliases made on the way
  local self = setmetatable({ job = job, buffer = core.dist.shard(job:tensors(), dist.size) }, Shard)
  self.place, self.border = self.buffer:layout()
  local length = self.border[dist.rank + 2] - self.border[dist.rank + 1]
  local first = job.params[1].tensor
  local state = {}
  for kind in pairs(KINDS) do
    if kind ~= "average" or job.recipe.optim.ema > 0 then state[kind] = core.zeros({ length }, first:dtype(), first:device()) end
  end
  self.state_of = state
  for i, p in ipairs(job.params) do
    local from, n = piece(self, i, p, dist.rank)
    p.from = from
    if n > 0 then
      local at = self.place[i] + from - self.border[dist.rank + 1]
      p.own = p.tensor:detach():reshape(size(p)):slice(1, from + 1, from + n)
      for kind, flat in pairs(state) do
        if kind ~= "average" or p.averaged then p[kind] = flat:slice(1, at + 1, at + n) end
      end
      if p.average then p.average:copy(p.own) end
    end
  end
  return self
end

--- The updated parts of all ranks, on all. Launches only, on a GPU.
function Shard:gather() self.buffer:gather() end

--- The same, for what is not part of a step: waits for it.
function Shard:gathered()
  self:gather()
  dist.settle(self.job.device)
end

--- Names in a checkpoint -> a tensor of that shape.
---@param out table to which they are added
function Shard:names(out)
  for _, p in ipairs(self.job.params) do
    for kind, prefix in pairs(KINDS) do
      if kind ~= "average" or p.averaged then out[prefix .. p.name] = p.tensor end
    end
  end
end

--- All ranks' state: on rank 0 added to `out`, on the CPU; all ranks must call it.
---@param out table
function Shard:state(out)
  for _, kind in ipairs { "m", "v", "average" } do
    local flat = self.state_of[kind]
    local whole = {}
    for r = 0, flat and dist.size - 1 or -1 do
      local scope <close> = core.scope()
      local part = r == dist.rank and flat:to "cpu" or core.zeros({ self.border[r + 2] - self.border[r + 1] }, flat:dtype(), "cpu")
      core.dist.send("state", part, r)
      whole[r + 1] = dist.rank == 0 and scope:keep(part) or nil
    end
    for i, p in ipairs(dist.rank == 0 and flat and self.job.params or {}) do
      if kind ~= "average" or p.averaged then
        local pieces = {}
        for r = 0, dist.size - 1 do
          local from, n = piece(self, i, p, r)
          local at = self.place[i] + from - self.border[r + 1]
          if n > 0 then pieces[#pieces + 1] = whole[r + 1]:slice(1, at + 1, at + n) end
        end
        local all = #pieces > 1 and core.concat(pieces, 1) or pieces[1] and pieces[1]:clone() or core.zeros({ 0 }, flat:dtype(), "cpu")
        out[KINDS[kind] .. p.name] = all:reshape(table.unpack(p.tensor:shape()))
      end
    end
  end
end

--- Takes this rank's part of a checkpoint's tensors.
---@param tensors table
function Shard:take(tensors)
  for _, p in ipairs(self.job.params) do
    for kind, prefix in pairs(KINDS) do
      if p.own and p[kind] then
        local from = tensors[prefix .. p.name]
        p[kind]:copy(from:reshape(size(p)):slice(1, p.from + 1, p.from + p.own:count()))
      end
    end
  end
end

return M
