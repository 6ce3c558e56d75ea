-- The attention bridge as one op against the same MLPs, maps and errors one by one; what it refuses. Its numbers against
-- PyTorch: tests/ops_spec.lua.
local core = require "cab.core"
local cab = require "cab"
local devices = require "devices"
local op = core.ops

local fails = require "fails"

local function distance(a, b)
  local r = (a - b):range()
  return math.max(-r.min, r.max) / math.max(1e-12, b:range().max, -b:range().min)
end

-- The published sum, with predictions and targets as tensors.
local composed = cab.strategy { name = "composed", needs = { teacher = { "q", "k" }, student = { "B", "C" } },
  options = { hidden = 9, map = "standard", depth = 2, detach = false } }
function composed:build(pairs)
  local function lift() return cab.nn.mlp(pairs.state, self.hidden, pairs.dim, self.depth) end
  self.proj_B, self.proj_C = cab.nn.list(pairs, lift), cab.nn.list(pairs, lift)
end
function composed:loss(pairs)
  local sum = 0
  for i, s, t in pairs:each() do
    local B, C = s.B, s.C
    if self.detach then B, C = B:detach(), C:detach() end
    sum = sum + self:fit(self.proj_B[i](B), t:keys(self.map)) + self:fit(self.proj_C[i](C), t:queries(self.map))
  end
  return sum / pairs.layers
end

-- Runs a strategy on the same small pair of models: loss, R2, gradients by name.
local function run(class, given, token, device)
  local student = cab.models.vim { dim = 24, depth = 3, state = 5, patch = 2, class_token = token, dtype = "f64" }
    :build({ image = 6, classes = 3, device = device })
  local teacher = cab.models.vit { dim = 18, depth = 2, heads = 2, patch = 2, dtype = "f64" }
    :build({ image = 6, classes = 3, device = device }):freeze()
  local images = core.normal({ 2, 3, 6, 6 }, 0, 1, 5, "images", "f64"):to(device)
  local pairing = cab.pairs.new { student = student, teacher = teacher }
  local strategy = cab.strategy.create(class, given):prepare(pairing, { dtype = "f64", device = device })
  if strategy:measures() then pairing:measure(teacher, { images }) end
  local _, s = student:forward(images, { B = true, C = true })
  local _, t = teacher:forward(images, { q = true, k = true })
  pairing:step(s, t)
  local loss = strategy:run(pairing, {})
  loss:backward()
  local gradients = {}
  for _, list in ipairs { student:parameters "student.", strategy:parameters() } do
    for _, p in ipairs(list) do gradients[p.name] = p.tensor.grad end
  end
  return loss:item(), strategy:metrics().r2, gradients
end

local function same(given, token, device)
  local loss, r2, gradients = run("attention_bridge", given, token, device)
  local want_loss, want_r2, want = run(composed, given, token, device)
  assert.near(want_loss, loss, 1e-12 * want_loss)
  assert.near(want_r2, r2, 1e-10)
  local names = 0
  for name, g in pairs(want) do
    assert(gradients[name], "no gradient of " .. name)
    assert.is_true(distance(gradients[name], g) < 1e-10, name)
    names = names + 1
  end
  for name in pairs(gradients) do assert(want[name], "a gradient of " .. name) end
  assert.is_true(names > 8)
end

devices.each(function(device, on)
  describe("the attention bridge in one op" .. on, function()
    for _, map in ipairs { "none", "relu", "exp", "standard", "softmax" } do
      it("is the sum of its parts under the map " .. map, function() same({ hidden = 9, map = map }, "middle", device) end)
    end
    for _, token in ipairs { "head", "double" } do
      it("finds the teacher's tokens where the class token is " .. token, function() same({ hidden = 9 }, token, device) end)
    end
    it("leaves the student alone when detached", function() same({ hidden = 9, detach = true }, "middle", device) end)
    it("is composed for other depths", function()
      same({ hidden = 9, depth = 1 }, "middle", device)
      same({ hidden = 9, depth = 3 }, "middle", device)
    end)
  end)

  describe("op.bridge" .. on, function()
    local function inputs(dtype)
      local function random(name, ...) return core.normal({ ... }, 0, 1, 3, name, dtype):to(device) end
      local a = { B = random("B", 2, 300, 4), B_w1 = random("w1", 7, 4), B_b1 = random("b1", 7), B_w2 = random("w2", 6, 7),
        B_b2 = random("b2", 6), k = random("k", 2, 300, 6) }
      local b = { C = random("C", 2, 300, 4), C_w1 = a.B_w1, C_b1 = a.B_b1, C_w2 = a.B_w2, C_b2 = a.B_b2, q = random("q", 2, 300, 6) }
      return a, b
    end
    local function joined(...)
      local all = {}
      for _, t in ipairs { ... } do
        for name, value in pairs(t) do all[name] = value end
      end
      return all
    end

    it("gives a gradient only where one is wanted, and the same bits each time", function()
      for _, wanted in ipairs { "B", "B_w2", "B_b1" } do
        local first
        for _ = 1, 2 do
          local a, b = inputs "f32"
          a[wanted].requires_grad = true
          local y = op.bridge(joined(a, b));
          (y * 3):backward()
          for name, t in pairs(a) do assert.equal(name == wanted, t.grad ~= nil, name) end
          first = first or a[wanted].grad:totable()
          assert.same(first, a[wanted].grad:totable())
        end
      end
    end)
    it("takes parts of wider rows", function()
      local a = inputs "f64"
      local want = (op.bridge(a)):item()
      local function inside(x) return core.concat({ x * 2, x, x * 3 }, 3):split(3, { x:size(3), x:size(3), x:size(3) }) end
      local _, B = inside(a.B)
      local _, k = inside(a.k)
      assert.near(want, (op.bridge(joined(a, { B = B, k = k }))):item(), 1e-12)
    end)
    it("takes no rows at all", function()
      local a = inputs "f32"
      a.B_w1.requires_grad = true
      local y, mse = op.bridge(joined(a, { B = core.zeros({ 0, 3, 4 }, "f32", device), k = core.zeros({ 0, 3, 6 }, "f32", device) }))
      y:backward()
      assert.equal(0, y:item())
      assert.same({ 1 }, mse:shape())
      assert.equal(0, a.B_w1.grad:range().max)
    end)
    it("refuses half a tap, missing statistics, other token counts and trained targets", function()
      local a, b = inputs "f32"
      fails("the second tap is not complete", op.bridge, joined(a, { C = b.C }))
      fails("map 'standard' needs", op.bridge, joined(a, { map = "standard" }))
      fails("map 'standard' needs", op.bridge, joined(a, { k_mean = b.C_b2, k_deviation = b.C_b2 }))
      fails("the teacher has 300 tokens, the student 300, 2 of them", op.bridge, joined(a, { second = 300 }))
      fails("class token at 301 of 300", op.bridge, joined(a, { first = 301 }))
      a.k.requires_grad = true
      fails("no gradient reaches 'k'", op.bridge, a)
    end)
  end)
end)

describe("strategy:bridge", function()
  it("joins targets under different maps", function()
    local mixed = cab.strategy { name = "mixed", options = { hidden = 9, depth = 2 }, needs = composed.needs }
    mixed.build = composed.build
    function mixed:loss(pairs)
      local sum, want = 0, 0
      for i, s, t in pairs:each() do
        sum = sum + self:bridge({ self.proj_B[i], s.B, t:target("k", "relu") }, { self.proj_C[i], s.C, t:target("q", "none") })
        want = want + op.mse(self.proj_B[i](s.B), t:keys "relu") + op.mse(self.proj_C[i](s.C), t:queries "none")
      end
      assert.near(want:item(), sum:item(), 1e-12)
      return sum
    end
    run(mixed, {}, "middle", "cpu")
  end)
end)
