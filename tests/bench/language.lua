-- The training step of a small Phi-Mamba under a small GPT-2 (CE + KL + bridge, AdamW), and the same in PyTorch if python3 (or
-- $CAB_PYTHON) has it; the bridge's loss against matching whole mixing matrices. Part of make bench; also run by itself.
package.path = "./tests/?.lua;" .. package.path
local cab = require "cab"
local core = require "cab.core"
local op = cab.op

local clock = require "bench.clock"
local median, row, resident = clock.median, clock.row, clock.resident

local function step_of(o)
  local teacher = cab.models.gpt2 { dim = o.dim, depth = o.depth, heads = o.heads, positions = o.tokens }:build { vocab = o.vocab }:freeze()
  local student = cab.models.phi_mamba { dim = o.dim, depth = o.depth, heads = o.heads, state = o.state }:build { vocab = o.vocab, seed = 1 }
  local pairing = cab.pairs.new { student = student, teacher = teacher }
  local bridge = cab.strategy.create "attention_bridge":prepare(pairing, { seed = 2 })
  local ids = core.uniform({ o.batch, o.tokens }, 0, o.vocab, 0, "ids", "f64"):to "i32"
  pairing:measure(teacher, { ids })
  local parameters, m, v, count = {}, {}, {}, 0
  for _, list in ipairs { student:parameters(), bridge:parameters() } do
    for _, p in ipairs(list) do parameters[#parameters + 1] = p.tensor end
  end
  for i, p in ipairs(parameters) do m[i], v[i] = core.zeros(p:shape()), core.zeros(p:shape()) end
  return function()
    local _ <close> = core.scope()
    count = count + 1
    local ty, tt = core.no_grad(function() return teacher:body(ids, { q = true, k = true }) end)
    local y, st = student:body(ids, { B = true, C = true })
    pairing:step(st, tt)
    local w, b = student:head()
    local loss = op.head_loss { x = y, w = w, b = b, ids = ids, tx = ty, tw = teacher:head(), kl = 1 } + bridge:run(pairing, {})
    loss:backward()
    core.adamw(parameters, 1, m, v, { lr = 5e-4, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, decay = 0.05, step = count })
    for _, p in ipairs(parameters) do p.grad = nil end
    return loss:item()
  end
end

local python = os.getenv "CAB_PYTHON" or "python3"
local have_torch = os.execute(python .. " -c 'import torch' 2>/dev/null")

local function peer(o, t, mode, steps)
  local pipe <close> = io.popen(("%s tests/bench/pytorch_language_peer.py %s %d %d %d %d %d %d %d %d 2>&1"):format(python, mode, o.dim, o.depth,
    o.heads, o.state, o.vocab, o.tokens, o.batch, steps))
  local line = pipe:read "a"
  local ms, peak = tonumber(line:match "([%d.]+) ms/step"), tonumber(line:match "peak (%d+) MiB")
  if ms then row("PyTorch, " .. mode, ms / 1e3, ("%.1fx the time, peak %d MiB"):format(ms / 1e3 / t, peak))
  else print("PyTorch " .. mode .. " failed: " .. line) end
end

for _, o in ipairs { { dim = 64, depth = 4, heads = 4, state = 16, vocab = 512, tokens = 256, batch = 8 },
  { dim = 128, depth = 4, heads = 4, state = 16, vocab = 1024, tokens = 256, batch = 8 } } do
  print(("\n-- language step: Phi-Mamba under GPT-2, D %d, depth %d, %d heads, %d states, vocabulary %d, %d tokens, batch %d"):format(o.dim,
    o.depth, o.heads, o.state, o.vocab, o.tokens, o.batch))
  local step = step_of(o)
  core.reset_peak()
  local t = median(step, 9)
  row("CAB", t, ("%.0f tokens/s, peak %.0f MiB of tensors, process %.0f MiB at its peak"):format(o.batch * o.tokens / t,
    core.memory().peak / 2 ^ 20, resident()))
  if have_torch then
    peer(o, t, "chunk", 7)
    peer(o, t, "loop", 3)
  else
    print("PyTorch: skipped, " .. python .. " has no torch (set CAB_PYTHON)")
  end
end

-- ---- one layer's alignment: the bridge, or the distance of whole mixing matrices from the teacher's attention (2408.10189, stage 1)

local function alignment(l)
  local b, H, N, P = 2, 12, 64, 64
  local recurrent = require "cab.models.recurrent"
  local function random(...) return core.normal({ ... }, 0, 1, 0, "bench") end
  local k, q = random(b, l, H * P), random(b, l, H * P)
  local leaves = { B = random(b, l, H * N), C = random(b, l, H * N), a = random(b, l, H) }
  local bridge = { map = "none", k = k, q = q }
  for _, tap in ipairs { "B", "C" } do
    bridge[tap], bridge[tap .. "_w1"], bridge[tap .. "_b1"] = leaves[tap], random(128, H * N), random(128)
    bridge[tap .. "_w2"], bridge[tap .. "_b2"] = random(H * P, 128), random(H * P)
    for _, name in ipairs { "_w1", "_b1", "_w2", "_b2" } do bridge[tap .. name].requires_grad = true end
  end
  for _, t in pairs(leaves) do t.requires_grad = true end
  local function run(loss)
    local _ <close> = core.scope()
    loss():backward()
    for _, t in pairs(leaves) do t.grad = nil end
    for name, t in pairs(bridge) do if name:find "_" then t.grad = nil end end
  end
  local function measure(loss)
    local t = median(function() run(loss) end, 3)
    core.reset_peak()
    local before = core.memory().live
    run(loss)
    return t, (core.memory().peak - before) / 2 ^ 20
  end
  local t1, m1 = measure(function() return (op.bridge(bridge)) end)
  local t2, m2 = measure(function()
    local _, map = op.attention(q, k, q, { heads = H, causal = true, map = true })
    return op.frobenius(recurrent.tiles({ a = leaves.a, B = leaves.B, C = leaves.C, groups = H }):rows(1, l), map)
  end)
  print(("l %-5d bridge %9.1f ms %8.1f MiB   whole matrices %9.1f ms %8.1f MiB   %.1fx the time, %.1fx the memory"):format(l, 1e3 * t1, m1,
    1e3 * t2, m2, t2 / t1, m2 / m1))
end

print "\n-- alignment of one layer, batch 2, 12 heads, 64 states, forward and backward"
for _, l in ipairs { 256, 1024, 2048, 4096 } do
  -- Whole matrices take 0.85 KiB for each pair of positions.
  local needs, free = 900 * l * l, 1024 * tonumber(io.open("/proc/meminfo"):read("a"):match "MemAvailable:%s*(%d+)")
  if needs * 1.2 < free then alignment(l) else print(("l %-5d skipped: whole matrices need %.1f GB, %.1f are free"):format(l, needs / 1e9, free / 1e9)) end
end
