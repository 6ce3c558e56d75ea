-- Mixing matrices in tiles: equal to the whole ones, with their gradients, in memory that grows with the number of tokens alone.
local core = require "cab.core"
local cab = require "cab"
local devices = require "devices"
local op, mixing = core.ops, cab.mixing

local fails = require "fails"

local function random(name, ...) return core.normal({ ... }, 0, 1, 7, name, "f64") end
local function distance(a, b)
  local r = (a - b):range()
  return math.max(-r.min, r.max)
end

local function scan(reverse, device, l)
  l = l or 9
  local o = { dt = random("dt", 2, l, 5), A = -op.exp(random("A", 5, 3)), B = random("B", 2, l, 3), C = random("C", 2, l, 3), bias = random("bias", 5) }
  for k, t in pairs(o) do o[k] = t:to(device or "cpu"):detach() end
  o.softplus, o.reverse = true, reverse
  return o
end

-- A matrix in tiles of `step` rows or columns.
local function stepped(m, step)
  m.step = step
  for _, one in ipairs(m.list or {}) do one.step = step end
  return m
end

devices.each(function(device, on)
  describe("a mixing matrix in tiles" .. on, function()
    it("of a selective scan is op.scan_matrix, in each direction", function()
      for _, reverse in ipairs { false, true } do
        local o = scan(reverse, device)
        local want = op.scan_matrix(o.dt, o.A, o.B, o.C, o.bias, { softplus = true, reverse = reverse })
        for _, step in ipairs { 1, 4, 100 } do
          assert.is_true(distance(mixing.whole(stepped(mixing.scan(o), step)):reshape(2, 9, 9), want) < 1e-10)
        end
      end
    end)
    it("of attention is softmax(q k'), causal and not, by rows and by columns", function()
      local q, k = random("q", 2, 9, 6):to(device), random("k", 2, 9, 6):to(device)
      for _, causal in ipairs { false, true } do
        local _, want = op.attention(q, k, k, { heads = 3, causal = causal, map = true })
        for _, axis in ipairs { 3, 4 } do
          local m = stepped(mixing.attention { q = q, k = k, heads = 3, causal = causal }, 4)
          m.axis = axis
          local parts = {}
          for first = 1, 9, 4 do parts[#parts + 1] = m:part(first, math.min(9, first + 3), axis) end
          assert.is_true(distance(core.concat(parts, axis), want) < 1e-10)
        end
      end
    end)
    it("has large scores without overflow", function()
      local q = random("q", 1, 5, 4):to(device) * 100
      local _, want = op.attention(q, q, q, { heads = 1, map = true })
      assert.is_true(distance(mixing.whole(mixing.attention { q = q, k = q, heads = 1 }), want) < 1e-9)
    end)
    it("has the Frobenius distance and gradients of the whole, however cut", function()
      local q, k = random("q", 2, 9, 6):to(device), random("k", 2, 9, 6):to(device)
      local target = mixing.attention { q = q, k = k, heads = 3 }
      local whole = op.mean(mixing.whole(target):permute(1, 3, 4, 2):reshape(2 * 81, 3), { dim = 2 }):reshape(2, 9, 9)
      local function graded(f)
        local a, b = scan(false, device), scan(true, device)
        for _, o in ipairs { a, b } do
          for _, name in ipairs { "dt", "A", "B", "C", "bias" } do o[name].requires_grad = true end
        end
        local loss = f(mixing.sum({ mixing.scan(a), mixing.scan(b) }, 0.5))
        loss:backward()
        local out = { loss:reshape(1) }
        for _, o in ipairs { a, b } do
          for _, name in ipairs { "dt", "A", "B", "C", "bias" } do out[#out + 1] = o[name].grad end
        end
        return out
      end
      local want = graded(function(m) return op.frobenius(mixing.whole(m):reshape(2, 9, 9), whole) end)
      for _, step in ipairs { 1, 4, 9 } do
        local got = graded(function(m) return mixing.frobenius(stepped(m, step), target, "mean") end)
        for i, t in ipairs(want) do assert.is_true(distance(got[i], t) < 1e-10, i) end
      end
    end)
  end)
end)

describe("a mixing matrix in tiles", function()
  it("of Mamba-2 is compared head by head where both have as many", function()
    local student = cab.models.phi_mamba { dim = 16, depth = 2, heads = 4, state = 3, vocab = 20, dtype = "f64" }:build {}
    local ids = core.uniform({ 2, 9 }, 0, 20, 3, "ids", "f64"):to "i32"
    local _, taps = student:forward(ids, { mixing = true })
    local m = taps.mixing[2]
    local q, k = random("q", 2, 9, 8), random("k", 2, 9, 8)
    local target = mixing.attention { q = q, k = k, heads = 4, causal = true }
    local want = op.frobenius(mixing.whole(m), mixing.whole(target)):item()
    assert.near(want, mixing.frobenius(stepped(m, 2), target, "each"):item(), 1e-10)
    assert.near(want, mixing.frobenius(m, target, "auto"):item(), 1e-10)
    assert.is_true(mixing.frobenius(m, target, "mean"):item() < want)
    fails("the student's mixing matrix has 4 heads, the teacher's 2", mixing.frobenius, m, mixing.attention { q = q, k = k, heads = 2 }, "each")
    fails("of 9 and 8 tokens", mixing.frobenius, m, mixing.attention { q = q:slice(2, 1, 8), k = k:slice(2, 1, 8), heads = 4 })
  end)
  it("sees the documents of packed rows", function()
    local q, k = random("q", 1, 6, 4), random("k", 1, 6, 4)
    local m = mixing.whole(mixing.attention { q = q, k = k, heads = 2, causal = true, segment = core.tensor({ { 0, 0, 1, 1, 1, 1 } }, "i32") })
    local own = mixing.whole(mixing.attention { q = q:slice(2, 3, 6), k = k:slice(2, 3, 6), heads = 2, causal = true })
    assert.is_true(distance(m:slice(3, 3, 6):slice(4, 3, 6), own) < 1e-12)
    assert.equal(0, m:slice(3, 3, 6):slice(4, 1, 2):range().max)
  end)
  it("holds no more than its parts: four times the tokens, a fraction of the matrices", function()
    local function peak(l)
      local scope <close> = core.scope()
      local o = scan(false, "cpu", l)
      o.dt.requires_grad = true
      local target = mixing.attention { q = random("q", 2, l, 6), k = random("k", 2, l, 6), heads = 3 }
      target.step = 4
      collectgarbage()
      core.reset_peak "cpu"
      local before = core.memory("cpu").live
      local s <close> = core.scope()
      mixing.frobenius(stepped(mixing.scan(o), 4), target, "mean"):backward()
      return core.memory("cpu").peak - before
    end
    local small, large = peak(64), peak(256)
    assert.is_true(large < 6 * small, ("%d and %d bytes"):format(small, large)) -- 4 were exactly linear, 16 a matrix
  end)
end)

describe("pairs", function()
  local images = core.normal({ 2, 3, 6, 6 }, 0, 1, 5, "images", "f64")
  it("gives the teacher's attention in the student's token order, and a student's layer on another input", function()
    local student = cab.models.vim { dim = 12, depth = 3, state = 5, patch = 2, dtype = "f64" }:build { image = 6, classes = 3 }
    local teacher = cab.models.vit { dim = 12, depth = 2, heads = 2, patch = 2, dtype = "f64" }:build { image = 6, classes = 3 }
    local p = cab.pairs.new { student = student, teacher = teacher }
    local _, t = teacher:forward(images, { q = true, k = true, attention = true, input = true, hidden = true })
    local _, s = student:forward(images, { mixing = true, hidden = true, matrix = true })
    p:step(s, t)
    for _, mine, its in p:each() do
      assert.is_true(distance(mixing.whole(its:mixing()), its.attention) < 1e-10)
      if mine.suffix == "" then
        local both = (s.matrix[mine.layer] + s.matrix_b[mine.layer]) * 0.5
        assert.is_true(distance(mixing.whole(mine:mixing()):reshape(2, 10, 10), both) < 1e-10)
      end
    end
    assert.is_true(distance(t.input[2], t.hidden[1]) == 0)
    local second = p[3].s
    local out, taps = second:forward(s.hidden[1], "mixing")
    assert.is_true(distance(out, s.hidden[2]) < 1e-10)
    assert.is_true(distance(mixing.whole(second:mixing(taps)), mixing.whole(second:mixing())) < 1e-10)
    fails("did you mean 'mixing'", second.forward, second, s.hidden[1], "mixin")
  end)
  it("says why a layer cannot run on the teacher's input", function()
    local student = cab.models.vim { dim = 8, depth = 1, state = 5, patch = 2 }:build { image = 6, classes = 3 }
    local teacher = cab.models.vit { dim = 12, depth = 1, heads = 2, patch = 2 }:build { image = 6, classes = 3 }
    local p = cab.pairs.new { student = student, teacher = teacher }
    p:step({}, {})
    fails("needs equal widths", p[1].s.forward, p[1].s, core.zeros { 1, 10, 12 })
    p = cab.pairs.new { student = teacher, teacher = teacher }
    p:step({}, {})
    fails("which a vit does not offer", p[1].s.forward, p[1].s, core.zeros { 1, 10, 12 })
  end)
  for _, kind in ipairs { "mamba", "mamba2", "phi_mamba" } do
    it("runs a layer of " .. kind .. " alone as in the model", function()
      local given = { dim = 16, depth = 3, state = 4, vocab = 20, dtype = "f64" }
      if kind == "mamba2" then given.head = 8 elseif kind == "phi_mamba" then given.heads = 4 end
      local student = cab.models[kind](given):build {}
      local ids = core.uniform({ 2, 9 }, 0, 20, 3, "ids", "f64"):to "i32"
      local _, s = student:forward(ids, { hidden = true, mixing = true })
      local out, taps = student:layer(2, s.hidden[1], { mixing = true })
      assert.is_true(distance(out, s.hidden[2]) < 1e-10)
      assert.is_true(distance(mixing.whole(taps.mixing[2]), mixing.whole(s.mixing[2])) < 1e-10)
    end)
  end
end)
