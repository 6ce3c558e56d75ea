-- The GPU against the CPU in f64: every op at odd and large sizes, updates, random numbers, moves between devices, and the
-- faults of a device. Skipped, and said so, where there is no GPU.
local core = require "cab.core"
local devices = require "devices"
local parity = require "parity"
local shapes = require "gpu.shapes"
local refused = require "refused"
local op = core.ops

if not devices.cuda then
  pending("CUDA: " .. devices.reason)
  return
end

local worst = {} -- "op dtype" -> {op, dtype, forward, gradient}

local function record(name, dtype, e)
  local key = name .. " " .. dtype
  local w = worst[key] or { name = name, dtype = dtype, forward = 0, gradient = 0, calls = 0 }
  w.forward, w.gradient, w.calls = math.max(w.forward, e.forward), math.max(w.gradient, e.gradient), w.calls + 1
  worst[key] = w
end

local function print_worst()
  local keys = {}
  for key in pairs(worst) do keys[#keys + 1] = key end
  table.sort(keys)
  print(("%-16s %-5s %6s %14s %14s"):format("op", "dtype", "calls", "worst forward", "worst gradient"))
  for _, key in ipairs(keys) do
    local w = worst[key]
    print(("%-16s %-5s %6d %14.2g %14.2g"):format(w.name, w.dtype, w.calls, w.forward, w.gradient))
  end
end

-- f64 and f32 from the same rounded inputs, bf16 from its own.
local function agree(c)
  local failures = {}
  for _, keep in ipairs { "f32", "bf16" } do
    local scope <close> = core.scope()
    local inputs = c.make()
    local want, want_gradients = parity.evaluate(c, inputs, "f64", "cpu", keep)
    for _, dtype in ipairs(keep == "bf16" and { "bf16" } or { "f64", "f32" }) do
      local got, got_gradients = parity.evaluate(c, inputs, dtype, "cuda", keep)
      local e, limit = parity.errors(got, got_gradients, want, want_gradients), parity.limit(c, dtype)
      record(c.op, dtype, e)
      if e.forward > limit.forward then failures[#failures + 1] = ("%s: %s off by %.3g"):format(dtype, e.output, e.forward) end
      if e.gradient > limit.gradient then failures[#failures + 1] = ("%s: %s off by %.3g"):format(dtype, e.name, e.gradient) end
    end
  end
  assert.equal("", table.concat(failures, "; "))
end

describe("on cuda", function()
  teardown(print_worst)
  for _, set in ipairs { "full", "empty" } do
    for _, c in ipairs(shapes[set]()) do
      it(("op.%s %s agrees with the CPU"):format(c.op, c.label), function() agree(c) end)
    end
  end
end)

describe("updates on cuda", function()
  local options = { lr = 1e-2, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, decay = 0.05 }

  -- Three steps of AdamW and its average on tensors of several sizes, one without a gradient; all that changed, as f64.
  local function steps(dtype, device)
    local all = {}
    local p, m, v, average = {}, {}, {}, {}
    for i, n in ipairs { 1, 7, 1000, 1000003, 5 } do
      p[i] = core.normal({ n }, 0, 1, i, "p", dtype):to(device)
      p[i].requires_grad = true
      m[i], v[i], average[i] = core.zeros({ n }, dtype, device), core.zeros({ n }, dtype, device), p[i]:detach():clone()
    end
    for step = 1, 3 do
      for i = 1, 4 do p[i].grad = core.normal(p[i]:shape(), 0, 1, step * 10 + i, "g", dtype):to(device) end
      options.step = step
      core.adamw(p, 0.5, m, v, options)
      core.ema(average, p, 0.9)
    end
    for i = 1, 5 do
      for _, t in ipairs { p[i]:detach(), m[i], v[i], average[i] } do all[#all + 1] = t:to("cpu"):to "f64" end
    end
    return all, core.grad_norm(p)
  end

  for dtype, limit in pairs { f32 = 1e-5, f64 = 1e-12 } do
    it("agree with the CPU in " .. dtype, function()
      local scope <close> = core.scope()
      local want, want_norm = steps(dtype, "cpu")
      local got, got_norm = steps(dtype, "cuda")
      for i in ipairs(want) do assert.near(0, parity.worst(got[i], want[i]), limit) end
      assert.near(1, got_norm / want_norm, limit)
    end)
  end

  it("find what is not finite", function()
    local x = core.zeros({ 100003 }, "f32", "cuda")
    for _, at in ipairs { 1, 777, 100003 } do x:slice(1, at, at):fill(at == 777 and 1 / 0 or 0 / 0) end
    x:slice(1, 5, 5):fill(-3)
    local r = x:range()
    assert.equal(3, r.bad)
    assert.equal(-3, r.min)
    assert.equal(0, r.max)
    x.requires_grad = true
    x.grad = x:detach()
    local norm = core.grad_norm { x }
    assert.is_true(norm ~= norm or norm == math.huge)
  end)

  it("count the top k", function()
    local logits, labels = core.normal({ 300, 10 }, 0, 1, 1, "l"), core.uniform({ 300 }, 0, 10, 2, "l", "f64"):to "i32"
    for _, k in ipairs { 1, 5 } do
      assert.equal(core.top_k(logits, labels, k), core.top_k(logits:to "cuda", labels:to "cuda", k))
    end
  end)
end)

describe("random numbers on cuda", function()
  for _, dtype in ipairs { "f32", "f64" } do
    for name, args in pairs { uniform = { -1, 3 }, normal = { 1, 2 }, trunc_normal = { 0, 1, -2, 2 } } do
      it(("are those of the CPU: %s %s"):format(name, dtype), function()
        local function draw(device)
          local list = { table.unpack(args) }
          for _, x in ipairs { 5, "stream", dtype, device } do list[#list + 1] = x end
          return core[name]({ 100003 }, table.unpack(list)):to("cpu"):to "f64"
        end
        assert.near(0, parity.worst(draw "cuda", draw "cpu"), dtype == "f32" and 2e-6 or 1e-12)
      end)
    end
  end
end)

describe("moves between devices", function()
  local dtypes = { "f32", "f64", "bf16", "i32", "u8" }
  for _, from in ipairs(dtypes) do
    it("cast from " .. from .. " as the CPU does", function()
      local scope <close> = core.scope()
      local source = (core.uniform({ 7, 1001 }, -3, 300, 1, "m", "f64")):to(from)
      for _, to in ipairs(dtypes) do
        assert.same(source:to(to):totable(), source:to("cuda"):to(to):totable(), to)
        local view = source:transpose(1, 2):slice(1, 3, 50)
        assert.same(view:to(to):totable(), source:to("cuda"):transpose(1, 2):slice(1, 3, 50):to(to):totable(), to .. " of a view")
      end
    end)
  end
  it("carry more than one staging buffer", function() -- 8 MiB each
    local x = core.uniform({ (20 << 20) + 1 }, 0, 1, 1, "big")
    assert.equal(0, parity.worst(x:to("cuda"):to("cpu"):to "f64", x:to "f64"))
  end)
end)

local function works()
  local x = core.ones({ 3 }, "f32", "cuda")
  assert.equal(6, op.sum(x + x):item())
end

describe("captured on cuda", function()
  -- What f returns, kept out of the scopes, and the graph. f runs once before: libraries load their kernels then.
  local function capture(f)
    local scope <close> = core.scope()
    local result
    f()
    local graph = core.capture("cuda", function()
      local _inner <close> = core.scope()
      result = scope:keep(f())
    end)
    return result, graph
  end
  it("runs on what its inputs hold at each replay", function()
    local x = core.zeros({ 1000 }, "f64", "cuda")
    x.requires_grad = true
    local gradient, graph = capture(function()
      op.sum(op.exp(x * 2)):backward()
      local g = x.grad
      x.grad = nil
      return g
    end)
    for _, value in ipairs { 0, 1.5, -3 } do
      core.no_grad(function() x:fill(value) end)
      graph:replay()
      assert.near(2 * math.exp(2 * value), gradient:range().max, 1e-9)
    end
    gradient:close()
    graph:close()
  end)
  it("gives what it gives eagerly, to the bit", function()
    local a, b = core.normal({ 65, 197 }, 0, 1, 1, "a", "f32", "cuda"), core.normal({ 197, 33 }, 0, 1, 1, "b", "f32", "cuda")
    local function f() return op.softmax(op.matmul(a, b)) end
    local y, graph = capture(f)
    graph:replay()
    assert.equal(0, parity.worst(y:to "cpu", f():to "cpu"))
    y:close()
    graph:close()
  end)
  it("refuses what needs the host, passes errors on and leaves nothing behind", function()
    local x = core.ones({ 1 << 20 }, "f32", "cuda")
    collectgarbage()
    local before = core.memory("cuda").live
    assert.equal("capture", refused(69, core.capture, "cuda", function() return op.sum(x + 1):item() end).id)
    assert.equal("capture", refused(69, core.capture, "cuda", function() return core.tensor({ 1 }, "f32", "cuda") end).id)
    local ok, e = pcall(core.capture, "cuda", function()
      local _ = x + 1
      error "mine"
    end)
    assert.is_false(ok)
    assert.truthy(tostring(e):find("mine", 1, true))
    local y, graph = capture(function() return x * 2 end)
    graph:replay()
    assert.equal(2, y:range().max)
    y:close()
    graph:close()
    graph:close()
    refused(1, graph.replay, graph)
    collectgarbage()
    assert.equal(before, core.memory("cuda").live)
    works()
  end)
end)

describe("faults on cuda", function()
  it("of memory name what was asked, what is free and the largest tensors; the process goes on", function()
    local held = core.ones({ 1 << 20 }, "f32", "cuda")
    collectgarbage()
    local before = core.memory("cuda").live
    for _ = 1, 3 do
      local e = refused(71, core.empty, { 1 << 44 }, "f32", "cuda")
      local text = tostring(e)
      assert.truthy(text:find "out of memory on cuda:0: 67108864.0 MiB requested, [%d.]+ free of [%d.]+", text)
      assert.truthy(text:find("five largest: ", 1, true), text)
    end
    assert.equal(before, core.memory("cuda").live)
    assert.equal(1 << 20, op.sum(held):item())
    works()
  end)
  it("of memory in the middle of a step leave nothing behind", function()
    collectgarbage()
    local before = core.memory("cuda").live
    local x = core.ones({ 1 << 14, 1 }, "f32", "cuda")
    x.requires_grad = true
    refused(71, function()
      local scope <close> = core.scope()
      local y = x:expand { 1 << 14, 1 << 14 } * 2           -- 1 GiB
      return op.matmul(y:expand { 1 << 8, 1 << 14, 1 << 14 }, y) -- 256 GiB
    end)
    x = nil
    collectgarbage()
    assert.equal(before, core.memory("cuda").live)
    works()
  end)
  it("of a device that is not there", function()
    local e = refused(69, core.zeros, { 1 }, "f32", "cuda:15")
    assert.truthy(tostring(e):find "'cuda:15' is not available: there are %d+ GPUs", tostring(e))
    refused(1, core.zeros, { 1 }, "f32", "cuda:16")
    refused(1, core.zeros, { 1 }, "f32", "cuda0")
    works()
  end)
  it("of arguments on two devices", function()
    local a, b = core.ones { 3 }, core.ones({ 3 }, "f32", "cuda")
    local e = refused(1, op.add, a, b)
    assert.truthy(tostring(e):find("'b' is on cuda:0, the arguments before it on cpu", 1, true), tostring(e))
    works()
  end)
  it("of ids out of range", function()
    local w = core.ones({ 3, 2 }, "f32", "cuda")
    refused(1, op.embedding, core.tensor({ 0, 3 }, "i32", "cuda"), w)
    refused(1, op.embedding, core.tensor({ -1 }, "i32", "cuda"), w)
    works()
  end)
end)

describe("products on cuda", function()
  it("write every element of what memory held before", function()
    local random = function(dtype, ...) return core.normal({ ... }, 0, 1, 3, "products", "f64"):to(dtype):to "cuda" end
    for _, s in ipairs { { 15, 24, 72 }, { 17, 40, 48 }, { 64, 64, 128 }, { 591, 192, 768 }, { 1024, 768, 3072 } } do
      for _, dtype in ipairs { "f32", "bf16" } do
        for _, bias in ipairs { false, true } do
          local x, w, b = random(dtype, s[1], s[2]), random("f32", s[3], s[2]), bias and random("f32", s[3]) or nil
          local y = op.linear(x, w, b)
          local want, n = y:to("cpu"):to("f64"), y:count()
          y:close()
          do -- all that is free of this size, and what the next tensor would hold
            local scope <close> = core.scope()
            for _ = 1, 4 do core.full({ n }, 0 / 0, dtype, "cuda") end
          end
          assert.equal(n, core.empty({ n }, dtype, "cuda"):range().bad)
          collectgarbage()
          local memory = core.memory "cuda"
          local held = memory.live + memory.cached
          y = op.linear(x, w, b)
          memory = core.memory "cuda"
          assert.equal(held, memory.live + memory.cached, "the product was written to new memory")
          assert.equal(0, parity.worst(y:to("cpu"):to "f64", want), ("%s %d x %d to %d"):format(dtype, s[1], s[2], s[3]))
        end
      end
    end
  end)
end)
