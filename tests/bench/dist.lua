-- A training step over the ranks of a job: mpirun -np 2 build/cab run tests/bench/dist.lua; alone it is the number to compare with.
-- Vim-Tiny under DeiT-Tiny as in the vision table of `make bench`, with so many images a rank.
package.path = "tests/?.lua;" .. package.path
local cab = require "cab"
local core = require "cab.core"
local dist = require "cab.dist"
local synthetic = require "synthetic"

dist.open { timeout = 60 }
local device = dist.device "cuda"
if dist.size == 1 then device = "cuda:0" end

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

local function row(precision, batch)
  local t = synthetic.new {
    image = 224, channels = 3, classes = 1000, batch = batch, device = device, precision = precision,
    student = cab.models.vim { size = "tiny", decay = "identity" }, teacher = cab.models.vit { size = "tiny" },
    loss = { soft = 1, align = { "attention_bridge", weight = 3 } }, optim = { ema = 0.9999 },
  }
  if dist.size > 1 then dist.equalise("state", t.job:state()) end
  for n = 1, 8 do step(t, n, n == 8) end
  local best = math.huge
  for k = 0, 4 do best = math.min(best, loop(t, 9 + 20 * k, 20)) end
  local v = step(t, 200, true)
  local m = core.memory(device)
  say("%-5s %d ranks x %3d  %8.3f ms  %8.0f images/s  %6.2f GB held  %s  loss %.6f", precision, dist.size, batch, 1e3 * best, dist.size * batch / best,
    (m.live + m.cached) / 1e9, t.stepper.graph and "graph" or "eager", v.loss)
  for _, text in ipairs(t.messages) do say("      %s", text) end
  if t.stepper.reducer then
    dist.compare(t.job:tensors())
    local seconds, bytes, buckets = reduction(t)
    say("      %.1f MB of gradients in %d buckets, reduced alone: %.3f ms, %.1f GB/s", bytes / 1e6, buckets, 1e3 * seconds, bytes / seconds / 1e9)
  end
  t.stepper:close()
  t = nil -- luacheck: ignore
  collectgarbage() collectgarbage()
  core.trim(device)
end

for _, precision in ipairs { "f32", "tf32", "bf16" } do
  for _, batch in ipairs { 64, 32 } do row(precision, batch) end
end
if dist.size > 1 then
  local begun = core.now()
  for _ = 1, 2000 do core.dist.meet "latency" end
  say("a meeting of %d ranks: %.1f us", dist.size, 1e6 * (core.now() - begun) / 2000)
end
