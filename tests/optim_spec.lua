-- The optimizer of a training step, against a loop of the single updates, bit for bit.
local core = require "cab.core"
local devices = require "devices"
local refused = require "refused"

local SIZES = { 1, 7, 1000, 20003, 5, 8192 }

-- The same parameters with moments, averages (but for the last two) and decay (of every other) as often as it is called.
local function state(dtype, device)
  local s = { params = {}, m = {}, v = {}, average = {}, decay = {} }
  for i, n in ipairs(SIZES) do
    local p = core.normal({ n }, 0, 1, i, "p", dtype, device)
    p.requires_grad = true
    s.params[i], s.m[i], s.v[i] = p, core.zeros({ n }, dtype, device), core.zeros({ n }, dtype, device)
    s.average[i] = i <= #SIZES - 2 and p:detach():clone() or false
    s.decay[i] = i % 2 == 1 and 0.05 or 0
  end
  return s
end

local function set_gradients(s, step, present)
  for i, p in ipairs(s.params) do
    p.grad = present(i, step) and core.normal(p:shape(), 0, 0.01, 100 * step + i, "g", p:dtype(), p:device()) or nil
  end
end

local function numbers(step, clip)
  return { step = step, lr = 0.01 / step, clip = clip, keep = math.min(0.99, (1 + step) / (10 + step)) }
end

-- What the optimizer stands for. born: step of each parameter's first gradient.
local function by_hand(s, born, n)
  local norm = core.grad_norm(s.params)
  if norm ~= norm or norm == math.huge then return norm end
  local scale = n.clip > 0 and math.min(1, n.clip / math.max(norm, 1e-30)) or 1
  local averages, averaged = {}, {}
  for i, p in ipairs(s.params) do
    if p.grad then
      born[i] = born[i] or n.step
      core.adamw({ p }, scale, { s.m[i] }, { s.v[i] },
        { lr = n.lr, beta1 = 0.9, beta2 = 0.99, eps = 1e-7, decay = s.decay[i], step = n.step - born[i] + 1 })
    end
    if s.average[i] then averages[#averages + 1], averaged[#averaged + 1] = s.average[i], p end
  end
  core.ema(averages, averaged, n.keep)
  return norm
end

local function same_bits(a, b)
  local x, y = a:detach():to("cpu"):totable(), b:detach():to("cpu"):totable()
  for i = 1, #x do
    if string.pack("d", x[i]) ~= string.pack("d", y[i]) then return false end
  end
  return #x == #y
end

local function assert_same(a, b, what)
  for _, key in ipairs { "params", "m", "v", "average" } do
    for i = 1, #SIZES do
      if a[key][i] then assert(same_bits(a[key][i], b[key][i]), ("%s: %s %d differs"):format(what, key, i)) end
    end
  end
end

local function optimizer(s, born)
  return core.optimizer { params = s.params, m = s.m, v = s.v, average = s.average, decay = s.decay, born = born,
    beta1 = 0.9, beta2 = 0.99, eps = 1e-7 }
end

-- Some of everything: parameter 2 never has a gradient, 5 misses steps, 3 and 6 begin late.
local function present(i, step) return i ~= 2 and (i ~= 5 or step % 2 == 1) and (i ~= 3 or step > 2) and (i ~= 6 or step > 3) end

devices.each(function(device, on)
describe("optimizer" .. on, function()
  it("updates pieces of parameters, each by an optimizer of its own, as whole ones", function()
    local a, b, born = state("f32", device), state("f32", device), {}
    -- rank 1 has parameters 1 to 3 and 8192 elements of the fourth, rank 2 the rest
    local function piece(i, rank)
      local cut = i < 4 and SIZES[i] or i == 4 and 8192 or 0
      if rank == 1 then return 0, cut end
      return cut, SIZES[i] - cut
    end
    local function part_of(rank)
      local o = { params = b.params, m = {}, v = {}, average = {}, decay = b.decay, from = {}, beta1 = 0.9, beta2 = 0.99, eps = 1e-7 }
      for i = 1, #SIZES do
        local from, n = piece(i, rank)
        o.from[i] = from
        for _, key in ipairs { "m", "v", "average" } do o[key][i] = n > 0 and b[key][i] and b[key][i]:slice(1, from + 1, from + n) or false end
      end
      return o
    end
    local one <close> = core.optimizer(part_of(1))
    local two <close> = core.optimizer(part_of(2))
    for step = 1, 6 do
      set_gradients(a, step, present)
      set_gradients(b, step, present)
      local want = by_hand(a, born, numbers(step, 0.3))
      for _, o in ipairs { one, two } do
        o:set(numbers(step, 0.3))
        o:step()
        assert.equal(want, (o:norm()))
      end
      assert_same(a, b, "step " .. step)
    end
    local wrong = part_of(2)
    wrong.from[4] = 8193
    assert.matches("first moment 4 is f32[11811], no piece of f32[20003] from element 8193 on", refused(1, core.optimizer, wrong).message, 1, true)
  end)
  for _, dtype in ipairs { "f32", "f64" } do
    for name, clip in pairs { ["unclipped"] = 0, ["clipped"] = 0.3, ["within the bound"] = 1e6 } do
      it(("equals the single updates: %s, %s"):format(dtype, name), function()
        local a, b, born = state(dtype, device), state(dtype, device), {}
        local o <close> = optimizer(a)
        for step = 1, 6 do
          set_gradients(a, step, present)
          set_gradients(b, step, present)
          o:set(numbers(step, clip))
          o:step()
          local norm, fault = o:norm()
          assert.equal(by_hand(b, born, numbers(step, clip)), norm)
          assert.is_nil(fault)
          assert_same(a, b, "step " .. step)
        end
        assert.same({ 1, 0, 3, 1, 1, 4 }, o:born())
      end)
    end
  end

  it("goes on where another one stopped", function()
    local a, b = state("f32", device), state("f32", device)
    local whole <close>, first = optimizer(a), optimizer(b)
    local second
    for step = 1, 6 do
      set_gradients(a, step, present)
      set_gradients(b, step, present)
      whole:set(numbers(step, 0.3))
      whole:step()
      if step == 4 then second = optimizer(b, first:born()) end
      local o = second or first
      o:set(numbers(step, 0.3))
      o:step()
    end
    assert.same(whole:born(), second:born())
    assert_same(a, b, "resumed")
    first:close()
    second:close()
  end)

  it("leaves all as it is where the norm is not finite, and says when and where", function()
    for _, bad in ipairs { 0 / 0, math.huge, -math.huge } do
      local a, b, born = state("f32", device), state("f32", device), {}
      local o <close> = optimizer(a)
      for step = 1, 7 do
        for _, s in ipairs { a, b } do
          set_gradients(s, step, function(i) return i ~= 2 end)
          if step == 3 or step == 4 then s.params[4].grad:slice(1, 777, 777):fill(bad) end
          if step == 3 then s.params[1].grad:fill(bad) end
        end
        o:set(numbers(step, 0.3))
        o:step()
        by_hand(b, born, numbers(step, 0.3))
        assert_same(a, b, "step " .. step)
        if step == 4 then
          local norm, fault = o:norm()
          assert.is_true(norm ~= norm or norm == math.huge)
          assert.same({ count = 2, step = 3, parameter = 4 }, fault)
        elseif step ~= 3 then
          assert.is_nil(select(2, o:norm()))
        end
      end
    end
  end)

  it("lets a parameter begin after a step that was skipped", function()
    local s, other = state("f64", device), state("f64", device)
    local o <close>, born = optimizer(s), {}
    for step = 1, 3 do
      set_gradients(s, step, function() return true end)
      set_gradients(other, step, function() return true end)
      if step == 1 then s.params[3].grad:fill(0 / 0) other.params[3].grad:fill(0 / 0) end
      o:set(numbers(step, 0))
      o:step()
      local _, fault = o:norm()
      assert.equal(step == 1, fault ~= nil)
      by_hand(other, born, numbers(step, 0))
    end
    assert.same({ 2, 2, 2, 2, 2, 2 }, o:born())
    assert_same(s, other, "after the skipped step")
  end)

  it("takes gradients that are not contiguous, and empty parameters", function()
    local function zeros(...) return core.zeros({ ... }, "f32", device) end
    local w, empty = core.normal({ 30, 20 }, 0, 1, 1, "w", "f32", device), zeros(0, 3)
    local twin = w:clone()
    local function like() return { zeros(30, 20), zeros(0, 3) } end
    local g = core.normal({ 20, 30 }, 0, 1, 2, "g", "f32", device)
    for _, t in ipairs { w, empty, twin } do t.requires_grad = true end
    w.grad, twin.grad, empty.grad = g:permute(2, 1), g:permute(2, 1):clone(), zeros(0, 3)
    local o <close> = core.optimizer { params = { w, empty }, m = like(), v = like() }
    o:set { step = 1, lr = 0.1 }
    o:step()
    local m, v = like(), like()
    core.adamw({ twin }, 1, { m[1] }, { v[1] }, { lr = 0.1, step = 1 })
    assert.is_true(same_bits(w:reshape(600), twin:reshape(600)))
    assert.equal(core.grad_norm { twin }, (o:norm()))
  end)

  it("does nothing without parameters or gradients", function()
    local o <close> = core.optimizer { params = {}, m = {}, v = {} }
    o:set { step = 1, lr = 1 }
    o:step()
    assert.equal(0, (o:norm()))
    local s = state("f32", device)
    local quiet <close> = optimizer(s)
    quiet:set { step = 1, lr = 1, keep = 1 }
    quiet:step()
    assert.equal(0, (quiet:norm()))
    assert_same(s, state("f32", device), "no gradients")
  end)

  it("refuses what does not fit", function()
    local s = state("f32", device)
    local function with(change)
      local o = { params = s.params, m = s.m, v = s.v, average = s.average, decay = s.decay }
      for k, x in pairs(change) do o[k] = x end
      return refused(1, core.optimizer, o).message
    end
    assert.matches("unknown option 'momentum'", with { momentum = 1 })
    assert.matches("'decay' has 2 items, expected 6", with { decay = { 0, 0 } })
    assert.matches("'born' item 1 is 1.5, expected 0 or a step", with { born = { 1.5, 0, 0, 0, 0, 0 } })
    assert.matches("'m' item 1: tensor expected, got boolean", with { m = { false, false, false, false, false, false } })
    assert.matches("first moment 1 is f32%[7%], expected f32%[1%]", with { m = { s.m[2], s.m[2], s.m[3], s.m[4], s.m[5], s.m[6] } })
    local mixed = { s.params[1], core.zeros({ 7 }, "f64", device), s.params[3], s.params[4], s.params[5], s.params[6] }
    assert.matches("parameter 2 is f64, parameter 1 f32", with { params = mixed })
    local o <close> = optimizer(s)
    assert.matches("step before set", refused(1, o.step, o).message)
    assert.matches("'lr' is missing", refused(1, o.set, o, { step = 1 }).message)
    assert.matches("'step' is 0", refused(1, o.set, o, { lr = 1 }).message)
    assert.matches("'keep' is 2", refused(1, o.set, o, { lr = 1, step = 1, keep = 2 }).message)
    o:set { lr = 1, step = 5 }
    set_gradients(s, 1, present)
    o:step()
    assert.matches("'step' is 4, but parameters began in step 5", refused(1, o.set, o, { lr = 1, step = 4 }).message)
    s.m[3]:close()
    assert.matches("first moment 3: tensor is closed", refused(1, o.step, o).message)
    o:close()
    assert.matches("closed", refused(1, o.step, o).message)
  end)
end)
end)

describe("a captured optimizer", function()
  if not devices.cuda then
    pending("on cuda: " .. devices.reason)
    return
  end
  it("takes its numbers from set, and skips what is not finite", function()
    local a, b, born = state("f32", "cuda"), state("f32", "cuda"), {}
    local function some(i) return i ~= 2 end
    local o <close> = optimizer(a)
    set_gradients(a, 1, some)
    local graph
    for step = 1, 6 do
      set_gradients(b, step, some)
      if step == 4 then b.params[3].grad:fill(0 / 0) end
      for i, p in ipairs(a.params) do
        if p.grad then p.grad:copy(b.params[i].grad) end
      end
      o:set(numbers(step, 0.3))
      if step < 3 then o:step()
      else
        graph = graph or core.capture("cuda", function() o:step() end)
        graph:replay()
      end
      local want, norm = by_hand(b, born, numbers(step, 0.3)), o:norm()
      assert.is_true(want == norm or (want ~= want and norm ~= norm))
      assert_same(a, b, "step " .. step)
    end
    graph:close()
  end)
end)
