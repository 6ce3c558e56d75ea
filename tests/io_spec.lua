-- Files: safetensors (what is read, what is refused and where), atomic writing, PNG and JPEG.
local core = require "cab.core"
local lfs = require "lfs"

local dir = os.tmpname()
os.remove(dir)
lfs.mkdir(dir)
local path = dir .. "/a.safetensors"

local function put(name, bytes)
  local f = assert(io.open(name, "wb"))
  f:write(bytes)
  f:close()
  return name
end

local function get(name)
  local f = assert(io.open(name, "rb"))
  local bytes = f:read "a"
  f:close()
  return bytes
end

local function refused(f, ...) return require "refused"(nil, f, ...) end

local function head(json, data) return string.pack("<s8", json) .. (data or "") end
local function tensor(dtype, shape, first, last)
  return ('{"dtype":"%s","shape":[%s],"data_offsets":[%d,%d]}'):format(dtype, shape, first, last)
end
local four = ("\0"):rep(4)
local function ten(n) return ("\0"):rep(n) end
local A = tensor("F32", "1", 0, 4)

-- { what, file, error id, byte (nil: not checked) [, text of the message] }
local malformed = {
  -- the length field
  { "an empty file", "", "st-header-size", 0, "needs 8 bytes, the file has 0" },
  { "seven bytes", ten(7), "st-header-size", 0 },
  { "a length of 0", ten(8), "st-header-size", 0 },
  { "a length of 1", string.pack("<s8", "{"), "st-header-size", 0 },
  { "a length beyond the file", string.pack("<I8", 3) .. "{}", "st-header-size", 0, "says 3 bytes, 2 follow" },
  { "a length above the limit", string.pack("<I8", 100000001) .. "{}", "st-header-size", 0, "at most 100000000" },
  { "a length whose sum wraps", string.pack("<I8", -1) .. "{}", "st-header-size", 0 },
  { "a length of 2^63", string.pack("<I8", math.mininteger) .. "{}", "st-header-size", 0 },
  -- JSON
  { "no JSON", head "abcd", "st-json", 8, "expected '{', got 'a'" },
  { "a list", head "[]", "st-json", 8 },
  { "white space first", head " {}", "st-json", 8 },
  { "a byte order mark", head "\xef\xbb\xbf{}", "st-json", 8 },
  { "an open object", head "{ ", "st-json", 10, "end of the text" },
  { "a name without quotes", head "{a:1}", "st-json", 9 },
  { "an open name", head '{"a', "st-json", 11 },
  { "no colon", head('{"a"' .. A .. "}", four), "st-json", 12 },
  { "no value", head '{"a":}', "st-field", 13 },
  { "no comma", head('{"a":' .. A .. '"b":' .. A .. "}", four), "st-json", 13 + #A },
  { "two commas", head('{"a":' .. A .. ",,}", four), "st-json", 14 + #A },
  { "a comma at the end", head('{"a":' .. A .. ",}", four), "st-json", 14 + #A },
  { "a comma first", head "{,}", "st-json", 9 },
  { "bytes after the object", head "{}x", "st-json", 10, "nothing but padding" },
  { "a second object", head "{}{}", "st-json", 10 },
  { "NUL as padding", head "{}\0\0", "st-json", 10 },
  { "a control byte in a name", head '{"a\nb":1}', "st-json", 11 },
  { "a bad escape", head '{"a\\x":1}', "st-json", 12, "bad escape" },
  { "a short \\u", head '{"\\u12', "st-json", 11 },
  { "a \\u that is no hex", head '{"\\u12G4":1}', "st-json", 11 },
  { "a lone high surrogate", head '{"\\ud800":1}', "st-json", 11 },
  { "a lone low surrogate", head '{"\\udc00":1}', "st-json", 11 },
  { "two high surrogates", head '{"\\ud800\\ud800":1}', "st-json", 11 },
  { "NUL in a name", head '{"a\\u0000b":1}', "st-json", 12, "NUL" },
  { "a stray continuation byte", head '{"\x80":1}', "st-json", 10, "UTF-8" },
  { "an overlong sequence", head '{"\xc0\xaf":1}', "st-json", 10 },
  { "a surrogate in UTF-8", head '{"\xed\xa0\x80":1}', "st-json", 10 },
  { "a character above U+10FFFF", head '{"\xf4\x90\x80\x80":1}', "st-json", 10 },
  { "a cut UTF-8 sequence", head '{"\xe2\x82":1}', "st-json", 10 },
  { "a number that starts with 0", head('{"a":{"shape":[01]}}', four), "st-json", 23 },
  { "a lone minus", head('{"a":{"shape":[-]}}', four), "st-json", 24 },
  -- duplicates
  { "a name twice", head('{"a":' .. A .. ',"a":' .. A .. "}", four), "st-duplicate", 14 + #A, "first at byte 9" },
  { "a name twice by an escape", head('{"a":' .. A .. ',"\\u0061":' .. A .. "}", four), "st-duplicate", 14 + #A },
  { "a field twice", head('{"a":{"dtype":"U8","dtype":"U8"}}'), "st-duplicate", 27 },
  { "metadata twice", head '{"__metadata__":{},"__metadata__":{}}', "st-duplicate", 27 },
  { "a metadata key twice", head '{"__metadata__":{"k":"1","k":"2"}}', "st-duplicate", 33 },
  -- fields
  { "a tensor that is null", head '{"a":null}', "st-field", 13, "must be an object" },
  { "a tensor that is a list", head '{"a":[]}', "st-field", 13 },
  { "a tensor that is a number", head '{"a":3}', "st-field", 13 },
  { "10000 nested lists", head('{"a":' .. ("["):rep(10000) .. ("]"):rep(10000) .. "}"), "st-field", 13 },
  { "10000 nested objects", head(('{"a":'):rep(10000)), "st-field", 14 },
  { "an unknown field", head '{"a":{"dtype":"U8","strides":[1]}}', "st-field", 27, 'unknown field "strides"' },
  { "a field in capitals", head '{"a":{"DTYPE":"U8"}}', "st-field", 14 },
  { "no fields", head '{"a":{}}', "st-field", 9, '"dtype" is missing' },
  { "no shape", head '{"a":{"dtype":"U8","data_offsets":[0,0]}}', "st-field", 9, '"shape" is missing' },
  { "no offsets", head '{"a":{"dtype":"U8","shape":[0]}}', "st-field", 9, '"data_offsets" is missing' },
  { "offsets as text", head '{"a":{"data_offsets":"0,4"}}', "st-field", 29 },
  { "one offset", head '{"a":{"data_offsets":[0]}}', "st-field", 29, "1 numbers" },
  { "no offset", head '{"a":{"data_offsets":[]}}', "st-field", 29 },
  { "three offsets", head '{"a":{"data_offsets":[0,1,2]}}', "st-field", 34 },
  { "a negative offset", head '{"a":{"data_offsets":[-1,3]}}', "st-field", 30 },
  { "a fractional offset", head '{"a":{"data_offsets":[0.5,4]}}', "st-field", 30 },
  { "an offset with an exponent", head '{"a":{"data_offsets":[0,4e0]}}', "st-field", 32 },
  { "metadata that is no object", head '{"__metadata__":[]}', "st-field", 24 },
  { "a metadata number", head '{"__metadata__":{"k":1}}', "st-field", 29, "must be a string" },
  { "a metadata object", head '{"__metadata__":{"k":{}}}', "st-field", 29 },
  -- dtypes
  { "a dtype that is a number", head '{"a":{"dtype":32}}', "st-dtype", 22, "must be a string" },
  { "an unknown dtype", head '{"a":{"dtype":"F31"}}', "st-dtype", 22, 'unknown dtype "F31"' },
  { "a dtype in small letters", head '{"a":{"dtype":"f32"}}', "st-dtype", 22 },
  { "an empty dtype", head '{"a":{"dtype":""}}', "st-dtype", 22 },
  { "complex numbers", head('{"a":' .. tensor("C64", "1", 0, 8) .. "}", ten(8)), "st-dtype", 22, "dtype C64 is not supported" },
  { "an F16 of one byte", head('{"a":' .. tensor("F16", "1", 0, 1) .. "}", ten(1)), "st-size", 9, "needs 2 bytes" },
  { "an I64 of four bytes", head('{"a":' .. tensor("I64", "1", 0, 4) .. "}", four), "st-size", 9, "needs 8 bytes" },
  -- shapes
  { "a shape that is a number", head '{"a":{"shape":4}}', "st-shape", 22 },
  { "a shape that is null", head '{"a":{"shape":null}}', "st-shape", 22 },
  { "a negative size", head '{"a":{"shape":[-2]}}', "st-shape", 23 },
  { "a fractional size", head '{"a":{"shape":[2.5]}}', "st-shape", 23 },
  { "a size as text", head '{"a":{"shape":["2"]}}', "st-shape", 23 },
  { "a nested shape", head '{"a":{"shape":[[2]]}}', "st-shape", 23 },
  { "nine dimensions", head '{"a":{"shape":[1,1,1,1,1,1,1,1,1]}}', "st-shape", 39, "more than 8" },
  -- overflow
  { "a size of 2^64", head '{"a":{"shape":[18446744073709551616]}}', "st-overflow", 23 },
  { "a size of 2^63", head '{"a":{"shape":[9223372036854775808]}}', "st-overflow", 23 },
  { "an offset of 2^64", head '{"a":{"data_offsets":[0,18446744073709551616]}}', "st-overflow", 32 },
  { "a product that wraps to 0", head('{"a":' .. tensor("U8", "4294967296,4294967296", 0, 0) .. "}"), "st-overflow", 9 },
  { "a product that wraps to 4", head('{"a":' .. tensor("F32", "4611686018427387905", 0, 4) .. "}", four), "st-overflow", 9 },
  { "an overflow beside a 0", head('{"a":' .. tensor("U8", "0,4294967296,4294967296", 0, 0) .. "}"), "st-overflow", 9 },
  -- sizes
  { "offsets that run backwards", head('{"a":' .. tensor("U8", "4", 4, 0) .. "}", four), "st-size", 9, "backwards" },
  { "a shape too small", head('{"a":' .. tensor("F32", "2", 0, 4) .. "}", four), "st-size", 9, "needs 8 bytes, offsets [0,4) hold 4" },
  { "a shape too large", head('{"a":' .. tensor("U8", "3", 0, 4) .. "}", four), "st-size", 9 },
  { "a scalar of no bytes", head('{"a":' .. tensor("F64", "", 0, 0) .. "}"), "st-size", 9 },
  { "an empty tensor with bytes", head('{"a":' .. tensor("F32", "0,3", 0, 4) .. "}", four), "st-size", 9 },
  { "another dtype's size", head('{"a":' .. tensor("BF16", "1", 0, 4) .. "}", four), "st-size", 9 },
  -- places
  { "no data", head('{"a":' .. A .. "}"), "st-missing", 9, "pass the 0 bytes" },
  { "data cut by one", head('{"a":' .. A .. "}", ten(3)), "st-missing", 9 },
  { "offsets far outside", head('{"a":' .. tensor("U8", "4", 1 << 40, (1 << 40) + 4) .. "}", four), "st-missing", 9 },
  { "the same bytes twice", head('{"a":' .. A .. ',"b":' .. A .. "}", four), "st-overlap", 14 + #A,
    'tensor "b" [0,4) overlaps "a" [0,4)' },
  { "an overlap of one byte", head('{"a":' .. tensor("U8", "4", 0, 4) .. ',"b":' .. tensor("U8", "4", 3, 7) .. "}", ten(7)), "st-overlap",
    14 + #tensor("U8", "4", 0, 4) },
  { "one inside another", head('{"a":' .. tensor("U8", "8", 0, 8) .. ',"b":' .. tensor("U8", "2", 3, 5) .. "}", ten(8)), "st-overlap",
    14 + #tensor("U8", "8", 0, 8) },
  { "an empty one inside another", head('{"a":' .. tensor("U8", "8", 0, 8) .. ',"b":' .. tensor("U8", "0", 4, 4) .. "}", ten(8)),
    "st-overlap",
    14 + #tensor("U8", "8", 0, 8) },
  { "a hole at the start", head('{"a":' .. tensor("U8", "4", 4, 8) .. "}", ten(8)), "st-hole", 9, "[0,4)" },
  { "a hole in the middle", head('{"a":' .. tensor("U8", "1", 0, 1) .. ',"b":' .. tensor("U8", "1", 2, 3) .. "}", ten(3)), "st-hole",
    14 + #tensor("U8", "1", 0, 1) },
  { "an empty tensor after a hole", head('{"a":' .. tensor("U8", "0", 2, 2) .. "}", ten(2)), "st-hole", 9 },
  { "bytes after the last tensor", head('{"a":' .. A .. "}", ten(5)), "st-trailing", 8 + #A + 7 + 4 - 1, "1 bytes after" },
  { "bytes without a tensor", head("{}", ten(3)), "st-trailing", 10 },
}

describe("safetensors", function()
  for _, case in ipairs(malformed) do
    it("refuses " .. case[1], function()
      put(path, case[2])
      local e = refused(core.load, path)
      assert.equal(65, e.code, tostring(e))
      assert.equal(case[3], e.id, tostring(e))
      assert.equal(path, e.file)
      if case[4] then assert.equal(case[4], e.offset, tostring(e)) end
      if case[5] then assert.truthy(e.message:find(case[5], 1, true), e.message) end
      assert.equal(case[3], refused(core.inspect, path).id)
    end)
  end

  it("has at least 60 of them", function() assert.is_true(#malformed >= 60) end)

  it("refuses every cut of a good file", function()
    core.save(path, { a = core.tensor { 1, 2, 3 }, b = core.tensor { { 1 }, { 2 } } }, { k = "v" })
    local bytes = get(path)
    for n = 0, #bytes - 1 do
      put(path, bytes:sub(1, n))
      assert.equal(65, refused(core.load, path).code)
    end
  end)

  it("escapes and cuts names in messages", function()
    put(path, head('{"\\u001b[31m' .. ("x"):rep(200) .. '":null}'))
    local e = refused(core.load, path)
    assert.truthy(e.message:find("\\x1b[31m", 1, true))
    assert.falsy(e.message:find "\27")
    assert.truthy(e.message:find(("x"):rep(70) .. "...", 1, true) or #e.message < 300)
  end)

  it("refuses a huge length in no time, whatever the file's size", function()
    put(path, string.pack("<I8", 1 << 40) .. "{}")
    os.execute(("truncate -s 1T '%s' 2>/dev/null"):format(path))
    local start = core.now()
    assert.equal("st-header-size", refused(core.load, path).id)
    assert.is_true(core.now() - start < 0.1)
  end)

  it("reads all dtypes, white space, escapes and data at odd offsets", function()
    put(path, head('{ "__metadata__" : {"k\\n":"\\ud83d\\ude00"}, "u" : ' .. tensor("U8", "1", 0, 1) .. ',\t"\\u00e9":' ..
      tensor("F32", "2", 1, 9) ..
      ', "d":' .. tensor("F64", "", 9, 17) .. ',"i":' .. tensor("I32", "1,1", 17, 21) .. ',"h":' .. tensor("BF16", "1", 21, 23) ..
      ',"e":' .. tensor("F32", "0,7", 23, 23) .. "}  \n", string.pack("<Bffdi4I2", 200, 1.5, -2, 0.1, -7, 0x3fc0)))
    local t, m = core.load(path)
    assert.same({ 200 }, t.u:totable())
    assert.same({ 1.5, -2 }, t["é"]:totable())
    assert.equal(0.1, t.d:item())
    assert.same({ { -7 } }, t.i:totable())
    assert.equal("bf16", t.h:dtype())
    assert.same({ 1.5 }, t.h:to("f32"):totable())
    assert.same({ 0, 7 }, t.e:shape())
    assert.same({ ["k\n"] = "😀" }, m)
  end)

  it("loads NaN and reports it in inspect", function()
    core.save(path, { a = core.tensor { 0 / 0, 1, -3, math.huge }, b = core.tensor { 2 } })
    local list = core.inspect(path)
    local a1, b1 = list[1], list[2]
    assert.same({ "a", "F32", "f32", { 4 }, -3, 1, 1, 1 }, { a1.name, a1.stored, a1.dtype, a1.shape, a1.min, a1.max, a1.nan, a1.infinite })
    assert.same({ "b", 0, 0 }, { b1.name, b1.nan, b1.infinite })
    local a = core.load(path).a:totable()
    assert.is_true(a[1] ~= a[1] and a[4] == math.huge)
  end)

  it("writes sorted names, an aligned header, and the same bytes each time", function()
    local t = { b = core.tensor { 1, 2 }, a = core.tensor({ 3 }, "u8"), ["c\"\\\t"] = core.zeros { 0, 2 } }
    core.save(path, t, { z = "1", y = "ä\n" })
    local bytes = get(path)
    local length = string.unpack("<I8", bytes)
    assert.equal(0, length % 8)
    local json = bytes:sub(9, 8 + length)
    assert.is_true(json:find('"y"', 1, true) < json:find('"z"', 1, true))
    assert.is_true(json:find('"a"', 1, true) < json:find('"b"', 1, true))
    core.save(path, t, { z = "1", y = "ä\n" })
    assert.equal(bytes, get(path))
    local back, m = core.load(path)
    assert.same({ z = "1", y = "ä\n" }, m)
    assert.same({ 1, 2 }, back.b:totable())
    assert.same({ 0, 2 }, back["c\"\\\t"]:shape())
  end)

  it("writes views as they look", function()
    local t = core.tensor { { 1, 2, 3 }, { 4, 5, 6 } }
    core.save(path, { t = t:transpose(1, 2), s = t:slice(2, 2, 3), f = t:flip(1), e = core.tensor({ 7 }):expand { 3 } })
    local back = core.load(path)
    assert.same({ { 1, 4 }, { 2, 5 }, { 3, 6 } }, back.t:totable())
    assert.same({ { 2, 3 }, { 5, 6 } }, back.s:totable())
    assert.same({ { 4, 5, 6 }, { 1, 2, 3 } }, back.f:totable())
    assert.same({ 7, 7, 7 }, back.e:totable())
  end)

  it("refuses names it could not read back, and keeps the old file", function()
    core.save(path, { a = core.tensor { 1 } })
    local old = get(path)
    local closed = core.zeros { 1 }
    closed:close()
    for _, case in ipairs { { { __metadata__ = core.zeros { 1 } } }, { { ["\xff"] = core.zeros { 1 } } }, { { a = 1 } },
      { { core.zeros { 1 } } },
      { { a = closed } }, { { ["a\0b"] = core.zeros { 1 } } }, { {}, { k = 1 } }, { {}, { k = "\xff" } } } do
      refused(core.save, path, case[1], case[2])
      assert.equal(old, get(path))
      assert.is_nil(lfs.attributes(path .. ".tmp"))
    end
  end)
end)

describe("files", function()
  it("says 74 for what is not there and 65 for what is no file", function()
    local e = refused(core.load, dir .. "/none")
    assert.same({ 74, dir .. "/none: open: No such file or directory" }, { e.code, e.message })
    assert.equal("file-kind", refused(core.load, dir).id)
    assert.equal("file-kind", refused(core.load, "/dev/null").id)
    assert.equal("file-kind", refused(core.read_image, "/dev/zero").id)
    os.execute(("mkfifo '%s/fifo'; ln -s loop '%s/loop'; ln -s gone '%s/dangling'"):format(dir, dir, dir))
    local start = core.now()
    assert.equal("file-kind", refused(core.load, dir .. "/fifo").id)
    assert.equal(74, refused(core.load, dir .. "/loop").code)
    assert.equal(74, refused(core.load, dir .. "/dangling").code)
    assert.is_true(core.now() - start < 1)
  end)

  it("escapes a name with control bytes", function()
    local e = refused(core.load, dir .. "/\27[31m\n")
    assert.falsy(tostring(e):find "[\27\n]")
  end)

  it("replaces a file and leaves no temp, also after a process that died", function()
    local name = dir .. "/plain"
    core.write_file(name, "old")
    put(name .. ".tmp", "torn")
    core.write_file(name, "new")
    assert.equal("new", get(name))
    assert.is_nil(lfs.attributes(name .. ".tmp"))
  end)

  it("keeps the old state where it cannot write", function()
    assert.equal(74, refused(core.write_file, dir .. "/none/a", "x").code)
    assert.equal(74, refused(core.write_file, dir, "x").code)
    assert.equal(74, refused(core.append_file, dir, "x").code)
    assert.is_nil(lfs.attributes(dir .. ".tmp"))
  end)

  it("locks a directory once", function()
    local lock = core.lock(dir)
    local e = refused(core.lock, dir)
    assert.equal(74, e.code)
    assert.truthy(e.message:find "locked by pid %d+ on host ")
    lock:close()
    core.lock(dir):close()
  end)

  -- Each call of each fault point in a process that saves: once, from then on, and by ending the process there.
  it("keeps the old or the new file whatever call of a save fails", function()
    if core.doctor().build ~= "faults" then return pending "needs a build with fault points (make asan)" end
    local pipe = io.popen "readlink /proc/$PPID/exe"
    local program = pipe:read "l"
    pipe:close()
    local target, script = dir .. "/kept", dir .. "/write.lua"
    put(script, ([[
      local core = require "cab.core"
      local ok, e = pcall(core.save, %q, { a = core.tensor { 2 } })
      if not ok then io.stderr:write(tostring(e)) os.exit(e.code) end
    ]]):format(target))
    core.save(target, { a = core.tensor { 1 } })
    local calls, tried = {}, 0
    pipe = io.popen(("CAB_FAULT_COUNTS=1 '%s' run '%s' 2>&1"):format(program, script))
    for point, n in pipe:read("a"):gmatch "fault (file%.%w+) (%d+)" do calls[point] = tonumber(n) end
    pipe:close()
    for point, count in pairs(calls) do
      for n = 1, count do
        for _, mode in ipairs { "", ":sticky", ":exit" } do
          core.save(target, { a = core.tensor { 1 } })
          local ok, _, code = os.execute(("CAB_FAULT=%s:%d%s '%s' run '%s' >/dev/null 2>&1"):format(point, n, mode, program, script))
          local value, label = core.load(target).a:item(), point .. ":" .. n .. mode
          tried = tried + 1
          if mode == ":exit" then
            assert.equal(99, code, label)
            assert.is_true(value == 1 or value == 2, label)
          else
            assert.is_nil(lfs.attributes(target .. ".tmp"), label)
            assert.is_true(ok and value == 2 or code == 74 and (value == 1 or point == "file.dirsync"), label)
          end
        end
      end
    end
    core.save(target, { a = core.tensor { 3 } })
    assert.equal(3, core.load(target).a:item())
    assert.is_nil(lfs.attributes(target .. ".tmp"))
    for _, point in ipairs { "open", "write", "fsync", "rename", "dirsync" } do assert.truthy(calls["file." .. point], point) end
    assert.is_true(tried >= 15)
  end)
end)

describe("images", function()
  local function crc(bytes) -- CRC-32 of a PNG chunk
    local c = 0xffffffff
    for i = 1, #bytes do
      c = c ~ bytes:byte(i)
      for _ = 1, 8 do c = c & 1 == 1 and c >> 1 ~ 0xedb88320 or c >> 1 end
    end
    return c ~ 0xffffffff
  end
  local function chunk(kind, data) return string.pack(">I4", #data) .. kind .. data .. string.pack(">I4", crc(kind .. data)) end
  local signature = "\x89PNG\r\n\x1a\n"
  local function header(w, h, depth, colour) return chunk("IHDR", string.pack(">I4I4BBBBB", w, h, depth or 8, colour or 0, 0, 0, 0)) end
  local name = dir .. "/a.png"

  it("reads the PNG it wrote", function()
    for _, t in ipairs { core.tensor({ { 0, 128, 255 }, { 1, 2, 3 } }, "u8"), core.tensor({ { { 1, 2, 3 }, { 250, 251, 252 } } },
      "u8") } do
      core.write_png(name, t)
      local back, warnings = core.read_image(name)
      assert.same(t:totable(), (t:rank() == 2 and back:reshape(t:shape()) or back):totable())
      assert.equal(0, warnings)
    end
    core.write_png(name, core.tensor({ { 1, 2 }, { 3, 4 } }, "u8"):transpose(1, 2))
    assert.same({ { { 1 }, { 3 } }, { { 2 }, { 4 } } }, core.read_image(name):totable())
  end)

  it("refuses tensors that are no image", function()
    for _, t in ipairs { core.zeros { 2, 2 }, core.zeros({ 2 }, "u8"), core.zeros({ 2, 2, 2 }, "u8"), core.zeros({ 0, 2 }, "u8") } do
      assert.truthy(refused(core.write_png, name, t).message:find "expected u8%[H,W%]")
    end
  end)

  local body = header(2, 2)
  local cases = {
    { "nothing", "", "image-kind" }, { "text", "hello, world", "image-kind" }, { "only a signature", signature, "png" },
    { "a GIF", "GIF89a" .. ten(20), "image-kind" },
    { "another chunk first", signature .. chunk("tEXt", "a\0b"), "png" },
    { "a header of 12 bytes", signature .. chunk("IHDR", ten(12)), "png" },
    { "no width", signature .. header(0, 2), "image-size" }, { "no height", signature .. header(2, 0), "image-size" },
    { "a side above the limit", signature .. header(16385, 1) .. ten(1000), "image-size" },
    { "a side of 2^31", signature .. header(1 << 31, 1 << 31), "image-size" },
    { "too many pixels", signature .. header(16384, 4097) .. ten(100000), "image-size" },
    { "more pixels than the file can hold", signature .. header(16384, 4096), "image-size" },
    { "a bad CRC of the header", signature .. body:sub(1, -2) .. "\0" .. ten(40), "png" },
    { "a bad depth", signature .. header(2, 2, 3), "png" }, { "a bad colour type", signature .. header(2, 2, 8, 5), "png" },
    { "no pixels", signature .. body .. chunk("IEND", ""), "png" },
    { "no palette", signature .. header(2, 2, 8, 3) .. chunk("IDAT", "x") .. chunk("IEND", ""), "png" },
    { "pixels that are no zlib data", signature .. body .. chunk("IDAT", "abcdef") .. chunk("IEND", ""), "png" },
    { "a JPEG of three bytes", "\xff\xd8\xff", "jpeg" }, { "a JPEG without an image", "\xff\xd8\xff\xd9", "jpeg" },
    { "a JPEG of 65500 x 65500", "\xff\xd8\xff\xc0" .. string.pack(">I2BI2I2BBBB", 11, 8, 65500, 65500, 1, 1, 0x11, 0) ..
      "\xff\xda\0\8\1\1\0\0\x3f\0", "image-size" },
    { "a JPEG with 12 bits", "\xff\xd8\xff\xc0" .. string.pack(">I2BI2I2BBBB", 11, 12, 8, 8, 1, 1, 0x11, 0) .. ten(8), "jpeg" },
    { "a lossless JPEG", "\xff\xd8\xff\xc3" .. string.pack(">I2BI2I2BBBB", 11, 8, 8, 8, 1, 1, 0x11, 0) .. ten(8), "jpeg" },
  }
  for _, case in ipairs(cases) do
    it("refuses " .. case[1], function()
      local e = refused(core.read_image, put(name, case[2]))
      assert.same({ 65, case[3] }, { e.code, e.id }, tostring(e))
      assert.truthy(tostring(e):find(name, 1, true))
    end)
  end

  it("refuses every cut and every flipped byte of pixels in a PNG", function()
    core.write_png(name, core.tensor({ { 9, 8 }, { 7, 6 } }, "u8"))
    local good = get(name)
    for n = 0, #good - 1 do assert.equal(65, refused(core.read_image, put(name, good:sub(1, n))).code) end
    for n = 9, #good do
      local ok, e = pcall(core.read_image, put(name, good:sub(1, n - 1) .. string.char(good:byte(n) ~ 1) .. good:sub(n + 1)))
      assert.is_true(not ok and e.code == 65)
    end
  end)

  -- 8 x 8 grey pixels 0, 3, 6 ... 189 by an independent encoder: sequential and progressive
  local function bytes(hex) return (hex:gsub("%x%x", function(b) return string.char(tonumber(b, 16)) end)) end
  local sequential = bytes("ffd8ffe000104a46494600010100000100010000ffdb0043000302020302020303030304030304050805050404050a070706080c0a0c0c0b0a0b0b0d" ..
    "0e12100d0e110e0b0b1016101113141515150c0f171816141812141514ffc0000b080008000801011100ffc400140001000000000000000000000000" ..
    "00000007ffc4001910000105000000000000000000000000000005082432a2ffda0008010100003f00264464958183ffd9")
  local progressive = bytes("ffd8ffe000104a46494600010100000100010000ffdb0043000302020302020303030304030304050805050404050a070706080c0a0c0c0b0a0b0b0d" ..
    "0e12100d0e110e0b0b1016101113141515150c0f171816141812141514ffc2000b080008000801011100ffc400140001000000000000000000000000" ..
    "00000006ffda000801010000000125ffc400161000030000000000000000000000000000000306ffda00080101000105024c49ffc400151001010000" ..
    "0000000000000000000000000032ffda0008010100063f0287ffc4001610000300000000000000000000000000000031c1ffda0008010100013f215c" ..
    "9fffda0008010100000010ff00ffc40014100100000000000000000000000000000000ffda0008010100013f106fffd9")

  it("reads sequential and progressive JPEG", function()
    for _, file in ipairs { sequential, progressive } do
      local t, warnings = core.read_image(put(name, file))
      assert.same({ { 8, 8, 1 }, 0 }, { t:shape(), warnings })
      local rows = t:totable()
      for y = 1, 8 do
        for x = 1, 8 do assert.is_true(math.abs(rows[y][x][1] - 3 * (8 * (y - 1) + x - 1)) <= 12) end
      end
    end
  end)

  it("refuses every cut of a JPEG, and counts warnings where that is tolerated", function()
    for _, file in ipairs { sequential, progressive } do
      for n = 0, #file - 3 do
        local e = refused(core.read_image, put(name, file:sub(1, n)))
        assert.equal(65, e.code)
        assert.truthy(e.id == "jpeg" or e.id == "image-kind", tostring(e))
      end
    end
    put(name, sequential:sub(1, -6)) -- in the middle of the pixels
    assert.equal("jpeg", refused(core.read_image, name).id)
    local t, warnings = core.read_image(name, { tolerant = true })
    assert.same({ 8, 8, 1 }, t:shape())
    assert.is_true(warnings > 0)
    assert.truthy(refused(core.read_image, name, { tolerent = true }).message:find "did you mean 'tolerant'")
  end)

  it("refuses more than 100 scans, tolerant or not", function()
    local first = progressive:find("\xff\xda", 1, true)
    local second = progressive:find("\xff[\xc4\xda]", first + 2)
    local scan = progressive:sub(first, second - 1)
    put(name, progressive:sub(1, first - 1) .. scan:rep(150) .. progressive:sub(second))
    assert.equal("jpeg-scans", refused(core.read_image, name, { tolerant = true }).id)
    assert.equal(65, refused(core.read_image, name).code)
  end)
end)
