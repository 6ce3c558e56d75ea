-- Data sets, transforms, the loader and subsets.
local core = require "cab.core"
local lfs = require "lfs"

local dir = os.tmpname()
os.remove(dir)
lfs.mkdir(dir)

local function put(name, bytes)
  local f = assert(io.open(dir .. "/" .. name, "wb"))
  f:write(bytes)
  f:close()
  return dir .. "/" .. name
end

local function refused(f, ...) return require "refused"(nil, f, ...) end

local function gzip(path)
  os.execute(("gzip -kf '%s'"):format(path))
  return path .. ".gz"
end

local function images(n, h, w, data) return string.pack(">I4I4I4I4", 0x803, n, h, w) .. data end
local function labels(...) return string.pack(">I4I4", 0x801, select("#", ...)) .. string.char(...) end

local function drain(loader)
  local n, out, classes = 0, {}, {}
  while true do
    local x, y = loader:next()
    if not x then break end
    n = n + 1
    out[n], classes[n] = x:totable(), y:totable()
  end
  loader:close()
  return out, classes
end

describe("data.idx", function()
  local pixels = ""
  for i = 0, 11 do pixels = pixels .. string.char(i * 20) end
  local x, y = put("x", images(3, 2, 2, pixels)), put("y", labels(0, 2, 1))

  it("reads plain and gzip files", function()
    for _, pair in ipairs { { x, y }, { gzip(x), gzip(y) } } do
      local ds = core.data.open { kind = "idx", images = pair[1], labels = pair[2] }
      assert.same({ 3, 3, 1 }, { ds:count(), ds:classes(), ds:channels() })
      assert.same({ 2, 2 }, { ds:size() })
      assert.same({ 0, 2, 1 }, ds:labels():totable())
      assert.is_nil(ds:names())
      local image, label = ds:image(2)
      assert.same({ { { 80 }, { 100 } }, { { 120 }, { 140 } } }, image:totable())
      assert.equal(2, label)
      ds:close()
      ds:close()
      assert.truthy(refused(ds.count, ds).message:find "closed")
    end
  end)

  it("takes names as the classes", function()
    local ds = core.data.open { kind = "idx", images = x, labels = y, names = { "a", "b", "c", "d" } }
    assert.equal(4, ds:classes())
    assert.same({ "a", "b", "c", "d" }, ds:names())
    local e = refused(core.data.open, { kind = "idx", images = x, labels = y, names = { "a", "b" } })
    assert.same({ 65, "idx-label", y, 9 }, { e.code, e.id, e.file, e.offset })
    assert.truthy(e.message:find "record 2: label 2, expected 0 to 1")
  end)

  local good = images(3, 2, 2, pixels)
  for _, case in ipairs {
    { "an empty file", "", "idx-size", 0 },
    { "three bytes", "\0\0\8", "idx-size", 0 },
    { "another magic", "\1" .. good:sub(2), "idx-magic", 0 },
    { "floats", "\0\0\13" .. good:sub(4), "idx-type", 2 },
    { "one dimension", "\0\0\8\1" .. good:sub(5), "idx-dims", 3 },
    { "a cut header", good:sub(1, 13), "idx-size", 13 },
    { "a missing byte", good:sub(1, -2), "idx-size", 16 },
    { "a byte too many", good .. "x", "idx-size", 16 },
    { "a count that lies", images(4, 2, 2, pixels), "idx-size", 16 },
    { "a product that overflows", images(0xffffffff, 0x4000, 0x4000, pixels), "idx-size", 16 },
    { "a huge side", images(1, 0xffffffff, 1, pixels), "idx-size", 8 },
    { "no height", images(3, 0, 2, ""), "idx-size", 8 },
    { "no gzip behind the magic", "\31\139abcdefgh", "gz-data" },
    { "a gzip that ends early", "\31\139\8\0\0\0\0\0\0\3\75", "gz-truncated" },
  } do
    it("refuses " .. case[1], function()
      local bad = put("bad", case[2])
      local e = refused(core.data.open, { kind = "idx", images = bad, labels = y })
      assert.same({ 65, case[3], bad }, { e.code, e.id, e.file }, tostring(e))
      if case[4] then assert.equal(case[4], e.offset) end
    end)
  end

  it("refuses cut, changed and padded gzip files", function()
    local f = io.open(gzip(x), "rb")
    local bytes = f:read "a"
    f:close()
    for n = 2, #bytes - 1 do
      assert.equal(65, refused(core.data.open, { kind = "idx", images = put("z", bytes:sub(1, n)), labels = y }).code)
    end
    assert.equal("gz-trailing", refused(core.data.open, { kind = "idx", images = put("z", bytes .. "x"), labels = y }).id)
    assert.equal("gz-data", refused(core.data.open, { kind = "idx", images = put("z", bytes:sub(1, -9) .. "\0\0\0\0" ..
      bytes:sub(-4)), labels = y }).id)
  end)

  it("refuses another number of labels, unknown keys and kinds", function()
    assert.equal("idx-count", refused(core.data.open, { kind = "idx", images = x, labels = put("y2", labels(0, 1)) }).id)
    assert.truthy(refused(core.data.open, { kind = "idx", image = x, labels = y }).message:find "did you mean 'images'")
    assert.truthy(refused(core.data.open, { kind = "idx", images = x }).message:find "'labels' is missing")
    assert.truthy(refused(core.data.open, { kind = "idy", images = x }).message:find "idx, cifar, folder")
    assert.truthy(refused(core.data.open, { kind = "idx", images = x, labels = y, names = { 1 } }).message:find "string expected")
  end)
end)

describe("data.cifar", function()
  local record = "\3" .. ("\1"):rep(1024) .. ("\2"):rep(1024) .. ("\3"):rep(1024)

  it("reads batches in order, planes to pixels", function()
    local a, b = put("a.bin", record .. "\9" .. record:sub(2)), put("b.bin", "\0" .. record:sub(2))
    local ds = core.data.open { kind = "cifar", files = { a, b } }
    assert.same({ 3, 10, 3 }, { ds:count(), ds:classes(), ds:channels() })
    assert.same({ 3, 9, 0 }, ds:labels():totable())
    assert.equal("truck", ds:names()[10])
    assert.same({ 1, 2, 3 }, ds:image(2):totable()[32][32])
  end)

  it("refuses wrong sizes and labels", function()
    local cut, label = put("cut.bin", record .. "x"), put("label.bin", record .. "\10" .. record:sub(2))
    local e = refused(core.data.open, { kind = "cifar", files = { cut } })
    assert.same({ "cifar-size", cut }, { e.id, e.file })
    assert.equal("cifar-size", refused(core.data.open, { kind = "cifar", files = { put("none.bin", "") } }).id)
    e = refused(core.data.open, { kind = "cifar", files = { label } })
    assert.same({ "cifar-label", 3073 }, { e.id, e.offset })
    assert.truthy(e.message:find "record 2: label 10")
    assert.equal(1, refused(core.data.open, { kind = "cifar", files = {} }).code)
  end)
end)

describe("data.folder", function()
  local root = dir .. "/folder"
  local function image(value, side) return core.full({ side or 4, side or 4, 3 }, value, "u8") end
  lfs.mkdir(root)
  for c, class in ipairs { "b", "a", "c" } do
    lfs.mkdir(root .. "/" .. class)
    for i = 1, 3 do core.write_png(("%s/%s/%d.png"):format(root, class, i), image(c * 10 + i)) end
  end
  put("folder/a/notes.txt", "x")
  put("folder/README", "x")

  it("sorts classes and files and decodes on demand", function()
    local ds = core.data.open { kind = "folder", root = root }
    assert.same({ 9, 3, 3, 2 }, { ds:count(), ds:classes(), ds:channels(), ds:ignored() })
    assert.same({ "a", "b", "c" }, ds:names())
    assert.same({ 0, 0, 0, 1, 1, 1, 2, 2, 2 }, ds:labels():totable())
    assert.equal(21, ds:image(1):totable()[1][1][1])
    assert.equal(12, ds:image(5):totable()[1][1][1])
    assert.is_nil(ds:size())
  end)

  it("keeps the order of given names and refuses other folders", function()
    assert.same({ 3, 3, 3, 1, 1, 1, 0, 0, 0 }, core.data.open { kind = "folder", root = root, names = { "c", "b", "x", "a" }
      }:labels():totable())
    local e = refused(core.data.open, { kind = "folder", root = root, names = { "a", "b" } })
    assert.same({ 65, "folder-class" }, { e.code, e.id })
    assert.truthy(e.message:find '"c"')
  end)

  it("refuses roots without classes and classes without images", function()
    lfs.mkdir(dir .. "/empty")
    assert.equal("folder-empty", refused(core.data.open, { kind = "folder", root = dir .. "/empty" }).id)
    lfs.mkdir(dir .. "/empty/a")
    assert.equal("folder-empty", refused(core.data.open, { kind = "folder", root = dir .. "/empty" }).id)
    assert.equal(74, refused(core.data.open, { kind = "folder", root = dir .. "/none" }).code)
  end)

  it("names file and record of an image that cannot be used", function()
    local ds = core.data.open { kind = "folder", root = root }
    core.write_png(root .. "/b/2.png", image(9, 5))
    for _, threads in ipairs { 0, 1, 3 } do
      local loader = core.data.loader { dataset = ds, batch = 2, threads = threads, transform = { size = 4 } }
      loader:next()
      loader:next()
      local e = refused(loader.next, loader)
      assert.same({ 65, "image-size", root .. "/b/2.png" }, { e.code, e.id, e.file })
      assert.truthy(e.message:find "record 5: .*5 x 5 pixels, expected 4 x 4")
      assert.equal(e.message, refused(loader.next, loader).message)
      loader:close()
    end
    put("folder/b/2.png", "no image")
    local e = refused(core.data.loader({ dataset = ds, batch = 9, transform = { size = 4 } }).next,
      core.data.loader { dataset = ds, batch = 9, transform = { size = 4 } })
    assert.equal("image-kind", e.id)
    os.remove(root .. "/b/2.png")
    assert.equal(74, refused(ds.image, ds, 5).code)
    core.write_png(root .. "/b/2.png", image(12))
  end)

  it("skips bad images when asked, and fails above 1 %", function()
    local many = dir .. "/many"
    lfs.mkdir(many)
    lfs.mkdir(many .. "/a")
    for i = 1, 200 do core.write_png(("%s/a/%03d.png"):format(many, i), core.full({ 1, 1 }, i, "u8")) end
    local ds = core.data.open { kind = "folder", root = many }
    local function count(threads)
      local loader = core.data.loader { dataset = ds, batch = 50, on_bad = "skip", threads = threads, transform = { size = 1,
        channels = 1 } }
      local n = 0
      while true do
        local x = loader:next()
        if not x then break end
        n = n + x:size(1)
      end
      return n, loader:skipped()
    end
    assert.same({ 200, 0 }, { count(2) })
    for i = 1, 2 do
      local f = io.open(("%s/a/%03d.png"):format(many, i * 70), "wb")
      f:write "broken"
      f:close()
    end
    assert.same({ 198, 2 }, { count(0) })
    assert.same({ 198, 2 }, { count(3) })
    local f = io.open(many .. "/a/190.png", "wb")
    f:write "broken"
    f:close()
    local e = refused(count, 2)
    assert.equal(65, e.code)
    assert.truthy(e.message:find "3 of 200 records are bad, more than 1%%; the last: record 190: .*190.png")
  end)
end)

describe("data.transform", function()
  local four = core.tensor({ { 0, 51 }, { 102, 255 } }, "u8")

  it("scales, normalises and adapts channels", function()
    local t = core.data.transform(four, { mean = { 0.5 }, std = { 0.25 } })
    for i, want in ipairs { -2, -1.2, -0.4, 2 } do assert.is_true(math.abs(t:reshape(4):totable()[i] - want) < 1e-6) end
    assert.same({ 3, 2, 2 }, core.data.transform(four, { channels = 3 }):shape())
    local rgb = core.tensor({ { { 255, 0, 0 }, { 0, 255, 0 } }, { { 0, 0, 255 }, { 255, 255, 255 } } }, "u8")
    local grey = core.data.transform(rgb, { channels = 1 }):reshape(4):totable()
    for i, want in ipairs { 76, 150, 29, 255 } do assert.equal(want, math.floor(grey[i] * 255 + 0.5)) end -- Pillow's "L"
    local planes = core.data.transform(rgb, {}):totable()
    assert.same({ { 1, 0 }, { 0, 1 } }, planes[1])
    assert.same({ { 0, 0 }, { 1, 1 } }, planes[3])
  end)

  it("resizes as Pillow does", function()
    local row = {}
    for y = 1, 5 do
      row[y] = {}
      for x = 1, 7 do row[y][x] = (x * x * 31 + y * 17) % 256 end
    end
    local function pixels(how)
      local out = core.data.transform(core.tensor(row, "u8"), how):reshape(9):totable()
      for i = 1, 9 do out[i] = math.floor(out[i] * 255 + 0.5) end
      return out
    end
    -- Image.fromarray(a).resize((4, 3), ...) and columns 0 to 2 of it
    assert.same({ 98, 53, 38, 126, 81, 66, 154, 109, 94 }, pixels { size = 3, resize = 3, crop = "center" })
    assert.same({ 94, 56, 42, 121, 83, 69, 148, 110, 96 }, pixels { size = 3, resize = 3, crop = "center", interpolation = "bilinear" })
  end)

  it("crops the centre, with black outside", function()
    local t = core.data.transform(core.full({ 2, 2 }, 255, "u8"), { size = 4, crop = "center" })
    assert.same({ { { 0, 0, 0, 0 }, { 0, 1, 1, 0 }, { 0, 1, 1, 0 }, { 0, 0, 0, 0 } } }, t:totable())
  end)

  it("draws by seed, epoch and sample alone", function()
    local image = core.uniform({ 12, 12 }, 0, 255, 1, 1):to "u8"
    local how = { size = 6, crop = "random", pad = 2, flip = true }
    local function draw(...) return core.json_encode(core.data.transform(image, how, ...):totable()) end
    local seen, kinds = {}, 0
    for seed = 0, 2 do
      for epoch = 0, 2 do
        for sample = 0, 9 do
          local a = draw(seed, epoch, sample)
          assert.equal(a, draw(seed, epoch, sample))
          if not seen[a] then kinds = kinds + 1 end
          seen[a] = true
        end
      end
    end
    assert.is_true(kinds > 60)
    how = { size = 6, crop = "resized", flip = true, scale = { 0.2, 1 } }
    assert.equal(draw(1, 2, 3), draw(1, 2, 3))
    assert.not_equal(draw(1, 2, 3), draw(1, 2, 4))
  end)

  it("mirrors half of the images", function()
    local mirrored = 0
    for sample = 0, 399 do
      local t = core.data.transform(four, { flip = true }, 7, 0, sample):totable()
      if t[1][1][1] > 0 then mirrored = mirrored + 1 end
    end
    assert.is_true(mirrored > 160 and mirrored < 240)
  end)

  it("refuses what makes no sense", function()
    for _, case in ipairs {
      { { sise = 4 }, "did you mean 'size'" }, { { size = 0 }, "size" }, { { size = 3 }, "expected 3 x 3" }, { { channels = 2 },
        "expected 1 or 3" },
      { { pad = 2 }, "pad needs crop" }, { { crop = "centre" }, "expected one of" }, { { mean = { 1, 2 } }, "2 numbers, expected 1" },
      { { std = 0 }, "std 0" }, { { std = { 0 / 0 } }, "std" }, { { resize = 4, crop = "resized" }, "no part of crop" },
        { { flip = 1 }, "boolean expected" },
      { { crop = "resized", scale = { 0, 1 } }, "scale" }, { { crop = "random", size = 3 }, "smaller than the crop" },
        { { size = 20000 }, "size is 20000" },
    } do
      local e = refused(core.data.transform, four, case[1])
      assert.truthy(e.message:find(case[2], 1, true), e.message)
    end
    assert.truthy(refused(core.data.transform, core.zeros { 2, 2 }, {}).message:find "expected u8")
  end)
end)

describe("data.loader", function()
  local n = 101
  local bytes, classes = {}, {}
  for i = 1, n do bytes[i], classes[i] = string.char(i, 2 * i % 256, 0, 255), i % 5 end
  local ds = core.data.open { kind = "idx", images = put("lx", images(n, 2, 2, table.concat(bytes))), labels = put("ly",
    labels(table.unpack(classes))) }

  it("gives every record once, in order, the last batch short", function()
    local x, y = drain(core.data.loader { dataset = ds, batch = 8, threads = 2 })
    assert.equal(13, #x)
    assert.equal(5, #x[13])
    local i = 0
    for b = 1, #x do
      for k = 1, #x[b] do
        i = i + 1
        assert.is_true(math.abs(x[b][k][1][1][1] - i / 255) < 1e-7)
        assert.equal(classes[i], y[b][k])
      end
    end
    assert.equal(n, i)
    assert.equal(12, #drain(core.data.loader { dataset = ds, batch = 8, drop_last = true }))
    assert.equal(1, #drain(core.data.loader { dataset = ds, batch = 1000 }))
  end)

  it("gives the same bits with any number of threads", function()
    local function all(threads)
      return { drain(core.data.loader { dataset = ds, batch = 7, seed = 3, epoch = 4, shuffle = true, threads = threads,
        transform = { crop = "random", pad = 1, flip = true, mean = 0.4, std = 0.3 } }) }
    end
    local want = all(0)
    for _, threads in ipairs { 1, 2, 5, 16 } do assert.same(want, all(threads)) end
  end)

  it("shuffles by seed and epoch, and starts where it is told", function()
    local function order(options)
      options.dataset, options.batch = ds, 10
      local x = drain(core.data.loader(options))
      local out = {}
      for b = 1, #x do for k = 1, #x[b] do out[#out + 1] = math.floor(x[b][k][1][1][1] * 255 + 0.5) end end
      return out
    end
    local a = order { shuffle = true, seed = 1, epoch = 0 }
    assert.same(a, order { shuffle = true, seed = 1, epoch = 0 })
    assert.not_same(a, order { shuffle = true, seed = 1, epoch = 1 })
    assert.not_same(a, order { shuffle = true, seed = 2, epoch = 0 })
    assert.same(table.move(a, 31, n, 1, {}), order { shuffle = true, seed = 1, epoch = 0, start = 3 })
    assert.same({}, order { start = 11 })
    table.sort(a)
    for i = 1, n do assert.equal(i, a[i]) end
    assert.same({ 3, 100, 3 }, order { indices = core.tensor({ 2, 99, 2 }, "i32") })
    assert.same({}, order { indices = core.zeros({ 0 }, "i32") })
  end)

  it("closes at once, also when nobody read", function()
    local start = core.now()
    for _ = 1, 20 do
      local loader = core.data.loader { dataset = ds, batch = 2, threads = 4 }
      loader:next()
      loader:close()
      loader:close()
      assert.truthy(refused(loader.next, loader).message:find "closed")
    end
    do local l <close> = core.data.loader { dataset = ds, batch = 2, threads = 4 } end
    for _ = 1, 5 do core.data.loader { dataset = ds, batch = 2, threads = 4 } end
    collectgarbage()
    assert.is_true(core.now() - start < 5)
  end)

  it("outlives its data set's handle and keeps tensors to their scope", function()
    local own = core.data.open { kind = "idx", images = dir .. "/lx", labels = dir .. "/ly" }
    local loader = core.data.loader { dataset = own, batch = 50 }
    own:close()
    local x
    do
      local scope <close> = core.scope()
      x = loader:next()
      assert.same({ 50, 1, 2, 2 }, x:shape())
    end
    assert.is_false(pcall(x.shape, x))
    assert.equal(50, loader:next():size(1))
    assert.equal(1, loader:next():size(1))
    assert.is_nil(loader:next())
    assert.is_nil(loader:next())
    assert.equal(3, loader:batches())
    assert.is_true(loader:wait() >= 0)
  end)

  it("refuses bad options", function()
    for _, case in ipairs {
      { { batch = 2 }, "dataset expected" }, { { dataset = ds }, "'batch' is missing" }, { { dataset = ds, batch = -1 }, "batch" },
      { { dataset = ds, batch = 2, thread = 1 }, "did you mean 'threads'" }, { { dataset = ds, batch = 2, threads = 1000 }, "threads" },
      { { dataset = ds, batch = 2, indices = core.tensor({ 101 }, "i32") }, "index 101" }, { { dataset = ds, batch = 2,
        indices = core.tensor({ -1 }, "i32") }, "index -1" },
      { { dataset = ds, batch = 2, indices = core.tensor { 1 } }, "i32" }, { { dataset = ds, batch = 2, on_bad = "ignore" },
        "error, skip" },
      { { dataset = ds, batch = 2, transform = { size = 3 } }, "set resize or crop" }, { { dataset = ds, batch = 2, start = -1 },
        "start" },
      { { dataset = 3, batch = 2 }, "dataset expected" }, { { dataset = ds, batch = 2, transform = 3 }, "table" },
    } do
      local e = refused(core.data.loader, case[1])
      assert.equal(1, e.code)
      assert.truthy(e.message:find(case[2], 1, true), e.message)
    end
  end)
end)

describe("data.subset", function()
  local list = {}
  for i = 1, 1000 do list[i] = (i * i + i // 7) % 7 end
  local labels_ = core.tensor(list, "i32")

  it("is nested, balanced, sorted and seeded", function()
    local larger
    for _, fraction in ipairs { 1, 0.5, 0.2, 0.1, 0.05, 0.001 } do
      local picked, set, per_class, size = core.data.subset(labels_, fraction, 4):totable(), {}, {}, {}
      for i, v in ipairs(picked) do
        assert.is_true(i == 1 or picked[i - 1] < v)
        assert.is_true(not larger or larger[v])
        set[v] = true
        per_class[list[v + 1]] = (per_class[list[v + 1]] or 0) + 1
      end
      for _, c in ipairs(list) do size[c] = (size[c] or 0) + 1 end
      for c, s in pairs(size) do assert.equal(math.ceil(fraction * s - 1e-9), per_class[c]) end
      larger = set
    end
    assert.same(core.data.subset(labels_, 0.1, 4):totable(), core.data.subset(labels_, 0.1, 4):totable())
    assert.not_same(core.data.subset(labels_, 0.1, 4):totable(), core.data.subset(labels_, 0.1, 5):totable())
    assert.equal(1000, core.data.subset(labels_, 1, 0):size(1))
  end)

  it("holds a share of each class out of what it takes, nested, and takes the same with and without", function()
    local kept_before, held_before
    for _, fraction in ipairs { 1, 0.5, 0.2, 0.1 } do
      local kept, held = core.data.subset(labels_, fraction, 4, 0.25)
      local whole, mark, size, count = core.data.subset(labels_, fraction, 4):totable(), {}, {}, {}
      local function add(indices, before, what)
        local set, last = {}, -1
        for _, v in ipairs(indices:totable()) do
          assert.is_true(v > last and not mark[v])
          assert.is_true(not before or before[v], what)
          last, mark[v], set[v] = v, what, true
        end
        return set
      end
      kept_before, held_before = add(kept, kept_before, "kept"), add(held, held_before, "held")
      for _, v in ipairs(whole) do
        local c = list[v + 1]
        size[c], count[c] = (size[c] or 0) + 1, (count[c] or 0) + (mark[v] == "held" and 1 or 0)
      end
      for c, n in pairs(size) do assert.equal(n // 4, count[c]) end
      assert.equal(#whole, kept:count() + held:count())
    end
    assert.equal(0, select(2, core.data.subset(labels_, 0.001, 4, 0.25)):count())
    for _, h in ipairs { -0.1, 1, 0 / 0 } do assert.truthy(refused(core.data.subset, labels_, 1, 1, h).message:find "hold") end
  end)

  it("refuses fractions outside (0, 1] and bad labels", function()
    for _, f in ipairs { 0, -1, 1.1, 0 / 0 } do assert.truthy(refused(core.data.subset, labels_, f, 1).message:find "fraction") end
    assert.truthy(refused(core.data.subset, core.tensor({ 0, -1 }, "i32"), 0.5, 1).message:find "label %-1")
    assert.truthy(refused(core.data.subset, core.tensor { 0, 1 }, 0.5, 1).message:find "i32")
  end)
end)
