-- Bridges of every kind, shared and per head, kernel maps, controls, layer maps: values by hand, and which parameters a loss reaches.
local core = require "cab.core"
local cab = require "cab"
local op = core.ops

local fails = require "fails"

local images = core.normal({ 3, 3, 6, 6 }, 0, 1, 5, "images", "f64")
local ids = core.uniform({ 2, 9 }, 0, 20, 3, "ids", "f64"):to "i32"

-- A student and a teacher of images, or of text.
local function models(o)
  if o.text then
    local student = cab.models.phi_mamba { dim = 16, depth = 3, heads = o.heads or 4, groups = o.groups, state = 3, vocab = 20, dtype = "f64" }:build {}
    return student, cab.models.gpt2 { dim = 16, depth = 2, heads = 4, vocab = 20, positions = 9, dtype = "f64" }:build {}:freeze()
  end
  local student = cab.models.vim { dim = 24, depth = o.depth or 3, state = 5, patch = 2, dtype = "f64" }:build { image = 6, classes = 3 }
  return student, cab.models.vit { dim = o.dim or 18, depth = o.teacher or 2, heads = 3, patch = 2, dtype = "f64" }:build { image = 6, classes = 3 }:freeze()
end

-- A strategy in an open step: { strategy, pairs, student, teacher, loss() }.
local function open(given, o)
  o = o or {}
  local student, teacher = models(o)
  local pairing = cab.pairs.new { student = student, teacher = teacher, map = o.map }
  local strategy = cab.strategy.create(given):prepare(pairing, { dtype = "f64" })
  local batch = o.text and ids or images
  local names = {}
  for _, name in ipairs(strategy.needs.teacher) do names[name] = true end
  if strategy:measures() then pairing:measure(teacher, { batch }, names) end
  local r = { strategy = strategy, pairs = pairing, student = student, teacher = teacher }
  function r.step()
    local _, s = student:forward(batch, cab.taps.wanted({ strategy }, "student", student))
    local _, t = teacher:forward(batch, cab.taps.wanted({ strategy }, "teacher", teacher))
    pairing:step(s, t)
  end
  function r.loss()
    r.step()
    return strategy:run(pairing, {})
  end
  return r
end

local function bridge(given, o)
  given[1], given.hidden = "attention_bridge", given.hidden or 7
  return open(given, o)
end

describe("a bridge", function()
  local kinds = {
    ["linear"] = { depth = 1 }, ["of depth 2"] = {}, ["of depth 3"] = { depth = 3 }, ["with relu"] = { activation = "relu" },
    ["with gelu"] = { activation = "gelu" },
    ["a head"] = { heads = "each" }, ["a head, linear"] = { heads = "each", depth = 1 }, ["shared by layers"] = { share = "layers" },
    ["shared by directions"] = { share = "directions" }, ["shared by B and C"] = { share = "taps" }, ["shared by all"] = { share = "all" },
    ["of B alone"] = { onto = { B = "k" } }, ["of C alone"] = { onto = { C = "q" } }, ["of B and C onto hidden"] = { onto = { B = "hidden", C = "hidden" } },
    ["of x onto v"] = { onto = { x = "v" } }, ["of z onto q"] = { onto = { z = "q" } }, ["of hidden onto hidden"] = { onto = { hidden = "hidden" } },
    ["on another image's targets"] = { control = "other_image" }, ["on random targets"] = { control = "random" },
  }
  for name, given in pairs(kinds) do
    it(name .. " reaches all of its parameters and the student", function()
      local r = bridge(given)
      assert.same({}, cab.audit(r.strategy:parameters(), r.loss))
      assert.is_true(#cab.audit(r.student:parameters(), r.loss) < #r.student:parameters())
      r.loss()
      local m = r.strategy:metrics()
      assert.is_true(m.r2 < 1 and #m.each > 0)
    end)
  end
  it("is as often there as it is not shared", function()
    local function count(share) return #bridge({ share = share }).strategy:parameters() end
    assert.equal(4 * 12, count "none") -- 3 layers, 2 directions, B and C; 4 tensors each
    assert.equal(4 * 4, count "layers")
    assert.equal(4 * 6, count "directions")
    assert.equal(4 * 6, count "taps")
    assert.equal(4, count "all")
  end)
  it("that is frozen is random and stays so, and the student learns", function()
    local r = bridge { frozen = true }
    assert.equal(#r.strategy:parameters(), #cab.audit(r.strategy:parameters(), r.loss))
    assert.is_true(#cab.audit(r.student:parameters(), r.loss) < #r.student:parameters())
  end)
  it("that is detached leaves the student alone", function()
    local r = bridge { detach = true }
    assert.equal(#r.student:parameters(), #cab.audit(r.student:parameters(), r.loss))
  end)
  it("a head sees its own group of B, each group once for each of its heads", function()
    local r = bridge({ heads = "each", depth = 1, map = "none", onto = { B = "k" } }, { text = true, groups = 2 })
    local loss = r.loss():item()
    local want = 0
    for i, s, t in r.pairs:each() do
      local lift = r.strategy.proj_B[i]
      local parts = {}
      for h = 1, 4 do
        local g = (h - 1) // 2 -- two heads of a group
        local w, b = lift.weight1:slice(1, h, h):reshape(3, 4), lift.bias1:slice(1, h, h):reshape(4)
        parts[h] = op.linear(s.B:slice(3, 3 * g + 1, 3 * g + 3):clone(), w:permute(2, 1), b)
      end
      want = want + op.mse(core.concat(parts, 3), t.k):item() / 3
    end
    assert.near(want, loss, 1e-12)
  end)
  it("solved in closed form is the best linear one, without parameters", function()
    local r = bridge { kind = "ridge", lambda = 1e-9, map = "none" }
    assert.equal(0, #r.strategy:parameters())
    local loss = r.loss()
    loss:backward()
    for i, s, t in r.pairs:each() do
      local x, y = s.B:detach():reshape(30, 5), t.k:detach():reshape(30, 18)
      local w = cab.bridges.ridge(x, y, 1e-9)
      local left = op.linear(x, w:slice(1, 1, 5):permute(2, 1), w:slice(1, 6, 6):reshape(18)) - y
      local normal = op.matmul(x:permute(2, 1), left):range() -- X'(XW - Y) = 0
      assert.is_true(math.max(normal.max, -normal.min) < 1e-5)
      assert.is_true(i > 6 or op.mse(left, left * 0):item() <= op.mse(y, y * 0):item())
    end
    for _, r2 in ipairs(r.strategy:metrics().each) do assert.is_true(r2 > 0 and r2 <= 1) end
  end)
  it("refuses what does not fit, by name", function()
    fails("did you mean 'ridge'", bridge, { kind = "rigde" })
    fails("did you mean 'other_image'", bridge, { control = "other_imag" })
    fails("did you mean 'softmax'", bridge, { map = "sofmax" })
    fails("onto is empty", bridge, { onto = {} })
    fails("did you mean 'hidden'", function() return bridge({ onto = { hiden = "hidden" } }).loss() end)
    fails("the teacher has 4 heads, B of the student has 8 groups", bridge, { heads = "each" }, { text = true, heads = 8 })
    fails("share = 'taps'", bridge, { share = "taps", onto = { B = "k", x = "v" } })
    fails("an option cannot have the name 'fit'", cab.strategy.create, cab.strategy { name = "x", options = { fit = 1 } })
  end)
end)

describe("controls", function()
  it("take the targets of the next image, under maps and without", function()
    for _, map in ipairs { "standard", "softmax" } do
      local r = bridge { control = "other_image", map = map }
      r.step()
      for _, _, t in r.pairs:each() do
        local own = t:mapped("k", map)
        local rolled = core.concat({ own:slice(1, 2, 3), own:slice(1, 1, 1) }, 1)
        assert.equal(0, op.mse(rolled, t:mapped("k", map, "other_image")):item())
        assert.is_true(op.mse(rolled, own):item() > 1e-9)
      end
      local a = r.loss():item()
      assert.near(a, bridge({ control = "other_image", map = map, depth = 2 }).loss():item(), 1e-12)
    end
  end)
  it("draw targets that are the same for every image and step, other for each layer and tap", function()
    local r = bridge { control = "random" }
    r.step()
    local _, _, t = r.pairs:each()(nil, 0)
    local first = t:mapped("k", "standard", "random")
    assert.equal(0, op.mse(first:slice(1, 1, 1), first:slice(1, 2, 2)):item())
    r.step()
    assert.same(first:totable(), t:mapped("k", "standard", "random"):totable())
    assert.is_true(op.mse(first, t:mapped("q", "standard", "random")):item() > 0.5)
    fails("for images", bridge, { control = "random" }, { text = true })
  end)
end)

describe("cab.maps", function()
  local x = core.normal({ 2, 3, 4 }, 0, 1, 1, "x", "f64")
  local function each(map, tap, f)
    local y, rows = cab.maps.apply(map, x, tap), x:totable()
    for b, block in ipairs(y:totable()) do
      for l, row in ipairs(block) do
        for d, value in ipairs(row) do assert.near(f(rows[b][l][d], rows[b], l, d), value, 1e-12) end
      end
    end
  end
  it("are what they say", function()
    each("none", "k", function(v) return v end)
    each("relu", "k", function(v) return math.max(v, 0) end)
    each("exp", "q", function(v) return math.exp(v) end)
    each("elu", "k", function(v) return v > 0 and v + 1 or math.exp(v) end)
    local function features(_, rows, l, d)
      local sum = 0
      for _, v in ipairs(rows[l]) do sum = sum + math.exp(v) end
      return math.exp(rows[l][d]) / sum
    end
    local function tokens(_, rows, l, d)
      local sum = 0
      for _, row in ipairs(rows) do sum = sum + math.exp(row[d]) end
      return math.exp(rows[l][d]) / sum
    end
    each("softmax", "k", tokens)
    each("softmax", "q", features)
    each("softmax_features", "k", features)
    each("softmax_tokens", "q", tokens)
  end)
  it("may be a user's own", function()
    cab.maps.define("cube", function(t) return t * t * t end)
    each("cube", "k", function(v) return v ^ 3 end)
    assert.is_true(bridge({ map = "cube" }).loss():item() > 0)
    fails("there is a map 'cube' already", cab.maps.define, "cube", function(t) return t end)
    fails("expected a name and a function", cab.maps.define, "y")
    cab.maps.define("narrow", function(t) return t:slice(3, 1, 1) end)
    fails("gives another shape", cab.maps.apply, "narrow", x, "k")
    fails("did you mean 'cube'", cab.maps.apply, "cub", x, "k")
  end)
  it("that op.bridge does not apply itself are applied before it", function()
    for _, map in ipairs { "elu", "softmax_tokens" } do
      local r = bridge { map = map, onto = { B = "k" } }
      local loss, want = r.loss():item(), 0
      for i, s, t in r.pairs:each() do want = want + op.mse(r.strategy.proj_B[i](s.B), t:keys(map)):item() / 3 end
      assert.near(want, loss, 1e-12)
    end
  end)
end)

describe("cab.layers", function()
  local list = cab.layers.list
  it("stride counts the deeper model's layers back from its last", function()
    assert.same({ false, 1, false, 2 }, list("stride", 4, 2))
    assert.same({ 2, 4, 6 }, list("stride", 3, 6))
    assert.same({ 3, 6 }, list({ "stride", k = 3 }, 2, 7) and list({ "stride", k = 3 }, 2, 6))
    assert.same({ false, false, 1, false, false, 2 }, list({ "stride", k = 3 }, 6, 2))
    assert.same({ 1, 2 }, list("stride", 2, 2))
    fails("k is 9", list, { "stride", k = 9 }, 4, 2)
    fails("expected 1 .. inf", list, { "stride", k = 0 }, 4, 2)
  end)
  it("names what it does not know", function()
    fails("did you mean 'learned'", list, "lerned", 4, 2)
    fails("did you mean 'near'", list, { "learned", nar = 2 }, 4, 2)
    fails("did you mean 'ridge'", list, { "search", by = "rigde" }, 4, 2)
  end)
  it("best is the best sum of scores, monotone or free", function()
    local score = { { 5, 0, 4 }, { 0, 9, 0 }, { 8, 1, 7 } }
    assert.same({ 1, 2, 1 }, cab.layers.best(score, false))
    assert.same({ 1, 2, 3 }, cab.layers.best(score, true))
    -- against every monotone choice
    local random = core.normal({ 4, 5 }, 0, 1, 9, "score", "f64"):totable()
    local best, most = nil, -math.huge
    for a = 1, 5 do for b = a, 5 do for c = b, 5 do for d = c, 5 do
      local sum = random[1][a] + random[2][b] + random[3][c] + random[4][d]
      if sum > most then best, most = { a, b, c, d }, sum end
    end end end end
    assert.same(best, cab.layers.best(random, true))
  end)
  it("lets teachers be deeper, shallower and wider, with more heads", function()
    for _, o in ipairs { { teacher = 5 }, { teacher = 1 }, { teacher = 3, dim = 48 }, { teacher = 2, depth = 1 } } do
      for _, map in ipairs { "proportional", "stride", "last", "learned" } do
        o.map = map
        local r = bridge({ heads = "each" }, o)
        assert.is_true(r.loss():item() > 0)
        assert.same({}, cab.audit(r.strategy:parameters(), r.loss))
      end
    end
  end)
end)

describe("the learned layer map", function()
  it("mixes the losses of all teacher layers by a softmax that it learns", function()
    local r = bridge({}, { map = "learned", teacher = 4 })
    local p = r.pairs:parameters()
    assert.equal("layer_map.weight", p[1].name)
    assert.same({ 3, 4 }, p[1].tensor:shape())
    p[1].tensor:copy(core.normal({ 3, 4 }, 0, 1, 2, "mix", "f64"))
    local loss = r.loss()
    loss:backward()
    assert.is_true(p[1].tensor.grad:range().max > 0)
    local want, w = 0, r.pairs:mixture()
    for i, row in ipairs(w) do
      local sum = 0
      for t, share in ipairs(row) do
        sum = sum + share
        local one = bridge({}, { map = { "manual", table.unpack((function() local m = { false, false, false } m[i] = t return m end)(), 1, 3) }, teacher = 4 })
        one.strategy.module:load((function() -- the same bridges
          local own = {}
          for name, x in pairs(r.strategy:state_dict()) do
            if name:find("^aligner%.proj_[%a_]+%." .. (i - 1) .. "%.") then own[name] = x end
          end
          return own
        end)(), "aligner.")
        want = want + share * one.loss():item() / 3
      end
      assert.near(1, sum, 1e-12)
    end
    assert.near(want, loss:item(), 1e-9)
  end)
  it("keeps near the proportional layer if told, and sharpens", function()
    local r = bridge({}, { map = { "learned", near = 1, temperature = 1, final = 0.01 }, teacher = 6 })
    local w = r.pairs:mixture()
    assert.near(0.5, w[1][1], 1e-12)
    assert.equal(0, w[1][3])
    assert.near(1 / 3, w[2][2], 1e-12)
    r.pairs:parameters()[1].tensor:copy(core.normal({ 3, 6 }, 0, 1, 2, "mix", "f64"))
    local before = math.max(table.unpack(r.pairs:mixture()[2]))
    r.pairs:anneal(1)
    assert.is_true(math.max(table.unpack(r.pairs:mixture()[2])) > math.max(before, 0.99))
  end)
  it("is for strategies that sum by pairs:mean", function()
    local r = bridge({}, { map = "learned" })
    r.step()
    fails("pairs:mean", function() return r.pairs:each() end)
  end)
end)

describe("similarity", function()
  it("of a rotated and scaled copy is 1 by CKA, of independent noise small; a ridge bridge explains what is linear", function()
    local x = core.normal({ 40, 10, 6 }, 0, 1, 1, "x", "f64") + 3
    local turn = core.tensor({ { 0.6, 0.8 }, { -0.8, 0.6 } }, "f64")
    local two = x:slice(3, 1, 2):clone()
    local y = op.matmul(two:reshape(400, 2), turn):reshape(40, 10, 2) * 5 - 1
    local z = core.normal({ 40, 10, 6 }, 0, 1, 2, "z", "f64")
    local m = cab.similarity.moments()
    for i = 1, 40, 20 do m:add({ two:slice(1, i, i + 19) }, { y:slice(1, i, i + 19), z:slice(1, i, i + 19) }) end
    assert.near(1, m:cka(1, 1), 1e-9)
    assert.is_true(m:cka(1, 2) < 0.05)
    assert.near(1, m:ridge(1, 1, 1e-9), 1e-6)
    assert.is_true(m:ridge(1, 2) < 0.05)
  end)
  it("finds the teacher's own layers in a student that is its copy", function()
    local teacher = select(2, models { teacher = 4 })
    local copy = select(2, models { teacher = 4 })
    copy.directions = { "" }
    local function batches()
      local given = false
      return function()
        if given then return nil end
        given = true
        return images
      end
    end
    local pairing = cab.pairs.new { student = copy, teacher = teacher, map = "search" }
    pairing:remap { 1, 1, 1, 1 }
    local score = pairing:search(batches())
    for i = 1, 4 do assert.near(1, score[i][i], 1e-9) end
    assert.same({ 1, 2, 3, 4 }, pairing.map)
    assert.equal(3, pairing[3].t.layer)
    local other = cab.pairs.new({ student = copy, teacher = teacher, map = "search" }):restore { ["pairs.map"] = core.tensor({ 4, 3, 2, 1 }, "i32") }
    assert.same({ 4, 3, 2, 1 }, other.map)
    assert.same({ 1, 2, 3, 4 }, pairing:statistics()["pairs.map"]:totable())
  end)
  it("by ridge is the R2 of the best linear bridge from B, C of both directions", function()
    local student, teacher = models {}
    local pairing = cab.pairs.new { student = student, teacher = teacher, map = { "search", by = "ridge" } }
    local given = { images }
    local score = pairing:search(function() return table.remove(given) end)
    local _, s = student:forward(images, { B = true, C = true })
    local _, t = teacher:forward(images, { q = true, k = true })
    pairing:step(s, t)
    local x = core.concat({ s.B[1], s.B_b[1], s.C[1], s.C_b[1] }, 3):reshape(30, 20)
    local y
    for _, _, side in pairing:each() do
      if side.layer == pairing.map[1] then y = core.concat({ side.k, side.q }, 3):reshape(30, 36) end
    end
    local w = cab.bridges.ridge(x, y, 1e-3)
    local left = op.sum(op.square(op.linear(x, w:slice(1, 1, 20):permute(2, 1), w:slice(1, 21, 21):reshape(36)) - y)):item()
    local mean = op.sum(y, { dim = 1 }) / 30
    local r2 = 1 - left / op.sum(op.square(y - mean:reshape(1, 36):expand { 30, 36 })):item()
    assert.near(r2, score[1][pairing.map[1]], 0.02) -- lambda is a share of another mean: centred there
  end)
end)

describe("a target of another dtype than what is compared with it", function()
  it("is compared in the latter's: beside bf16 activations `hidden` stays f32", function()
    local s = open { "attention_bridge", onto = { B = "hidden" } }
    local x, y = core.normal({ 2, 3, 4 }, 0, 1, 1, "x"), core.normal({ 2, 3, 4 }, 0, 1, 2, "y", "f64")
    assert.near(op.mse(x, y:to "f32"):item(), s.strategy:fit(x, y):item(), 0)
    local lift = cab.nn.mlp(4, 5, 4, 2)
    local target = { tap = y, map = "none", first = 1, second = 0, mapped = function() return y end }
    local in_f32 = { tap = y:to "f32", map = "none", first = 1, second = 0, mapped = function() return y:to "f32" end }
    assert.near(s.strategy:bridge({ lift, x, in_f32 }):item(), s.strategy:bridge({ lift, x, target }):item(), 0)
  end)
end)
