-- Tensors, views, scopes, the tape, custom ops and random numbers, on each device.
local core = require "cab.core"
local devices = require "devices"
local op = core.ops

local function fails(text, f, ...)
  local ok, err = pcall(f, ...)
  assert.is_false(ok, "expected an error with: " .. text)
  assert.truthy(tostring(err):find(text, 1, true), tostring(err))
end

devices.each(function(device, on)
  local function leaf(data)
    local t = core.tensor(data, "f64", device)
    t.requires_grad = true
    return t
  end

  describe("tensor" .. on, function()
    it("keeps shape, dtype and values", function()
      for _, dtype in ipairs { "f32", "f64", "i32", "u8" } do
        local t = core.tensor({ { 1, 2, 3 }, { 4, 5, 6 } }, dtype, device)
        assert.same({ 2, 3 }, t:shape())
        assert.equal(dtype, t:dtype())
        assert.same({ { 1, 2, 3 }, { 4, 5, 6 } }, t:totable())
      end
    end)
    it("stores bf16 with rounding to nearest even", function()
      local t = core.tensor({ 1, 1.00390625, 3.140625, -2 }, "f32", device):to("bf16")
      assert.equal("bf16", t:dtype())
      assert.equal(8, t:bytes())
      assert.same({ 1, 1, 3.140625, -2 }, t:to("f32"):totable())
    end)
    it("refuses ragged tables, unknown dtypes, bad dims", function()
      fails("", core.tensor, { { 1, 2 }, { 3 } })
      fails("f33", core.zeros, { 2 }, "f33")
      fails("", core.zeros, { -1 })
      fails("", core.zeros, { 1 << 40, 1 << 40 })
      fails("", function() return core.zeros({ 2 }, "f32", device):slice(2, 1, 1) end)
      fails("", function() return core.zeros({ 2 }, "f32", device):slice(1, 1, 3) end)
      fails("", function() return core.zeros({ 2, 3 }, "f32", device):reshape(4, 2) end)
    end)
    it("views share storage", function()
      local t = core.arange(12, "f32", device):reshape(3, 4)
      assert.same({ { 0, 4, 8 }, { 1, 5, 9 }, { 2, 6, 10 }, { 3, 7, 11 } }, t:transpose(1, 2):totable())
      assert.same({ { 5, 6 } }, t:slice(1, 2, 2):slice(2, 2, 3):totable())
      assert.same({ { 8, 9, 10, 11 }, { 4, 5, 6, 7 }, { 0, 1, 2, 3 } }, t:flip(1):totable())
      t:slice(1, 1, 1):fill(-1)
      assert.same({ -1, -1, -1, -1 }, t:totable()[1])
    end)
  end)

  describe("tape" .. on, function()
    it("sums gradients over consumers and calls", function()
      local x = leaf { 1, 2, 3 }
      op.sum(x * x + x):backward()
      assert.same({ 3, 5, 7 }, x.grad:totable())
      op.sum(x):backward()
      assert.same({ 4, 6, 8 }, x.grad:totable())
    end)
    it("goes through every view", function()
      local x = leaf { { 1, 2, 3 }, { 4, 5, 6 } }
      local y = x:transpose(1, 2):reshape(6):flip(1):slice(1, 2, 4):expand { 2, 3 }
      op.sum(y):backward()
      assert.same({ { 0, 2, 2 }, { 0, 2, 0 } }, x.grad:totable())
      local u = leaf { 1, 2, 3 }
      local a, b = u:split(1, { 1, 2 })
      op.sum(core.concat({ b * 2, a * 3 }, 1)):backward()
      assert.same({ 3, 2, 2 }, u.grad:totable())
    end)
    it("refuses backward twice, on a vector, on a plain leaf, inside no_grad", function()
      local x = leaf { 1, 2 }
      local y = op.sum(x * x)
      y:backward()
      fails("", y.backward, y)
      fails("", function() (x * x):backward() end)
      fails("", function() core.tensor({ 1 }, "f32", device):backward() end)
      fails("", function() local z = op.sum(x * x) core.no_grad(function() z:backward() end) end)
    end)
    it("names op, versions and line of an in-place write to a saved tensor", function()
      local x = leaf { 1, 2 }
      local h = x * 2
      local y = op.sum(op.exp(h) * h)
      h:fill(0)
      local ok, err = pcall(y.backward, y)
      assert.is_false(ok)
      assert.truthy(tostring(err):match "mul saved.*version.*tensor_spec%.lua:%d+", tostring(err))
    end)
    it("restores grad mode when no_grad raises", function()
      pcall(core.no_grad, function() error "x" end)
      assert.is_true(core.grad_enabled())
    end)
    it("frees long chains without recursion", function()
      local x = leaf { 1 }
      local y = x
      local links = device == "cpu" and 200000 or 2000
      for _ = 1, links do y = y + x end
      op.sum(y):backward()
      assert.equal(links + 1, x.grad:item())
    end)
  end)

  describe("scope" .. on, function()
    it("closes what was born inside, except what is kept", function()
      collectgarbage()
      collectgarbage "stop"
      local before = core.memory(device).live
      local inner, kept
      do
        local s <close> = core.scope()
        inner, kept = core.zeros({ 1000 }, "f32", device), core.zeros({ 10 }, "f32", device)
        s:keep(kept)
      end
      fails("closed", inner.item, inner)
      assert.equal(10, kept:count())
      kept:close()
      kept:close()
      local after = core.memory(device).live
      collectgarbage "restart"
      assert.equal(before, after)
    end)
    it("closes when an error passes through", function()
      collectgarbage()
      collectgarbage "stop"
      local before = core.memory(device).live
      for _ = 1, 100 do
        pcall(function()
          local _ <close> = core.scope()
          local x = core.zeros({ 1000 }, "f32", device)
          return op.matmul(x, x)
        end)
      end
      local after = core.memory(device).live
      collectgarbage "restart"
      assert.equal(before, after)
    end)
    it("keeps leaf gradients that outlive it", function()
      local w = leaf { 1, 2 }
      do
        local _ <close> = core.scope()
        op.sum(w * w):backward()
      end
      assert.same({ 2, 4 }, w.grad:totable())
    end)
  end)

  describe("custom ops" .. on, function()
    local double = core.custom {
      name = "double",
      forward = function(_, x) return x * 2 end,
      backward = function(_, g) return g * 2 end,
    }
    it("join the tape", function()
      local x = leaf { 1, 2 }
      op.sum(double(x) * x):backward()
      assert.same({ 4, 8 }, x.grad:totable())
    end)
    it("pass an error in backward to the caller of backward", function()
      local broken = core.custom { name = "broken", forward = function(_, x) return x * 1 end, backward = function() error "boom" end }
      local x = leaf { 1 }
      for _ = 1, 100 do
        local y = op.sum(broken(x))
        fails("boom", y.backward, y)
      end
      fails("boom", coroutine.wrap(function() op.sum(broken(x)):backward() end))
    end)
  end)

  describe("random" .. on, function()
    it("depends on seed, stream and element alone", function()
      local a = core.normal({ 100 }, 0, 1, 7, "w", "f32", device)
      core.threads(1)
      assert.same(a:totable(), core.normal({ 100 }, 0, 1, 7, "w", "f32", device):totable())
      core.threads(2)
      assert.are_not.same(a:totable(), core.normal({ 100 }, 0, 1, 8, "w", "f32", device):totable())
      assert.are_not.same(a:totable(), core.normal({ 100 }, 0, 1, 7, "v", "f32", device):totable())
    end)
    it("has the moments it claims", function()
      local n, u = core.normal({ 200000 }, 1, 2, 0, 1, "f32", device):range(), core.uniform({ 200000 }, -1, 3, 0, 2, "f32", device):range()
      assert.near(1, n.mean, 0.02)
      assert.near(2, n.std, 0.02)
      assert.near(1, u.mean, 0.02)
      local t = core.trunc_normal({ 100000 }, 0, 1, -2, 2, 0, 3, "f32", device):range()
      assert.is_true(t.min >= -2 and t.max <= 2)
    end)
    it("starts with the published Philox 4x32-10 block", function()
      -- Salmon et al. 2011, known-answer test: counter 0, key 0 -> 6627e8d5 e169c58d bc57ac4c 9b00dbd8
      local words = core.uniform({ 4 }, 0, 1, 0, 0, "f64", device):totable()
      for i, want in ipairs { 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 } do assert.equal(want, words[i] * 2 ^ 32) end
    end)
  end)

  -- Ops write such gradients into columns of one buffer, or add to what is there.
  describe("gradients of the parts of a split" .. on, function()
    local function normal(name, ...) return core.normal({ ... }, 0, 1, 0, name, "f64", device) end
    local uses = {
      { "all parts, the first twice", function(x, z, w) return op.sum(op.gate(op.conv1d(x, w), z, op.conv1d(x, w, nil, { reverse = true }))) end },
      { "one part alone", function(x, _, w) return op.sum(op.square(op.conv1d(x, w))) end },
      { "a part that others read, before and after", function(x, z, w)
        return op.sum(op.square(x)) + op.sum(op.gate(op.conv1d(x, w), z)) + op.sum(op.exp(x) * z) end },
      { "a part through another split", function(x, z, w)
        local a, b = x:split(3, { 2, 3 })
        return op.sum(op.gate(op.conv1d(x, w), z)) + op.sum(op.linear(a, normal("v", 4, 2))) + op.sum(op.square(op.linear(b, normal("u", 4, 3)))) end },
    }
    for _, use in ipairs(uses) do
      it("are those of copies: " .. use[1], function()
        local t, w, gradients = normal("t", 2, 7, 10), normal("w", 5, 1, 4), {}
        for i, copied in ipairs { false, true } do
          local whole, weight = t:clone(), w:clone()
          whole.requires_grad, weight.requires_grad = true, true
          local x, z = whole:split(3, { 5, 5 })
          if copied then x, z = op.affine(x, 1, 0), op.affine(z, 1, 0) end
          use[2](x, z, weight):backward()
          gradients[i] = { whole.grad, weight.grad }
        end
        for k = 1, 2 do assert.near(0, op.sum(op.abs(gradients[1][k] - gradients[2][k])):item(), 1e-11) end
      end)
    end
  end)
end)
