-- Every op against float64 PyTorch (tests/reference/ops.py): outputs and gradients, on each device in f64 and f32 and, where
-- it has kernels for it, bf16; from contiguous and non-contiguous inputs; plus central differences. A row without a case here
-- fails.
local core = require "cab.core"
local devices = require "devices"
local fixture = require "fixture"
local parity = require "parity"
local op, tensors = core.ops, fixture.tensors

--- The same values behind other strides: reversed order of dims in memory.
local function scatter(t)
  local n = t:rank()
  if n < 2 then return t end
  local order = {}
  for i = 1, n do order[i] = n + 1 - i end
  return t:permute(table.unpack(order)):clone():permute(table.unpack(order)):detach()
end

local function agree(c, dtype, want, want_gradients, got, got_gradients)
  local e, limit = parity.errors(got, got_gradients, want, want_gradients), parity.limit(c, dtype)
  assert.is_true(e.forward <= limit.forward, ("%s: off by %.3g, limit %g"):format(e.output, e.forward, limit.forward))
  assert.is_true(e.gradient <= limit.gradient, ("%s: off by %.3g, limit %g"):format(e.name, e.gradient, limit.gradient))
end

local function replay(c, dtype, device, arrange)
  local scope <close> = core.scope()
  c.arrange = arrange
  local got, got_gradients = parity.evaluate(c, c.make(), dtype, device)
  c.arrange = nil
  local want, want_gradients = c.reference()
  agree(c, dtype, want, want_gradients, got, got_gradients)
end

--- bf16 against f64 on the CPU with the same rounded inputs.
local function replay_rounded(c, device)
  local scope <close> = core.scope()
  local inputs = c.make()
  local want, want_gradients = parity.evaluate(c, inputs, "f64", "cpu", "bf16")
  agree(c, "bf16", want, want_gradients, parity.evaluate(c, inputs, "bf16", device))
end

--- Central differences on up to 12 elements of each input.
local function differences(c)
  local args, inputs = {}, c.make()
  for _, set in pairs(inputs) do
    for name, value in pairs(set) do args[name] = value:clone() end
  end
  local function loss()
    local outputs, sum = { c.call(args) }, nil
    for i, o in ipairs(outputs) do
      local term = op.sum(o * c.weight(i))
      sum = sum and sum + term or term
    end
    return sum
  end
  for _, name in ipairs(c.case.grads) do args[name].requires_grad = true end
  loss():backward()
  for _, name in ipairs(c.case.grads) do
    local t, grad, eps = args[name], args[name].grad, 1e-6
    local n = t:count()
    local flat, slope = t:detach():reshape(n), grad:reshape(n)
    for i = 1, n, math.max(1, n // 12) do
      local cell = flat:slice(1, i, i)
      local start = cell:item()
      local function at(value)
        cell:fill(value)
        return core.no_grad(function() return loss():item() end)
      end
      local numeric = (at(start + eps) - at(start - eps)) / (2 * eps)
      cell:fill(start)
      local exact = slope:slice(1, i, i):item()
      assert.near(numeric, exact, 1e-5 + 1e-3 * math.abs(numeric), ("%s[%d]"):format(name, i))
    end
  end
end

local seen = {}
for _, c in ipairs(fixture.calls) do
  seen[c.op] = true
  local smooth = c.op ~= "cast" or c.case.options.to == "f64" -- rounding makes steps
  describe(("op.%s %s"):format(c.op, c.label), function()
    devices.each(function(device, on)
      if c.cpu_only and device ~= "cpu" then
        it("says that it has no kernel" .. on, function()
          local ok, e = pcall(parity.evaluate, c, c.make(), "f32", device)
          assert.is_false(ok)
          assert.equal(69, e.code)
          assert.truthy(tostring(e):find("no kernel", 1, true), tostring(e))
        end)
        return
      end
      it("agrees with PyTorch in f64" .. on, function() replay(c, "f64", device) end)
      it("agrees with PyTorch in f32" .. on, function() replay(c, "f32", device) end)
      it("takes non-contiguous inputs" .. on, function() replay(c, "f64", device, scatter) end)
      if device ~= "cpu" and c.op ~= "embedding" then -- its one real argument is a parameter, never bf16
        it("agrees with f64 in bf16" .. on, function() replay_rounded(c, device) end)
      end
    end)
    if #c.case.grads > 0 and smooth then
      it("has the gradient finite differences predict", function() differences(c) end)
    end
  end)
end

describe("the op table", function()
  it("has a PyTorch case for every row", function()
    for name in pairs(op) do assert(seen[name], "no reference case for op." .. name) end
  end)
  devices.each(function(device, on)
    it("takes empty tensors" .. on, function()
      local x = core.zeros({ 0, 4 }, "f64", device)
      x.requires_grad = true
      for _, name in ipairs { "exp", "silu", "relu", "softmax" } do assert.same({ 0, 4 }, op[name](x):shape()) end
      local w = core.normal({ 3, 4 }, 0, 1, 0, "w", "f64", device)
      w.requires_grad = true
      op.sum(op.linear(x, w)):backward()
      assert.same({ 0, 4 }, x.grad:shape())
      assert.equal(0, w.grad:range().max)
      local e, s = core.zeros({ 2, 0, 3 }, "f64", device), core.zeros({ 2, 0, 2 }, "f64", device)
      assert.same({ 2, 0, 3 }, op.selective_scan(e, e, core.full({ 3, 2 }, -1, "f64", device), s, s):shape())
    end)
    it("updates like torch.optim.AdamW" .. on, function()
      local w, grads = tensors["adamw.start"]:to(device), tensors["adamw.grads"]:to(device)
      local m, v = core.zeros(w:shape(), "f64", device), core.zeros(w:shape(), "f64", device)
      local average = w:clone()
      w.requires_grad = true
      for step = 1, 5 do
        w.grad = nil
        op.sum(w * grads:slice(1, step, step):reshape(3, 4)):backward()
        core.adamw({ w }, 1, { m }, { v }, { lr = 0.01, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, decay = 0.05, step = step })
        core.ema({ average }, { w }, 0.9)
      end
      assert.near(0, parity.worst(w:detach():to "cpu", tensors["adamw.end"]), 1e-12)
      assert.near(0, parity.worst(average:to "cpu", tensors["adamw.average"]), 1e-12)
    end)
  end)
end)

describe("op.linear", function()
  -- Shapes on both sides of the places where kernels/product.c cuts: tiles of 14 rows, registers, blocks of k, bands of rows.
  local shapes = { { 1, 1, 1 }, { 13, 12, 17 }, { 15, 16, 33 }, { 29, 400, 44 }, { 300, 70, 97 }, { 37, 1600, 64 }, { 860, 9, 3 }, { 5, 6, 700 } }
  local function random(dtype, name, ...) return core.normal({ ... }, 0, 1, 0, name, dtype) end
  local function pass(x, w, b, gy)
    for _, t in ipairs { x, w, b } do t.requires_grad, t.grad = true, nil end
    local y = core.ops.linear(x, w, b)
    y:backward(gy)
    return { y:detach(), x.grad, w.grad, b.grad }
  end
  it("agrees with op.matmul at any size, with the same bits for any number of threads", function()
    local threads <close> = setmetatable({ core.threads() }, { __close = function(t) core.threads(t[1]) end })
    for _, s in ipairs(shapes) do
      local m, k, n = table.unpack(s)
      for _, dtype in ipairs { "f32", "f64" } do
        local x, w, b = random(dtype, "x", m, k), random(dtype, "w", n, k), random(dtype, "b", n)
        local gy, first = random(dtype, "gy", m, n), nil
        for _, count in ipairs { 1, 2, 5 } do
          core.threads(count)
          local got = pass(x, w, b, gy)
          first = first or got
          for i, t in ipairs(got) do assert.same(first[i]:totable(), t:totable()) end
        end
        local function product(a, c) return core.ops.matmul(a:detach(), c:detach()) end
        local want = { product(x, w:transpose(1, 2)) + b:detach(), product(gy, w), product(gy:transpose(1, 2), x) }
        for i, t in ipairs(want) do
          local off = core.ops.abs(first[i] - t):range().max
          assert.is_true(off <= (dtype == "f32" and 2e-4 or 1e-12), ("%d %d %d, %s %d: off by %g"):format(m, k, n, dtype, i, off))
        end
      end
    end
  end)
end)
