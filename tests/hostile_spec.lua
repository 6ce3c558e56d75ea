-- Files that lie, change while they are read or unpack to much more, and a small stack.
local core = require "cab.core"
local process = require "process"
local refused = require "refused"
local dir = process.folder()
local function put(name, bytes) return process.put(dir .. "/" .. name, bytes) end

local function crc(bytes)
  local c = 0xffffffff
  for i = 1, #bytes do
    c = c ~ bytes:byte(i)
    for _ = 1, 8 do c = c & 1 == 1 and c >> 1 ~ 0xedb88320 or c >> 1 end
  end
  return c ~ 0xffffffff
end
local function chunk(kind, data) return string.pack(">I4", #data) .. kind .. data .. string.pack(">I4", crc(kind .. data)) end

-- MiB of memory that a script needs beyond what the program has before it.
local function extra(script)
  local code, output = process.script(dir, ([[
    local core = require "cab.core"
    local function peak() for l in io.lines "/proc/self/status" do local kb = l:match "VmHWM:%%s+(%%d+)" if kb then return kb // 1024 end end end
    local before = peak()
    %s
    print("extra", peak() - before)]]):format(script))
  assert.equal(0, code, output)
  return tonumber(output:match "extra%s+(%d+)"), output
end

teardown(function() os.execute("rm -rf " .. dir) end)

describe("a file that changes while it is read", function()
  it("is refused where it ends before its size", function()
    local path = "/sys/kernel/mm/transparent_hugepage/enabled" -- says 4096 bytes, holds a few
    local f = io.open(path)
    if not f then return pending "no file of the kernel that is shorter than it says" end
    f:close()
    local e = refused(65, core.read_image, path)
    assert.equal("file-changed", e.id)
    assert.truthy(e.message:find "changed while reading: the file ends here, its size was 4096")
    assert.is_true(e.offset > 0 and e.offset < 4096)
  end)

  -- A process of its own changes the file all the time until it has been noticed; what is read is whole or refused.
  local function race(name, change, wanted)
    local path, flag = dir .. "/" .. name, put(name .. ".go", "")
    core.save(path, { a = core.ones { 2000000 } })
    os.execute(("cp %s %s.whole; (while [ -e %s ]; do %s; done) >/dev/null 2>&1 &"):format(path, path, flag, change:gsub("FILE", path)))
    local noticed, loaded, start = 0, 0, core.now()
    while noticed < 3 and core.now() - start < 60 do
      local scope <close> = core.scope()
      local ok, e = pcall(core.load, path)
      if ok then
        loaded = loaded + 1
        assert.equal(2000000, core.ops.sum(e.a:to "f64"):item())
      else
        assert(e.code == 65 or e.code == 74, tostring(e))
        if e.id == "file-changed" and e.message:find(wanted) then noticed = noticed + 1 end
      end
    end
    os.remove(flag)
    assert.equal(3, noticed)
    return loaded
  end
  it("is refused where it shrinks", function()
    race("shrinking", "truncate -s 5000000 FILE; cp FILE.whole FILE", "changed while reading: the file ends here")
  end)
  it("is refused where it is written to", function()
    race("touched", "touch FILE", "changed while reading: it was written to")
  end)
end)

describe("a lie about a size", function()
  it("costs neither memory nor time", function()
    put("length.safetensors", string.pack("<I8", 99999999) .. "{}")
    put("shape.safetensors", string.pack("<s8", '{"a":{"dtype":"U8","shape":[1099511627776],"data_offsets":[0,1099511627776]}}'))
    put("images", string.pack(">I4I4I4I4", 0x803, 0x7fffffff, 16000, 16000))
    put("wide.png", "\x89PNG\r\n\x1a\n" .. chunk("IHDR", string.pack(">I4I4BBBBB", 16384, 4096, 8, 2, 0, 0, 0)))
    put("wide.jpg", "\xff\xd8\xff\xc0" .. string.pack(">I2BI2I2BBBB", 11, 8, 16000, 4000, 1, 1, 0x11, 0) .. "\xff\xda\0\8\1\1\0\0\x3f\0")
    local mib, output = extra(([[
      local start = core.now()
      for i, f in ipairs {
        function() core.load "DIR/length.safetensors" end, function() core.load "DIR/shape.safetensors" end,
        function() core.data.open { kind = "idx", images = "DIR/images", labels = "DIR/images" } end,
        function() core.read_image "DIR/wide.png" end, function() core.read_image "DIR/wide.jpg" end,
      } do
        local ok, e = pcall(f)
        assert(not ok and e.code == 65, i)
      end
      print("seconds", core.now() - start)]]):gsub("DIR", dir))
    assert.is_true(mib <= 16, mib .. " MiB")
    assert.is_true(tonumber(output:match "seconds%s+([%d.e-]+)") < 0.5, output)
  end)
end)

describe("a bomb", function()
  -- deflate of 64 MiB of zeros, by gzip: its header and trailer are replaced by zlib's
  local function zlib(mib)
    local pipe = io.popen(("head -c %dM /dev/zero | gzip -9nc"):format(mib), "r")
    local bytes = pipe:read "a"
    pipe:close()
    return "\x78\xda" .. bytes:sub(11, -9) .. "\0\0\0\0"
  end
  local signature = "\x89PNG\r\n\x1a\n"
  local head = chunk("IHDR", string.pack(">I4I4BBBBB", 2, 2, 8, 0, 0, 0, 0))
  local function body()
    core.write_png(dir .. "/small.png", core.tensor({ { 1, 2 }, { 3, 4 } }, "u8"))
    local f <close> = io.open(dir .. "/small.png", "rb")
    return f:read("a"):sub(#signature + #head + 1)
  end

  it("in text and colour profiles of a PNG is never unpacked", function()
    local zeros = zlib(64)
    local text = chunk("zTXt", "k\0\0" .. zeros):rep(3) .. chunk("iTXt", "k\0\1\0\0\0" .. zeros) .. chunk("tEXt", "k\0v"):rep(5000)
    put("text.png", signature .. head .. text .. body())
    put("profile.png", signature .. head .. chunk("iCCP", "p\0\0" .. zeros) .. body())
    local mib = extra(([[
      for _, name in ipairs { "text", "profile" } do
        local ok, e = pcall(core.read_image, "DIR/" .. name .. ".png")
        assert(ok or e.code == 65, tostring(e))
      end]]):gsub("DIR", dir))
    assert.is_true(mib <= 16, mib .. " MiB")
  end)
  it("in the pixels of a PNG is refused", function()
    put("pixels.png", signature .. head .. chunk("IDAT", zlib(64)) .. chunk("IEND", ""))
    local mib = extra(([[local ok, e = pcall(core.read_image, "DIR/pixels.png") assert(not ok and e.code == 65)]]):gsub("DIR", dir))
    assert.is_true(mib <= 96, mib .. " MiB")
  end)
  it("of gzip stops at the limit of the reader", function()
    os.execute(("head -c 1100M /dev/zero | gzip -1 > %s/bomb.gz"):format(dir))
    local e = refused(65, core.data.open, { kind = "cifar", files = { dir .. "/bomb.gz" } })
    assert.equal("gz-limit", e.id)
    os.remove(dir .. "/bomb.gz")
  end)
end)

describe("the largest image", function()
  it("of 16384 pixels a side is read, one more is not", function()
    core.write_png(dir .. "/wide.png", core.full({ 1, 16384 }, 7, "u8"))
    assert.same({ 1, 16384, 1 }, core.read_image(dir .. "/wide.png"):shape())
    put("wider.png", "\x89PNG\r\n\x1a\n" .. chunk("IHDR", string.pack(">I4I4BBBBB", 16385, 1, 8, 0, 0, 0, 0)) .. ("x"):rep(99))
    assert.equal("image-size", refused(65, core.read_image, dir .. "/wider.png").id)
  end)
end)

describe("damaged Huffman data in a JPEG", function()
  it("is an error, or counted where that is tolerated", function()
    local f <close> = io.open("tests/fuzz/seeds/image/rgb.jpg", "rb")
    local good, counted = f:read "a", 0
    local first = good:find("\xff\xda", 1, true) + 14
    for at = first, #good - 3 do
      put("bad.jpg", good:sub(1, at - 1) .. string.char(good:byte(at) ~ 0xff) .. good:sub(at + 1))
      local strict, e = pcall(core.read_image, dir .. "/bad.jpg")
      local tolerant, image, warnings = pcall(core.read_image, dir .. "/bad.jpg", { tolerant = true })
      assert(strict or e.code == 65 and e.id == "jpeg", tostring(e))
      if tolerant then assert.same({ 7, 9, 3 }, image:shape()) else assert.equal(65, image.code) end
      if tolerant and warnings > 0 then
        counted = counted + 1
        assert.is_false(strict)
      end
    end
    assert.is_true(counted > 0)
  end)
end)

describe("a stack of 256 KiB", function()
  it("is enough for whatever is nested deep", function()
    local code, output = process.script(dir, [[
      local core = require "cab.core"
      local cab = require "cab"
      local function fails(code, f, ...)
        local ok, e = pcall(f, ...)
        assert(not ok and (type(e) == "table" and e.code == code or code == 1), tostring(e))
      end
      local function deep(n) local t = {} for _ = 1, n do t = { t } end return t end
      for _, n in ipairs { 127, 200, 100000 } do
        local text = ("["):rep(n) .. ("]"):rep(n)
        if n < 128 then core.json_decode(text) else fails(65, core.json_decode, text) end
      end
      fails(1, core.json_encode, deep(100000))
      fails(1, cab.recipe, { data = deep(300000) })
      local name = os.tmpname()
      core.write_file(name, string.pack("<s8", '{"a":' .. ("["):rep(100000)))
      fails(65, core.load, name)
      core.write_file(name, "return " .. ("("):rep(100000) .. "1" .. (")"):rep(100000))
      fails(2, core.loadfile, name)
      os.remove(name)
      local x = core.tensor { 1 }
      x.requires_grad = true
      local y = x
      for _ = 1, 100000 do y = y + x end
      core.ops.sum(y):backward()
      assert(x.grad:item() == 100001)
      local function endless() return 1 + endless() end
      fails(1, endless)
      print "whole"]], "ulimit -s 256;")
    assert.equal(0, code, output)
    assert.truthy(output:find "whole")
  end)
end)
