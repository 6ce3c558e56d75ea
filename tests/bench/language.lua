-- The training step of a small Phi-Mamba under a small GPT-2 (CE + KL + bridge, AdamW), and the same in PyTorch if python3 (or
-- $CAB_PYTHON) has it; the bridge's loss against matching whole mixing matrices. Part of make bench; also run by itself.
local cab = require "cab"
local core = require "cab.core"
local op = cab.op

local function median(f, repeats)
  f()
  local times = {}
  for i = 1, repeats do
    local start = core.now()
    f()
    times[i] = core.now() - start
  end
  table.sort(times)
  return times[(#times + 1) // 2]
end

local function row(name, seconds, what) print(("%-46s %10.3f ms   %s"):format(name, 1e3 * seconds, what or "")) end

local function resident() -- MiB of this process at its peak
  for line in io.lines "/proc/self/status" do
    local kib = line:match "^VmHWM:%s*(%d+)"
    if kib then return tonumber(kib) / 1024 end
  end
end

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
