--- Several ranks, one training: who this rank is, its part of each batch, and what ranks decide together. Launched by mpirun or
--- srun; a program started alone is rank 0 of 1, and nothing here does anything. docs/distributed.md.
local core = require "cab.core"
local check = require "cab.check"
local options = require "cab.options"
local M = { rank = 0, size = 1, beside = 0, about = "" }

--- In front of a command of a shell: what it starts is rank 0 of 1, though its parent is one of several.
M.alone = "OMPI_COMM_WORLD_SIZE=1 PMI_SIZE=1 SLURM_STEP_NUM_TASKS=1"

--- Joins the job that started this process, once.
---@param o table recipe.dist: timeout in seconds
function M.open(o) M.rank, M.size, M.beside, M.about = core.dist.open(o.timeout) end

--- The device of this rank: "auto" and "cuda" are the GPU of its number on this host.
---@param name string recipe.device
---@return string
function M.device(name)
  if M.size == 1 or name == "cpu" then return name end
  if name == "auto" then return core.device "auto" == "cpu" and "cpu" or "cuda:" .. M.beside end
  if name:find "^cuda:%d" then
    check.fail(2, ("device=%s with %d ranks: each takes a GPU of its own, say device=cuda"):format(name, M.size), { id = "usage" })
  end
  return "cuda:" .. M.beside
end

--- f on rank 0; its outcome, and the fault it raised, are all ranks'. f returns its value and what the others need to know.
---@param name string for messages
---@param f fun(): any, any
---@return any value on rank 0
---@return any told, on all ranks; JSON
function M.first(name, f)
  if M.size == 1 then return f() end
  local outcome = M.rank == 0 and table.pack(pcall(f)) or {}
  local ok, value, told = outcome[1], outcome[2], outcome[3]
  local fault = not ok and { code = check.code(value), message = type(value) == "table" and value.message or tostring(value),
    id = type(value) == "table" and value.id or nil } or nil
  local text = core.dist.text(name, M.rank == 0 and core.json_encode { told = told, fault = fault } or nil)
  local heard = core.json_decode(text)
  if M.rank == 0 then
    if not ok then error(value, 0) end
    return value, told
  end
  if heard.fault then check.fail(heard.fault.code or 1, "rank 0: " .. heard.fault.message, { id = heard.fault.id }) end
  return nil, heard.told
end

--- Sums over all ranks, in rank order on each.
---@param name string
---@param numbers number[]
---@return number[]
function M.sum(name, numbers)
  if M.size == 1 then return numbers end
  return core.dist.sum(name, numbers)
end

--- Rank 0's values in the tensors of all ranks.
---@param name string
---@param tensors table name -> tensor, alike everywhere
function M.equalise(name, tensors)
  if M.size == 1 then return end
  for _, key in ipairs(options.names(tensors)) do core.dist.send(name, tensors[key]) end
end

--- Tensors that only rank 0 has, on all ranks.
---@param name string
---@param tensors? table name -> tensor on the CPU; rank 0's
---@return table
function M.tensors(name, tensors)
  if M.size == 1 then return tensors end
  local list = {}
  for i, key in ipairs(M.rank == 0 and options.names(tensors) or {}) do list[i] = { key, tensors[key]:dtype(), tensors[key]:shape() } end
  local out = {}
  for _, about in ipairs(core.json_decode(core.dist.text(name, M.rank == 0 and core.json_encode(list) or nil))) do
    local key, dtype, shape = about[1], about[2], about[3]
    out[key] = M.rank == 0 and tensors[key] or core.zeros(shape, dtype, "cpu")
    core.dist.send(name, out[key])
  end
  return out
end

--- Waits for the device, which may wait for other ranks: where one of them is lost, the process ends with 69.
---@param device string
function M.settle(device)
  if M.size == 1 or device == "cpu" then return end
  core.dist.watch "device"
  core.sync(device)
  core.dist.watch()
end

--- Faults (69) naming the ranks whose weights are not those of the others.
---@param tensors any[]
function M.compare(tensors)
  if M.size == 1 then return end
  M.settle(tensors[1]:device())
  core.dist.same("check", "weights", core.dist.checksum(tensors))
end

--- The rows of a global batch that this rank has, of text: first and last, from 1.
---@param batch integer
---@return integer
---@return integer
function M.rows(batch) return batch * M.rank // M.size + 1, batch * (M.rank + 1) // M.size end

--- Ids that are followed by another of their document: what cross-entropy is the mean over.
---@param segments any i32[b,l] on the CPU
---@return integer
function M.targets(segments)
  local n = 0
  for _, row in ipairs(segments:totable()) do
    for t = 2, #row do if row[t] == row[t - 1] and row[t] >= 0 then n = n + 1 end end
  end
  return n
end

-- This rank's rows of a feed of text, which gives whole batches.
local Part = {}
Part.__index = function(t, key)
  return Part[key] or function(_, ...) return t.feed[key](t.feed, ...) end
end

--- The next batch on the CPU, as TextFeed:raw().
function Part:raw()
  local ids, segments = self.feed:raw()
  if not ids then return nil end
  local first, last = M.rows(ids:size(1))
  return ids:slice(1, first, last):clone(), segments:slice(1, first, last):clone()
end

function Part:next()
  local ids, segments = self:raw()
  if ids and self.feed.device ~= "cpu" then return ids:to(self.feed.device), segments:to(self.feed.device) end
  return ids, segments
end

--- A training pass of which this rank takes its part.
---@param data table Data or TextData
---@param o table as Data:loader
---@return table feed
function M.loader(data, o)
  if M.size == 1 then return data:loader("train", o) end
  if not data.vocab then
    o.part, o.parts = M.rank, M.size
    return data:loader("train", o)
  end
  return setmetatable({ feed = data:loader("train", o) }, Part)
end

--- Before a step: all ranks are at it; what they have together, and whether any was asked to stop.
---@param step integer
---@param count number rows, or targets, of this rank
---@param stop boolean
---@return number sum
---@return boolean stop
function M.step(step, count, stop)
  if M.size == 1 then return count, stop end
  return core.dist.meet("step " .. step, count, stop)
end

--- A batch in n parts of rows that follow each other (fewer where it has fewer rows).
---@param batch table images, labels?, targets?: tensors [b,..]
---@param n integer
---@return table[] each like the batch, with first and last
function M.parts(batch, n)
  local rows, out = batch.images:size(1), {}
  n = math.max(1, math.min(n, rows))
  for k = 1, n do
    local first, last = rows * (k - 1) // n + 1, rows * k // n
    out[k] = { first = first, last = last }
    for name, t in pairs(batch) do out[k][name] = n == 1 and t or t:slice(1, first, last) end
  end
  return out
end

--- Calls f(part, share) for the parts of this rank's batch, one after the other. The sums over all parts of all ranks of share times
--- a part's losses are the losses of the whole batch.
---@param job Job
---@param batch table as for M.parts
---@param f fun(part: table, share: number): any what is not nil ends it
function M.each(job, batch, f)
  local whole = job.whole or { rows = batch.images:size(1) }
  for k, p in ipairs(M.parts(batch, job.recipe.accumulate)) do
    job.part = { first = p.first, last = p.last, targets = whole.targets and whole.targets:slice(1, k, k) }
    local stop = f(p, (p.last - p.first + 1) / whole.rows)
    job.part = nil
    if stop then return end
  end
end

--- Faults (2) where a recipe cannot be spread over the ranks there are.
---@param r table resolved recipe
function M.preflight(r)
  local mixed = (r.data.mixup or 0) > 0 or (r.data.cutmix or 0) > 0
  local parts = M.size * r.accumulate
  local least = parts > 1 and parts * (mixed and 2 or 1) or 1
  if r.batch < least then
    check.fail(2, ("batch is %d, for %s%s it must be at least %d"):format(r.batch, M.size == 1 and ("accumulate=%d"):format(r.accumulate)
      or ("%d ranks%s"):format(M.size, r.accumulate > 1 and (" and accumulate=%d"):format(r.accumulate) or ""), mixed and " with mixed records" or "",
      least), { id = "usage" })
  end
end

--- What a run should say of its ranks: how a batch is spread, and what makes it another run than that of one process.
---@param r table resolved recipe
---@param device string
---@return string[]
function M.notes(r, device)
  local n = M.size * r.accumulate
  local ranks = M.size > 1 and ("%d ranks (%s, %s) x "):format(M.size, M.about, device == "cpu" and "MPI" or "NCCL") or ""
  local parts = r.accumulate > 1 and ("%d parts x "):format(r.accumulate) or ""
  local out = { n > 1 and ("%s%s%d rows = batch %d%s"):format(ranks, parts, -(-r.batch // n), r.batch, r.batch % n ~= 0 and ", unevenly" or "") or nil }
  for i, stage in ipairs(n > 1 and r.stages or {}) do
    for name, term in pairs(stage.loss) do
      local what = term.kind == "ridge" and "a bridge solved on the batch" or term.control == "other_image" and "the control other_image"
      if what then out[#out + 1] = ("warning: stages.%d.loss.%s: %s sees the rows of a part of the batch only"):format(i, name, what) end
    end
  end
  return out
end

--- The gradients of a loss over the rows of all parts and ranks, outside a step.
---@param job Job
---@param batch table as for M.parts
---@param loss fun(part: table): any its mean over a part; nil: no gradient
function M.backward(job, batch, loss)
  local r <close> = M.size > 1 and core.dist.reducer(job:tensors(), job.recipe.dist.bucket << 20) or nil
  local any = false
  M.each(job, batch, function(p, share)
    local scope <close> = core.scope() -- luacheck: ignore scope
    local value = loss(p)
    if value and share ~= 1 then value = value * share end
    if value then value:backward() end
    any = any or value ~= nil
  end)
  if r and any then
    r:finish()
    M.settle(job.device)
  end
end

return M
