-- Every strategy on the golden models: its loss and all gradients against float64 PyTorch (tests/reference/strategies.py); and that the
-- loss reaches what it should, and no more.
local core = require "cab.core"
local cab = require "cab"
local devices = require "devices"
local op = core.ops

local fails = require "fails"

local FOLDER = "tests/fixtures/goldens/"
local reference, meta = core.load "tests/fixtures/strategies.safetensors"
local names = core.json_decode(meta.names)
local vision, language = core.load(FOLDER .. "vision_tiny_params.safetensors"), core.load(FOLDER .. "lang_tiny_params.safetensors")

-- 0.3 sin(0.7 i + sum of the name's bytes), as the reference draws a strategy's own parameters.
local function drawn(name, shape)
  local sum, n, list = 0, 1, {}
  for i = 1, #name do sum = sum + name:byte(i) end
  for _, s in ipairs(shape) do n = n * s end
  for i = 0, n - 1 do list[i + 1] = 0.3 * math.sin(0.7 * i + sum) end
  return core.tensor(list, "f64"):reshape(shape)
end

local function fill(parameters)
  core.no_grad(function()
    for _, p in ipairs(parameters) do p.tensor:copy(drawn(p.name, p.tensor:shape())) end
  end)
end

-- What a step needs: { student, teacher, batch(s, t) } of the tiny pair.
local kinds = {}
function kinds.image(device)
  local extra = { image = 32, classes = 10, dtype = "f64", device = device }
  local student = cab.models.vim { dim = 32, depth = 4, state = 8, patch = 8 }:build(extra)
  local teacher = cab.models.vit { dim = 32, depth = 2, heads = 2, patch = 8 }:build(extra)
  student:load(vision, "student.")
  return { student = student, teacher = teacher:load(vision, "teacher."):freeze(), input = vision["input.images"]:to("f64"):to(device), device = device }
end
function kinds.vit(device)
  local k = kinds.image(device)
  k.student = cab.models.vit { dim = 32, depth = 2, heads = 2, patch = 8 }:build { image = 32, classes = 10, dtype = "f64", device = device }
  fill(k.student:parameters "student.")
  return k
end
function kinds.text(device)
  local given = { dim = 64, depth = 2, heads = 4, vocab = 211, dtype = "f64" }
  local teacher = cab.models.gpt2 { dim = 64, depth = 2, heads = 4, vocab = 211, positions = 48, dtype = "f64" }:build { device = device }
  given.state, given.chunk = 16, 16
  local student = cab.models.phi_mamba(given):build { device = device }
  student:load(language, "student.")
  require "cab.models.build".load(teacher, language, "teacher.")
  return { student = student, teacher = teacher:freeze(), input = language["input.ids"]:to(device), text = true, device = device }
end

-- A strategy in a step of a tiny pair, prepared as a job does it: {strategy, pairs, student, loss()}.
local function ready(kind, given, map, before, device)
  local k = kinds[kind](device or "cpu")
  local pairing = cab.pairs.new { student = k.student, teacher = k.teacher, map = map }
  if before then before(pairing, k.device) end
  local strategy = cab.strategy.create(given):prepare(pairing, { dtype = "f64", device = k.device })
  fill(strategy:parameters())
  if pairing.mix then fill(pairing:parameters()) end
  local wanted = {}
  for _, name in ipairs(strategy.needs.teacher or {}) do wanted[name] = true end
  if strategy:measures() then pairing:measure(k.teacher, { k.input }, wanted) end
  k.said = strategy:begin(pairing)
  k.strategy, k.pairs = strategy, pairing
  function k.loss()
    if k.text then
      local stage = { terms = { { name = "it", weight = 1, strategy = strategy } }, student_taps = cab.taps.wanted({ strategy }, "student", k.student),
        teacher_taps = cab.taps.wanted({ strategy }, "teacher", k.teacher), apart = strategy.apart }
      return require "cab.text".losses({ student = k.student, teacher = k.teacher, pairs = pairing }, stage, k.input)[1].value
    end
    local logits, t = core.no_grad(function() return k.teacher:forward(k.input, cab.taps.wanted({ strategy }, "teacher", k.teacher)) end)
    local batch, s = { teacher = logits, labels = core.tensor({ 1, 4, 7 }, "i32"):to(k.device) }, nil
    if not strategy.apart then batch.logits, s = k.student:forward(k.input, cab.taps.wanted({ strategy }, "student", k.student)) end
    pairing:step(s, t)
    return strategy:run(pairing, batch)
  end
  function k.parameters()
    local all = {}
    for _, list in ipairs { k.student:parameters "student.", strategy:parameters(), pairing:parameters() } do table.move(list, 1, #list, #all + 1, all) end
    return all
  end
  return k
end

-- Norm of a gradient and its product with cos(0.3 i + 1).
local function summary(g)
  local n, weights = g:count(), {}
  g = g:to "cpu"
  for i = 0, n - 1 do weights[i + 1] = math.cos(0.3 * i + 1) end
  return op.sum(op.square(g)):item() ^ 0.5, op.sum(g:reshape(n) * core.tensor(weights, "f64")):item()
end

local function agrees(case, k)
  local loss = k.loss()
  local want = reference[case .. ".loss"]:totable()[1]
  assert.is_true(math.abs(loss:item() - want) <= 1e-9 * math.abs(want), ("loss %.15g, expected %.15g"):format(loss:item(), want))
  loss:backward()
  local rows, known, seen = reference[case .. ".grad"]:totable(), {}, 0
  for i, name in ipairs(names[case]) do known[name] = rows[i] end
  for _, p in ipairs(k.parameters()) do
    local expected = known[p.name] or { 0, 0 }
    local norm, product = 0, 0
    if p.tensor.grad then norm, product = summary(p.tensor.grad) end
    local limit = 1e-8 * expected[1] + 1e-12
    assert.is_true(math.abs(norm - expected[1]) <= limit, ("%s: gradient's norm %.15g, expected %.15g"):format(p.name, norm, expected[1]))
    assert.is_true(math.abs(product - expected[2]) <= limit * #p.name, ("%s: gradient's product %.15g, expected %.15g"):format(p.name, product, expected[2]))
    if known[p.name] then seen = seen + 1 end
    p.tensor.grad = nil
  end
  assert.equal(#names[case], seen)
end

local BRIDGE = "attention_bridge"
local SELF = { ["bridge.last"] = { map = { "manual", 1, 1, 2, 2 } }, ["bridge.learned_layers"] = { map = "learned" } }
local cases = {
  ["vanilla"] = { "vanilla", smoothing = 0.1 },
  ["soft.forward"] = { "soft", temperature = 2, hard = 0.5 }, ["soft.reverse"] = { "soft", divergence = "reverse", temperature = 1.5 },
  ["soft.jsd"] = { "soft", divergence = "jsd", temperature = 2 }, ["soft.top"] = { "soft", top = 3 },
  ["bridge.standard"] = { BRIDGE }, ["bridge.linear"] = { BRIDGE, depth = 1, map = "none" }, ["bridge.detach"] = { BRIDGE, detach = true },
  ["bridge.deep"] = { BRIDGE, depth = 3, activation = "relu", map = "elu" }, ["bridge.tanh"] = { BRIDGE, activation = "tanh" },
  ["bridge.heads"] = { BRIDGE, heads = "each", activation = "gelu" }, ["bridge.shared"] = { BRIDGE, share = "all" }, ["bridge.exp"] = { BRIDGE, map = "exp" },
  ["bridge.tokens"] = { BRIDGE, map = "softmax_tokens" }, ["bridge.hidden"] = { BRIDGE, onto = { B = "hidden", C = "hidden" } },
  ["bridge.B"] = { BRIDGE, onto = { B = "k" } }, ["bridge.xz"] = { BRIDGE, onto = { x = "v", z = "q" }, map = "none" },
  ["bridge.other"] = { BRIDGE, control = "other_image" }, ["bridge.ridge"] = { BRIDGE, kind = "ridge" }, ["bridge.last"] = { BRIDGE },
  ["bridge.learned_layers"] = { BRIDGE }, ["bridge.learned_map"] = { BRIDGE, map = "learned" },
  ["hidden_state.mse"] = { "hidden_state" }, ["hidden_state.cosine"] = { "hidden_state", distance = "cosine", map = "none" },
  ["mohawk_orientation.vim"] = { "mohawk_orientation" }, ["mohawk_hidden.vim"] = { "mohawk_hidden" },
  ["matrix_distill.cosine"] = { "matrix_distill" }, ["matrix_distill.cross_entropy"] = { "matrix_distill", distance = "cross_entropy" },
  ["matrix_distill.mse"] = { "matrix_distill", distance = "mse" }, ["linear_attention.hedgehog"] = { "linear_attention" },
  ["linear_attention.weights"] = { "linear_attention", distance = "cross_entropy" }, ["linear_attention.linear"] = { "linear_attention", kind = "linear" },
  ["weight_reuse.vim"] = { "weight_reuse" },
}
local of_vit = { ["attention_distill.vit"] = { "attention_distill" }, ["attention_distill.leave"] = { "attention_distill", leave = 1 } }
for _, what in ipairs { "attention", "q", "k", "v" } do of_vit["attention_copy." .. what] = { "attention_copy", what = what } end
local of_text = {
  ["text.soft.top"] = { "soft", top = 5, temperature = 2, hard = 0.5 }, ["text.bridge.standard"] = { BRIDGE },
  ["text.bridge.heads"] = { BRIDGE, heads = "each", depth = 1 }, ["text.mohawk_orientation.each"] = { "mohawk_orientation", heads = "each" },
  ["text.mohawk_orientation.mean"] = { "mohawk_orientation", heads = "mean" }, ["text.mohawk_hidden"] = { "mohawk_hidden" },
  ["text.linear_attention"] = { "linear_attention", kind = "linear" }, ["text.weight_reuse"] = { "weight_reuse" },
  ["text.mohawk_transfer"] = { "mohawk_transfer" }, ["text.linearised"] = { "linearised" },
}
-- Step 1 of the linearisation, with the maps that the reference has.
local function linear_maps(pairing, device)
  local first = cab.strategy.create({ "linear_attention", kind = "linear" }):prepare(pairing, { dtype = "f64", device = device })
  fill(first:parameters())
end

devices.each(function(device, on)
describe("a strategy agrees with PyTorch" .. on .. ":", function()
  local tested = {}
  for kind, list in pairs { image = cases, vit = of_vit, text = of_text } do
    for case, given in pairs(list) do
      tested[case] = true
      if given[1] == BRIDGE then given.hidden = 16 end
      it(case, function()
        agrees(case, ready(kind, given, SELF[case] and SELF[case].map, given[1] == "linearised" and linear_maps or nil, device))
      end)
    end
  end
  it("every case of the reference", function()
    for case in pairs(names) do assert(tested[case], case .. " of the reference is not tested") end
    for case in pairs(tested) do assert(names[case], case .. " is not in the reference") end
  end)
end)
end)

describe("a strategy's loss", function()
  -- Which parameters of the student it reaches: patterns of the first and the last layer's, that must and must not.
  local reach = {
    mohawk_orientation = { "x_proj.weight A_log dt_proj.weight in_proj.weight norm.weight", "out_proj mixer%.D cls_token head norm_f" },
    mohawk_hidden = { "x_proj.weight A_log mixer%.D out_proj.weight norm.weight", "cls_token pos_embed head norm_f" },
    matrix_distill = { "x_proj.weight A_log dt_proj.weight cls_token pos_embed", "head norm_f" },
    hidden_state = { "x_proj.weight out_proj.weight cls_token pos_embed mixer%.D", "head norm_f" },
    weight_reuse = { "x_proj.weight out_proj.weight cls_token head norm_f" }, soft = { "x_proj.weight cls_token head" },
    vanilla = { "x_proj.weight cls_token head" }, mohawk_transfer = { "x_proj.weight cls_token head" }, linear_attention = { "", "." },
    attention_bridge = { "x_proj.weight cls_token in_proj", "head norm_f" },
  }
  for name, patterns in pairs(reach) do
    it(name .. " reaches what it should", function()
      local k = ready("image", { name })
      assert.same({}, cab.audit(k.strategy:parameters(), k.loss))
      local live, dead = {}, {}
      for _, n in ipairs(cab.audit(k.student:parameters(), k.loss)) do dead[n] = true end
      for _, p in ipairs(k.student:parameters()) do if not dead[p.name] then live[#live + 1] = p.name end end
      local all = table.concat(live, " ")
      for pattern in patterns[1]:gmatch "%S+" do assert.truthy(all:find(pattern), pattern .. " is not reached") end
      for pattern in (patterns[2] or ""):gmatch "%S+" do assert.falsy(all:find(pattern), pattern .. " is reached") end
    end)
  end
  it("attention_distill and attention_copy reach what they leave to a vit", function()
    local k = ready("vit", { "attention_distill" })
    local dead = table.concat(cab.audit(k.student:parameters(), k.loss), " ")
    assert.truthy(dead:find "head.weight")
    assert.falsy(dead:find "blocks.1.attn.qkv.weight")
    k = ready("vit", { "attention_copy" })
    local before = k.student:forward(k.input)
    assert.same({}, cab.audit(k.student:parameters(), k.loss))
    k.student.borrow = nil -- its own attention is another
    local off = op.mse(before, (k.student:forward(k.input))):item()
    assert.is_true(off > 1e-9, tostring(off))
  end)
end)

describe("a strategy tells", function()
  it("which weights were taken and which not", function()
    local k = ready("image", { "weight_reuse" })
    assert.truthy(k.said:find "taken from the teacher; left as they were")
    assert.truthy(k.said:find "layers.0.mixer.B, C %(x_proj reads the convolved x")
    fails("do not fit: layers.0.mixer.B, C", ready, "image", { "weight_reuse", strict = true })
    assert.falsy(ready("text", { "weight_reuse", strict = true }).said:find "left as they were")
    -- a hybrid's own attention becomes the teacher's
    local teacher = cab.models.phi { dim = 16, depth = 2, heads = 4, vocab = 20, dtype = "f64" }:build {}
    local student = cab.models.phi_mamba { dim = 16, depth = 2, heads = 4, state = 4, vocab = 20, attention = { 2 }, dtype = "f64", seed = 1 }:build {}
    local r = cab.reuse.copy(cab.pairs.new { student = student, teacher = teacher }, { parts = { "attention" }, conv = "keep", gate = "keep" })
    assert.equal(8, #r.copied)
    assert.same(teacher.model.layers[2].self_attn.dense.weight:totable(), student.backbone.layers[2].self_attn.dense.weight:totable())
    fails("did you mean 'norms'", ready, "text", { "weight_reuse", parts = { "norm" } })
  end)
  it("what it cannot do", function()
    fails("needs an earlier stage with", ready, "text", { "linearised" })
    fails("distance = 'cross_entropy' needs positive features", ready, "image", { "linear_attention", kind = "linear", distance = "cross_entropy" })
    fails("5 is odd", ready, "image", { "linear_attention", count = 5 })
    fails("attention is copied into a vit, the student is a vim", ready, "image", { "attention_copy" })
    fails("the student's mixing matrix has 1 heads, the teacher's 2", function() return ready("image", { "mohawk_orientation", heads = "each" }).loss() end)
    fails("did you mean 'reverse'", ready, "image", { "soft", divergence = "revers" })
    fails("did you mean 'cosine'", ready, "image", { "matrix_distill", distance = "cosin" })
    fails("did you mean 'mohawk_hidden'", ready, "image", { "mohawk_hiden" })
  end)
end)

devices.each(function(device, on)
  describe("op.largest" .. on, function()
    it("gives columns, of equals the first", function()
      local y, place = op.largest(core.tensor { { 1, 5, 3, 5, 3 }, { -1, -2, -3, -0.5, -9 } }:to(device), { k = 3 })
      assert.same({ { 5, 5, 3 }, { -0.5, -1, -2 } }, y:to("cpu"):totable())
      assert.same({ { 1, 3, 2 }, { 3, 0, 1 } }, place:to("cpu"):totable())
      fails("'k' is 6, expected a whole number from 1 to 5", op.largest, core.zeros({ 1, 5 }, "f32", device), { k = 6 })
      fails("'k' is 1.5", op.largest, core.zeros({ 1, 5 }, "f32", device), { k = 1.5 })
    end)
  end)
end)

-- Activations in bf16 where there is a GPU: whatever a strategy does meets f32 parameters, targets and sums in it.
devices.each(function(device, on)
  describe("training steps" .. on, function()
    local synthetic = require "synthetic"
    local precision = device == "cpu" and "f32" or "bf16"
    local same = cab.models.vit { dim = 24, depth = 2, heads = 3, patch = 4 }
    local list = {
      mohawk_orientation = {}, mohawk_hidden = {}, mohawk_transfer = {}, weight_reuse = {}, matrix_distill = { distance = "cross_entropy" },
      hidden_state = { distance = "cosine" }, linear_attention = {}, soft = { divergence = "jsd", top = 3 }, attention_distill = {}, attention_copy = {},
    }
    for name, given in pairs(list) do
      it(("take %s in %s"):format(name, precision), function()
        given.weight = 1
        local vit = name == "attention_distill" or name == "attention_copy"
        local t = synthetic.tiny("vim", { device = device, precision = precision, loss = { [name] = given }, student = vit and same or nil })
        for n = 1, 5 do
          local v = t:step(n, true)
          assert.is_true(v.loss == v.loss and v.norm > 0 and v.norm < 1e6, ("step %d: loss %g, norm %g"):format(n, v.loss, v.norm))
        end
        t:close()
      end)
    end
    for _, given in ipairs { { kind = "ridge" }, { heads = "each" }, { control = "random" }, { control = "other_image" }, { map = "learned" }, { map = "elu" },
      { share = "all" }, { onto = { x = "v", hidden = "hidden" } } } do
      local key = next(given)
      it(("take a bridge with %s in %s"):format(key, precision), function()
        given[1], given.weight, given.hidden = "attention_bridge", 1, 7
        local t = synthetic.tiny("vim", { device = device, precision = precision, loss = { align = given } })
        for n = 1, 5 do assert.is_true(t:step(n, true).norm > 0) end
        t:close()
      end)
    end
  end)
end)
