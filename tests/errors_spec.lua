-- Errors that come through callbacks, coroutines, finalizers and nested calls; tensors used after close; memory afterwards.
local core = require "cab.core"
local process = require "process"
local refused = require "refused"
local op = core.ops

local function live()
  collectgarbage()
  collectgarbage()
  return core.memory().live
end

-- f must leave memory, grad mode and the current scope as they were.
local function clean(f)
  local before = live()
  f()
  assert.equal(before, live())
  assert.is_true(core.grad_enabled())
  local t = core.zeros { 2 } -- a lost scope would close it
  live()
  assert.same({ 2 }, t:shape())
  t:close()
end

local function bad() return op.matmul(core.zeros { 2, 3 }, core.zeros { 4, 2 }) end
local function says(e) assert.truthy(tostring(e):find "errors_spec%.lua:%d+: matmul: .*%[4,2%]", tostring(e)) end

describe("a closed tensor", function()
  it("says where it was closed, whatever is asked of it", function()
    local t, n = core.zeros { 2 }, debug.getinfo(1, "l").currentline + 1
    t:close()
    t:close() -- twice is once
    for _, f in ipairs { function() return t:shape() end, function() return t + 1 end, function() return op.exp(t) end,
      function() return core.concat({ t, t }, 1) end, function() t:fill(1) end, function() return t:to "f64" end } do
      local e = refused(1, f)
      assert.truthy(e.message:find(("tensor is closed (closed at tests/errors_spec.lua:%d)"):format(n), 1, true), e.message)
    end
  end)
end)

describe("the graph of a loss", function()
  it("is freed by the first backward; the second one is an error", function()
    clean(function()
      local x = core.tensor { 1, 2 }
      x.requires_grad = true
      local y = op.sum(x * x)
      y:backward()
      assert.truthy(tostring(refused(1, function() y:backward() end)):find "backward")
      assert.same({ 2, 4 }, x.grad:totable())
    end)
  end)
end)

describe("an error", function()
  it("comes out of a custom op's forward and backward", function()
    clean(function()
      local x = core.tensor { 1, 2 }
      x.requires_grad = true
      says(refused(1, core.custom { name = "f", forward = bad, backward = function(_, g) return g end }, x))
      local y = core.custom { name = "b", forward = function(_, a) return a * 2 end, backward = bad }(x)
      says(refused(1, function() op.sum(y):backward() end))
      assert.is_nil(x.grad)
    end)
  end)
  it("comes out of no_grad, scopes and nested pcalls", function()
    clean(function()
      says(refused(1, core.no_grad, bad))
      says(refused(1, function() local _ <close> = core.scope() bad() end))
      local ok, e = pcall(function()
        pcall(error, "inner")
        local _ <close> = core.scope()
        return core.no_grad(function() error(select(2, pcall(bad)), 0) end)
      end)
      assert.is_false(ok)
      says(e)
    end)
  end)
  it("comes out of coroutines, which may end in the middle of a scope", function()
    clean(function()
      local co = coroutine.create(function()
        local _ <close> = core.scope()
        coroutine.yield(core.zeros { 3 })
        bad()
      end)
      assert.is_true(coroutine.resume(co))
      local ok, e = coroutine.resume(co)
      assert.is_false(ok)
      says(e)
      assert.is_true(coroutine.close(co) == false)
      local left = coroutine.wrap(function() local _ <close> = core.scope() coroutine.yield() end)
      left()
    end)
  end)
  it("comes out of a comparator and a __close", function()
    clean(function()
      says(refused(1, table.sort, { 3, 1, 2 }, bad))
      says(refused(1, function() local _ <close> = setmetatable({}, { __close = bad }) end))
    end)
  end)
  it("in a finalizer is a warning, and nothing else", function()
    local dir = process.folder()
    local code, output = process.script(dir, [[
      local core = require "cab.core"
      setmetatable({}, { __gc = function() core.ops.matmul(core.zeros { 2, 3 }, core.zeros { 4, 2 }) end })
      collectgarbage()
      print(core.ops.sum(core.ones { 2 }):item())]])
    os.execute("rm -r " .. dir)
    assert.equal(0, code, output)
    assert.truthy(output:find "cab: warning: error in __gc", output)
    assert.truthy(output:find "\n2%.0\n", output)
  end)
  it("of an endless recursion is one that can be caught", function()
    clean(function()
      local function endless(x) return 1 + endless(x + 1) end
      local ok, e = pcall(endless, core.zeros { 2 })
      assert.is_false(ok)
      assert.truthy(tostring(e):find "stack overflow")
    end)
  end)
  it("may come 10,000 times, each another way", function()
    local x = core.zeros { 2 }
    local ways = { bad, function() x:reshape(3) end, function() op.exp() end, function() core.tensor { {} , 1 } end,
      function() core.load "/none" end, function() op.nothing() end, function() return x.nothing end, function() core.save("/none/a", {}) end }
    clean(function()
      for i = 1, 10000 do assert.is_false((pcall(ways[i % #ways + 1]))) end
    end)
    x:close()
  end)
end)

describe("Lua's heap limit", function()
  it("is an error that goes away with what was in its way", function()
    local used = core.heap_limit()
    core.heap_limit(used + (8 << 20))
    local ok, e = pcall(function()
      local all = {}
      for i = 1, 1e7 do all[i] = { i } end
      return all
    end)
    core.heap_limit(0)
    assert.is_false(ok)
    assert.equal("not enough memory", e)
    assert.equal(71, require "cab.check".code(e))
    core.heap_limit(core.heap_limit() + (8 << 20))
    local all = {}
    for i = 1, 1000 do all[i] = { i } end
    core.heap_limit(0)
    assert.equal(1000, #all)
  end)
  it("ends the program with 71 where nobody catches it", function()
    local dir = process.folder()
    for _, last in ipairs { "endless()", "local _, e = pcall(endless) error(e, 0)" } do
      local code, output = process.script(dir, [[
        local core = require "cab.core"
        core.heap_limit(core.heap_limit() + (1 << 20))
        local function endless() local all = {} for i = 1, 1e7 do all[i] = { i } end end
        ]] .. last)
      assert.equal(71, code, output)
      assert.truthy(output:find "cab: error%[E71%]: not enough memory", output)
    end
    os.execute("rm -r " .. dir)
  end)
end)
