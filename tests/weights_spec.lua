-- Weights of published layouts into models and back: names, position embeddings, heads, shards, refusals.
local core = require "cab.core"
local cab = require "cab"
local lfs = require "lfs"
local FOLDER = "tests/fixtures/weights/"

local dir = os.tmpname()
os.remove(dir)
lfs.mkdir(dir)

local function refused(code, f, ...) return require "refused"(code, f, ...) end
local function put(name, bytes)
  local f <close> = assert(io.open(dir .. "/" .. name, "wb"))
  f:write(bytes)
  return dir .. "/" .. name
end
-- The largest difference, relative to the largest value of b.
local function gap(a, b) return (a - b):range().max - math.min(0, (a - b):range().min), math.max(b:range().max, -b:range().min) end
local function equal(a, b, label)
  assert.same(cab.options.names(b), cab.options.names(a), label)
  for name, t in pairs(b) do
    assert.same({ t:dtype(), t:shape() }, { a[name]:dtype(), a[name]:shape() }, label .. ": " .. name)
    assert.same(t:totable(), a[name]:totable(), label .. ": " .. name)
  end
end

describe("position embeddings", function()
  it("are resized as PyTorch does, plain and antialiased", function()
    local t, tried = core.load(FOLDER .. "positions.safetensors"), 0
    for name, pos in pairs(t) do
      local old, new = name:match "^pos_(%d+)_(%d+)$"
      if old then
        for _, kind in ipairs { "bicubic", "antialias" } do
          local full = core.concat({ core.full({ 1, 1, 3 }, 9, "f64"), pos }, 2)
          local out = cab.models.resize_positions(full, math.tointeger(new), function() return { 1 } end, kind == "antialias")
          assert.same({ { { 9, 9, 9 } } }, out:slice(2, 1, 1):totable())
          local wide, size = gap(out:slice(2, 2, out:size(2)), t[("%s_%s_%s"):format(kind, old, new)])
          assert.is_true(wide <= 1e-12 * size, ("%s %s: %g"):format(kind, name, wide / size))
          tried = tried + 1
        end
      end
    end
    assert.equal(16, tried)
  end)
end)

describe("published weights", function()
  for _, name in ipairs { "timm_vit", "timm_distilled", "hf_vit", "hf_deit" } do
    it("give the library's logits: " .. name, function()
      local model = cab.models.vit { weights = FOLDER .. name .. "/model.safetensors", heads = 2 }:build {}
      local o, io = model.options, core.load(FOLDER .. name .. "/io.safetensors")
      assert.same({ 16, 2, 8, 16, 5, 2 }, { o.dim, o.depth, o.patch, o.image, o.classes, o.ratio }) -- shapes win over size "tiny"
      local wide, size = gap(core.no_grad(function() return (model:forward(io.images)) end), io.logits)
      assert.is_true(wide <= 2e-6 * size, wide / size)
    end)
  end

  local text = { hf_gpt2 = { "gpt2", { heads = 2 } }, hf_phi = { "phi", { heads = 2, rotary = 4 } }, hf_mamba = { "mamba", {} }, hf_mamba2 = { "mamba2", {} } }
  for name, case in pairs(text) do
    it("give the library's logits, their sizes told by the shapes: " .. name, function()
      local o, io = case[2], core.load(FOLDER .. name .. "/io.safetensors")
      o.weights = FOLDER .. name
      local model = cab.models[case[1]](o):build {}
      local wide, size = gap(core.no_grad(function() return (model:forward(io.ids)) end), io.logits)
      assert.is_true(wide <= 4e-6 * size, wide / size)
    end)
  end

  local layouts = { timm_vit = { "timm", "hf_vit", "hf_vit_modules", "mae" }, timm_distilled = { "timm", "hf_deit", "hf_deit_modules" }, hf_vit = { "hf_vit",
    "timm" },
    hf_deit = { "hf_deit", "timm" }, hf_gpt2 = { "hf_gpt2", "mingpt" }, hf_phi = { "hf_phi" }, hf_mamba = { "hf_mamba", "mamba_ssm" },
      hf_mamba2 = { "hf_mamba", "mamba_ssm" } }
  for name, list in pairs(layouts) do
    it("are bit-equal after a way through each layout: " .. name, function()
      local first = cab.load(FOLDER .. name .. "/model.safetensors")
      local home = cab.names.normal(first, cab.names.layout(list[1]))
      for _, to in ipairs(list) do
        local layout = cab.names.layout(to)
        local there = cab.names.published(home, layout)
        if to ~= "mae" then assert.equal(layout, (cab.names.detect(there))) end
        equal(cab.names.normal(there, layout), home, name .. " by " .. to)
      end
      first["lm_head.weight"] = first["lm_head.weight"] or home["lm_head.weight"] -- a tied head, which the file left out
      equal(cab.names.published(home, cab.names.layout(list[1])), first, name)
    end)
  end

  it("of GPT-2 lack the prefix and the tied head; minGPT's matrices are transposed", function()
    local t = cab.load(FOLDER .. "hf_gpt2/model.safetensors")
    local bare = {}
    for name, x in pairs(t) do bare[name:gsub("^transformer%.", "")] = x end
    bare["lm_head.weight"], bare["h.0.attn.bias"] = nil, core.zeros { 1, 1, 8, 8 }
    assert.equal("hf_gpt2", cab.names.detect(bare).name)
    local normal, dropped = cab.names.normal(bare, cab.names.layout "hf_gpt2")
    assert.same({ "h.0.attn.bias" }, dropped)
    assert.same(t["transformer.wte.weight"]:totable(), normal["lm_head.weight"]:totable())
    local with = cab.names.published(normal, cab.names.layout "mingpt")
    assert.same({ 24, 8 }, with["transformer.h.0.attn.c_attn.weight"]:shape())
    assert.equal("mingpt", cab.names.detect(with).name)
  end)

  it("of a Hugging Face model without its head lack the prefix", function()
    local bare = {}
    for name, t in pairs(cab.load(FOLDER .. "hf_vit/model.safetensors")) do bare[name:gsub("^vit%.", "")] = not name:find "^classifier" and t or nil end
    bare["pooler.dense.weight"], bare["pooler.dense.bias"] = core.zeros { 16, 16 }, core.zeros { 16 }
    local layout = cab.names.detect(bare)
    assert.equal("hf_vit", layout.name)
    core.save(dir .. "/bare.safetensors", bare)
    local model = cab.models.vit { weights = dir .. "/bare.safetensors", heads = 2, refit = "head" }:build { classes = 3, image = 16 }
    assert.same(bare["layernorm.bias"]:totable(), model.norm.bias:totable())
  end)

  it("of MAE leave the decoder out", function()
    local t = cab.load(FOLDER .. "timm_vit/model.safetensors")
    t.mask_token, t["decoder_blocks.3.attn.qkv.weight"], t["head.weight"], t["head.bias"] = core.zeros { 1 }, core.zeros { 1 }, nil, nil
    local layout = cab.names.detect(t)
    local normal, dropped = cab.names.normal(t, layout)
    assert.same({ "mae", { "decoder_blocks.3.attn.qkv.weight", "mask_token" } }, { layout.name, dropped })
    assert.is_nil(normal.mask_token)
  end)

  it("are told by their names, and the nearest layout is named", function()
    local golden = core.load "tests/fixtures/goldens/vision_tiny_params.safetensors"
    local student = {}
    for name, t in pairs(golden) do student[name:match "^student%.(.*)" or "?"] = name:match "^student%." and t or nil end
    assert.equal("vim", cab.names.detect(student).name)
    student["layers.0.mixer.in_prj.weight"], student["layers.0.mixer.in_proj.weight"] = student["layers.0.mixer.in_proj.weight"], nil
    local none, near, unexpected = cab.names.detect(student)
    assert.same({ nil, "vim", { "layers.0.mixer.in_prj.weight" } }, { none, near.name, unexpected })
    assert.is_nil(cab.names.detect {})
    assert.truthy(refused(2, cab.names.layout, "hf_vti").message:find "did you mean 'hf_vit'")
  end)

  it("must be whole", function()
    local layout = cab.names.layout "hf_vit"
    local t = cab.load(FOLDER .. "hf_vit/model.safetensors")
    t["vit.encoder.layer.1.attention.attention.key.bias"] = nil
    assert.truthy(refused(65, cab.names.normal, t, layout).message:find("blocks.1.attn.qkv.bias: one of its parts is missing", 1, true))
    assert.truthy(refused(65, cab.names.normal, { x = core.zeros { 1 } }, layout).message:find "'x' is no name of layout hf_vit")
    assert.truthy(refused(65, cab.names.published, { ["blocks.0.attn.qkv.bias"] = core.zeros { 4 } }, layout).message:find "3 equal parts")
    assert.truthy(refused(65, cab.names.published, { x = core.zeros { 1 } }, layout).message:find "no place for 'x'")
  end)
end)

describe("weights of a model", function()
  local path = FOLDER .. "timm_vit/model.safetensors"
  local function build(o, extra)
    o.weights, o.heads = o.weights or path, 2
    return cab.models.vit(o):build(extra or {})
  end
  local function save(changes)
    local t = cab.load(path)
    for name, x in pairs(changes) do t[name] = x or nil end
    core.save(dir .. "/w.safetensors", t)
    return dir .. "/w.safetensors"
  end

  it("take a new head for other classes only where that is allowed", function()
    local e = refused(65, build, {}, { classes = 3 })
    assert.same({ "head.bias: file [5], model [3]", "head.weight: file [5,16], model [3,16]" }, (function() table.sort(e.mismatched) return e.mismatched end)())
    local model = build({ refit = "head" }, { classes = 3 })
    assert.same({ 3, 16 }, model.head.weight:shape())
    assert.same({ "head.weight [3,16] is untrained, the file's is [5,16]", "head.bias [3] is untrained, the file's is [5]" }, model.notes)
    assert.same(cab.load(path)["norm.weight"]:totable(), model.norm.weight:totable())
    assert.truthy(refused(2, build, { refit = "heat" }).message:find "did you mean 'head'")
  end)

  it("sum or repeat input channels only where that is allowed", function()
    assert.equal("weights-mismatch", refused(65, build, {}, { channels = 1 }).id)
    local w = cab.load(path)["patch_embed.proj.weight"]
    local one = build({ refit = "channels" }, { channels = 1 }).patch_embed.proj.weight
    assert.same({ 16, 1, 8, 8 }, one:shape())
    local wide, size = gap(one:detach(), w:slice(2, 1, 1) + w:slice(2, 2, 2) + w:slice(2, 3, 3))
    assert.is_true(wide <= 1e-6 * size)
    local four = build({ refit = "head channels" }, { channels = 4, classes = 2 }).patch_embed.proj.weight:detach()
    wide, size = gap(four:slice(2, 4, 4), w:slice(2, 1, 1) * 0.75)
    assert.is_true(wide <= 1e-6 * size)
  end)

  it("of language models tell their sizes", function()
    local function told(kind, name)
      local t = cab.load(FOLDER .. name .. "/model.safetensors")
      local o = { dim = 768, heads = 12 }
      cab.weights.fit(cab.models.kinds[kind], o, {}, {}, cab.names.normal(t, (cab.names.detect(t))))
      return { o.dim, o.depth, o.vocab, o.ratio, o.positions }
    end
    assert.same({ 8, 2, 11, 4, 8 }, told("gpt2", "hf_gpt2"))
    assert.same({ 16, 2, 11, 2 }, told("phi", "hf_phi"))
    local b, o = "backbone.layers.0.", { dim = 768 }
    cab.weights.fit(cab.models.kinds.phi_mamba, o, { ratio = 3 }, { vocab = 200 }, { ["backbone.embedding.weight"] = core.zeros { 211, 64 },
      [b .. "mixer.D"] = core.zeros { 4 },
      [b .. "mixer.in_proj.weight"] = core.zeros { 260, 64 }, [b .. "mixer.out_proj.weight"] = core.zeros { 64, 64 },
      [b .. "mixer.conv1d.weight"] = core.zeros { 192, 1, 4 }, [b .. "mlp.fc1.bias"] = core.zeros { 512 } }) -- what is written down stays
    assert.same({ dim = 64, depth = 1, heads = 4, state = 16, expand = 1, conv = 4 }, o)
  end)

  it("win over a default that a recipe has filled in, not over what it wrote", function()
    assert.equal(8, build({ patch = 16 }).options.patch)
  end)

  it("say so when the patch differs", function()
    assert.truthy(refused(65, build, { patch = 4 }).message:find "patches of 8x8, the model of 4x4: give patch=8")
  end)

  it("resize position embeddings, class token untouched", function()
    local model = build({}, { image = 32 })
    assert.same({ 1, 17, 16 }, model.pos_embed:shape())
    assert.same({ "position embeddings of 5 tokens became those of 17" }, model.notes)
    assert.same(cab.load(path).pos_embed:slice(2, 1, 1):totable(), model.pos_embed:slice(2, 1, 1):totable())
    local smooth = build({ resize = "antialias" }, { image = 32 })
    assert.is_true(gap(model.pos_embed:detach(), smooth.pos_embed:detach()) > 1e-4)
  end)

  it("are refused in three columns with the name that was meant", function()
    local t = cab.load(path)
    local e = refused(65, build, { weights = save { ["blocks.0.attn.qkv.weight"] = false, ["blocks.0.attn.qvk.weight"] = t["blocks.0.attn.qkv.weight"],
      ["norm.bias"] = core.zeros { 7 } } })
    assert.same({ { "blocks.0.attn.qkv.weight" }, { "blocks.0.attn.qvk.weight" }, { "norm.bias: file [7], model [16]" } }, { e.missing, e.unexpected,
      e.mismatched })
    assert.truthy(e.detail:find("missing in the file (1)   unexpected in the file (1)   of another shape (1)", 1, true) or e.detail)
    assert.truthy(e.detail:find("blocks.0.attn.qvk.weight (blocks.0.attn.qkv.weight?)", 1, true), e.detail)
    assert.truthy(e.message:find("1 missing", 1, true))
    e = refused(65, build, { weights = FOLDER .. "hf_mamba/model.safetensors" })
    assert.same({ "weights-family", true }, { e.id, e.message:find "names are those of hf_mamba" ~= nil })
  end)

  it("with a distilled teacher pair with a student's tokens", function()
    local teacher = cab.models.vit { weights = FOLDER .. "timm_distilled/model.safetensors", heads = 2 }:build {}
    local student = cab.models.vim { dim = 8, depth = 2, patch = 8, state = 2 }:build { image = 16, classes = 5 }
    assert.same({ 6, 5 }, { teacher.tokens, student.tokens })
    local pairing = cab.pairs.new { teacher = teacher, student = student }
    local images = core.normal({ 2, 3, 16, 16 }, 0, 1, 1, "images")
    local _, s = student:forward(images, { B = true })
    local _, t = teacher:forward(images, { k = true })
    pairing:step(s, t)
    for _, _, of_teacher in pairing:each() do
      local rows = of_teacher.k:totable()
      local k = t.k[of_teacher.layer]
      assert.same(k:slice(2, 1, 1):totable(), { { rows[1][3] }, { rows[2][3] } }) -- the class token, now in the middle
      assert.same(k:slice(2, 3, 3):totable(), { { rows[1][1] }, { rows[2][1] } }) -- the first patch
    end
  end)

  it("load from a training checkpoint by PyTorch, whichever state dict and protocol", function()
    local expected = core.load(FOLDER .. "checkpoint_expected.safetensors")
    for protocol = 2, 5 do
      local t, m = cab.load(FOLDER .. ("checkpoint_%d.pth"):format(protocol))
      assert.same({ "model", "module.", "model_ema, optimizer, args, epoch, best, rng, spectrum, curve, rest" }, { m.key, m.prefix, m["not read"] })
      for name, x in pairs(expected) do assert.same(x:totable(), t[name]:to("f32"):totable(), name) end
      assert.same({ 1.5, -3 }, t.bf16:to("f32"):totable())
      local ema = cab.load(FOLDER .. ("checkpoint_%d.pth"):format(protocol), "model_ema")
      assert.same((expected.w * 2):totable(), ema.w:totable())
    end
    local arrays = cab.load(FOLDER .. "arrays.npz")
    assert.same(expected.w:totable(), arrays.a:totable())
    assert.same(expected.w:totable(), arrays.b:totable())
    assert.same({ 0, 1, 2, 3, 4 }, arrays.c:totable())
    assert.same(expected.half:totable(), arrays.h:totable())
  end)
end)

describe("misuse", function()
  it("of the functions is an error that says what was expected", function()
    for _, path in ipairs { 5, {}, "", false } do
      assert.truthy(refused(1, cab.load, path).message:find "a file name expected")
      assert.truthy(refused(1, cab.inspect, path).message:find "a file name expected")
    end
    refused(1, cab.load)
    refused(1, cab.load, "a\0b")
    refused(1, core.load, FOLDER .. "checkpoint_2.pth", 5)
    refused(1, core.load, FOLDER .. "checkpoint_2.pth", "")
    refused(1, core.read_file, FOLDER .. "checkpoint_2.pth")
    assert.equal("file-size", refused(65, core.read_file, FOLDER .. "checkpoint_2.pth", 100).id)
    refused(74, core.read_file, dir .. "/gone", 100)
    assert.equal("PK", core.read_file(FOLDER .. "checkpoint_2.pth", 1 << 20):sub(1, 2))
  end)
end)

describe("shards", function()
  local a, b = { w = core.tensor { 1, 2 }, v = core.tensor { 3 } }, { u = core.tensor { 4 } }
  core.save(dir .. "/a.safetensors", a)
  core.save(dir .. "/b.safetensors", b)
  local function index(map, name) return put(name or "x.safetensors.index.json", type(map) == "string" and map or core.json_encode { weight_map = map,
    metadata = { total_size = 16 } }) end
  local good = { w = "a.safetensors", v = "a.safetensors", u = "b.safetensors" }

  it("are read as one file", function()
    local t = cab.load(index(good))
    assert.same({ { 1, 2 }, { 3 }, { 4 } }, { t.w:totable(), t.v:totable(), t.u:totable() })
    assert.same({ "u", "v", "w" }, (function() local n = {} for i, r in ipairs((cab.inspect(index(good)))) do n[i] = r.name end return n end)())
    assert.equal(2, refused(2, cab.load, index(good), "model").code)
  end)

  it("are found in a folder, as a single file and PyTorch's are", function()
    local here = dir .. "/model"
    lfs.mkdir(here)
    assert.equal("weights-folder", refused(65, cab.load, here).id)
    core.save(here .. "/b.bin", { q = core.ones { 1 } }) -- the format is told by the bytes
    put("model/pytorch_model.bin.index.json", core.json_encode { weight_map = { q = "b.bin" } })
    assert.is_not_nil(cab.load(here).q)
    core.save(here .. "/model.safetensors", a)
    assert.same({ 1, 2 }, cab.load(here .. "/").w:totable())
    assert.equal(2, #cab.inspect(here))
  end)

  local function changed(key, value)
    local map = {}
    for k, v in pairs(good) do map[k] = v end
    map[key] = value
    return map
  end
  local four = string.pack("<f", 1)
  local cases = {
    { "no JSON", "x", "json" }, { "an empty file", "", "json" }, { "a list", "[]", "shard-map" }, { "no map", "{}", "shard-map" }, { "an empty map",
      '{"weight_map":{}}', "shard-map" },
    { "a map that is a list", '{"weight_map":["a.safetensors"]}', "shard-map" }, { "a map of numbers", '{"weight_map":{"w":1}}', "shard-map" },
      { "a map of null", '{"weight_map":null}', "shard-map" },
    { "a tensor twice", '{"weight_map":{"w":"a.safetensors","w":"a.safetensors"}}', "json" }, { "JSON cut off", '{"weight_map":{"w":', "json" },
    { "a file of another folder", changed("w", "../a.safetensors"), "shard-name" }, { "an absolute path", changed("w", "/etc/passwd.safetensors"), "shard-name" },
    { "a hidden file", changed("w", ".a.safetensors"), "shard-name" }, { "a name with NUL", '{"weight_map":{"w":"a\\u0000.safetensors"}}', "shard-name" },
      { "an empty name", changed("w", ""), "shard-name" },
    { "a file of another kind", changed("w", "a.pth"), "shard-name" }, { "a backslash", changed("w", "..\\a.safetensors"), "shard-name" },
    { "a tensor that no shard has", changed("x", "b.safetensors"), "shard-missing" }, { "a tensor in the other shard", changed("w", "b.safetensors"),
      "shard-extra" },
    { "a tensor that the index lacks", changed("v", nil), "shard-extra" },
  }
  -- a broken shard is refused as it would be alone
  local broken = { { "no header", "", "st-header-size" }, { "a length that lies", string.pack("<I8", 1 << 40) .. "{}", "st-header-size" }, { "no JSON",
    string.pack("<s8", "abc"), "st-json" },
    { "a name twice", string.pack("<s8", ('{"w":X,"w":X}'):gsub("X", '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}')) .. four, "st-duplicate" },
    { "a wrong size", string.pack("<s8", '{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}') .. four, "st-size" }, { "an overflow", string.pack("<s8",
      '{"w":{"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]}}') .. four, "st-overflow" },
    { "no data", string.pack("<s8", '{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'), "st-missing" }, { "a hole", string.pack("<s8",
      '{"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}') .. four .. four, "st-hole" },
    { "bytes after it", string.pack("<s8", '{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}') .. four .. "x", "st-trailing" }, { "an unknown dtype",
      string.pack("<s8", '{"w":{"dtype":"Q4","shape":[1],"data_offsets":[0,4]}}') .. four, "st-dtype" } }
  for _, case in ipairs(broken) do cases[#cases + 1] = { "a shard with " .. case[1], { w = "c.safetensors" }, case[3], case[2] } end
  for _, case in ipairs(cases) do
    it("are refused for " .. case[1], function()
      if case[4] then put("c.safetensors", case[4]) end
      local path = index(case[2])
      for _, f in ipairs { cab.load, cab.inspect } do
        local e = refused(65, f, path)
        assert.equal(case[3], e.id, tostring(e))
        assert.truthy(e.message:find(dir, 1, true), e.message)
      end
    end)
  end
  it("have at least 20 refusals", function() assert.is_true(#cases >= 20) end)
  it("say 74 for a shard that is not there", function() assert.equal(74, refused(74, cab.load, index { w = "gone.safetensors" }).code) end)
end)
