-- make bench: measures the ceilings of this machine first, then kernels, steps and overhead as shares of them, and the
-- same step in PyTorch if python3 (or $CAB_PYTHON) has it. Ratios within one run count, not absolute times.
package.path = "./tests/?.lua;" .. package.path
local cab = require "cab"
local core = require "cab.core"
local op = cab.op

local clock = require "bench.clock"
local median, row, resident = clock.median, clock.row, clock.resident
local function random(...) return core.normal({ ... }, 0, 1, 0, "bench") end

print(("threads %d, %s"):format(core.threads(), core.json_encode(core.doctor())))
print "\n-- ceilings"
local copy_rate, exp_rate
do
  local big = random(1 << 24)
  local target = core.zeros { 1 << 24 }
  local t = median(function() target:copy(big) end)
  copy_rate = 2 * big:bytes() / t
  row("copy 64 MiB", t, ("%.1f GB/s read + written"):format(copy_rate / 1e9))
  local x = random(1 << 18)
  local n = 50
  t = median(function() for _ = 1, n do local _ <close> = core.scope() op.exp(x) end end)
  exp_rate = n * x:count() / t
  row("exp of 1 MiB, all threads", t / n, ("%.2f G/s"):format(exp_rate / 1e9))
  local a, b = random(1024, 1024), random(1024, 1024)
  t = median(function() local _ <close> = core.scope() op.matmul(a, b) end)
  row("matmul 1024", t, ("%.0f GFLOP/s"):format(2 * 1024 ^ 3 / t / 1e9))
end

print "\n-- selective scan: time over the larger of the copy bound and the exp bound"
for _, s in ipairs { { 64, 50, 128, 16 }, { 8, 197, 384, 16 } } do
  local B, L, E, N = table.unpack(s)
  local u, dt, A = random(B, L, E), random(B, L, E), op.affine(op.abs(random(E, N)), -1, -0.1)
  local Bm, C, D, z, bias = random(B, L, N), random(B, L, N), random(E), random(B, L, E), random(E)
  local leaves = { u, dt, A, Bm, C, D, z, bias }
  local forward = median(function()
    local _ <close> = core.scope()
    core.no_grad(op.selective_scan, u, dt, A, Bm, C, D, z, bias)
  end)
  for _, t in ipairs(leaves) do t.requires_grad = true end
  local g = random(B, L, E)
  local both = median(function()
    local _ <close> = core.scope()
    for _, t in ipairs(leaves) do t.grad = nil end
    op.selective_scan(u, dt, A, Bm, C, D, z, bias):backward(g)
  end)
  local exp = B * L * E * N / exp_rate
  local copy_f = 4 * B * L * (4 * E + 2 * N) / copy_rate
  local copy_b = 4 * B * L * (7 * E + 4 * N) / copy_rate
  local name = ("b%d l%d E%d N%d"):format(B, L, E, N)
  row("scan forward " .. name, forward, ("%.2fx of its bound"):format(forward / math.max(exp, copy_f)))
  row("scan backward " .. name, both - forward, ("%.2fx of its bound"):format((both - forward) / math.max(exp, copy_b)))
end

--- One training step as the trainer makes it: teacher, student, KL + 3 alignment, backward, clip, AdamW.
local function step_of(options)
  local teacher = cab.models.vit(options.teacher):build { seed = 0 }
  local student = cab.models.vim(options.student):build { seed = 1 }
  local strategy = cab.strategy.create "attention_bridge"
  local pairing = cab.pairs.new { student = student, teacher = teacher, map = "proportional" }
  local images = random(options.batch, options.student.channels, options.student.image, options.student.image)
  pairing:measure(teacher, { images })
  strategy:prepare(pairing, { seed = 2 })
  local parameters = {}
  for _, p in ipairs(student:parameters()) do parameters[#parameters + 1] = p.tensor end
  for _, p in ipairs(strategy:parameters()) do parameters[#parameters + 1] = p.tensor end
  local m, v = {}, {}
  for i, p in ipairs(parameters) do m[i], v[i] = core.zeros(p:shape()), core.zeros(p:shape()) end
  local count, wanted = 0, { B = true, C = true }
  return function()
    local _ <close> = core.scope()
    count = count + 1
    local tl, tt = core.no_grad(function() return teacher:forward(images, { q = true, k = true }) end)
    local sl, st = student:forward(images, wanted)
    pairing:step(st, tt)
    local loss = op.kl(sl, tl) + strategy:run(pairing, { logits = sl, teacher = tl }) * 3
    loss:backward()
    core.adamw(parameters, 1, m, v, { lr = 5e-4, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, decay = 0.05, step = count })
    for _, p in ipairs(parameters) do p.grad = nil end
    return loss:item()
  end
end

--- The products of that step alone, at the same shapes, through op.matmul, that is in OpenBLAS (linear layers go their own way).
local function products(o)
  local T, D = o.batch * (o.tokens + 1), o.student.dim
  local E, R, N, L = 2 * D, (o.student.dim + 15) // 16, 16, o.student.depth
  local list = {}
  local function add(times, m, n, k) list[#list + 1] = { times, random(m, k), random(k, n) } end
  local function trained(times, m, n, k) add(times, m, n, k) add(times, m, k, n) add(times, k, n, m) end
  trained(L, T, 2 * E, D)
  trained(L * 2, T, R + 2 * N, E)
  trained(L * 2, T, E, R)
  trained(L, T, D, E)
  trained(L * 4, T, 128, N)
  trained(L * 4, T, D, 128)
  local depth = o.teacher.depth
  add(depth, T, 3 * D, D) add(depth, T, D, D) add(depth, T, 4 * D, D) add(depth, T, D, 4 * D)
  return function()
    for _, p in ipairs(list) do
      for _ = 1, p[1] do local _ <close> = core.scope() op.matmul(p[2], p[3]) end
    end
  end
end

local function memory(f)
  core.reset_peak()
  f()
  return core.memory().peak / 2 ^ 20
end

local sizes = {
  demo = { batch = 64, tokens = 49, repeats = 7, teacher = { dim = 64, depth = 6, heads = 4, image = 28, patch = 4, channels = 1, classes = 10 },
    student = { dim = 64, depth = 12, state = 16, image = 28, patch = 4, channels = 1, classes = 10 } },
  tiny = { batch = 8, tokens = 196, repeats = 3, teacher = { dim = 192, depth = 12, heads = 3, image = 224, patch = 16, channels = 3, classes = 1000 },
    student = { dim = 192, depth = 24, state = 16, image = 224, patch = 16, channels = 3, classes = 1000 } },
}
local python = os.getenv "CAB_PYTHON" or "python3"
local have_torch = os.execute(python .. " -c 'import torch' 2>/dev/null")
for _, name in ipairs { "demo", "tiny" } do
  local o = sizes[name]
  print(("\n-- training step, %s: D %d, depth %d, %d tokens, batch %d, teacher depth %d, bridge on"):format(name, o.student.dim,
    o.student.depth, o.tokens + 1, o.batch, o.teacher.depth))
  local step = step_of(o)
  local t = median(step, o.repeats)
  row("CAB", t, ("%.1f images/s, peak %.0f MiB of tensors, process %.0f MiB at its peak"):format(o.batch / t, memory(step), resident()))
  local p = median(products(o), o.repeats)
  local bare = { batch = 1, teacher = {}, student = {} }
  for _, side in ipairs { "teacher", "student" } do
    for k, v in pairs(o[side]) do bare[side][k] = v end
    bare[side].dim, bare[side].patch, bare[side].image, bare[side].classes = 16, 4, 8, 10
    if side == "teacher" then bare[side].heads = 1 end
  end
  local c = median(step_of(bare), 9)
  row("the same ops on one image of 5 tokens, D 16", c, ("Lua, tape and launches: at most %.1f %% of the step"):format(100 * c / t))
  row("its matrix products alone, in OpenBLAS", p, ("the step takes %.2fx of them"):format(t / p))
  if name ~= "demo" then
    print "PyTorch: not run at this size (minutes a step)"
  elseif not have_torch then
    print("PyTorch: skipped, " .. python .. " has no torch (set CAB_PYTHON)")
  else
    for _, mode in ipairs { "loop", "scan" } do
      local pipe <close> = io.popen(("%s tests/bench/pytorch_peer.py %s %s %d 2 2>&1"):format(python, name, mode, o.batch))
      local line = pipe:read "a"
      local ms, peak = tonumber(line:match "([%d.]+) ms/step"), tonumber(line:match "peak (%d+) MiB")
      if ms then row("PyTorch, " .. mode, ms / 1e3, ("%.1fx the time, peak %d MiB"):format(ms / 1e3 / t, peak))
      else print("PyTorch " .. mode .. " failed: " .. line) end
    end
  end
end

dofile "tests/bench/loader.lua"

local gpu, why = core.device_available "cuda"
if gpu then dofile "tests/bench/gpu.lua" else print("\nGPU: skipped, " .. why) end
