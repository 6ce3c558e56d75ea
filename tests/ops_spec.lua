-- Every op against float64 PyTorch (tests/reference/ops.py): outputs and gradients, in f64 and f32, from contiguous and
-- non-contiguous inputs, plus central differences. A row without a case here fails the last test.
local core = require "cab.core"
local op = core.ops
local tensors, metadata = core.load("tests/fixtures/ops.safetensors")
local cases = core.json_decode(metadata.cases)

--- |a - b| / max(|b|, 1), both taken to f64. Elementwise maximum.
local function distance(a, b)
  a, b = a:to("f64"), b:to("f64")
  assert.same(b:shape(), a:shape())
  if b:count() == 0 then return 0 end
  local worst, scale = (a - b):range(), b:range()
  assert.equal(0, a:range().bad)
  return math.max(-worst.min, worst.max) / math.max(1, scale.max, -scale.min)
end

--- The same values behind other strides: reversed order of dims in memory.
local function scatter(t)
  local n = t:rank()
  if n < 2 then return t end
  local order = {}
  for i = 1, n do order[i] = n + 1 - i end
  return t:permute(table.unpack(order)):clone():permute(table.unpack(order))
end

local function inputs(case, dtype, arrange)
  local args = {}
  for name, value in pairs(case.options) do args[name] = value end
  for _, name in ipairs(case.inputs) do
    local t = tensors[case.key .. ".in." .. name]
    t = t:dtype() == "i32" and t or t:to(dtype):clone()
    args[name] = arrange and t:dtype() ~= "i32" and arrange(t) or t
  end
  for _, name in ipairs(case.grads) do
    args[name] = args[name]:detach()
    args[name].requires_grad = true
  end
  return args
end

--- sum over outputs of output * weight
local function weighted(case, args, dtype)
  local outputs, loss = { op[case.op](args) }, nil
  for i = 1, case.outputs do
    local term = op.sum(outputs[i] * tensors[case.key .. ".weight." .. i]:to(dtype))
    loss = loss and loss + term or term
  end
  return loss, outputs
end

local function replay(case, dtype, tolerance, arrange)
  local args = inputs(case, dtype, arrange)
  if #case.grads == 0 then
    return assert.near(0, distance(op[case.op](args), tensors[case.key .. ".out.1"]), tolerance)
  end
  local loss, outputs = weighted(case, args, dtype)
  for i = 1, case.outputs do
    assert.near(0, distance(outputs[i], tensors[case.key .. ".out." .. i]), tolerance, "output " .. i)
  end
  loss:backward()
  for _, name in ipairs(case.grads) do
    local want = tensors[case.key .. ".grad." .. name]
    assert(args[name].grad, "no gradient for " .. name)
    assert.near(0, distance(args[name].grad, want), 10 * tolerance, "gradient of " .. name)
  end
end

--- Central differences on up to 12 elements of each input.
local function differences(case)
  local args = inputs(case, "f64")
  weighted(case, args, "f64"):backward()
  for _, name in ipairs(case.grads) do
    local t, grad, eps = args[name], args[name].grad, 1e-6
    local n = t:count()
    local flat, slope = t:detach():reshape(n), grad:reshape(n)
    for i = 1, n, math.max(1, n // 12) do
      local cell = flat:slice(1, i, i)
      local start = cell:item()
      local function at(value)
        cell:fill(value)
        return core.no_grad(function() return (weighted(case, args, "f64")):item() end)
      end
      local numeric = (at(start + eps) - at(start - eps)) / (2 * eps)
      cell:fill(start)
      local exact = slope:slice(1, i, i):item()
      assert.near(numeric, exact, 1e-5 + 1e-3 * math.abs(numeric), ("%s[%d]"):format(name, i))
    end
  end
end

local seen = {}
for _, case in ipairs(cases) do
  seen[case.op] = true
  describe(("op.%s %s"):format(case.op, case.key .. " " .. case.label), function()
    it("agrees with PyTorch in f64", function() replay(case, "f64", 1e-10) end)
    it("agrees with PyTorch in f32", function() replay(case, "f32", 1e-5) end)
    it("takes non-contiguous inputs", function() replay(case, "f64", 1e-10, scatter) end)
    if #case.grads > 0 then
      it("has the gradient finite differences predict", function() differences(case) end)
    end
  end)
end

describe("the op table", function()
  it("has a PyTorch case for every row", function()
    for name in pairs(op) do assert(seen[name], "no reference case for op." .. name) end
  end)
  it("takes empty tensors", function()
    local x = core.zeros({ 0, 4 }, "f64")
    x.requires_grad = true
    for _, name in ipairs { "exp", "silu", "relu", "softmax" } do assert.same({ 0, 4 }, op[name](x):shape()) end
    local w = core.normal({ 3, 4 }, 0, 1, 0, "w", "f64")
    w.requires_grad = true
    op.sum(op.linear(x, w)):backward()
    assert.same({ 0, 4 }, x.grad:shape())
    assert.equal(0, w.grad:range().max)
    local e = core.zeros({ 2, 0, 3 }, "f64")
    local y = op.selective_scan(e, e, core.full({ 3, 2 }, -1, "f64"), core.zeros({ 2, 0, 2 }, "f64"), core.zeros({ 2, 0, 2 }, "f64"))
    assert.same({ 2, 0, 3 }, y:shape())
  end)
  it("updates like torch.optim.AdamW", function()
    local w = tensors["adamw.start"]:clone()
    local m, v = core.zeros(w:shape(), "f64"), core.zeros(w:shape(), "f64")
    local average = w:clone()
    w.requires_grad = true
    for step = 1, 5 do
      w.grad = nil
      op.sum(w * tensors["adamw.grads"]:slice(1, step, step):reshape(3, 4)):backward()
      core.adamw({ w }, 1, { m }, { v }, { lr = 0.01, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, decay = 0.05, step = step })
      core.ema({ average }, { w }, 0.9)
    end
    assert.near(0, distance(w:detach(), tensors["adamw.end"]), 1e-12)
    assert.near(0, distance(average, tensors["adamw.average"]), 1e-12)
  end)
end)
