--- Whole things on a GPU: the bridge's loss alone, the training step of Vim-Tiny under DeiT-Tiny (random images and weights) and the
--- student's forward pass.
local cab = require "cab"
local core = require "cab.core"
local timing = require "bench.timing"
local synthetic = require "synthetic"
local op = core.ops
local M = {}

local MIB = 2 ^ 20

-- ---- the bridge alone: B, C [2,l,64] -> K, Q [2,l,12*64] by two MLPs of 128; standardised targets, MSE, all gradients ----------

local published = { -- busy milliseconds and extra MiB on an H100
  [197] = { f32 = { 0.36, 13 }, bf16 = { 0.18, 17 } }, [1024] = { f32 = { 0.88, 60 }, bf16 = { 0.28, 67 } },
  [4096] = { f32 = { 2.9, 240 }, bf16 = { 0.73, 245 } },
}

local function bridge_loss(l, dtype, results)
  local b, n, h, d = 2, 64, 128, 12 * 64
  local args, sources = {}, {}
  for tap, target in pairs { B = "k", C = "q" } do
    sources[tap], args[target] = timing.random(dtype, b, l, n), timing.random(dtype, b, l, d)
    args[target .. "_mean"], args[target .. "_deviation"] = timing.random("f32", d), op.affine(op.abs(timing.random("f32", d)), 1, 0.5)
    for name, shape in pairs { w1 = { h, n }, b1 = { h }, w2 = { d, h }, b2 = { d } } do
      sources[tap .. "_" .. name] = timing.random("f32", table.unpack(shape))
    end
  end
  local function once()
    local scope <close> = core.scope()
    local a = { map = "standard" }
    for name, t in pairs(args) do a[name] = t end
    for name, t in pairs(sources) do a[name] = timing.source(t) end
    local loss = op.bridge(a)
    loss:backward()
  end
  timing.begin()
  once()
  core.reset_peak(timing.device)
  local before = core.memory(timing.device).live
  once()
  local extra = core.memory(timing.device).peak - before
  local t = timing.seconds(once, 4)
  local name, p = ("bridge loss alone, l %d"):format(l), published[l][dtype]
  results[name .. " " .. dtype] = t
  print(("%-30s %-5s %9.3f ms %8.1f MiB   published %6.2f ms %4d MiB   goal %.2f ms, a third of the memory"):format(
    name, dtype, 1e3 * t, extra / MIB, p[1], p[2], p[1] / 2))
end

--- results: "NAME DTYPE" -> seconds, filled in.
function M.bridge(results)
  print "\n-- bridge loss alone: batch 2, 12 heads of 64, 64 states, forward and backward"
  for _, precision in ipairs { "f32", "bf16" } do
    core.precision(timing.device, "f32")
    for _, l in ipairs { 197, 1024, 4096 } do bridge_loss(l, precision, results) end
  end
  timing.forget()
end

-- ---- the vision step -------------------------------------------------------------------------------------------------------

local vision = { -- published: eager (of several hosts) and as a graph with EMA, milliseconds, GB; goal for batch 64
  { "f32", 64, "187-251", 112.4, 7.6, 45 }, { "tf32", 64, "204-326", 94.2, 7.6, 25 }, { "bf16", 64, "212-422", 93.9, 5.1, 14 },
  { "f32", 128, "246-351", 197, 15.0 }, { "tf32", 128 }, { "bf16", 128, "418", 161, 9.9 },
}

--- The step of the vision table; `more`: options of synthetic.new in place of its own. @return Training
function M.training(precision, batch, capture, recompute, more)
  local o = {
    image = 224, channels = 3, classes = 1000, batch = batch, device = timing.device, precision = precision, capture = capture,
    student = cab.models.vim { size = "tiny", decay = "identity", recompute = recompute }, teacher = cab.models.vit { size = "tiny" },
    loss = { soft = 1, align = { "attention_bridge", weight = 3 } }, optim = { ema = 0.9999 },
  }
  for k, v in pairs(more or {}) do o[k] = v end
  return synthetic.new(o)
end

-- Seconds of a step in a loop that is not waited for, its batch brought anew each time.
local function loop(t, count)
  for n = 1, 5 do t:step(n, n == 5) end
  core.reset_peak(timing.device)
  core.sync(timing.device)
  local begun = core.now()
  for n = 1, count do t:step(n) end
  core.sync(timing.device)
  return (core.now() - begun) / count
end

local function row(v, capture, recompute)
  local precision, batch = v[1], v[2]
  local t = M.training(precision, batch, capture, recompute)
  local seconds = loop(t, capture and 30 or 10)
  local memory = core.memory(timing.device)
  local busy = t:captured() and timing.replay(t.stepper.graph) or nil
  print(("%-5s %4d %-10s %9.2f %9.0f %9s %8s %8.2f   %8s %8s %6s %6s"):format(precision, batch,
    (t:captured() and "graph" or "eager") .. (recompute and " again" or ""), 1e3 * seconds, batch / seconds,
    busy and ("%.1f %%"):format(100 * busy / seconds) or "-", t:captured() and "-" or ("%.2f"):format(memory.peak / 1e9),
    (memory.live + memory.cached) / 1e9, capture and (v[4] or "-") or v[3] or "-", v[5] or "-", v[6] or "-",
    v[6] and ("%.0f"):format(1e3 * batch / v[6]) or "-"))
  for _, text in ipairs(t.messages) do print("      " .. text) end
  t:close()
  t = nil -- luacheck: ignore
  timing.forget()
end

--- Eager rows run as they come, graph rows replay one captured step. again: with recompute. busy: a replay alone over a step of the
--- loop. in use: the most bytes of tensors at a time; held: what the process has taken from the device, a graph's memory included.
function M.vision(batches)
  print "\n-- training step: Vim-Tiny under DeiT-Tiny, 224 px, soft loss and bridge, clipping, AdamW, average of the weights"
  print(("%-5s %4s %-10s %9s %9s %9s %8s %8s   %8s %8s %6s %6s"):format("", "b", "", "ms", "images/s", "busy", "GB in use", "GB held",
    "publ. ms", "publ. GB", "goal", "im./s"))
  for _, v in ipairs(vision) do
    if batches[v[2]] then
      row(v, false, false)
      row(v, true, false)
      row(v, true, true)
    end
  end
  core.precision(timing.device, "f32")
end

-- Seconds of a step with a loss, bytes in use at most while steps ran as they come, and bytes held in the end.
local function cost(precision, batch, loss, more)
  local o = { loss = loss }
  for k, v in pairs(more or {}) do o[k] = v end
  local t = M.training(precision, batch, true, false, o)
  core.reset_peak(timing.device)
  t:step(1)
  core.sync(timing.device)
  local peak = core.memory(timing.device).peak
  local seconds = loop(t, 30)
  local memory, graph = core.memory(timing.device), t:captured()
  t:close()
  t = nil -- luacheck: ignore
  timing.forget()
  return { seconds = seconds, peak = peak, held = memory.live + memory.cached, graph = graph }
end

--- What the bridge adds to the step of soft distillation: each in turn, twice, the faster of two. more: as of M.training.
function M.alignment(batch, more)
  print "\n-- what alignment adds to the soft-distillation step (goal: at most 25 % of the time; published +45 % and 3.2 GB)"
  print(("%-5s %4s %-6s %10s %10s %8s   %10s %10s %9s   %9s %9s"):format("", "b", "", "soft ms", "bridge ms", "added", "soft GB", "bridge GB", "added GB",
    "held GB", "held GB"))
  for _, precision in ipairs(timing.device == "cpu" and { "f32" } or { "f32", "tf32", "bf16" }) do
    local best = {}
    for _ = 1, 2 do
      for name, loss in pairs { soft = { soft = 1 }, bridge = { soft = 1, align = { "attention_bridge", weight = 3 } } } do
        local c = cost(precision, batch, loss, more)
        if not best[name] or c.seconds < best[name].seconds then best[name] = c end
      end
    end
    local a, b = best.soft, best.bridge
    print(("%-5s %4d %-6s %10.2f %10.2f %7.1f %%   %10.2f %10.2f %9.2f   %9.2f %9.2f"):format(precision, batch, b.graph and "graph" or "eager", 1e3 * a.seconds,
      1e3 * b.seconds, 100 * (b.seconds / a.seconds - 1), a.peak / 1e9, b.peak / 1e9, (b.peak - a.peak) / 1e9, a.held / 1e9, b.held / 1e9))
  end
  core.precision(timing.device, "f32")
end

-- ---- the language step -----------------------------------------------------------------------------------------------------

local language = { -- published: milliseconds, tokens/s, GB; goals
  { "align", 8, 98.9, 82800, 18.6, 25, 5 }, { "kl", 8, 111.7, 73300, 17.6, 25, 5 },
  { "align", 32, nil, 112800, 69, nil, 16 }, { "kl", 32, nil, 89900, 64, nil, 16 },
}

--- The recipe phi_mamba_distilgpt2 on random ids and weights. stage: "align", the bridge alone, or "kl", soft labels and next ids.
---@return Training
function M.language_step(stage, batch)
  return synthetic.new {
    vocab = 50257, length = 1024, batch = batch, device = timing.device, precision = "bf16",
    student = cab.models.phi_mamba { size = "123m", chunk = 128 }, teacher = cab.models.gpt2 { size = "distil" },
    loss = stage == "align" and { align = { "attention_bridge", hidden = 768, map = "none" } } or { soft = { weight = 1, hard = 1 } },
  }
end

function M.language()
  print "\n-- language step: Phi-Mamba of 123 M under distilGPT2, rows of 1024, bf16, clipping, AdamW; a captured step"
  print(("%-6s %4s %9s %10s %9s %8s   %8s %10s %6s %6s %9s"):format("stage", "b", "ms", "tokens/s", "busy", "GB held", "publ. ms", "publ. t/s",
    "GB", "goal", "goal t/s"))
  for _, v in ipairs(language) do
    local stage, batch = v[1], v[2]
    local t = M.language_step(stage, batch)
    local seconds = loop(t, 20)
    local memory = core.memory(timing.device)
    local busy = t:captured() and timing.replay(t.stepper.graph) or nil
    print(("%-6s %4d %9.2f %10.0f %9s %8.2f   %8s %10d %6.1f %6s %9d"):format(stage, batch, 1e3 * seconds, batch * 1024 / seconds,
      busy and ("%.1f %%"):format(100 * busy / seconds) or "eager", (memory.live + memory.cached) / 1e9, v[3] or "-", v[4], v[5], v[6] or "-",
      batch == 8 and 330000 or 450000))
    for _, text in ipairs(t.messages) do print("      " .. text) end
    t:close()
    t = nil -- luacheck: ignore
    timing.forget()
  end
  core.precision(timing.device, "f32")
end

-- ---- the student alone -------------------------------------------------------------------------------------------------------

function M.forward()
  print "\n-- student forward only, batch 512"
  for _, r in ipairs { { "f32", 140, 60 }, { "tf32" }, { "bf16", 112, 30 } } do
    local precision = r[1]
    core.precision(timing.device, precision == "f32" and "f32" or "tf32")
    local model = cab.models.vim { size = "tiny" }:build { image = 224, device = timing.device, precision = precision }
    local images = timing.random("f32", 512, 3, 224, 224)
    core.reset_peak(timing.device)
    local t = timing.seconds(function() core.no_grad(model.forward, model, images) end, 1)
    print(("%-5s %9.2f ms %8.0f images/s   peak %.2f GB   published %s ms   goal %s ms"):format(precision, 1e3 * t, 512 / t,
      core.memory(timing.device).peak / 1e9, r[2] or "-", r[3] or "-"))
    model, images = nil, nil -- luacheck: ignore
    timing.forget()
  end
  core.precision(timing.device, "f32")
end

return M
