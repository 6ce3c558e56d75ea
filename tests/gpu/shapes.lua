--- Calls of every op at sizes that are odd, prime, empty, unaligned or as large as in a Vision Mamba, for tests/parity.lua.
--- shapes.full(), shapes.empty(): for comparison with the CPU; shapes.tiny(): for the sanitizer; shapes.real(): the hot ones at
--- model sizes. Over 500 lines because it is one table of calls.
local core = require "cab.core"
local op = core.ops

local list, seed -- being made

-- Normal numbers in f64, new ones at each call within one make().
local function normal(...)
  seed = seed + 1
  return core.normal({ ... }, 0, 1, seed, "shapes", "f64")
end
local function positive(...) return op.affine(op.abs(normal(...)), 1, 0.3) end
local function ids(shape, below)
  seed = seed + 1
  return core.uniform(shape, 0, below, seed, "ids", "f64"):to "i32"
end

--- c: { op, label, make, call, frozen, forward, gradient }
local function add(c)
  c.op, c.label = c[1], c[2]
  local make = c.make
  c.make = function()
    seed = 0
    return make()
  end
  list[#list + 1] = c
end

-- ---- elementwise ---------------------------------------------------------------------------------

local functions = { "neg", "exp", "square", "abs", "relu", "sigmoid", "tanh", "softplus", "silu", "gelu" }
local of_positive = { "log", "sqrt", "reciprocal" }

-- Also from the second element on, where vector loads are not aligned.
local function unary(n)
  local function one(name, values, options)
    add { name, ("n %d %s"):format(n, options and options.approx or ""),
      make = function() return { real = { x = values() } } end,
      call = function(t)
        return op[name](t.x, options), op[name](t.x:slice(1, 2, n), options)
      end }
  end
  for _, name in ipairs(functions) do one(name, function() return normal(n) * 4 end) end
  for _, name in ipairs(of_positive) do one(name, function() return positive(n) end) end
  one("gelu", function() return normal(n) * 4 end, { approx = "tanh" })
  one("affine", function() return normal(n) end, { scale = 2.5, shift = -1 })
end

local function binary(a, b, view)
  for _, name in ipairs { "add", "sub", "mul", "div" } do
    add { name, ("[%s] [%s]%s"):format(table.concat(a, ","), table.concat(b, ","), view and " transposed" or ""),
      forward = 1e-5,
      make = function()
        return { real = { a = normal(table.unpack(a)), b = (name == "div" and positive or normal)(table.unpack(b)) } }
      end,
      call = function(t) return op[name](view and t.a:transpose(-1, -2) or t.a, t.b) end }
  end
end

-- Parts of one tensor put together in another order: views, concat, split, flip, expand and their gradients.
local function views(b, l, d)
  add { "add", ("views b%d l%d d%d"):format(b, l, d),
    make = function() return { real = { x = normal(b, l, 3 * d), token = normal(1, 1, 3 * d) } } end,
    call = function(t)
      local middle = l // 2
      local x = core.concat({ t.x:slice(2, 1, middle), t.token:expand { b, 1, 3 * d }, t.x:slice(2, middle + 1, l) }, 2)
      local p, q, r = x:split(3, { d, d, d })
      return p:flip(2) + q, r:permute(2, 1, 3) * 2, op.cast(r, { to = "f64" })
    end }
end

local function sums(shape, dim)
  for _, name in ipairs { "sum", "mean" } do
    add { name, ("[%s] dim %d"):format(table.concat(shape, ","), dim), forward = 5e-5,
      make = function() return { real = { x = normal(table.unpack(shape)) } } end,
      call = function(t) return op[name](t.x, { dim = dim }) end }
  end
end

local function softmax(shape, dim)
  add { "softmax", ("[%s] dim %d"):format(table.concat(shape, ","), dim),
    make = function() return { real = { x = normal(table.unpack(shape)) * 4 } } end,
    call = function(t) return op.softmax(t.x, { dim = dim }) end }
end

-- ---- products -------------------------------------------------------------------------------------

-- packed: x is the first `ins` columns of rows that are 7 longer.
local function linear(rows, ins, outs, bias, packed)
  add { "linear", ("%dx%d to %d%s%s"):format(rows, ins, outs, bias and " bias" or "", packed and " packed" or ""), forward = 5e-5,
    make = function()
      return { real = { x = normal(rows, packed and ins + 7 or ins) },
        wide = { w = normal(outs, ins), b = bias and normal(outs) or nil } }
    end,
    call = function(t)
      local x = packed and t.x:split(2, { ins, 7 }) or t.x
      return op.linear(x, t.w, t.b)
    end }
end

local function matmul(a, b, transposed)
  add { "matmul", ("[%s] [%s]%s"):format(table.concat(a, ","), table.concat(b, ","), transposed and " transposed" or ""), forward = 5e-5,
    make = function() return { real = { a = normal(table.unpack(a)), b = normal(table.unpack(b)) } } end,
    call = function(t) return op.matmul(t.a, transposed and t.b:transpose(-1, -2) or t.b) end }
end

-- ---- layers ---------------------------------------------------------------------------------------

local function norms(rows, width, residual)
  for _, name in ipairs { "layer_norm", "rms_norm" } do
    add { name, ("%dx%d%s"):format(rows, width, residual and " residual" or ""),
      make = function()
        return { real = { x = normal(rows, width) },
          wide = { w = normal(width), b = normal(width), residual = residual and normal(rows, width) or nil } }
      end,
      call = function(t) return op[name](t.x, t.w, t.b, t.residual, { eps = width == 1 and 1 or 1e-5 }) end }
  end
end

-- q, k and v are thirds of one packed projection.
local function attention(b, l, heads, p, o)
  local d = heads * p
  add { "attention", ("b%d l%d h%d p%d%s%s"):format(b, l, heads, p, o.causal and " causal" or "", o.map and " map" or ""),
    forward = 5e-5,
    make = function() return { real = { qkv = normal(b, l, 3 * d) } } end,
    call = function(t)
      local q, k, v = t.qkv:split(3, { d, d, d })
      local y, map = op.attention(q, k, v, { heads = heads, causal = o.causal or false, map = o.map or false })
      if o.map then return y, map end
      return y
    end }
end

-- Documents of a packed row: runs of one number, two of them of one token each.
local function segments(b, l)
  local rows = {}
  for i = 1, b do
    local row = {}
    for t = 1, l do row[t] = (t > l // 3 and 1 or 0) + (t > l // 3 + 1 and 1 or 0) + (t > l - i and 1 or 0) end
    rows[i] = row
  end
  return b == 0 and core.zeros({ b, l }, "i32") or core.tensor(rows, "i32")
end

-- Packed rows: causal attention, convolution.
local function packed(b, l, heads, p, width)
  local d = heads * p
  add { "attention", ("b%d l%d h%d p%d documents"):format(b, l, heads, p), forward = 5e-5,
    make = function() return { real = { qkv = normal(b, l, 3 * d) }, plain = { segment = segments(b, l) } } end,
    call = function(t)
      local q, k, v = t.qkv:split(3, { d, d, d })
      return (op.attention(q, k, v, op.places(t.segment), { heads = heads, causal = true }))
    end }
  add { "conv1d", ("b%d l%d e%d w%d documents"):format(b, l, d, width), forward = 5e-5,
    make = function()
      return { real = { xz = normal(b, l, 2 * d) }, wide = { w = normal(d, 1, width), b = normal(d) }, plain = { segment = segments(b, l) } }
    end,
    call = function(t)
      local x = t.xz:split(3, { d, d })
      return op.conv1d(x, t.w, t.b, op.places(t.segment), { silu = width == 4 })
    end }
end

local function rotary(b, l, heads, p, width)
  add { "rotary", ("b%d l%d h%d p%d width %d"):format(b, l, heads, p, width),
    make = function() return { real = { qkv = normal(b, l, 3 * heads * p) } } end,
    call = function(t)
      local q = t.qkv:split(3, { heads * p, 2 * heads * p })
      return op.rotary(q, { heads = heads, width = width, start = 3 })
    end }
end

-- x, B and C are parts of one packed projection. o: all (dt, D, start, segments), log, steep (decays that underflow).
local function ssd(b, l, h, p, g, n, o)
  local E, S = h * p, g * n
  local function make()
    local t = { real = { xbc = normal(b, l, E + 2 * S), a = normal(b, l, h) }, wide = {}, plain = {} }
    if o.steep then t.real.a = t.real.a * 40 end
    if o.log then t.real.a = op.affine(op.abs(t.real.a), -0.2) end
    if o.all then
      t.real.dt, t.wide.D, t.wide.start, t.plain.segment = positive(b, l, h), normal(h), normal(b, h, p, n), segments(b, l)
    end
    return t
  end
  add { "ssd", ("b%d l%d %dx%d %dx%d%s%s%s"):format(b, l, h, p, g, n, o.all and " all" or "", o.log and " log" or "", o.steep and " steep" or ""),
    forward = 5e-5, make = make,
    call = function(t)
      local x, B, C = t.xbc:split(3, { E, S, S })
      return op.ssd { x = x, a = t.a, B = B, C = C, dt = t.dt, D = t.D, start = t.start, segment = t.segment, groups = g,
        decay = o.log and "log" or "softplus", chunk = 48 }
    end }
end

-- teacher: "whole", "top"; o: bias, segment, and options of the op.
local function head(b, l, V, D, teacher, o)
  local function make()
    local t = { real = { x = normal(b, l, D) }, wide = { w = normal(V, D) * D ^ -0.5 }, plain = { ids = ids({ b, l }, o.vocab or V) } }
    if o.bias then t.wide.b = normal(V) end
    if o.segment then t.plain.segment = segments(b, l) end
    if teacher == "whole" then
      t.real.tx, t.wide.tw = normal(b, l, D + 3), normal(V, D + 3) * D ^ -0.5
    elseif teacher == "top" then
      local rows = {}
      for i = 1, b do
        rows[i] = {}
        for j = 1, l do rows[i][j] = { (i + j) % 3, 3 + (i * j) % 2, 5, 6 } end
      end
      t.plain.top, t.real.top_logits = core.tensor(rows, "i32"), normal(b, l, 4)
    end
    return t
  end
  local args = {}
  for _, name in ipairs { "ce", "kl", "divergence", "temperature", "smoothing", "vocab", "rows" } do args[name] = o[name] end
  add { "head_loss", ("b%d l%d V%d D%d %s %s T %g"):format(b, l, V, D, teacher or "labels", o.divergence or "", o.temperature or 1),
    forward = 5e-5, frozen = { "tx", "tw", "top_logits" }, make = make,
    call = function(t)
      local all = {}
      for name, value in pairs(args) do all[name] = value end
      for name, value in pairs(t) do all[name] = value end
      return (op.head_loss(all))
    end }
end

local function patches(b, channels, side, patch, width, stride)
  add { "patch_embed", ("b%d %dx%dx%d patch %d stride %d"):format(b, channels, side, side, patch, stride), forward = 5e-5,
    make = function()
      return { real = { x = normal(b, channels, side, side) }, wide = { w = normal(width, channels, patch, patch), b = normal(width) } }
    end,
    call = function(t) return op.patch_embed(t.x, t.w, t.b, { stride = stride }) end }
end

-- x is the first half of a packed projection.
local function conv(b, l, e, width, o)
  add { "conv1d", ("b%d l%d e%d w%d%s%s"):format(b, l, e, width, o.reverse and " reverse" or "", o.plain and " no bias, no silu" or ""),
    make = function()
      return { real = { xz = normal(b, l, 2 * e) }, wide = { w = normal(e, 1, width), b = not o.plain and normal(e) or nil } }
    end,
    call = function(t)
      local x = t.xz:split(3, { e, e })
      return op.conv1d(x, t.w, t.b, { silu = not o.plain, reverse = o.reverse or false })
    end }
end

local function embedding(count, vocab, width)
  add { "embedding", ("%d of %dx%d"):format(count, vocab, width),
    make = function() return { real = {}, wide = { w = normal(vocab, width) }, plain = { ids = ids({ count }, vocab) } } end,
    call = function(t) return op.embedding(t.ids, t.w) end }
end

-- ---- the scan and what is around it -----------------------------------------------------------------

-- o: reverse; all: D, z, bias; packed: B, C, z are parts of wider rows; positive: dt as it is, without softplus; identity: A near 0;
-- rank: dt has so many columns, and a weight; with packed it is a part too; frozen: names without a gradient; value: forward only.
local function scan(b, l, e, n, o)
  local words = {}
  for _, k in ipairs { "reverse", "all", "packed", "positive", "identity", "frozen", "value" } do
    if o[k] then words[#words + 1] = k end
  end
  if o.rank then words[#words + 1] = "rank " .. o.rank end
  local first = o.rank or 3 -- columns before B
  local function make()
    local real, wide = { u = normal(b, l, e) }, {}
    if not (o.packed and o.rank) then real.dt = (o.positive and positive or normal)(b, l, o.rank or e) end
    wide.A = o.identity and core.full({ e, n }, -math.exp(-20), "f64") or op.affine(positive(e, n), -1)
    wide.weight = o.rank and op.affine((o.positive and positive or normal)(e, o.rank), o.rank ^ -0.5) or nil
    if o.packed then real.low, real.xz = normal(b, l, first + 2 * n), normal(b, l, 2 * e)
    else real.B, real.C, real.z = normal(b, l, n), normal(b, l, n), o.all and normal(b, l, e) or nil end
    if o.all then wide.D, wide.bias = normal(e), normal(e) end
    return { real = real, wide = wide }
  end
  local frozen = o.frozen
  if o.value then frozen = { "u", "dt", "A", "B", "C", "D", "z", "bias", "low", "xz", "weight" } end
  add { "selective_scan", ("b%d l%d e%d n%d %s"):format(b, l, e, n, table.concat(words, " ")), forward = 5e-5,
    frozen = frozen, make = make,
    call = function(t)
      local dt, B, C, z, _ = t.dt, t.B, t.C, t.z, nil
      if o.packed then
        local low
        low, B, C = t.low:split(3, { first, n, n })
        dt = o.rank and low or dt
        _, z = t.xz:split(3, { e, e })
      end
      return op.selective_scan(t.u, dt, t.A, B, C, t.D, z, t.bias, t.weight, { reverse = o.reverse or false, softplus = not o.positive })
    end }
end

-- o: identity, as above, of the first direction; packed, rank. Both directions have D and bias.
local function scan_pair(b, l, e, n, o)
  local function make()
    local real, wide = {}, {}
    for _, back in ipairs { "", "_b" } do
      real["u" .. back] = normal(b, l, e)
      if not (o.packed and o.rank) then real["dt" .. back] = normal(b, l, o.rank or e) end
      if o.rank then wide["weight" .. back] = op.affine(normal(e, o.rank), (o.identity and 0.3 or 1) * o.rank ^ -0.5) end -- small: d |A| rounds to 0
      wide["A" .. back] = o.identity and back == "" and core.full({ e, n }, -math.exp(-20), "f64") or op.affine(positive(e, n), -1)
      wide["D" .. back], wide["bias" .. back] = normal(e), normal(e)
      if o.packed then real["low" .. back] = normal(b, l, (o.rank or 3) + 2 * n)
      else real["B" .. back], real["C" .. back] = normal(b, l, n), normal(b, l, n) end
    end
    return { real = real, wide = wide }
  end
  local words = (o.identity and " identity" or "") .. (o.rank and " rank " .. o.rank or "")
  add { "scan_pair", ("b%d l%d e%d n%d%s"):format(b, l, e, n, words), forward = 5e-5, make = make,
    call = function(t)
      local args = {}
      for name, value in pairs(t) do args[name] = value end
      for _, back in ipairs(o.packed and { "", "_b" } or {}) do
        args["low" .. back] = nil
        local low, B, C = t["low" .. back]:split(3, { o.rank or 3, n, n })
        args["dt" .. back], args["B" .. back], args["C" .. back] = o.rank and low or args["dt" .. back], B, C
      end
      return op.scan_pair(args)
    end }
end

local function scan_matrix(b, l, e, n, reverse)
  add { "scan_matrix", ("b%d l%d e%d n%d%s"):format(b, l, e, n, reverse and " reverse" or ""), forward = 5e-5,
    frozen = { "dt", "A", "B", "C", "bias" },
    make = function()
      return { real = { dt = normal(b, l, e), B = normal(b, l, n), C = normal(b, l, n) },
        wide = { A = op.affine(positive(e, n), -1), bias = normal(e) } }
    end,
    call = function(t) return op.scan_matrix(t.dt, t.A, t.B, t.C, t.bias, { reverse = reverse }) end }
end

local function largest(r, c, k)
  add { "largest", ("%dx%d k%d"):format(r, c, k), frozen = { "x" }, make = function() return { real = { x = normal(r, c) } } end,
    call = function(t) return (op.largest(t.x, { k = k })) end }
end

local function gate(b, l, e, both)
  add { "gate", ("b%d l%d e%d%s"):format(b, l, e, both and " both" or ""),
    make = function() return { real = { a = normal(b, l, e), b = both and normal(b, l, e) or nil, xz = normal(b, l, 2 * e) } } end,
    call = function(t)
      local _, z = t.xz:split(3, { e, e })
      return op.gate(t.a, z, t.b, { scale = both and 0.5 or 1 })
    end }
end

local function maps(b, l, d)
  for _, name in ipairs { "map_queries", "map_keys" } do
    for _, map in ipairs { "softmax", "relu", "exp", "standard" } do
      local standard = map == "standard"
      add { name, ("b%d l%d d%d %s"):format(b, l, d, map), frozen = { "mean", "deviation" },
        make = function()
          return { real = { x = normal(b, l, d) },
            wide = { mean = standard and normal(d) or nil, deviation = standard and positive(d) or nil } }
        end,
        call = function(t) return op[name](t.x, t.mean, t.deviation, { map = map }) end }
    end
  end
end

-- Taps and targets are parts of packed projections. o: map, first, second, taps; frozen: names without a gradient; plain: not packed.
local function bridge(b, l, n, h, d, o)
  local map, first, second = o.map or "standard", o.first or 1, o.second or 0
  local tokens = l + 1 - (first > 0 and 1 or 0) - (second > 0 and 1 or 0)
  local function make()
    local real, wide = {}, {}
    real.low, real.qkv = normal(b, l, 3 + 2 * n), normal(b, tokens, 3 * d)
    for _, name in ipairs { "B", "C" } do
      wide[name .. "_w1"], wide[name .. "_b1"] = normal(h, n) * n ^ -0.5, normal(h)
      wide[name .. "_w2"], wide[name .. "_b2"] = normal(d, h) * h ^ -0.5, normal(d)
    end
    if map == "standard" then
      for _, name in ipairs { "k", "q" } do wide[name .. "_mean"], wide[name .. "_deviation"] = normal(d), positive(d) end
    end
    return { real = real, wide = wide }
  end
  local frozen = { "qkv", "k_mean", "k_deviation", "q_mean", "q_deviation" }
  for _, name in ipairs(o.frozen or {}) do frozen[#frozen + 1] = name end
  add { "bridge", ("b%d l%d n%d h%d d%d %s taps %d"):format(b, l, n, h, d, map, o.taps or 2), forward = 5e-5, frozen = frozen, make = make,
    call = function(t)
      local args, _ = { map = map, first = first, second = second }, nil
      _, args.B, args.C = t.low:split(3, { 3, n, n })
      args.q, args.k = t.qkv:split(3, { d, d, d })
      for _, name in ipairs(o.plain and { "B", "C", "q", "k" } or {}) do args[name] = args[name]:clone() end
      for name, value in pairs(t) do
        if name:find "_" then args[name] = value end
      end
      for name in pairs(o.taps == 1 and args or {}) do
        if name:find "^[Cq]" then args[name] = nil end
      end
      return op.bridge(args)
    end }
end

-- ---- losses ------------------------------------------------------------------------------------------

local function entropy(rows, classes)
  local function one(label, options, plain, wide)
    add { "cross_entropy", ("%dx%d %s"):format(rows, classes, label), forward = 5e-5, frozen = { "target" },
      make = function()
        return { real = { x = normal(rows, classes) * 3 }, plain = plain and plain() or {}, wide = wide and wide() or {} }
      end,
      call = function(t) return op.cross_entropy(t.x, t.labels, t.target, options) end }
  end
  local function labels() -- some are -1: left out
    return { labels = op.affine(ids({ rows }, classes + 1):to "f64", 1, -1):to "i32" }
  end
  one("labels", {}, labels)
  one("smoothing", { smoothing = 0.1 }, labels)
  one("target", {}, nil, function() return { target = op.softmax(normal(rows, classes)) } end)
end

local function losses(rows, n)
  local function one(name, label, options, a, b)
    add { name, ("%dx%d%s"):format(rows, n, label), forward = 5e-5,
      make = function() return { real = { a = normal(rows, n), b = normal(rows, n) } } end,
      call = function(t)
        if name == "kl" then return op.kl(t.a * 3, t.b * 3, options) end
        return op[name](a(t.a), b(t.b))
      end }
  end
  local function plain(x) return x end
  local function matrices(x) return x:reshape(rows, 1, n) end
  one("kl", " T 1", { temperature = 1 })
  one("kl", " T 2.5", { temperature = 2.5 })
  one("mse", "", nil, plain, plain)
  one("cosine", "", nil, plain, plain)
  one("frobenius", "", nil, matrices, matrices)
end

-- ---- lists -------------------------------------------------------------------------------------------

local function collect(f)
  list = {}
  f()
  local made = list
  list = nil
  return made
end

local M = {}

function M.full()
  return collect(function()
    for _, n in ipairs { 3, 100003 } do unary(n) end
    binary({ 3, 197, 192 }, { 192 })
    binary({ 3, 197, 192 }, { 1, 197, 192 })
    binary({ 3, 197, 1 }, { 1, 1, 33 })
    binary({ 7, 13 }, { 1 })
    binary({ 5, 33, 17 }, { 5, 17, 33 }, true)
    binary({ 64, 1 }, { 3000 }, false)
    views(3, 197, 33)
    views(2, 1, 1)
    for _, s in ipairs { { { 1000003 }, 0 }, { { 12608, 192 }, 1 }, { { 3, 197, 33 }, 2 }, { { 5, 3000 }, 2 }, { { 2, 3, 4, 5, 6 }, 3 },
      { { 1, 1 }, 1 }, { { 64, 50, 7 }, 0 } } do sums(s[1], s[2]) end
    for _, s in ipairs { { { 3, 197, 64 }, 3 }, { { 3, 197, 64 }, 2 }, { { 64, 1, 16 }, 2 }, { { 5, 3000 }, 2 }, { { 7, 1 }, 2 },
      { { 2, 1025, 33 }, 2 }, { { 2, 50257 }, 2 } } do softmax(s[1], s[2]) end
    linear(1, 1, 1, true)
    linear(7, 5, 3, true)
    linear(591, 192, 768, true)
    linear(591, 384, 44, false)
    linear(591, 12, 384, true, true)
    linear(591, 16, 128, true, true)
    linear(12608, 192, 192, false)
    linear(33, 1, 17, true)
    matmul({ 7, 13 }, { 13, 17 })
    matmul({ 3, 2, 197, 64 }, { 3, 2, 64, 197 })
    matmul({ 3, 2, 50, 33 }, { 3, 2, 17, 33 }, true)
    matmul({ 5, 7, 9 }, { 9, 11 })
    matmul({ 7, 9 }, { 5, 9, 11 })
    matmul({ 3, 33, 1 }, { 3, 1, 5 })
    for i, width in ipairs { 1, 33, 192, 1024, 3000 } do
      norms(i % 2 == 0 and 7 or 591, width, false)
      norms(i % 2 == 0 and 591 or 7, width, true)
    end
    norms(12608, 192, true)
    for i, p in ipairs { 16, 40, 64, 128 } do
      for j, l in ipairs { 1, 5, 50, 197, 300 } do
        attention(i % 2 + 1, l, j % 3 + 1, p, { causal = (i + j) % 2 == 0, map = (i + j) % 3 == 0 })
      end
    end
    attention(64, 50, 4, 16, {})
    attention(2, 197, 3, 64, { map = true })
    attention(1, 33, 1, 7, { causal = true, map = true })
    patches(3, 3, 224, 16, 192, 0)
    patches(3, 1, 28, 4, 64, 0)
    patches(2, 3, 33, 5, 17, 3)
    for width, s in ipairs { { 3, 1, 384 }, { 1, 2, 33 }, { 3, 17, 384 }, { 64, 197, 384 }, { 3, 197, 385 }, { 3, 1024, 33 },
      { 64, 50, 33 }, { 3, 197, 384 } } do
      conv(s[1], s[2], s[3], width, { reverse = width % 2 == 0, plain = width % 3 == 0 })
    end
    conv(3, 197, 384, 4, {})
    conv(64, 3, 1, 4, { reverse = true })
    embedding(4096, 50, 192)
    embedding(1000, 3, 33)
    embedding(17, 50257, 1)
    scan(1, 1, 1, 1, {})
    scan(3, 2, 33, 16, { reverse = true, all = true })
    scan(1, 15, 384, 17, { packed = true })
    scan(3, 16, 33, 64, { reverse = true })
    scan(64, 17, 33, 16, { packed = true, all = true, reverse = true })
    scan(3, 50, 384, 16, { packed = true, all = true })
    scan(64, 197, 384, 16, { packed = true, all = true })
    scan(3, 197, 384, 16, { reverse = true, all = true })
    scan(3, 197, 385, 16, { packed = true, reverse = true })
    scan(3, 197, 384, 16, { identity = true, all = true })
    scan(3, 197, 1, 16, {})
    scan(64, 50, 1, 1, { all = true })
    scan(64, 1, 384, 16, { packed = true })
    scan(3, 16, 384, 64, { all = true })
    scan(1, 197, 33, 1, { reverse = true })
    scan(1, 1024, 384, 16, { all = true })
    scan(3, 1024, 33, 17, { reverse = true })
    scan(1, 1024, 33, 64, { positive = true })
    scan(1, 2048, 64, 16, { packed = true, all = true })
    scan(1, 33, 8, 256, { all = true })
    scan(3, 50, 33, 16, { positive = true, reverse = true })
    scan(3, 50, 384, 16, { frozen = { "A", "dt", "C" } })
    scan(3, 197, 384, 16, { value = true, packed = true, all = true })
    scan(3, 197, 384, 16, { rank = 12, packed = true, all = true })
    scan(3, 50, 33, 16, { rank = 1, reverse = true })
    scan(3, 50, 97, 16, { rank = 5, all = true, identity = true })
    scan(2, 37, 130, 17, { rank = 16, packed = true, reverse = true })
    scan(1, 33, 70, 40, { rank = 64, positive = true })
    scan(1, 1024, 33, 17, { rank = 13, all = true, reverse = true })
    scan(1, 2048, 64, 16, { rank = 48, packed = true, all = true })
    scan(3, 50, 384, 16, { rank = 12, frozen = { "A", "dt", "C", "D", "bias" } })
    scan(3, 50, 384, 16, { rank = 12, frozen = { "weight", "A", "D", "bias" } })
    scan(3, 50, 384, 16, { rank = 12, value = true, packed = true, all = true })
    scan_pair(64, 197, 384, 16, { packed = true, identity = true })
    scan_pair(64, 197, 384, 16, { packed = true, rank = 12 })
    scan_pair(3, 197, 384, 16, { packed = true, identity = true, rank = 12 })
    scan_pair(3, 50, 100, 13, { packed = true, identity = true, rank = 5 })
    scan_pair(64, 197, 384, 16, { packed = true, identity = true, rank = 12 })
    scan_pair(1, 1024, 33, 16, { identity = true, rank = 33 })
    scan_pair(3, 50, 33, 17, {})
    scan_pair(1, 1024, 33, 16, { identity = true })
    scan_pair(3, 1024, 384, 64, { packed = true })
    scan_matrix(2, 37, 18, 16, false)
    largest(37, 1000, 5)
    largest(3, 50257, 64)
    scan_matrix(3, 197, 33, 16, true)
    gate(3, 197, 384, true)
    gate(2, 17, 33, false)
    maps(3, 197, 192)
    maps(64, 50, 33)
    bridge(1, 1, 1, 1, 1, { map = "none" })
    bridge(3, 50, 16, 128, 64, { plain = true })
    bridge(3, 197, 16, 128, 192, { first = 99 })
    bridge(64, 197, 16, 128, 192, { first = 99 })
    bridge(3, 197, 16, 128, 192, { first = 99, map = "exp", taps = 1, plain = true })
    bridge(3, 197, 16, 128, 192, { first = 99, map = "relu", frozen = { "low" } })
    bridge(3, 197, 16, 128, 192, { first = 99, plain = true, frozen = { "B_w1", "B_b1", "B_w2", "B_b2", "C_w1", "C_b1", "C_w2", "C_b2" } })
    bridge(2, 37, 12, 128, 128, { first = 1, second = 37, plain = true })
    bridge(5, 13, 7, 33, 17, { first = 0, map = "none" })
    bridge(2, 17, 64, 256, 384, { map = "none" })
    bridge(1, 65, 16, 100, 1030, { map = "none", taps = 1 })
    entropy(64, 1000)
    entropy(33, 10)
    entropy(3, 50257)
    packed(3, 197, 3, 64, 4)
    packed(2, 130, 1, 128, 7)
    packed(2, 33, 1, 7, 4)
    packed(1, 300, 2, 40, 4)
    rotary(3, 50, 3, 40, 16)
    rotary(2, 300, 1, 7, 6)
    ssd(2, 197, 3, 64, 3, 64, { all = true })
    ssd(3, 300, 4, 64, 1, 64, {})
    ssd(2, 130, 2, 40, 2, 16, { log = true, all = true })
    ssd(1, 200, 4, 100, 2, 128, { all = true })
    ssd(1, 70, 2, 33, 1, 200, { all = true })
    ssd(2, 129, 3, 7, 1, 5, { steep = true })
    ssd(3, 1, 4, 64, 4, 64, { all = true })
    ssd(8, 64, 2, 256, 1, 17, {})
    head(2, 50, 1000, 64, nil, { bias = true })
    head(1, 70, 50257, 32, "whole", { bias = true, kl = 1, rows = 48 })
    for _, divergence in ipairs { "forward", "cross", "reverse", "jsd" } do
      head(3, 37, 331, 24, "whole", { bias = true, segment = true, kl = 0.7, ce = 0.5, divergence = divergence, temperature = 2, smoothing = 0.1,
        vocab = 320, rows = 50 })
      head(2, 17, 4999, 24, "whole", { kl = 1, ce = 0, divergence = divergence })
    end
    head(2, 33, 17, 8, "top", { kl = 1, bias = true, rows = 20 })
    for _, s in ipairs { { 1, 1 }, { 33, 17 }, { 64, 1000 }, { 1000, 1000 } } do losses(s[1], s[2]) end
  end)
end

--- The kernels that a step of a Vision Mamba spends its time in, a few images of it.
function M.real()
  return collect(function()
    norms(8 * 197, 192, true)
    attention(8, 197, 3, 64, {})
    conv(8, 197, 384, 4, {})
    conv(8, 197, 384, 4, { reverse = true })
    scan(8, 197, 384, 16, { packed = true, all = true })
    scan(8, 197, 384, 16, { packed = true, all = true, reverse = true })
    scan_pair(8, 197, 384, 16, { packed = true, identity = true })
    scan_pair(8, 197, 384, 16, { packed = true, rank = 12 })
    scan_pair(8, 197, 384, 16, { packed = true, identity = true, rank = 12 })
    scan(1, 1024, 128, 16, { all = true })
    sums({ 8 * 197, 192 }, 1)
    sums({ 1000003 }, 0)
    linear(8 * 197, 192, 768, true)
    linear(8 * 197, 384, 44, false)
    softmax({ 8, 197, 192 }, 2)
    losses(64, 1000)
    entropy(64, 1000)
    embedding(4096, 50, 192)
    maps(8, 197, 192)
    bridge(8, 197, 16, 128, 192, { first = 99 })
    packed(2, 512, 12, 64, 4)
    ssd(2, 512, 12, 64, 12, 64, { all = true })
    ssd(2, 256, 8, 64, 1, 64, {})
    head(2, 300, 5000, 64, "whole", { bias = true, kl = 1 })
  end)
end

function M.empty()
  return collect(function()
    binary({ 0, 3 }, { 3 })
    binary({ 3, 1 }, { 1, 0 })
    sums({ 0, 5 }, 2)
    sums({ 3, 0, 5 }, 3)
    softmax({ 0, 5 }, 2)
    softmax({ 5, 0 }, 1)
    linear(0, 5, 3, true)
    matmul({ 0, 5 }, { 5, 3 })
    matmul({ 3, 0 }, { 0, 5 })
    matmul({ 0, 3, 2 }, { 0, 2, 3 })
    norms(0, 192, true)
    attention(0, 5, 2, 16, { map = true })
    attention(2, 0, 2, 16, {})
    patches(0, 3, 9, 4, 5, 3)
    conv(0, 5, 3, 4, {})
    conv(2, 0, 3, 4, { reverse = true })
    embedding(0, 5, 3)
    scan(0, 5, 3, 4, { all = true })
    scan_pair(0, 5, 3, 4, {})
    scan_pair(2, 5, 0, 4, {})
    scan_pair(0, 5, 3, 4, { rank = 2, packed = true })
    scan_pair(2, 5, 0, 4, { rank = 2, packed = true })
    scan(2, 0, 3, 4, { all = true, packed = true })
    scan(2, 5, 0, 4, { all = true })
    scan_matrix(0, 7, 5, 3, false)
    largest(0, 7, 3)
    gate(0, 5, 7, true)
    ssd(0, 5, 2, 3, 1, 4, { all = true })
    rotary(0, 5, 2, 4, 2)
    rotary(2, 0, 2, 4, 2)
    head(0, 5, 7, 3, nil, { bias = true })
    maps(0, 5, 7)
    maps(2, 0, 7)
    bridge(0, 5, 3, 7, 9, { plain = true })
  end)
end

function M.tiny()
  return collect(function()
    unary(35)
    binary({ 3, 5, 7 }, { 7 })
    binary({ 3, 5, 1 }, { 1, 1, 7 })
    binary({ 3, 5, 7 }, { 3, 7, 5 }, true)
    views(3, 5, 3)
    sums({ 3, 5, 7 }, 2)
    sums({ 1037 }, 0)
    softmax({ 3, 17, 7 }, 2)
    softmax({ 3, 17 }, 2)
    linear(7, 5, 3, true, true)
    linear(33, 12, 9, false)
    matmul({ 3, 7, 5 }, { 3, 9, 5 }, true)
    norms(5, 33, true)
    norms(3, 1025, false)
    attention(2, 17, 3, 16, { map = true })
    attention(1, 5, 1, 40, { causal = true })
    attention(1, 33, 1, 64, {})
    patches(2, 3, 9, 4, 5, 3)
    conv(2, 5, 33, 4, {})
    conv(1, 17, 3, 7, { reverse = true, plain = true })
    embedding(17, 5, 3)
    scan(2, 17, 33, 16, { packed = true, all = true })
    scan_pair(2, 21, 36, 5, { packed = true, identity = true, rank = 3 })
    scan(1, 5, 3, 5, { reverse = true, all = true })
    scan(1, 33, 35, 17, { positive = true })
    scan(1, 3, 5, 64, { frozen = { "A" } })
    scan(2, 17, 67, 16, { rank = 12, packed = true, all = true })
    scan(1, 33, 5, 17, { rank = 17, reverse = true })
    scan_matrix(2, 7, 5, 3, false)
    largest(2, 7, 3)
    gate(2, 5, 7, true)
    maps(2, 5, 7)
    packed(2, 37, 2, 8, 4)
    packed(1, 9, 1, 5, 3)
    rotary(2, 5, 2, 7, 4)
    ssd(2, 37, 2, 3, 1, 5, { all = true })
    ssd(1, 70, 2, 64, 2, 64, {})
    head(2, 7, 13, 5, "whole", { bias = true, segment = true, kl = 1, divergence = "jsd" })
    head(2, 7, 11, 6, "top", { kl = 1 })
    bridge(2, 9, 3, 7, 5, { first = 4 })
    bridge(2, 37, 16, 128, 64, { first = 4, plain = true })
    entropy(5, 7)
    losses(3, 7)
  end)
end

return M
