-- Layer maps, token order, kernel-mapped targets, statistics.
local core = require "cab.core"
local cab = require "cab"

local fails = require "fails"

-- Only what pairs reads of models: teacher layers of width 4, grid 2 x 2.
local function fake(depth, class_token, teacher_depth)
  local student = cab.models.vim { dim = 8, depth = depth, state = 2, patch = 2, class_token = class_token }
    :build { image = 4, classes = 3 }
  local teacher = cab.models.vit { dim = 4, depth = teacher_depth or 2, heads = 2, patch = 2 }:build { image = 4, classes = 3 }
  return student, teacher
end

-- Row t of [1,l,4] holds t: the teacher's tokens by number, class token first.
local function numbered(l)
  local rows = {}
  for t = 1, l do rows[t] = { t, t, t, t } end
  return core.tensor({ rows })
end

local function order(t)
  local list = {}
  for i, row in ipairs(t:totable()[1]) do list[i] = row[1] end
  return list
end

describe("pairs.layers", function()
  it("is proportional: floor(l T / L)", function()
    assert.same({ 1, 1, 2, 2 }, cab.pairs.layers("proportional", 4, 2))
    assert.same({ 1, 2, 3 }, cab.pairs.layers(nil, 3, 3))
    assert.same({ 1, 4 }, cab.pairs.layers("proportional", 2, 6))
    local deep = cab.pairs.layers("proportional", 24, 12)
    assert.equal(1, deep[2]) assert.equal(2, deep[3]) assert.equal(12, deep[24])
  end)
  it("knows one_to_one, last and manual", function()
    assert.same({ 1, 2 }, cab.pairs.layers("one_to_one", 2, 2))
    assert.same({ false, false, 5, 6 }, cab.pairs.layers({ "last", k = 2 }, 4, 6))
    assert.same({ 2, false, 1 }, cab.pairs.layers({ "manual", 2, false, 1 }, 3, 2))
  end)
  it("refuses what does not fit, with the nearest name", function()
    fails("did you mean 'proportional'", cab.pairs.layers, "proportinal", 2, 2)
    fails("3 layers", cab.pairs.layers, "one_to_one", 3, 2)
    fails("expected 1 to 2", cab.pairs.layers, { "last", k = 3 }, 4, 2)
    fails("2 entries for 3", cab.pairs.layers, { "manual", 1, 1 }, 3, 2)
    fails("entry 2 is 9", cab.pairs.layers, { "manual", 1, 9 }, 2, 2)
    fails("unknown option", cab.pairs.layers, { "proportional", k = 3 }, 2, 2)
  end)
end)

describe("pairs", function()
  it("has an entry for each layer and direction", function()
    local student, teacher = fake(3, "middle")
    local p = cab.pairs.new { student = student, teacher = teacher, map = { "manual", 1, false, 2 } }
    assert.equal(4, #p)
    assert.equal(2, p.layers)
    assert.equal(2, p.state)
    assert.equal(4, p.dim)
    local seen = {}
    for i, s, t in p:each() do seen[i] = s.layer .. s.suffix .. ">" .. t.layer end
    assert.same({ "1>1", "1_b>1", "3>2", "3_b>2" }, seen)
  end)

  it("puts the teacher's class token where the student has it", function()
    for token, expected in pairs { middle = { 2, 3, 1, 4, 5 }, head = { 1, 2, 3, 4, 5 }, double = { 1, 2, 3, 4, 5, 1 } } do
      local student, teacher = fake(2, token)
      local p = cab.pairs.new { student = student, teacher = teacher }
      local x = numbered(5)
      p:step({}, { k = { x, x } })
      for _, _, t in p:each() do assert.same(expected, order(t.k)) end
    end
  end)

  it("moves rows and columns of attention maps", function()
    local student, teacher = fake(1, "middle")
    local p = cab.pairs.new { student = student, teacher = teacher, map = { "last", k = 1 } }
    local rows = {}
    for i = 1, 5 do rows[i] = {} for j = 1, 5 do rows[i][j] = 10 * i + j end end
    p:step({}, { attention = { false, core.tensor { { rows } } } })
    local _, _, t = p:each()(nil, 0)
    local m = t.attention:totable()[1][1]
    assert.same({ 22, 23, 21, 24, 25 }, m[1])
    assert.same({ 12, 13, 11, 14, 15 }, m[3])
  end)

  it("computes a target once a step, without gradient", function()
    local student, teacher = fake(4, "middle")
    local p = cab.pairs.new { student = student, teacher = teacher }
    local x = numbered(5)
    x.requires_grad = true
    p:step({}, { k = { x, x } })
    local first
    for i, _, t in p:each() do
      local y = t:keys("none")
      assert.is_false(y.requires_grad)
      if i == 1 then first = y elseif i <= 4 then assert.equal(first, y) end
    end
    p:step({}, { k = { x, x } })
    local _, _, t = p:each()(nil, 0)
    assert.not_equal(first, t:keys("none"))
  end)

  it("gives a student's taps of this direction, and names the ones there are", function()
    local student, teacher = fake(2, "middle")
    local p = cab.pairs.new { student = student, teacher = teacher }
    p:step({ B = { "f1", "f2" }, B_b = { "b1", "b2" }, hidden = { "h1", "h2" } }, { q = {} })
    local seen = {}
    for i, s in p:each() do seen[i] = s.B .. s.hidden end
    assert.same({ "f1h1", "b1h1", "f2h2", "b2h2" }, seen)
    local _, s, t = p:each()(nil, 0)
    fails("hidden", function() return s.hiden end)
    fails("'k'", function() return t.k end)
  end)

  it("refuses a step that was never opened, and other grids", function()
    local student, teacher = fake(1, "middle")
    local p = cab.pairs.new { student = student, teacher = teacher, map = { "last", k = 1 } }
    local _, s, t = p:each()(nil, 0)
    fails("no step is open", function() return s.B end)
    local x = numbered(10)
    p:step({}, { k = { x, x } })
    fails("the teacher has 10 tokens, the student 5", function() return t.k end)
  end)

  it("standardises by statistics over all tokens, and keeps them", function()
    local student, teacher = fake(2, "middle")
    local p = cab.pairs.new { student = student, teacher = teacher }
    local batches = { core.normal({ 6, 3, 4, 4 }, 0, 1, 1, "a"), core.normal({ 2, 3, 4, 4 }, 0, 1, 1, "b") }
    local all = core.concat(batches, 1)
    local _, taps = teacher:forward(all, { q = true, k = true })
    p:step({}, taps)
    local _, _, t = p:each()(nil, 0)
    fails("call pairs:measure", function() return t:keys("standard") end)
    p:measure(teacher, batches)
    local y = t:keys("standard")
    local n = y:size(1) * y:size(2)
    local mean, square = {}, {}
    for _, row in ipairs(y:reshape(n, 4):totable()) do
      for d = 1, 4 do
        mean[d] = (mean[d] or 0) + row[d] / n
        square[d] = (square[d] or 0) + row[d] ^ 2 / n
      end
    end
    for d = 1, 4 do
      assert.is_true(math.abs(mean[d]) < 1e-4, "mean " .. mean[d])
      assert.is_true(math.abs(square[d] - 1) < 1e-3, "variance " .. square[d])
    end
    local other = cab.pairs.new { student = student, teacher = teacher }:restore(p:statistics())
    other:step({}, taps)
    local _, _, u = other:each()(nil, 0)
    assert.same(y:totable(), u:keys("standard"):totable())
  end)
end)
