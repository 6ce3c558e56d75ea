-- The input of a training run: lists and their index, mixing, models with their own normalisation, what `cab data` shows.
local cab = require "cab"
local core = require "cab.core"
local lfs = require "lfs"
local tools = require "cab.data_tools"
local folder = require "cab.folder"
local devices = require "devices"

local root = os.tmpname()
os.remove(root)
lfs.mkdir(root)

local function refused(code, f, ...) return require "refused"(code, f, ...).message end

local function put(path, text)
  local f = assert(io.open(path, "wb"))
  f:write(text or "")
  f:close()
  return path
end

-- count images in each of the classes a, b, c of train and test: class and number as colour.
local function photos(name, count)
  local at = root .. "/" .. name
  lfs.mkdir(at)
  for _, split in ipairs { "train", "test" } do
    lfs.mkdir(at .. "/" .. split)
    for c, class in ipairs { "a", "b", "c" } do
      lfs.mkdir(("%s/%s/%s"):format(at, split, class))
      for i = 1, count do core.write_png(("%s/%s/%s/%02d.png"):format(at, split, class, i), core.full({ 9, 12, 3 }, 80 * c - i, "u8")) end
    end
  end
  return at
end

describe("data.list", function()
  local at = photos("listed", 10)
  local recipe = { data = cab.data.folder { root = at, size = 8, index = "none" } }

  it("is a nested share of each class, by name, and trains on the same images as the fraction", function()
    local larger
    for _, fraction in ipairs { 0.5, 0.2, 0.1 } do
      local path = ("%s/%g.txt"):format(root, fraction)
      assert.matches(("%g %%%% of each class of .*, seed 4: %d of 30 images"):format(100 * fraction, 30 * fraction),
        tools.subset(recipe, { fraction = fraction, seed = 4, out = path }))
      local names = {}
      for line in io.lines(path) do
        if not line:find "^#" then
          assert.matches("^[abc]/%d%d%.png$", line)
          assert.is_true(not larger or larger[line])
          names[line] = true
        end
      end
      larger = names
      local listed = cab.data.build(cab.data.folder { root = at, size = 8, index = "none", list = path })
      local drawn = cab.data.build(cab.data.folder { root = at, size = 8, index = "none", fraction = fraction, seed = 4 })
      assert.same(drawn.indices.train:totable(), listed.indices.train:totable())
      assert.equal(30 * fraction, listed.count.train)
      assert.is_string(listed:hashes()[path])
    end
  end)

  it("may be of numbers, where records have no names", function()
    local path = put(root .. "/numbers.txt", "# three\n10000\n2\n1\n")
    local data = cab.data.build(cab.data.fashion { list = path })
    assert.same({ 0, 1, 9999 }, data.indices.train:totable())
  end)

  it("is refused with its line where it names what is not there", function()
    local function open(text)
      return refused(65, cab.data.build, cab.data.folder { root = at, index = "none", list = put(root .. "/bad.txt", text) })
    end
    assert.matches("line 2: 'a/99.png' is none of the 30 training images", open "a/01.png\na/99.png\nb/98.png\n")
    assert.matches("line 3: 'a/01.png' stands in line 1 too", open "a/01.png\n\na/01.png")
    assert.matches("no images in it", open "# nothing\n")
    assert.matches("line 1: '\\x1b", open "\27[31m\n")
    assert.matches("exclude each other", refused(2, cab.data.build, cab.data.folder { root = at, index = "none", list = root .. "/0.1.txt",
      fraction = 0.5 }))
    assert.equal(74, require "refused"(74, cab.data.build, cab.data.folder { root = at, index = "none", list = root .. "/none" }).code)
  end)
end)

describe("the index of a folder", function()
  local at, index = root .. "/many", root .. "/many.index"
  lfs.mkdir(at)
  for c = 1, 3 do
    lfs.mkdir(("%s/c%d"):format(at, c))
    for i = 1, 1500 do put(("%s/c%d/%05d.jpg"):format(at, c, i)) end
  end
  local function open() return core.data.open { kind = "folder", root = at, index = index } end
  local function listing(ds)
    local out = { count = ds:count(), labels = ds:labels():totable(), ignored = ds:ignored(), names = {} }
    for i = 1, ds:count() do out.names[i] = ds:name(i) end
    return out
  end

  it("is trusted only for folders that were old when it was made", function()
    local first = open()
    assert.equal(4, first:scanned())
    assert.is_not_nil(lfs.attributes(index))
    assert.equal(4, open():scanned()) -- within the clock's tick
    os.execute "sleep 2.2"
    assert.equal(4, open():scanned()) -- the index still is of that time; now it is written anew
    local again = open()
    assert.equal(0, again:scanned())
    assert.same(listing(first), listing(again))
    assert.is_nil(again:note())
  end)

  it("sees files that came, went and changed their name, reading their folder alone", function()
    local want = listing(open())
    put(at .. "/c2/00000.png")
    put(at .. "/c2/notes.txt")
    os.remove(at .. "/c3/01500.jpg")
    os.rename(at .. "/c3/00007.jpg", at .. "/c3/7.jpg")
    local ds = open()
    assert.equal(2, ds:scanned())
    assert.equal(4500, ds:count())
    assert.equal(want.ignored + 1, ds:ignored())
    assert.equal("c2/00000.png", ds:name(1501))
    assert.equal("c3/7.jpg", ds:name(4500))
    assert.same(listing(core.data.open { kind = "folder", root = at }), listing(ds))
  end)

  it("sees folders that came and went", function()
    os.execute "sleep 2.2"
    open()
    lfs.mkdir(at .. "/c0")
    put(at .. "/c0/x.jpg")
    os.rename(at .. "/c3", root .. "/c3")
    local ds = open()
    assert.equal(2, ds:scanned()) -- the root and c0
    assert.same({ "c0", "c1", "c2" }, ds:names())
    assert.same(listing(core.data.open { kind = "folder", root = at }), listing(ds))
    os.rename(root .. "/c3", at .. "/c3")
    assert.same(listing(core.data.open { kind = "folder", root = at }), listing(open()))
  end)

  it("costs time and nothing else where it is damaged, of another root, or cannot be written", function()
    os.execute "sleep 2.2"
    open()
    local good, want = folder.read(index), listing(open())
    assert.equal(0, open():scanned())
    for _, bad in ipairs { "", "x", good:sub(1, 12), good:sub(1, -2), good .. "x", good:sub(1, 40) .. "\255" .. good:sub(42),
      good:sub(1, #good // 2) .. "/" .. good:sub(#good // 2 + 2) } do
      put(index, bad)
      local ds = open()
      assert.equal(5, ds:scanned())
      assert.same(want, listing(ds))
    end
    local other = photos("other", 1) .. "/train"
    local ds = core.data.open { kind = "folder", root = other, index = index }
    assert.same({ 3, 4 }, { ds:count(), ds:scanned() })
    assert.equal(0, open():scanned()) -- a small folder leaves the file alone
    ds = core.data.open { kind = "folder", root = at, index = root .. "/none/x" }
    assert.matches("the index of the folder was not kept: .*none/x", ds:note())
    assert.same(want, listing(ds))
  end)
end)

describe("mixed batches", function()
  it("train with their targets, alone and beside a teacher, and resume to the same bits", function()
    local r = cab.recipe {
      data = cab.data.fashion { fraction = 0.01, mixup = 0.8, cutmix = 1, augment = "rand-m9-mstd0.5-inc1", erase = 0.25, jitter = 0.3, repeats = 3 },
      teacher = cab.models.vit { image = 28, patch = 14, dim = 8, depth = 2, heads = 2, mean = 0.5, std = 0.5 },
      student = cab.models.vit { image = 28, patch = 14, dim = 8, depth = 1, heads = 2 },
      stages = { { loss = { vanilla = { weight = 1, smoothing = 0.1 }, soft = 1 }, steps = 6 } },
      device = "cpu", batch = 20, log = 1, checkpoint = { every = 3 },
    }
    local whole = r:run { out = root .. "/whole", quiet = true }
    assert.equal(75, require "refused"(75, r.run, r, { out = root .. "/parts", quiet = true, stop_after = 4 }).code)
    local parts = r:run { out = root .. "/parts", quiet = true, resume = true }
    assert.equal(folder.read(whole.path .. "/metrics.jsonl"), folder.read(parts.path .. "/metrics.jsonl"))
    assert.matches("data.jitter is not used beside RandAugment", folder.read(whole.path .. "/log.txt"))
  end)

  devices.each(function(device, text)
    it("train to the same losses" .. text, function()
      local function losses(name)
        local r = cab.recipe {
          data = cab.data.fashion { fraction = 0.01, mixup = 0.8, cutmix = 1, flip = true, pad = 2, augment = "3-augment", erase = 0.25 },
          teacher = cab.models.vit { image = 28, patch = 14, dim = 8, depth = 2, heads = 2, mean = 0.5, std = 0.5 },
          student = cab.models.vim { image = 28, patch = 14, dim = 8, depth = 1, state = 4 },
          stages = { { loss = { vanilla = 1, soft = 1 }, steps = 8 } }, device = name, batch = 20, log = 1,
        }
        local path, out = ("%s/losses-%s-%s"):format(root, device, name), {}
        r:run { out = path, quiet = true }
        for line in folder.read(path .. "/metrics.jsonl"):gmatch "[^\n]+" do out[#out + 1] = core.json_decode(line).loss end
        return out
      end
      local want = losses "cpu"
      assert.equal(8, #want)
      for i, loss in ipairs(losses(device == "cpu" and "auto" or device)) do assert.is_true(math.abs(loss - want[i]) < 1e-3 * math.abs(want[i])) end
    end)
  end)

  it("come into tensors that are there, with their targets", function()
    local data = cab.data.build(cab.data.fashion { fraction = 0.01, mixup = 1 })
    local a <close> = data:loader("train", { batch = 30 })
    local b <close> = data:loader("train", { batch = 30 })
    local x, y, t = a:next()
    local images, labels, targets = core.empty(x:shape()), core.empty(y:shape(), "i32"), core.empty(t:shape())
    assert.is_false(b:into(images, labels)) -- nowhere to put the targets
    assert.is_false(b:into(images, labels, core.empty { 30, 9 }))
    assert.is_true(b:into(images, labels, targets))
    assert.same({ x:totable(), y:totable(), t:totable() }, { images:totable(), labels:totable(), targets:totable() })
  end)

  it("have the cross-entropy of their mixed labels, smoothed or not", function()
    local logits, labels = core.normal({ 3, 4 }, 0, 1, 0, "x"), core.tensor({ 0, 3, 1 }, "i32")
    local hard = core.tensor { { 1, 0, 0, 0 }, { 0, 0, 0, 1 }, { 0, 1, 0, 0 } }
    for _, smoothing in ipairs { 0, 0.1 } do
      local vanilla = cab.strategy.create("vanilla", { smoothing = smoothing })
      local a = vanilla:loss(nil, { logits = logits, labels = labels }):item()
      local b = vanilla:loss(nil, { logits = logits, target = hard }):item()
      assert.is_true(math.abs(a - b) < 1e-6)
    end
  end)
end)

describe("repeats", function()
  it("give each image of an epoch so often in a row, drawn anew", function()
    local data = cab.data.build(cab.data.fashion { fraction = 0.01, repeats = 3, flip = true, pad = 3 })
    local feed = data:loader("train", { batch = 30, seed = 1, epoch = 2 })
    local order = feed:order():totable()
    assert.equal(100, #order)
    local seen = {}
    for i = 1, 99, 3 do
      assert.is_true(order[i] == order[i + 1] and order[i] == order[i + 2])
      assert.is_nil(seen[order[i]])
      seen[order[i]] = true
    end
    local images, different = feed:raw(), 0
    for i = 1, 30, 3 do
      local d = core.ops.abs(images:slice(1, i, i) - images:slice(1, i + 1, i + 1)):range().max
      if d > 0 then different = different + 1 end
    end
    feed:close()
    assert.is_true(different >= 8)
  end)
end)

describe("a model's own mean and std", function()
  it("make it see the same pixels, whatever the data's are", function()
    local function model(options, extra)
      options.image, options.patch, options.dim, options.depth, options.heads, options.channels = 8, 4, 8, 1, 2, 3
      return cab.models.vit(options):build(extra)
    end
    local pixels = core.uniform({ 2, 3, 8, 8 }, 0, 1, 0, "pixels")
    local function normal(mean, std)
      return (pixels - core.tensor(mean):reshape(3, 1, 1)) / core.tensor(std):reshape(3, 1, 1)
    end
    local mean, std = { 0.485, 0.456, 0.406 }, { 0.229, 0.224, 0.225 }
    local plain = model({ seed = 1 })
    local own = model({ seed = 1, mean = 0.5, std = { 0.5 } }, { mean = mean, std = std })
    local want = plain:forward(normal({ 0.5, 0.5, 0.5 }, { 0.5, 0.5, 0.5 }))
    assert.is_true(core.ops.abs(own:forward(normal(mean, std)) - want):range().max < 1e-5)
    assert.is_nil(model({ seed = 1 }, { mean = mean, std = std }).view)
    assert.is_nil(model({ mean = mean, std = std }, { mean = mean, std = std }).view)
    assert.matches("mean has 2 values", refused(2, model, { mean = { 0, 1 } }, { mean = mean, std = std }))
  end)
end)

describe("data.augment", function()
  it("takes timm's words and says what it does not know", function()
    assert.same({ magnitude = 9, spread = 0.5, layers = 2 }, cab.data.parse_augment "rand-m9-mstd0.5-inc1")
    assert.same({ magnitude = 7, layers = 3, chance = 0.7 }, cab.data.parse_augment "rand-m7-n3-p0.7-inc1")
    for text, want in pairs { ["rand-m9"] = "only inc1", ["rand-w0-inc1"] = "'w0'", ["augmix-m3"] = "unknown value 'augmix%-m3'",
      ["3-augmen"] = "did you mean '3%-augment'", ["rand-n2.5-inc1"] = "no integer" } do
      assert.matches(want, refused(2, cab.data.fashion, { augment = text }))
    end
  end)
end)

describe("cab data show", function()
  local at = photos("shown", 4)
  local function recipe(options)
    options.root, options.size, options.index = at, 8, "none"
    return cab.recipe { data = cab.data.folder(options), student = cab.models.vim { size = "tiny" },
      stages = { { loss = { vanilla = 1 }, steps = 1 } }, batch = 4, seed = 7 }.resolved
  end

  it("writes the bytes that a training batch has, with any number of threads", function()
    for _, options in ipairs { { flip = true, augment = "3-augment", jitter = 0.3 }, { mixup = 1 }, { augment = "rand-m9-mstd0.5-inc1", erase = 1 } } do
      local r = recipe(options)
      local text = tools.show(r, { sample = 6, epoch = 3, out = root .. "/show.png" })
      local batch, row = text:match "batch (%d+), place (%d+)"
      row = math.tointeger(row)
      r.data.threads = 2
      local data = cab.data.build(r.data)
      local feed = data:loader("train", { batch = 4, seed = 7, epoch = 3, start = tonumber(batch) })
      local images, labels = feed:raw()
      feed:close()
      assert.equal(1, labels:totable()[row])
      local mean, std = core.tensor(data.mean):reshape(3, 1, 1), core.tensor(data.std):reshape(3, 1, 1)
      local bytes = (images:slice(1, row, row):reshape(3, 8, 8) * std + mean) * 255
      local shown = core.read_image(root .. "/show.png"):permute(3, 1, 2):to "f32"
      assert.is_true(core.ops.abs(bytes - shown):range().max < 0.01)
      assert.matches(options.mixup and "0%.%d%d [abc] %+ 0%.%d%d [abc]" or ": b, 8 x 8 pixels$", text)
    end
  end)

  it("says why a record is not seen", function()
    local r = recipe { fraction = 0.5 }
    local missing, seen = 0, 0
    for sample = 1, 12 do
      local ok, e = pcall(tools.show, r, { sample = sample, epoch = 0, out = root .. "/show.png" })
      if ok then seen = seen + 1
      else
        missing = missing + 1
        assert.equal(2, e.code)
        assert.is_truthy(tostring(e):find "is not among the 6 of epoch 0" or tostring(e):find "is left out of epoch 0")
      end
    end
    assert.same({ 4, 8 }, { seen, missing })
    assert.matches("records 1 to 12", refused(2, tools.show, r, { sample = 13, epoch = 0, out = "x" }))
  end)
end)

describe("data that is not there", function()
  it("is named, with what belongs there and how to say where it is", function()
    local e = require "refused"(74, cab.data.build, cab.data.imagenet { root = root .. "/nowhere" })
    assert.matches("nowhere/train: no such folder; expected the 1000 folders n01440764", e.message)
    assert.matches("data.root=DIR", e.message)
    assert.matches("no such file; expected the train images of the cifar data", refused(74, cab.data.build, cab.data.cifar { root = root }))
  end)
end)

describe("damaged images in training", function()
  it("end it, or are left out and told, as the recipe says", function()
    local at = photos("damaged", 40)
    local r = cab.recipe {
      data = cab.data.folder { root = at, size = 8, index = "none", crop = "resized", flip = true },
      student = cab.models.vit { patch = 4, dim = 8, depth = 1, heads = 1 },
      stages = { { loss = { vanilla = 1 }, epochs = 2 } }, device = "cpu", batch = 8, eval = { batch = 20 },
    }
    put(at .. "/train/b/07.png", "x")
    local e = require "refused"(65, r.run, r, { out = root .. "/ends", quiet = true })
    assert.matches("record 47: .*train/b/07.png", e.message)
    r:override { "data.on_bad=skip" }
    r:run { out = root .. "/skips", quiet = true }
    for epoch = 0, 1 do
      assert.matches(("warning: epoch %d: 1 images could not be read and were left out, 0 warnings"):format(epoch), folder.read(root .. "/skips/log.txt"))
    end
    os.remove(at .. "/train/b/07.png")
    os.rename(at .. "/test/c/40.png", at .. "/test/c/41.jpg")
    put(at .. "/test/c/42.jpg", "y")
    r:run { out = root .. "/evaluates", quiet = true }
    assert.matches("warning: evaluation: 1 images could not be read", folder.read(root .. "/evaluates/log.txt"))
  end)
end)

describe("recipes/", function()
  local function recipe(name) return core.loadfile("recipes/" .. name .. ".lua")() end
  local function epochs(name, preset)
    local r = recipe(name):override { "preset=" .. preset }.resolved
    return r.data.fraction, r.stages[1].epochs
  end

  it("vim_tiny and vim_small are method.md's section 5", function()
    for name, size in pairs { vim_tiny = "tiny", vim_small = "small" } do
      local r = recipe(name).resolved
      assert.same({ size, size, "identity" }, { r.teacher.size, r.student.size, r.student.decay })
      assert.same({ "rand-m9-mstd0.5-inc1", 0.3, 0.25, 0.8, 1, 0.5 }, { r.data.augment, r.data.jitter, r.data.erase, r.data.mixup, r.data.cutmix, r.data.switch })
      assert.same({ 224, "resized", true, "bicubic", 0.875, "val" }, { r.data.size, r.data.crop, r.data.flip, r.data.interpolation,
        r.data.crop_ratio, r.data.test })
      local o = r.optim
      assert.same({ 5e-4 * r.batch / 512, 1e-5, 1e-6, 0.05, 0.9, 0.999, 1e-8, 5, 10, 0.99996, 0 },
        { o.lr, o.low, o.start, o.weight_decay, o.beta1, o.beta2, o.eps, o.warmup, o.cooldown, o.ema, o.clip })
      assert.equal(64, r.batch)
      for preset, want in pairs { ["1%"] = { 0.01, 3000 }, ["5%"] = { 0.05, 600 }, ["10%"] = { 0.1, 300 }, ["20%"] = { 0.2, 150 } } do
        assert.same(want, { epochs(name, preset) })
      end
      local vanilla = recipe(name):override({ "optim.lr=1e-3", "preset=vanilla", "preset=1%" }).resolved
      assert.same({ 1e-3, 3000, 0.1 }, { vanilla.optim.lr, vanilla.stages[1].epochs, vanilla.stages[1].loss.vanilla.smoothing })
      assert.is_nil(vanilla.teacher)
      assert.is_nil(vanilla.stages[1].loss.align)
    end
  end)

  it("say what is missing, where it belongs and which command then works", function()
    local cifar = photos("cifar10", 22)
    for _, case in ipairs {
      { "vim_tiny", {}, { "data/imagenet/train: no such folder", "data/imagenet/val/n01440764", "then: cab run recipes/vim_tiny.lua preset=10%%" } },
      { "vim_small", {}, { "data/imagenet/train: no such folder", "then: cab run recipes/vim_small.lua" } },
      { "vim_small", { "data.root=" .. cifar, "data.test=test", "data.fraction=1" },
        { "data/deit_small.safetensors: no such file", "DeiT%-Small", "then: cab run" } },
      { "teacher_cifar", {}, { "data/cifar10/train: no such folder", "tar xf", "then: cab run recipes/teacher_cifar.lua" } },
      { "teacher_cifar", { "data.root=" .. cifar, "batch=8" },
        { "data/vit_tiny_patch16_224.safetensors: no such file", "then: cab run recipes/teacher_cifar.lua" } },
      { "vim_tiny_cifar", { "data.root=" .. cifar, "data.fraction=1" },
        { "data/teacher_cifar.safetensors: no such file", "cab run recipes/teacher_cifar.lua makes it" } },
    } do
      local name, overrides, texts = table.unpack(case)
      local r = recipe(name):override(overrides):override { "device=cpu", "precision=f32", "data.threads=1", "data.index=none" }
      local e = require "refused"(74, r.run, r, { out = root .. "/missing", quiet = true })
      for _, text in ipairs(texts) do assert.matches(text, e.message) end
      os.execute(("rm -rf '%s/missing'"):format(root))
    end
  end)

  it("have presets, or say that they have none", function()
    local r = recipe "vim_tiny"
    assert.matches("unknown preset '2%%'", refused(2, r.override, r, { "preset=2%" }))
    local q = recipe "teacher_fashion"
    assert.matches("unknown preset 'x': this recipe has none", refused(2, q.override, q, { "preset=x" }))
  end)
end)
