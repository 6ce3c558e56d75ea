-- Modules: names, initial values, loading.
local core = require "cab.core"
local cab = require "cab"
local devices = require "devices"
local nn = cab.nn

local fails = require "fails"
local function names(m, prefix)
  local list = {}
  for i, p in ipairs(m:parameters(prefix)) do list[i] = p.name end
  return list
end
local function by_name(m)
  local t = {}
  for _, p in ipairs(m:parameters()) do t[p.name] = p end
  return t
end

describe("nn.module", function()
  it("names parameters by path, in order of assignment", function()
    local m = nn.module("pair", {})
    m.second = nn.linear(2, 3)
    m.first = nn.mlp(2, 4, 3, 3)
    m.scale = nn.param({ 3 }, nn.constant(1), false)
    assert.same({ "x.second.weight", "x.second.bias", "x.first.0.weight", "x.first.0.bias", "x.first.2.weight",
      "x.first.2.bias", "x.first.4.weight", "x.first.4.bias", "x.scale" }, names(m, "x."))
  end)
  it("names lists over pairs by layer and direction", function()
    local m = nn.module("holder", {})
    local entries = { { layer = 1, suffix = "" }, { layer = 1, suffix = "_b" }, { layer = 3, suffix = "" } }
    m.proj_B = nn.list(entries, function() return nn.mlp(2, 2, 2, 1) end)
    assert.same({ "proj_B.0.0.weight", "proj_B.0.0.bias", "proj_B_b.0.0.weight", "proj_B_b.0.0.bias",
      "proj_B.2.0.weight", "proj_B.2.0.bias" }, names(m))
    assert.equal(3, #m.proj_B)
  end)
  it("draws values from seed and name, whatever the order", function()
    local function make(order)
      local m = nn.module("m", {})
      for _, name in ipairs(order) do m[name] = nn.linear(3, 2) end
      return m:init { seed = 5 }
    end
    local a, b = make { "p", "q" }, make { "q", "r", "p" }
    assert.same(a.p.weight:totable(), b.p.weight:totable())
    assert.not_same(a.p.weight:totable(), a.q.weight:totable())
    assert.not_same(a.p.weight:totable(), make { "p" }:init { seed = 6 }.p.weight:totable())
  end)
  it("decays matrices only", function()
    local p = by_name(cab.models.vim { dim = 8, depth = 1, state = 2, patch = 2 }:build { image = 4, classes = 3 })
    for name, parameter in pairs(p) do
      local expected = name:match("proj[_b]*%.weight$") or name:match("conv1d[_b]*%.weight$") or name == "head.weight"
        or name == "patch_embed.proj.weight"
      assert.equal(expected and true or false, parameter.decay, name)
    end
  end)
  it("loads what fits and lists what does not", function()
    local m = nn.linear(2, 3):init { seed = 1 }
    local before = m.weight:totable()
    local e = fails("weights do not fit", m.load, m, { ["t.weight"] = core.zeros { 2, 3 }, ["t.other"] = core.zeros { 1 } }, "t.")
    assert.equal(65, e.code)
    assert.same({ "t.bias" }, e.missing)
    assert.same({ "t.other" }, e.unexpected)
    assert.same({ "t.weight: file [2,3], model [3,2]" }, e.mismatched)
    assert.same(before, m.weight:totable())
    m:load({ ["t.weight"] = core.ones({ 3, 2 }, "f64"), ["t.bias"] = core.zeros { 3 }, unrelated = core.zeros { 1 } }, "t.")
    assert.same({ { 1, 1 }, { 1, 1 }, { 1, 1 } }, m.weight:totable())
  end)
  it("freezes", function()
    local m = nn.mlp(2, 2, 2):freeze()
    assert.is_false(m(core.ones { 1, 2 }).requires_grad)
  end)
end)

describe("initial values", function()
  local vim = cab.models.vim { dim = 32, depth = 4, state = 4, patch = 4, decay = "s4d" }:build { image = 8, classes = 3, seed = 3 }
  local p = by_name(vim)
  local function range(name) return p[name].tensor:range() end
  it("of linears stay within fan_in^-0.5", function()
    local r = range "layers.0.mixer.in_proj.weight"
    assert.is_true(r.max <= 32 ^ -0.5 and r.max > 0.9 * 32 ^ -0.5 and r.min < 0)
    assert.is_true(range "layers.0.mixer.out_proj.weight".max <= 64 ^ -0.5 / 2)
  end)
  it("of dt_proj.bias put the step between 1e-3 and 1e-1", function()
    local dt = core.ops.softplus(p["layers.1.mixer.dt_proj_b.bias"].tensor):range()
    assert.is_true(dt.min >= 0.99e-3 and dt.max <= 1.01e-1)
  end)
  it("of A_log are log 1..N or -20", function()
    local row = p["layers.0.mixer.A_log"].tensor:totable()[64]
    for n = 1, 4 do assert.is_true(math.abs(row[n] - math.log(n)) < 1e-6) end
    local identity = cab.models.vim { dim = 8, depth = 1, patch = 4 }:build { image = 8, classes = 3 }
    assert.equal(-20, by_name(identity)["layers.0.mixer.A_b_log"].tensor:range().max)
  end)
end)

describe("models", function()
  it("have the published sizes", function()
    local vit = cab.models.vit { size = "tiny" }:build()
    assert.equal(5717416, vit:size())
    local vim = cab.models.vim { size = "tiny" }:build()
    assert.equal(197, vim.tokens)
    assert.is_true(math.abs(vim:size() - 7.1e6) < 1e5, tostring(vim:size()))
  end)
  it("refuse unknown names with the nearest one", function()
    fails("did you mean 'vim'", function() return cab.models.vimm end)
    fails("did you mean 'state'", cab.models.vim, { stat = 3 })
    fails("did you mean 'tiny'", cab.models.vim, { size = "tny" })
    fails("multiple of heads", function() cab.models.vit { dim = 5, heads = 2, depth = 1, patch = 4 }:build { image = 8 } end)
    fails("larger than the image", function() cab.models.vim {}:build { image = 8 } end)
    fails("did you mean 'models'", function() return cab.modles end)
  end)
end)

devices.each(function(device, on)
  describe("models" .. on, function()
    it("refuse images of another size or dtype", function()
      for _, kind in ipairs { "vit", "vim" } do
        local m = cab.models[kind] { dim = 6, depth = 1, patch = 4 }:build { image = 8, classes = 2, device = device }
        fails(kind .. ": images are f32[1,1,8,8], expected f32[b,3,8,8]", m.forward, m, core.ones({ 1, 1, 8, 8 }, "f32", device))
        fails("f64[1,3,8,8]", m.forward, m, core.ones({ 1, 3, 8, 8 }, "f64", device))
      end
    end)
    it("load the weights that a description names", function()
      local path = os.tmpname()
      local o = { dim = 4, depth = 1, patch = 4, state = 2 }
      local first = cab.models.vim(o):build { image = 8, classes = 2, seed = 9, device = device }
      core.save(path, first:state(), { kind = "vim" })
      o.weights = path
      local second = cab.models.vim(o):build { image = 8, classes = 2, seed = 1, device = device }
      os.remove(path)
      for name, t in pairs(first:state()) do assert.same(t:totable(), second:state()[name]:totable(), name) end
    end)
    it("count tokens by stride and class token", function()
      local function tokens(o)
        o.dim, o.depth, o.patch, o.state = 8, 1, 4, 2
        local m = cab.models.vim(o):build { image = 16, classes = 3, channels = 1, device = device }
        local logits = m:forward(core.ones({ 2, 1, 16, 16 }, "f32", device))
        assert.same({ 2, 3 }, logits:shape())
        return m.tokens
      end
      assert.equal(17, tokens {})
      assert.equal(50, tokens { stride = 2 })
      assert.equal(17, tokens { class_token = "head" })
      assert.equal(18, tokens { class_token = "double" })
    end)
    it("resize position embeddings of another grid, class rows untouched", function()
      local small = cab.models.vim { dim = 4, depth = 1, patch = 4, state = 2 }:build { image = 8, classes = 2, device = device }
      local large = cab.models.vim { dim = 4, depth = 1, patch = 4, state = 2 }:build { image = 16, classes = 2, device = device }
      local state = {}
      for name, t in pairs(small:state()) do state[name] = t:detach():to "cpu" end
      state.pos_embed:fill(2)
      core.no_grad(function() state.pos_embed:slice(2, 3, 3):fill(7) end)
      cab.models.load(large, state)
      local rows = large.pos_embed:totable()[1]
      assert.equal(17, #rows)
      for i, row in ipairs(rows) do assert.is_true(math.abs(row[1] - (i == 9 and 7 or 2)) < 1e-5, i .. ": " .. row[1]) end
    end)
    it("begin with the same values and end with the same logits everywhere", function()
      for _, kind in ipairs { "vit", "vim" } do
        local o = { dim = 12, depth = 2, patch = 4 }
        local here = cab.models[kind](o):build { image = 8, classes = 5, seed = 4 }
        local there = cab.models[kind](o):build { image = 8, classes = 5, seed = 4, device = device }
        local state = there:state()
        for name, t in pairs(here:state()) do
          assert.equal(core.device(device), state[name]:device())
          assert.same(t:totable(), state[name]:totable(), name)
        end
        local images = core.normal({ 3, 3, 8, 8 }, 0, 1, 1, "images")
        local a, b = here:forward(images), there:forward(images:to(device))
        assert.is_true((a:detach() - b:detach():to "cpu"):range().max <= 1e-5 * a:range().max)
        assert.same(a:totable(), here:to(device):to("cpu"):forward(images):totable())
      end
    end)
  end)
end)
