-- A training step over the ranks of a job: mpirun -np 2 build/cab run tests/bench/dist.lua; alone it is the number to compare with.
-- Vim-Tiny under DeiT-Tiny and Phi-Mamba 123M under distilGPT2, as in `make bench`, with so many images or rows a rank. With
-- CAB_TEST_DEVICE=cpu small models, to see that all of it runs.
package.path = "tests/?.lua;" .. package.path
local cab = require "cab"
local core = require "cab.core"
local dist = require "cab.dist"
local synthetic = require "synthetic"

local wanted = os.getenv "CAB_TEST_DEVICE" or "cuda"
local small = wanted == "cpu"
dist.open { timeout = 60 }
local device = dist.device(wanted)
if dist.size == 1 and not small then device = "cuda:0" end

local function say(form, ...) if dist.rank == 0 then print(form:format(...)) io.stdout:flush() end end

local function step(t, n, values)
  local scope <close> = core.scope()
  local stage, number = t.job:stage(n)
  t.feed.n = n - 1
  t.stepper:take(scope, t.feed)
  t.stepper:meet(n, false)
  t.stepper:run(scope, stage, number, { step = n, lr = 5e-4, clip = 1, keep = 0.9 })
  local v = values and t.stepper:values(n)
  t.job:clear_gradients()
  return v
end

-- Seconds of a step of a loop that is not waited for; the slowest rank's.
local function loop(t, from, count)
  core.sync(device)
  core.dist.meet "begin"
  local begun = core.now()
  for n = from, from + count - 1 do step(t, n) end
  core.sync(device)
  core.dist.meet "end of loop"
  return (core.now() - begun) / count
end

-- Seconds of the reduction alone.
local function reduction(t)
  local scope <close> = core.scope()
  local r = t.stepper.reducer
  local tensors, bytes = t.job:tensors(), 0
  for _, w in ipairs(tensors) do w.grad = core.zeros(w:shape(), w:dtype(), device); bytes = bytes + w:bytes() end
  core.sync(device)
  local begun
  for i = 1, 25 do
    if i == 6 then core.sync(device); begun = core.now() end
    r:begin()
    r:finish()
  end
  core.sync(device)
  local seconds = (core.now() - begun) / 20
  t.job:clear_gradients()
  return seconds, bytes, r:buckets()
end

local function vision(batch)
  local image, size = small and 32 or 224, small and { dim = 32, depth = 2 } or { size = "tiny" }
  local student, teacher = { decay = "identity" }, {}
  for k, v in pairs(size) do student[k], teacher[k] = v, v end
  if small then teacher.heads = 2 end
  return { image = image, channels = 3, classes = small and 10 or 1000, batch = batch, unit = "images", count = batch,
    student = cab.models.vim(student), teacher = cab.models.vit(teacher),
    loss = { soft = 1, align = { "attention_bridge", weight = 3 } }, optim = { ema = 0.9999 } }
end

local function text(batch)
  local length = small and 32 or 1024
  return { vocab = small and 67 or 50257, length = length, packed = true, batch = batch, unit = "tokens", count = batch * length,
    student = small and cab.models.phi_mamba { dim = 24, depth = 2, heads = 3, state = 5 } or cab.models.phi_mamba { size = "123m" },
    teacher = small and cab.models.gpt2 { dim = 24, depth = 2, heads = 3, positions = 32 } or cab.models.gpt2 { size = "distil" },
    loss = { soft = { hard = 1 }, align = { "attention_bridge", map = "none" } } }
end

-- One row of the table. what: of vision or text; o: precision, shard, reduce (the reduction alone too).
local function row(what, o)
  what.device, what.precision, what.dist = wanted, o.precision, { shard = o.shard or false }
  core.reset_peak(device)
  local t = synthetic.new(what)
  if dist.size > 1 then dist.equalise("state", t.job:state(true)) end
  for n = 1, 6 do step(t, n, n == 6) end
  local best, steps = math.huge, small and 3 or 15
  for k = 0, 2 do best = math.min(best, loop(t, 7 + steps * k, steps)) end
  local v = step(t, 100, true)
  local m = core.memory(device)
  say("%-6s %-4s %d x %-3d %8.3f ms %9.0f %s/s  peak %6.3f GB  %s%s  loss %.6f", what.unit, o.precision, dist.size, what.batch, 1e3 * best,
    dist.size * what.count / best, what.unit, m.peak / 1e9, t.stepper.graph and "graph" or "eager", o.shard and " shard" or "", v.loss)
  for _, message in ipairs(t.messages) do say("      %s", message) end
  if t.stepper.reducer then dist.compare(t.job:tensors()) end
  if t.stepper.reducer and o.reduce then
    local seconds, bytes, buckets = reduction(t)
    say("      %.1f MB of gradients in %d buckets, reduced alone: %.3f ms, %.1f GB/s", bytes / 1e6, buckets, 1e3 * seconds, bytes / seconds / 1e9)
  end
  t.stepper:close()
  t = nil -- luacheck: ignore
  collectgarbage() collectgarbage()
  core.trim(device)
end

local precisions = small and { "f32" } or { "tf32", "bf16" }
for _, precision in ipairs(precisions) do row(vision(small and 4 or 64), { precision = precision, reduce = true }) end
row(text(small and 2 or 8), { precision = precisions[#precisions], reduce = true })
if dist.size > 1 then
  row(vision((small and 4 or 64) // dist.size), { precision = precisions[1] }) -- strong scaling: the batch of one
  row(vision(small and 4 or 64), { precision = precisions[1], shard = true })
  row(text(small and 2 or 8), { precision = precisions[#precisions], shard = true })
  local begun = core.now()
  for _ = 1, 2000 do core.dist.meet "latency" end
  say("a meeting of %d ranks: %.1f us", dist.size, 1e6 * (core.now() - begun) / 2000)
end
