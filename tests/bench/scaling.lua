-- Scaling on paper: how long a step takes on n GPUs by what one GPU, NVLink and a network do. build/cab run tests/bench/scaling.lua prints the
-- table of docs/distributed.md (argument: MiB of a bucket, 32). mpirun -np 2 of the same measures the model's numbers on CPU ranks and sets
-- its forecast against the clock.
package.path = "tests/?.lua;" .. package.path
local cab = require "cab"
local core = require "cab.core"
local dist = require "cab.dist"

local MB, GB, us = 1e6, 1e9, 1e-6

-- Steps of one H100 (BENCHMARKS.md): seconds and gradients in bytes (f32); shares of the step before the backward and in it, as its
-- products divide; last: bytes of the bucket that leaves last, an embedding's gradient, since a parameter is not cut. two: measured on 2.
local steps = {
  { name = "vision TF32, 64 images", step = 23.5e-3, bytes = 38.9 * MB, before = 0.40, backward = 0.52, two = 24.3e-3 },
  { name = "vision bf16, 64 images", step = 18.15e-3, bytes = 38.9 * MB, before = 0.40, backward = 0.52, two = 19.17e-3 },
  { name = "language bf16, 8 rows of 1024", step = 21.8e-3, bytes = 503 * MB, last = 154 * MB, before = 0.40, backward = 0.45, two = 25.15e-3 },
  { name = "language bf16, 32 rows of 1024", step = 69.7e-3, bytes = 503 * MB, last = 154 * MB, before = 0.42, backward = 0.53 },
}
-- Measured on two H100: a reduction of a bucket takes 72 us + bytes / 144 GB/s, gathering included (503 MB in 21, 6 and 3 buckets: 5.0, 4.0 and
-- 3.7 ms). Latencies of further hops: NCCL's own model of its LL128 protocol (src/graph/tuning.cc, 2.12: NVLink, network). Networks by their
-- data sheets, 90 % of it in use.
local BASE, NVLINK, HOST, BUCKET = 72 * us, 144 * GB, 8, (tonumber(arg[1]) or 32) * (1 << 20)
local ring, tree = { nvlink = 1.9 * us, net = 4.0 * us }, { nvlink = 1.2 * us, net = 8.5 * us }
local networks = { { name = "8 x 400 Gb/s a host", rate = 8 * 50 * GB * 0.9 }, { name = "1 x 100 Gb/s a host", rate = 12.5 * GB * 0.9 } }
local MEET = 2 * us -- of the host, for each other rank: it says what it is about to do; beside the GPU's work

-- Seconds of an all-reduce of `bytes` over n GPUs (arXiv 1909.09756 for the trees), and by which.
local function reduce(bytes, n, rate)
  local hosts = math.max(1, n // HOST)
  local inside = n // hosts
  local bandwidth = hosts > 1 and math.min(NVLINK, rate) or NVLINK
  local r = BASE + 2 * (n - hosts) * ring.nvlink + (hosts > 1 and 2 * (hosts - 1) * ring.net or 0) + 2 * (n - 1) / n * bytes / bandwidth
  local t = BASE + 2 * ((inside - 1) * tree.nvlink + math.log(hosts, 2) * tree.net) + 2 * bytes / (0.9 * bandwidth)
  if t < r then return t, "tree" end
  return r, "ring"
end

-- Seconds of a step whose buckets leave one after the other as the backward finishes them, and of all reductions. cost(bytes): of a bucket.
local function forecast(o, cost)
  local early, at, sum = o.bytes - (o.last or 0), 0, 0
  local count = math.max(1, math.ceil(early / o.bucket)) -- the last of them is what is left
  local function leave(share, bytes)
    local one = cost(bytes)
    at, sum = math.max(at, o.step * (o.before + o.backward * share)) + one, sum + one
  end
  for k = 1, count do leave(math.min(1, k * o.bucket / early), math.min(o.bucket, early - (k - 1) * o.bucket)) end
  if o.last then leave(1, o.last) end
  return at + o.step * (1 - o.before - o.backward), sum
end

local function paper()
  print(("%-31s %-20s %5s %19s %15s %9s %5s  %s"):format("step", "network", "GPUs", "ms, hidden .. not", "efficiency", "measured", "by", "what limits"))
  for _, s in ipairs(steps) do
    for i, net in ipairs(networks) do
      for _, n in ipairs { 2, 8, 64, 512 } do
        if n > HOST or i == 1 then
          local o = { step = s.step, bytes = s.bytes, last = s.last, before = s.before, backward = s.backward, bucket = BUCKET }
          local _, by = reduce(BUCKET, n, net.rate)
          local gpu, whole = forecast(o, function(bytes) return (reduce(bytes, n, net.rate)) end)
          local best, worst = math.max(gpu, MEET * (n - 1)), math.max(s.step + whole, MEET * (n - 1))
          local limit = best > gpu and "the ranks' meeting" or whole > s.backward * s.step and "bandwidth: reductions outlast the backward"
            or best > 1.02 * s.step and "the last buckets, which nothing hides" or "what reductions take from the backward"
          print(("%-31s %-20s %5d %8.2f .. %-7.2f %6.1f .. %4.1f %% %8s %5s  %s"):format(s.name, n > HOST and net.name or "NVLink", n, 1e3 * best, 1e3 * worst,
            100 * s.step / worst, 100 * s.step / best, n == 2 and s.two and ("%.1f %%"):format(100 * s.step / s.two) or "", by, limit))
        end
      end
    end
  end
end

-- ---- the same on CPU ranks, against the clock ------------------------------------------------------------------------------

local function say(form, ...) if dist.rank == 0 then print(form:format(...)) io.stdout:flush() end end

-- The least seconds of f, of the slowest rank, over some tries.
local function least(tries, f)
  local best = math.huge
  for _ = 1, tries do
    core.dist.meet "begin"
    local begun = core.now()
    f()
    core.dist.meet "end"
    best = math.min(best, core.now() - begun)
  end
  return best
end

-- Seconds of one reduction of so many bytes, in one bucket.
local function reduction(bytes)
  local w = core.zeros({ bytes // 4 }, "f32")
  w.requires_grad = true
  local r <close> = core.dist.reducer({ w }, 1 << 30)
  w.grad = core.zeros({ bytes // 4 }, "f32")
  local function once() r:begin() r:finish() end
  once()
  return least(80, once)
end

local function measured()
  local small, large = reduction(4096), reduction(16 << 20)
  local rate = (16 << 20) / (large - small)
  say("%d ranks on this machine: a reduction takes %.1f us + bytes / %.2f GB/s", dist.size, 1e6 * small, rate / GB)
  say("%-34s %10s %10s %10s %8s", "step", "one, ms", "forecast", "measured", "error")
  local worst = 0
  for _, o in ipairs { { dim = 32, batch = 32, bucket = 64 << 10 }, { dim = 96, batch = 8, bucket = 256 << 10 }, { dim = 192, batch = 2, bucket = 1 << 20 } } do
    local t = require "synthetic".new { image = 32, channels = 3, classes = 10, batch = o.batch,
      student = cab.models.vim { dim = o.dim, depth = 4, patch = 8, state = 8 }, loss = { vanilla = 1 } }
    local bytes = 0
    for _, w in ipairs(t.job:tensors()) do bytes = bytes + w:bytes() end
    local n = 0
    local function run(reducer)
      t.stepper.reducer = reducer
      return least(10, function() n = n + 1 t:step(n) end)
    end
    t.stepper.reducer:close()
    local r <close> = core.dist.reducer(t.job:tensors(), o.bucket)
    local alone, together = math.huge, math.huge -- alone: on all ranks at once, so that what they take from each other is in it
    for _ = 1, 20 do alone, together = math.min(alone, run(nil)), math.min(together, run(r)) end
    -- MPI moves a bucket only while a rank is in it: nothing is hidden behind the backward. Gradients are copied into buckets too.
    local said = forecast({ step = alone, bytes = bytes, before = 1, backward = 0, bucket = o.bucket }, function(b) return small + b / rate end)
    local off = said / together - 1
    worst = math.max(worst, math.abs(off))
    say("D %-3d x %-2d, %5.2f MB in %2d buckets   %10.2f %10.2f %10.2f %+7.1f%%", o.dim, o.batch, bytes / MB, r:buckets(), 1e3 * alone, 1e3 * said, 1e3 * together,
      100 * off)
    t.stepper.reducer = nil
    t:close()
  end
  say("largest error of the forecasts: %.0f %%", 100 * worst)
end

dist.open { timeout = 60 }
if dist.size > 1 then measured() else paper() end
