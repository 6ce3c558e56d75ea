-- cab.recompute: values, gradients and taps of a plain call, less memory, errors as they come.
local cab = require "cab"
local core = require "cab.core"
local devices = require "devices"
local op = cab.op

devices.each(function(device, on)
  local function vim(again)
    return cab.models.vim { dim = 32, depth = 4, patch = 4, state = 5, recompute = again }:build {
      image = 16, channels = 3, classes = 7, device = device }
  end

  -- Loss, gradients by name, bytes that the forward pass left behind.
  local function step(again)
    local scope <close> = core.scope()
    local model = vim(again)
    local x = core.normal({ 8, 3, 16, 16 }, 0, 1, 0, "x", "f32", device)
    local before = core.memory(device).live
    local logits, taps = model:forward(x, { B = true, C = true, dt = true, x = true })
    local kept = core.memory(device).live - before
    local loss = op.mean(op.square(logits))
    for layer = 1, 4 do
      for _, name in ipairs { "B", "C_b", "dt", "x_b" } do loss = loss + op.mean(op.square(taps[name][layer])) end
    end
    loss:backward()
    local gradients = {}
    for _, p in ipairs(model:parameters()) do gradients[p.name] = p.tensor.grad and p.tensor.grad:to("cpu"):totable() end
    return loss:item(), gradients, kept
  end

  describe("recompute" .. on, function()
    it("gives a Vision Mamba the same loss and gradients, bit for bit, from less memory", function()
      local loss, gradients, kept = step(false)
      local again, same, less = step(true)
      assert.equal(loss, again)
      assert.same(gradients, same)
      assert.is_true(less < 0.75 * kept, ("%d bytes kept, %d without"):format(less, kept))
    end)
    it("runs the function once without a gradient and twice with one", function()
      local runs = 0
      local function f(x) runs = runs + 1 return op.exp(x), op.square(x) end
      local x = core.normal({ 3 }, 0, 1, 0, "x", "f64", device)
      core.no_grad(cab.recompute, f, x)
      assert.equal(1, runs)
      x.requires_grad = true
      local a, b = cab.recompute(f, x)
      op.sum(a + b):backward()
      assert.equal(3, runs)
      assert.near(0, op.sum(op.abs(x.grad - (op.exp(x) + x * 2))):item(), 1e-12)
    end)
    it("passes on an error of the second run", function()
      local runs = 0
      local x = core.ones({ 2 }, "f64", device)
      x.requires_grad = true
      local y = cab.recompute(function(t)
        runs = runs + 1
        if runs == 2 then error("second run") end
        return op.exp(t)
      end, x)
      local ok, e = pcall(function() op.sum(y):backward() end)
      assert.is_false(ok)
      assert.truthy(tostring(e):find("second run", 1, true), tostring(e))
      assert.is_true(core.grad_enabled())
    end)
    it("refuses a backward into the graph whose backward runs", function()
      local x = core.ones({ 2 }, "f64", device)
      x.requires_grad = true
      local h = op.exp(x)
      local y = core.custom { name = "inward", forward = function(_, t) return t * 2 end, backward = function(_, g)
        core.grad_enabled(true)
        local ok, e = pcall(op.sum(h * 3).backward, op.sum(h * 3))
        core.grad_enabled(false)
        assert.is_false(ok)
        assert.truthy(tostring(e):find("belongs to the backward that runs", 1, true), tostring(e))
        return g
      end }(h)
      op.sum(y):backward()
      assert.near(0, op.sum(op.abs(x.grad - op.exp(x))):item(), 1e-12)
    end)
  end)
end)
