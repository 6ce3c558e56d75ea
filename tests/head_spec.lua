-- The head of a language model with its losses, a block of rows at a time: what single calls against PyTorch do not show.
local core = require "cab.core"
local parity = require "parity"
local op = core.ops

local fails = require "fails"

local function rnd(what, ...) return core.normal({ ... }, 0, 1, 6, what, "f64") end

local function inputs(b, l, V, D)
  return { x = rnd("x", b, l, D), w = rnd("w", V, D), b = rnd("b", V), ids = core.uniform({ b, l }, 0, V, 6, "ids", "f64"):to "i32",
    tx = rnd("tx", b, l, D), tw = rnd("tw", V, D) }
end

local function with(t, more)
  local out = {}
  for k, v in pairs(t) do out[k] = v end
  for k, v in pairs(more) do out[k] = v end
  return out
end

describe("op.head_loss", function()
  it("has the same loss and gradients for any number of rows at a time", function()
    local function gradients(rows)
      local t = inputs(2, 19, 31, 6)
      for _, name in ipairs { "x", "w", "b" } do t[name].requires_grad = true end
      local loss = op.head_loss(with(t, { kl = 0.5, rows = rows }))
      loss:backward()
      return loss:item(), { t.x.grad, t.w.grad, t.b.grad }
    end
    local want, want_gradients = gradients(1000)
    for _, rows in ipairs { 1, 7, 38 } do
      local got, got_gradients = gradients(rows)
      assert.near(want, got, 1e-13)
      for i, g in ipairs(want_gradients) do assert.is_true(parity.l2(got_gradients[i], g) < 1e-12) end
    end
  end)

  it("gives both parts, and their weighted sum", function()
    local loss, parts = op.head_loss(with(inputs(2, 5, 7, 3), { ce = 0.25, kl = 3 }))
    local p = parts:totable()
    assert.near(0.25 * p[1] + 3 * p[2], loss:item(), 1e-12)
    assert.is_true(p[1] > 0 and p[2] > 0)
    local alone = op.head_loss(with(inputs(2, 5, 7, 3), { ce = 0, kl = 3 }))
    assert.near(3 * p[2], alone:item(), 1e-12)
  end)

  it("adds up over parts of a batch that know how many targets all have", function()
    local t = inputs(4, 9, 13, 5)
    t.segment = core.tensor({ { 0, 0, 0, 0, 0, 0, 0, 0, 0 }, { 0, 1, 2, 3, 4, 5, 6, 7, 8 }, { 0, 0, 0, 1, 1, 1, 2, 2, 2 }, { 0, 0, 0, 0, 0, 0, 0, 0, 1 } }, "i32")
    for _, name in ipairs { "x", "w" } do t[name].requires_grad = true end
    local whole = op.head_loss(with(t, { kl = 0.5 }))
    whole:backward()
    local want = { t.x.grad:clone(), t.w.grad:clone() }
    t.x.grad, t.w.grad = nil, nil
    local sum, targets = 0, 8 + 0 + 6 + 7
    for _, rows in ipairs { { 1, 1 }, { 2, 4 } } do
      local part, share = { w = t.w, b = t.b, tw = t.tw, tb = t.tb, kl = 0.5 }, (rows[2] - rows[1] + 1) / 4
      for _, name in ipairs { "x", "ids", "segment", "tx" } do part[name] = t[name]:slice(1, rows[1], rows[2]) end
      part.targets = core.tensor({ targets * share }, "f64")
      local loss = op.head_loss(part) * share
      loss:backward()
      sum = sum + loss:item()
    end
    assert.near(whole:item(), sum, 1e-12)
    for i, name in ipairs { "x", "w" } do assert.is_true(parity.l2(t[name].grad, want[i]) < 1e-12) end
    t.targets = core.tensor({ 8 }, "f64")
    t.targets.requires_grad = true
    fails("no gradient reaches 'targets': detach it", op.head_loss, t)
  end)

  it("is 0 with gradients 0 where nothing counts", function()
    local t = inputs(2, 1, 7, 3) -- one token has no next
    t.x.requires_grad = true
    local loss = op.head_loss(with(t, { segment = core.tensor({ { -1 }, { -1 } }, "i32"), kl = 1 }))
    loss:backward()
    assert.equal(0, loss:item())
    assert.equal(0, t.x.grad:range().max)
    local empty = inputs(0, 4, 7, 3)
    empty.w.requires_grad = true
    op.head_loss(empty):backward()
    assert.equal(0, empty.w.grad:range().max)
  end)

  it("never holds more logits than a block of rows", function()
    local scope <close> = core.scope()
    local b, l, V, D = 4, 256, 2000, 16
    local t = inputs(b, l, V, D)
    for _, name in ipairs { "x", "w", "b", "tx", "tw" } do t[name] = t[name]:to "f32" end
    for _, name in ipairs { "x", "w", "b" } do t[name].requires_grad = true end
    core.reset_peak "cpu"
    local before = core.memory("cpu").live
    op.head_loss(with(t, { kl = 1, rows = 64 })):backward()
    local extra = core.memory("cpu").peak - before
    local block, gradients = 2 * 64 * V * 4, 2 * 4 * (V * D + b * l * D + V) -- kept, then scaled
    assert.is_true(extra < 1.3 * (block + gradients), ("%d bytes"):format(extra))
    assert.is_true(extra < b * l * V * 4 / 2)
  end)

  it("keeps a NaN, and takes logits that are far apart", function()
    local t = inputs(1, 3, 5, 2)
    t.x:slice(2, 1, 1):fill(0 / 0)
    local loss = op.head_loss(t):item()
    assert.is_true(loss ~= loss)
    t = inputs(1, 3, 5, 2)
    t.w = t.w * 1e5
    t.x.requires_grad = true
    for _, divergence in ipairs { "forward", "reverse", "jsd" } do
      t.x.grad = nil
      local value = op.head_loss(with(t, { ce = 0, kl = 1, divergence = divergence }))
      value:backward()
      assert.is_true(value:item() == value:item() and value:item() < math.huge, divergence)
      assert.equal(0, t.x.grad:range().bad)
    end
  end)

  it("refuses what does not go together, by name", function()
    local t = inputs(2, 5, 7, 3)
    fails("'ids' holds 7 at element 1, expected 0 to 6", op.head_loss, with(t, { ids = core.full({ 2, 5 }, 7, "i32") }))
    fails("there is no teacher", op.head_loss, { x = t.x, w = t.w, ids = t.ids, kl = 1 })
    fails("'tx' goes with 'tw'", op.head_loss, { x = t.x, w = t.w, ids = t.ids, tx = t.tx })
    fails("'w' has 7 rows and 'tw' 9: say how many are in use with 'vocab'", op.head_loss, with(t, { tw = rnd("tw", 9, 3) }))
    fails("'vocab' is 8, expected a whole number from 1 to 7", op.head_loss, with(t, { vocab = 8 }))
    fails("'temperature' is 0", op.head_loss, with(t, { temperature = 0 }))
    local list = { top = core.zeros({ 2, 5, 2 }, "i32"), top_logits = rnd("top", 2, 5, 2), x = t.x, w = t.w, ids = t.ids, kl = 1 }
    fails("needs all of the teacher's logits", op.head_loss, with(list, { divergence = "jsd" }))
    fails("not both", op.head_loss, with(t, list))
    t.tw.requires_grad = true
    fails("no gradient reaches 'tw': detach it", op.head_loss, t)
    t.tw.requires_grad, t.x.requires_grad = false, true
    local _, parts = op.head_loss(t)
    fails("no gradient goes through them", function() op.sum(parts):backward() end)
  end)
end)
