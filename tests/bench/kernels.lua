--- The kernels of a GPU at the shapes of Vim-Tiny (batch 64, 197 tokens), as shares of what the machine can do.
local core = require "cab.core"
local timing = require "bench.timing"
local op = core.ops
local M = { results = {} } -- "scan forward f32" -> seconds, for the comparison with PyTorch

local source <const> = "tests/bench/ceilings.cu"
local program <const> = "build/ceilings"
local random = timing.random

local function newer(a, b) -- a is there and not older than b
  return os.execute(("test -x %s -a ! %s -nt %s"):format(a, b, a)) == true
end

--- name -> rate, measured by ceilings.cu; empty (and said so) without a compiler.
function M.ceilings()
  local out = {}
  if not newer(program, source) then
    local nvcc = "$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)"
    os.execute(("mkdir -p build && %s -O3 -arch=native -o %s %s -lcublas >build/ceilings.log 2>&1"):format(nvcc, program, source))
  end
  if not newer(program, source) then
    print "ceilings: not measured, no nvcc (build/ceilings.log): shares are left out"
    return out
  end
  local pipe <close> = assert(io.popen(program .. " 2>&1"))
  for line in pipe:lines() do
    local name, value = line:match "^(%S+) ([%d.e+-]+)$"
    if name then out[name] = tonumber(value) else print("ceilings: " .. line) end
  end
  return out
end

local function print_ceilings(c)
  if not c.exp2 then return end
  print(("copy, read + written: 1 GiB %.2f TB/s, 19 MB %.2f TB/s; exp2 %.2f T/s; launch %.2f us, graph node %.2f us"):format(
    c.copy_1GiB / 1e12, c.copy_19MB / 1e12, c.exp2 / 1e12, c.launch_us, c.node_us))
  print(("%-34s %8s %8s %8s  TFLOP/s of cuBLAS"):format("product", "f32", "TF32", "bf16"))
  for _, p in ipairs { { "gemm_8192", "8192 x 8192 x 8192" }, { "in_proj", "in_proj 12608 x 192 -> 768" }, { "x_proj", "x_proj 12608 x 384 -> 44" },
    { "dt_proj", "dt_proj 12608 x 12 -> 384" }, { "out_proj", "out_proj 12608 x 384 -> 192" } } do
    print(("%-34s %8.1f %8.1f %8.1f"):format(p[2], c[p[1] .. "_f32"] / 1e12, c[p[1] .. "_tf32"] / 1e12, c[p[1] .. "_bf16"] / 1e12))
  end
end

local function share(bound, t) return bound and ("%5.0f %%"):format(100 * bound / t) or "      -" end

-- bytes: that a kernel must move; exps: it must compute. published: milliseconds of the published code, goal: ours to reach, both for
-- an H100 and f32 unless the table of goals has one for bf16.
local function row(c, name, dtype, t, bytes, exps, published, goal)
  M.results[name .. " " .. dtype] = t
  local copy = c.copy_19MB and bytes / c.copy_19MB
  local exp = c.exp2 and (exps or 0) / c.exp2
  print(("%-41s %-5s %9.4f %8.0f %s %s %10s %8s"):format(name, dtype, 1e3 * t, bytes / t / 1e9, share(copy, t),
    share(copy and math.max(copy, exp), t), published and ("%.4f"):format(published) or "-", goal and ("%.3f"):format(goal) or "-"))
end

local function header()
  print(("%-41s %-5s %9s %8s %7s %7s %10s %8s"):format("kernel", "dtype", "ms", "GB/s", "of copy", "of bound", "published", "goal"))
end

local function size(dtype) return dtype == "bf16" and 2 or 4 end

-- B, C, z as the model has them: parts of wider projections.
local function scan(c, what, shape, dtype, figures)
  local b, l, e, n = table.unpack(shape)
  local A = op.affine(op.abs(random("f32", e, n)), -1, -0.1)
  local D, bias = random("f32", e), random("f32", e)
  local sets = timing.sets(function()
    local _, B, C = random(dtype, b, l, 12 + 2 * n):split(3, { 12, n, n })
    local _, z = random(dtype, b, l, 2 * e):split(3, { e, e })
    return { random(dtype, b, l, e), random(dtype, b, l, e), A, B, C, D, z, bias }
  end)
  local value, forward, backward = timing.pass(sets, op.selective_scan)
  local s, rows, exps = size(dtype), b * l, b * l * e * n
  local kept = (l + 15) // 16 * b * n * e * 4
  row(c, what .. " forward", dtype, value, s * rows * (4 * e + 2 * n), exps, figures[1], figures[2])
  row(c, what .. " forward, states kept", dtype, forward, s * rows * (4 * e + 2 * n) + kept, exps)
  row(c, what .. " backward", dtype, backward, s * rows * (7 * e + 4 * n) + kept, 3 * exps, figures[3], figures[4])
end

-- Both directions in one launch, as a Vision Mamba has them. still: all decays round to 1 (decay "identity" as it starts); rank: dt
-- from so many columns, in the scan.
local function scan_pair(c, dtype, still, rank)
  local b, l, e, n = 64, 197, 384, 16
  local names = { "u", "dt", "A", "B", "C", "D", "bias", rank and "weight" or nil }
  local A = still and core.full({ e, n }, -math.exp(-20), "f32", timing.device) or op.affine(op.abs(random("f32", e, n)), -1, -0.1)
  local D, bias = random("f32", e), random("f32", e)
  local weight = rank and op.affine(random("f32", e, rank), 0.3 * rank ^ -0.5) or nil -- about as dt_proj starts
  local sets = timing.sets(function()
    local low, B, C = random(dtype, b, l, 12 + 2 * n):split(3, { rank or 12, n, n })
    return { random(dtype, b, l, e), rank and low or random(dtype, b, l, e), A, B, C, D, bias, weight }
  end)
  for i, set in ipairs(sets) do -- the other direction reads another set
    for k = 1, #names do set[#names + k] = sets[i % #sets + 1][k] end
  end
  local value, _, backward = timing.pass(sets, function(...)
    local args = {}
    for k, name in ipairs(names) do args[name], args[name .. "_b"] = select(k, ...), (select(#names + k, ...)) end
    return op.scan_pair(args)
  end)
  local s, rows, exps = size(dtype), 2 * b * l, still and 0 or 2 * b * l * e * n
  local kept = 2 * ((l + 15) // 16) * b * n * e * 4
  local what, steps = "scan pair" .. (rank and ", dt inside" or "") .. (still and ", decay 1" or ""), rank or e
  row(c, what .. " forward", dtype, value, s * rows * (2 * e + steps + 2 * n), exps)
  row(c, what .. " backward", dtype, backward, s * rows * (3 * e + 2 * steps + 4 * n) + kept, 3 * exps)
end

local function conv(c, dtype, figures)
  local b, l, e, s = 64, 197, 384, size(dtype)
  local w, bias = random("f32", e, 1, 4), random("f32", e)
  local sets = timing.sets(function() return { random(dtype, b, l, e), w, bias } end)
  local value, _, backward = timing.pass(sets, function(x, weight, shift) return op.conv1d(x, weight, shift) end)
  row(c, "conv1d + SiLU forward", dtype, value, 2 * s * b * l * e, b * l * e, figures[1], figures[2])
  row(c, "conv1d + SiLU backward", dtype, backward, 3 * s * b * l * e, b * l * e, figures[3], figures[4])
end

-- The residual stream stays in f32 in a bf16 model.
local function norm(c, name, dtype, figures)
  local rows, d, s = 64 * 197, 192, size(dtype)
  local w = random("f32", d)
  local sets = timing.sets(function() return { random(dtype, rows, d), w, random("f32", rows, d) } end)
  local value, _, backward = timing.pass(sets, function(x, weight, residual)
    return (op[name](x, weight, nil, residual))
  end)
  local what = name == "rms_norm" and "add + RMSNorm" or "add + LayerNorm"
  row(c, what .. " forward", dtype, value, rows * d * (2 * s + 8), 0, figures[1], figures[2])
  row(c, what .. " backward", dtype, backward, rows * d * (2 * s + 8), 0, figures[3], figures[4])
end

local function attention(c, dtype)
  local b, l, h, p, s = 64, 197, 3, 64, size(dtype)
  local d = h * p
  local sets = timing.sets(function() return { random(dtype, b, l, 3 * d):split(3, { d, d, d }) } end)
  local value, _, backward = timing.pass(sets, function(q, k, v) return (op.attention(q, k, v, { heads = h })) end)
  row(c, "attention, 3 heads of 64 forward", dtype, value, 4 * s * b * l * d, b * h * l * l)
  row(c, "attention, 3 heads of 64 backward", dtype, backward, 8 * s * b * l * d, b * h * l * l)
end

local function gate(c, dtype)
  local b, l, e, s = 64, 197, 384, size(dtype)
  local sets = timing.sets(function() return { random(dtype, b, l, e), random(dtype, b, l, e), random(dtype, b, l, e) } end)
  local value, _, backward = timing.pass(sets, function(a, y, z) return op.gate(a, z, y, { scale = 0.5 }) end)
  row(c, "gate of both directions forward", dtype, value, 4 * s * b * l * e, b * l * e)
  row(c, "gate of both directions backward", dtype, backward, 6 * s * b * l * e, b * l * e)
end

local function products(c)
  print(("\n%-41s %-5s %9s %9s %9s"):format("linear, through op.linear", "", "ms", "TFLOP/s", "of cuBLAS"))
  for _, p in ipairs { { "in_proj", 192, 768 }, { "x_proj", 384, 44 }, { "dt_proj", 12, 384 }, { "out_proj", 384, 192 } } do
    for _, precision in ipairs { "f32", "tf32", "bf16" } do
      local dtype, rows = precision == "bf16" and "bf16" or "f32", 64 * 197
      core.precision(timing.device, precision == "bf16" and "f32" or precision)
      local w = random("f32", p[3], p[2])
      local sets = timing.sets(function() return { random(dtype, rows, p[2]), w } end)
      local value, _, backward = timing.pass(sets, function(x, weight) return op.linear(x, weight) end)
      local flops, best = 2 * rows * p[2] * p[3], c[p[1] .. "_" .. precision]
      for _, r in ipairs { { "forward", value, 1 }, { "backward", backward, 2 } } do
        local rate = r[3] * flops / r[2]
        M.results[("%s %s %s"):format(p[1], r[1], precision)] = r[2]
        print(("%-41s %-5s %9.4f %9.1f %9s"):format(p[1] .. " " .. r[1], precision, 1e3 * r[2], rate / 1e12, share(best and rate, best or 1)))
      end
    end
  end
  core.precision(timing.device, "f32")
end

-- What must move: the gradient twice (norm, update), weight, both moments and average read and written.
local function optimiser(c)
  local n, parts = 15000000, 150
  local o = { params = {}, m = {}, v = {}, average = {}, decay = {}, born = {} }
  for i = 1, parts do
    local function values() return random("f32", n // parts) end
    o.params[i], o.m[i], o.v[i], o.average[i] = values(), values() * 0, values() * 0, values()
    o.decay[i], o.born[i] = 0.05, 0
    o.params[i].requires_grad = true
    o.params[i].grad = values()
  end
  local optimizer <close> = core.optimizer(o)
  optimizer:set { step = 1, lr = 1e-9, clip = 1, keep = 0.99 }
  local t = timing.seconds(function() optimizer:step() end, 1)
  row(c, ("AdamW and average, %d tensors, 15 M"):format(parts), "f32", t, 4 * n * 10, 0, nil, 0.15)
end

-- One group, as a Mamba-2 has. What must move: all inputs and outputs once, B and C of all heads too; backward reads the inputs again.
local function ssd(c, dtype, forward, both)
  local b, l, h, p, n = 8, 2048, 32, 64, 64
  local D = random("f32", h)
  local sets = timing.sets(function()
    local x, B, C = random(dtype, b, l, h * p + 2 * n):split(3, { h * p, n, n })
    return { x, random(dtype, b, l, h), B, C, D }
  end)
  local value, _, backward = timing.pass(sets, function(x, a, B, C, skip)
    return (op.ssd { x = x, a = a, B = B, C = C, D = skip, chunk = 128 })
  end)
  local bytes = size(dtype) * b * l
  row(c, "ssd b8 l2048, 32 heads of 64, N 64 forward", dtype, value, bytes * (2 * h * p + h + 2 * n), 0, forward[1], forward[2])
  row(c, "ssd, forward and backward", dtype, value + backward, bytes * (5 * h * p + 3 * h + 6 * n), 0, both[1], both[2])
end

--- Prints the tables; sections: "ceilings", "kernels", "ssd". @return table ceilings
function M.run(sections)
  local c = M.ceilings()
  if sections.ceilings then print_ceilings(c) end
  if sections.ssd then
    core.precision(timing.device, "f32")
    header()
    ssd(c, "bf16", { 0.416, 0.2 }, { 2.55, 1.0 })
    ssd(c, "f32", {}, {})
    timing.forget()
  end
  if not sections.kernels then return c end
  core.precision(timing.device, "f32")
  print "\n-- kernels, batch 64, 197 tokens; bound: the larger of the bytes at copy rate (19 MB) and the exponentials"
  header()
  local small = { 64, 197, 384, 16 }
  scan(c, "scan", small, "f32", { 0.196, 0.05, 0.593, 0.15 })
  scan(c, "scan", small, "bf16", { 0.199, 0.04, 0.589 })
  for _, dtype in ipairs { "f32", "bf16" } do
    scan_pair(c, dtype, false)
    scan_pair(c, dtype, true)
    scan_pair(c, dtype, false, 12)
    scan_pair(c, dtype, true, 12)
  end
  conv(c, "f32", { 0.024, 0.016, 0.063, 0.030 })
  conv(c, "bf16", {})
  norm(c, "rms_norm", "f32", { 0.0125, 0.013, 0.104, 0.03 })
  norm(c, "rms_norm", "bf16", {})
  norm(c, "layer_norm", "f32", {})
  for _, dtype in ipairs { "f32", "bf16" } do gate(c, dtype) end
  for _, dtype in ipairs { "f32", "bf16" } do attention(c, dtype) end
  optimiser(c)
  timing.forget()
  local long = { 8, 2048, 2048, 16 }
  scan(c, "scan b8 l2048 E2048", long, "f32", { 1.17, 0.35, 2.74, 0.9 })
  scan(c, "scan b8 l2048 E2048", long, "bf16", { 0.59, nil, 2.14 })
  timing.forget()
  products(c)
  timing.forget()
  return c
end

return M
