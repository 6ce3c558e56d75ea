-- Image data that is damaged or lies, through the loader: trust rows 12 to 14, 17 and 44. What one file does alone is in
-- io_spec.lua and data_spec.lua.
local core = require "cab.core"
local lfs = require "lfs"

local root = os.tmpname()
os.remove(root)
lfs.mkdir(root)

local function refused(code, f, ...) return require "refused"(code, f, ...) end

local function put(path, bytes)
  local f = assert(io.open(path, "wb"))
  f:write(bytes)
  f:close()
  return path
end

local tensors, metadata = core.load "tests/fixtures/images.safetensors"
local files = {} -- name -> bytes of a good JPEG or PNG of 109 x 83 pixels
for _, c in ipairs(core.json_decode(metadata.cases)) do
  if c.kind == "file" then
    local bytes = {}
    for k, v in ipairs(tensors[c.input]:totable()) do bytes[k] = string.char(v) end
    files[c.name] = table.concat(bytes)
  end
end

-- A folder of one class whose only image is this.
local single = root .. "/single"
lfs.mkdir(single)
lfs.mkdir(single .. "/a")
put(single .. "/a/x.jpeg", files["420"])

local function load(epoch, options)
  local one = core.data.open { kind = "folder", root = single } -- anew: a file once found good is not read to its end again
  local o = { dataset = one, batch = 1, threads = 0, epoch = epoch, transform = { size = 8, channels = 3, crop = "resized", draft = true } }
  for k, v in pairs(options or {}) do o[k] = v end
  local loader <close> = core.data.loader(o)
  local images = loader:next()
  return images, loader:warnings()
end

describe("a damaged image", function()
  it("is refused by any crop of it, wherever the damage is", function()
    local count = 0
    for _, name in ipairs { "420", "progressive", "grey", "cmyk", "png" } do
      local good = files[name]
      for i = 1, 12 do
        put(single .. "/a/x.jpeg", good:sub(1, #good * i // 13))
        count = count + 1
        for epoch = 0, 3 do
          local e = refused(65, load, epoch)
          assert.truthy(e.id == "jpeg" or e.id == "png", tostring(e))
          assert.matches("record 1: ", e.message)
          assert.equal(single .. "/a/x.jpeg", e.file)
          assert.is_true(e.offset >= 0)
        end
      end
    end
    assert.is_true(count >= 20)
  end)

  it("is refused or read as before whatever byte of it is changed", function()
    local refusals = 0
    for _, name in ipairs { "420", "422", "progressive", "cmyk" } do
      local good = files[name]
      for i = 1, 60 do
        local at = 3 + (#good - 3) * i // 61
        put(single .. "/a/x.jpeg", good:sub(1, at - 1) .. string.char(good:byte(at) ~ (1 << i % 8)) .. good:sub(at + 1))
        local first = { pcall(load, i) }
        for threads = 0, 1 do
          local again = { pcall(load, i, { threads = threads }) }
          assert.equal(first[1], again[1])
          if first[1] then assert.same(first[2]:totable(), again[2]:totable())
          else
            assert.equal(65, first[2].code)
            assert.equal(first[2].message, again[2].message)
          end
        end
        if not first[1] then refusals = refusals + 1 end
      end
    end
    assert.is_true(refusals >= 20)
  end)

  it("is counted and read as far as it goes where that is tolerated", function()
    put(single .. "/a/x.jpeg", files["420"]:sub(1, -400))
    local images, warnings = load(0, { tolerant = true })
    assert.same({ 1, 3, 8, 8 }, images:shape())
    assert.is_true(warnings > 0)
  end)
end)

describe("a size that lies", function()
  -- The frame header of a JPEG says height, then width.
  local at = files["420"]:find("\xff\xc0", 1, true)
  for _, case in ipairs { { 65500, 65500 }, { 0, 109 }, { 83, 0 }, { 16385, 10 }, { 10, 16385 }, { 16384, 16384 }, { 84 * 40, 109 }, { 83, 109 * 40 } } do
    it(("of %d x %d is refused before there is room for it"):format(case[2], case[1]), function()
      local bytes = files["420"]
      put(single .. "/a/x.jpeg", bytes:sub(1, at + 4) .. string.pack(">I2I2", case[1], case[2]) .. bytes:sub(at + 9))
      local begun = core.now()
      refused(65, load, 0)
      assert.is_true(core.now() - begun < 2)
    end)
  end
end)

describe("what is no image file", function()
  for _, case in ipairs {
    { "a directory", function(path) lfs.mkdir(path) end, 65, "a directory" },
    { "a FIFO", function(path) os.execute(("mkfifo '%s'"):format(path)) end, 65, "a FIFO" },
    { "a device", function(path) lfs.link("/dev/zero", path, true) end, 65, "a device" },
    { "a dangling link", function(path) lfs.link(root .. "/nothing", path, true) end, 74, "No such file" },
    { "a link to itself", function(path) lfs.link(path, path, true) end, 74, "[Tt]oo many" },
    { "a sparse file of 1 TiB", function(path) os.execute(("truncate -s 1T '%s'"):format(path)) end, 65, "at most" },
    { "an empty file", function(path) put(path, "") end, 65, "neither PNG nor JPEG" },
    { "text", function(path) put(path, "hello") end, 65, "neither PNG nor JPEG" },
    { "a GIF", function(path) put(path, "GIF89a\1\0\1\0") end, 65, "neither PNG nor JPEG" },
  } do
    it(case[1] .. " in a folder is refused at once, and named", function()
      local at = ("%s/%s"):format(root, case[1]:gsub("%W", "_"))
      local path = at .. "/a/\27name.png"
      lfs.mkdir(at)
      lfs.mkdir(at .. "/a")
      case[2](path)
      local begun = core.now()
      local set = core.data.open { kind = "folder", root = at }
      local loader = core.data.loader { dataset = set, batch = 1, threads = 1, transform = { size = 8, resize = 8, crop = "center" } }
      local e = refused(case[3], loader.next, loader)
      loader:close()
      assert.is_true(core.now() - begun < 1)
      assert.matches(case[4], e.message)
      assert.matches("\\x1bname.png", tostring(e))
      assert.is_nil(tostring(e):find("\27", 1, true))
    end)
  end
end)

describe("CIFAR batches", function()
  local function record(label) return string.char(label) .. ("\7"):rep(3072) end
  it("that are cut, padded or have labels above the last class are refused with the record's number and byte", function()
    local path, count = root .. "/batch.bin", 0
    local good = record(0) .. record(9) .. record(5)
    for i = 1, 12 do
      local cut = #good * i // 13
      if cut % 3073 ~= 0 then
        local e = refused(65, core.data.open, { kind = "cifar", files = { put(path, good:sub(1, cut)) } })
        assert.equal("cifar-size", e.id)
        assert.matches(("record %d is cut off"):format(cut // 3073 + 1), e.message)
        count = count + 1
      end
    end
    for i = 0, 9 do
      local bad = record(i) .. record(10 + 20 * i) .. record(0)
      local e = refused(65, core.data.open, { kind = "cifar", files = { put(path, bad) } })
      assert.same({ "cifar-label", 3073 }, { e.id, e.offset })
      assert.matches(("record 2: label %d, expected 0 to 9"):format(10 + 20 * i), e.message)
      count = count + 1
    end
    assert.is_true(count >= 20)
  end)
end)

describe("bad records among good ones", function()
  local at = root .. "/mixed"
  lfs.mkdir(at)
  lfs.mkdir(at .. "/a")
  for i = 1, 300 do put(("%s/a/%03d.jpg"):format(at, i), files["420"]) end
  put(at .. "/a/050.jpg", files["420"]:sub(1, 900))
  put(at .. "/a/051.jpg", "x")
  put(at .. "/a/250.jpg", files["420"]:sub(1, -500))
  local set = core.data.open { kind = "folder", root = at }
  local function all(options)
    local o = { dataset = set, batch = 10, transform = { size = 8, crop = "resized", flip = true, dtype = "u8" }, seed = 1, on_bad = "skip" }
    for k, v in pairs(options) do o[k] = v end
    local loader <close> = core.data.loader(o)
    local n, out = 0, {}
    for images in function() return loader:next() end do
      n = n + images:size(1)
      out[#out + 1] = images:totable()
    end
    return n, loader:skipped(), out
  end

  it("are skipped and counted when asked, alike with any number of threads", function()
    local n, skipped, want = all { threads = 0 }
    assert.same({ 297, 3 }, { n, skipped })
    for _, threads in ipairs { 1, 4 } do
      local count, left, out = all { threads = threads }
      assert.same({ 297, 3 }, { count, left })
      assert.same(want, out)
    end
    n, skipped = all { threads = 2, mixup = 0.8 }
    assert.same({ 297, 3 }, { n, skipped })
  end)

  it("end the pass with the first of them when not asked, and threads are gone within a second", function()
    for _, threads in ipairs { 0, 1, 4 } do
      local loader = core.data.loader { dataset = set, batch = 10, threads = threads, transform = { size = 8, crop = "resized" } }
      local e
      for _ = 1, 5 do
        local ok, why = pcall(loader.next, loader)
        e = not ok and why or e
      end
      assert.equal(65, e.code)
      assert.matches("record 50: .*050.jpg", tostring(e))
      local begun = core.now()
      loader:close()
      assert.is_true(core.now() - begun < 1)
    end
  end)

  it("fail above 1 %, and where a whole training batch is bad", function()
    put(at .. "/a/252.jpg", "x")
    assert.matches("4 of 300 records are bad, more than 1%%", refused(65, all, { threads = 2 }).message)
    put(at .. "/a/252.jpg", files["420"])
    assert.matches("record 50: ", refused(65, all, { threads = 2, batch = 1, drop_last = true }).message)
  end)
end)
