-- A loss on any tap reaches every parameter upstream of it, and no other.
local core = require "cab.core"
local cab = require "cab"
local op = core.ops

local fails = require "fails"

local images = core.normal({ 2, 1, 8, 8 }, 0, 1, 1, "images", "f64")
local function vim()
  return cab.models.vim { dim = 8, depth = 2, state = 3, patch = 2, decay = "s4d" }
    :build { image = 8, channels = 1, classes = 3, dtype = "f64" }
end
local function vit()
  return cab.models.vit { dim = 8, depth = 2, heads = 2, patch = 2 }
    :build { image = 8, channels = 1, classes = 3, dtype = "f64" }
end

-- Names of the parameters that sum(tap * noise) reaches.
local function reached(model, tap, layer, suffix)
  local parameters = model:parameters()
  local dead = cab.audit(parameters, function()
    local _, taps = model:forward(images, { [tap] = true })
    local x = taps[tap .. (suffix or "")]
    if layer then x = x[layer] end
    return op.sum(x * core.normal(x:shape(), 0, 1, 2, "noise", "f64"))
  end)
  local gone, live = {}, {}
  for _, name in ipairs(dead) do gone[name] = true end
  for _, p in ipairs(parameters) do
    if not gone[p.name] then live[p.name] = true end
  end
  return live, gone
end

local function list(...)
  local set = {}
  for _, text in ipairs { ... } do
    for name in text:gmatch("%S+") do set[name] = true end
  end
  return set
end

local STEM = "cls_token pos_embed patch_embed.proj.weight patch_embed.proj.bias "
-- Everything in a Vim layer; up to x of direction suffix d; its B, C or dt beyond that.
local function layer(i, text) return (text:gsub("%S+", "layers." .. i .. ".%0")) .. " " end
local WHOLE = [[norm.weight mixer.in_proj.weight mixer.conv1d.weight mixer.conv1d.bias mixer.conv1d_b.weight mixer.conv1d_b.bias
  mixer.x_proj.weight mixer.x_proj_b.weight mixer.dt_proj.weight mixer.dt_proj.bias mixer.dt_proj_b.weight mixer.dt_proj_b.bias
  mixer.A_log mixer.A_b_log mixer.D mixer.D_b mixer.out_proj.weight ]]
local function before(d)
  return ("norm.weight mixer.in_proj.weight mixer.conv1d%s.weight mixer.conv1d%s.bias "):format(d, d)
end

describe("a loss on a tap of vim", function()
  local model = vim()
  for _, d in ipairs { "", "_b" } do
    local upstream = {
      x = before(d), B = before(d) .. "mixer.x_proj" .. d .. ".weight", C = before(d) .. "mixer.x_proj" .. d .. ".weight",
      dt = before(d) .. ("mixer.x_proj%s.weight mixer.dt_proj%s.weight mixer.dt_proj%s.bias"):format(d, d, d),
    }
    for tap, names in pairs(upstream) do
      it(tap .. d .. " reaches what made it", function()
        assert.same(list(STEM, layer(0, WHOLE), layer(1, names)), (reached(model, tap, 2, d)))
      end)
    end
  end
  it("z reaches what made it", function()
    assert.same(list(STEM, layer(0, WHOLE), layer(1, "norm.weight mixer.in_proj.weight")), (reached(model, "z", 2)))
  end)
  it("hidden reaches what made it", function()
    assert.same(list(STEM, layer(0, WHOLE)), (reached(model, "hidden", 1)))
    assert.same(list(STEM, layer(0, WHOLE), layer(1, WHOLE)), (reached(model, "hidden", 2)))
  end)
  it("logits reaches every parameter", function()
    local _, dead = reached(model, "logits")
    assert.same({}, dead)
  end)
  it("dt is the step that the scan used: logits are the same with and without the tap", function()
    local a = model:forward(images)
    local b, taps = model:forward(images, { dt = true, matrix = true })
    local d = op.mse(a, b):item()
    assert.is_true(d < 1e-24, tostring(d))
    assert.is_true(taps.dt[1]:range().min > 0)
    assert.same({ 2, 17, 17 }, taps.matrix_b[2]:shape())
    assert.equal(0, taps.matrix[1]:totable()[1][1][2])  -- causal
    assert.equal(0, taps.matrix_b[1]:totable()[1][2][1]) -- anti-causal
  end)
end)

describe("a loss on a tap of vit", function()
  local model = vit()
  local function block(i, text) return (text:gsub("%S+", "blocks." .. i .. ".%0")) .. " " end
  local BLOCK = [[norm1.weight norm1.bias attn.qkv.weight attn.qkv.bias attn.proj.weight attn.proj.bias norm2.weight norm2.bias
    mlp.fc1.weight mlp.fc1.bias mlp.fc2.weight mlp.fc2.bias ]]
  local QKV = "norm1.weight norm1.bias attn.qkv.weight attn.qkv.bias "
  for _, tap in ipairs { "q", "k", "v" } do
    it(tap .. " reaches what made it", function()
      assert.same(list(STEM, block(0, BLOCK), block(1, QKV)), (reached(model, tap, 2)))
    end)
  end
  it("hidden reaches what made it", function()
    assert.same(list(STEM, block(0, BLOCK)), (reached(model, "hidden", 1)))
    assert.same(list(STEM, block(0, BLOCK), block(1, BLOCK)), (reached(model, "hidden", 2)))
  end)
  it("logits reaches every parameter", function()
    local _, dead = reached(model, "logits")
    assert.same({}, dead)
  end)
  it("attention rows sum to 1", function()
    local _, taps = model:forward(images, { attention = true })
    assert.same({ 2, 2, 17, 17 }, taps.attention[1]:shape())
    local sums = op.sum(taps.attention[2], { dim = 4 }):range()
    assert.is_true(math.abs(sums.min - 1) < 1e-9 and math.abs(sums.max - 1) < 1e-9)
  end)
end)

describe("taps", function()
  it("nobody asked for are not there", function()
    local _, taps = vim():forward(images, { B = true })
    assert.same({ "B", "B_b" }, cab.options.names(taps))
    local _, none = vit():forward(images)
    assert.is_nil(next(none))
  end)
  it("are checked against what the model announces", function()
    local needs = { needs = { student = { "hiddn" }, teacher = { "k" } } }
    fails("did you mean 'hidden'", cab.taps.wanted, { needs }, "student", vim())
    assert.same({ k = true }, cab.taps.wanted({ needs, needs }, "teacher", vit()))
    assert.is_nil(cab.taps.wanted({}, "teacher", vit()))
  end)
end)

describe("the attention bridge alone", function()
  local function setup_step(extra)
    local student, teacher = vim(), vit():freeze()
    local p = cab.pairs.new { student = student, teacher = teacher }
    local given = { "attention_bridge", hidden = 4 }
    for k, v in pairs(extra or {}) do given[k] = v end
    local bridge = cab.strategy.create(given):prepare(p, { dtype = "f64" })
    if bridge:measures() then p:measure(teacher, { images }) end
    return student, bridge, function()
      local _, t = teacher:forward(images, cab.taps.wanted({ bridge }, "teacher", teacher))
      local _, s = student:forward(images, cab.taps.wanted({ bridge }, "student", student))
      p:step(s, t)
      return bridge:run(p, {})
    end
  end
  it("reaches every bridge parameter and the student up to its last B and C", function()
    local student, bridge, loss = setup_step()
    assert.same({}, cab.audit(bridge:parameters(), loss))
    local dead = {}
    for _, name in ipairs(cab.audit(student:parameters(), loss)) do dead[name] = true end
    assert.same(list("norm_f.weight head.weight head.bias", layer(1, [[mixer.dt_proj.weight mixer.dt_proj.bias mixer.dt_proj_b.weight
      mixer.dt_proj_b.bias mixer.A_log mixer.A_b_log mixer.D mixer.D_b mixer.out_proj.weight]])), dead)
  end)
  it("detached, reaches no student parameter", function()
    local student, bridge, loss = setup_step { detach = true }
    assert.same({}, cab.audit(bridge:parameters(), loss))
    assert.equal(#student:parameters(), #cab.audit(student:parameters(), loss))
  end)
  it("reports its R2", function()
    local _, bridge, loss = setup_step()
    loss()
    local m = bridge:metrics()
    assert.is_true(m.r2 < 0.5 and m.r2 > -10, tostring(m.r2))
    assert.same({}, cab.strategy.create "soft":metrics())
  end)
  it("refuses unknown options with the nearest name", function()
    fails("did you mean 'hidden'", cab.strategy.create, { "attention_bridge", hiden = 3 })
    fails("did you mean 'attention_bridge'", cab.strategy.create, { "atention_bridge" })
  end)
end)

describe("cab.gradcheck", function()
  it("accepts a right gradient and refuses a wrong one", function()
    local x = core.normal({ 2, 3 }, 0, 1, 1, "x", "f64")
    local values = x:totable()
    local r = cab.gradcheck(function(a) return op.silu(a) end, { x })
    assert.equal(6, r.checked)
    assert.same(values, x:totable())
    local wrong = cab.custom {
      name = "wrong",
      forward = function(_, a) return op.square(a) end,
      backward = function(_, g) return g end,
    }
    fails("differences predict", cab.gradcheck, wrong, { x })
  end)
end)
