-- Zip archives, NumPy files, files of other formats: what is read, and what is refused with which id.
local core = require "cab.core"
local make = require "archive"
local malformed = require "malformed"
local put, path, refuses, refused, peak = malformed.put, malformed.path, malformed.refuses, malformed.refused, malformed.peak
local text, dict, tensor = make.text, make.dict, make.tensor
local floats = string.pack("<ffff", 1, 2, 3, 4)

-- ---- archives ---------------------------------------------------------------------------------------
local good = { name = "a/data.pkl", data = make.pickle(dict { text "w", tensor {} }) }
local data = { name = "a/data/0", data = floats }
local function with(entry, changes)
  local e = {}
  for k, v in pairs(entry) do e[k] = v end
  for k, v in pairs(changes) do e[k] = v end
  return e
end
local function zip(changes, o) return (make.zip({ good, with(data, changes or {}) }, o)) end
local function stored_block(s) return "\1" .. string.pack("<I2I2", #s, ~#s & 0xffff) .. s end
local sample, offsets, directory = make.zip { good, data }
local entry_at, data_at = offsets[2], offsets[2] + 30 + #data.name
local archives = {
  { "only a signature", "PK\3\4", "zip-end", "needs 22 bytes", 0 }, { "a file cut by one", sample:sub(1, -2), "zip-end", "no end record" },
  { "a file cut in half", sample:sub(1, #sample // 2), "zip-end", "no end record" }, { "a byte after the archive", sample .. "x", "zip-end",
    "no end record" },
  { "two archives in a row", sample .. sample, "zip-end", "it must end at" }, { "a byte before the archive", zip(nil, { first = "x" }):gsub("^x",
    "PK\3\4x"), "zip-end" },
  { "a comment", zip(nil, { ending = { comment = 3 }, tail = "abc" }), "zip-end" }, { "a comment that is not there", zip(nil,
    { ending = { comment = 3 } }), "zip-end", "a comment of 3" },
  { "a second disk", zip(nil, { ending = { disk = 1 } }), "zip-end", "split" }, { "fewer entries here", zip(nil, { ending = { here = 1 } }),
    "zip-end", "split" },
  { "one entry more", zip(nil, { ending = { count = 3, here = 3 } }), "zip-end", "3 entries in a directory" }, { "one entry less", zip(nil,
    { ending = { count = 1, here = 1 } }), "zip-central", "after the last" },
  { "65534 entries", zip(nil, { ending = { count = 65534, here = 65534 } }), "zip-end", "65534 entries" },
  { "a directory somewhere else", zip(nil, { ending = { at = 0 } }), "zip-end", "must end at" }, { "a directory too long", zip(nil,
    { ending = { size = 1 << 30 } }), "zip-end" },
  { "a directory past the end", zip(nil, { ending = { at = 1 << 31 } }), "zip-end" }, { "an entry without its signature",
    zip { central = { mark = "PK\1\1" } }, "zip-central", "no directory entry" },
  { "zip64 numbers without a record", zip(nil, { ending = { at = 0xffffffff } }), "zip-end" },
  { "a zip64 record of another size", zip(nil, { zip64 = { size = 45 } }), "zip-zip64" }, { "a zip64 record that lies about the count", zip(nil,
    { zip64 = { count = 3, here = 3 } }), "zip-zip64", "disagree" },
  { "about the place", zip(nil, { zip64 = { start = 1 } }), "zip-zip64", "disagree" }, { "about the size", zip(nil, { zip64 = { bytes = 1 } }),
    "zip-zip64", "disagree" },
  { "a locator that points elsewhere", zip(nil, { zip64 = { locator = 0 } }), "zip-zip64", "the locator says byte 0" }, { "at 2^64 - 1", zip(nil,
    { zip64 = { locator = -1 } }), "zip-zip64" },
  { "a locator to no record", zip(nil, { zip64 = { mark = "PK\6\8" } }), "zip-zip64", "no zip64 end record" }, { "a zip64 archive of two disks",
    zip(nil, { zip64 = { disks = 2 } }), "zip-zip64", "split" },
  { "a zip64 record of disk 1", zip(nil, { zip64 = { disk = 1 } }), "zip-zip64", "split" },
  { "an 8-byte size that is missing", zip { central = { size = 0xffffffff } }, "zip-zip64", "8-byte size is missing" },
  { "an 8-byte size of 2^60", zip { central = { size = 0xffffffff, packed = 0xffffffff, extra = string.pack("<I2I2i8i8", 1, 16, 1 << 60,
    1 << 60) } }, "zip-bomb" },
  { "an extra field cut off", zip { central = { size = 0xffffffff, extra = string.pack("<I2I2", 1, 8) } }, "zip-zip64" },
  { "an entry of another disk", zip { central = { disk = 1 } }, "zip-central", "another file" }, { "no local header",
    zip { local_ = { mark = "PK\3\5" } }, "zip-local", "no local header here", entry_at },
  { "a local header a byte later", zip { central = { at = entry_at + 1 } }, "zip-hole", "1 bytes after" }, { "in the directory",
    zip { central = { at = directory - 4 } }, "zip-hole" },
  { "a local header past the end", zip { central = { at = 1 << 31 } }, "zip-hole" },
  { "another name in front", zip { local_ = { name = "a/data/1" } }, "zip-local", "another name", entry_at }, { "a longer name in front",
    zip { local_ = { name = "a/data/00" } }, "zip-local" },
  { "another CRC in front", zip { local_ = { crc = 1 } }, "zip-local", "CRC or sizes", entry_at }, { "another size in front",
    zip { local_ = { size = 15, packed = 15 } }, "zip-local", "CRC or sizes" },
  { "another method in front", zip { local_ = { method = 8 } }, "zip-local", "method" }, { "other flags in front",
    zip { local_ = { flags = 2048 } }, "zip-local", "flags" },
  { "a CRC that is wrong in both", zip { local_ = { crc = 7 }, central = { crc = 7 } }, "zip-crc", "the directory says 00000007", data_at },
  { "a changed byte", sample:sub(1, data_at) .. "\9" .. sample:sub(data_at + 2), "zip-crc", '"a/data/0"', data_at },
  { "an encrypted entry", zip { flags = 1 }, "zip-encrypted", '"a/data/0" is encrypted' }, { "strong encryption", zip { flags = 0x41 },
    "zip-encrypted" }, { "a masked header", zip { flags = 0x2000 }, "zip-encrypted" },
  { "an unknown flag", zip { flags = 0x20 }, "zip-flags", "0x0020" }, { "bzip2", zip { method = 12 }, "zip-method", "compression 12" }, { "zstd",
    zip { method = 93 }, "zip-method", "compression 93" },
  { "plain bytes of two sizes", zip { central = { packed = 15 } }, "zip-central", "16" }, { "a name with NUL", zip { name = "a/data/0\0" },
    "zip-name", "NUL" }, { "an empty name", zip { name = "" }, "zip-name" },
  { "bytes between entries", (make.zip { with(good, { gap = "xx" }), data }), "zip-hole", "2 bytes after" }, { "bytes before the directory",
    zip(nil, { between = "x" }), "zip-hole", "1 bytes after" },
  { "an entry inside another", (make.zip { good, with(data, { data = floats .. floats }), with(data, { name = "a/data/1",
    central = { at = entry_at } }) }), "zip-overlap" },
  { "the same bytes twice", (make.zip { good, data, with(data, { local_ = {}, central = { at = entry_at } }) }), "zip-overlap" },
  { "a name twice", (make.zip { good, data, data }), "zip-duplicate", 'two entries are named "a/data/0"' },
  { "a descriptor that is missing", zip { flags = 8 }, "zip-hole", "no data descriptor" }, { "a descriptor that lies", zip { flags = 8,
    gap = string.pack("<c4I4I4I4", "PK\7\8", 1, 16, 16) }, "zip-local", "descriptor" },
  { "a descriptor without its signature", zip { flags = 8, gap = string.pack("<c4I4I4I4", "PK\7\9", make.crc(floats), 16, 16) }, "zip-local",
    "descriptor" },
  { "no deflate data", zip { method = 8, data_packed = "\7\7\7\7" }, "zip-data", "bad deflate data", data_at }, { "empty deflate data",
    zip { method = 8, data_packed = "" }, "zip-data", "cut off" },
  { "deflate data cut off", zip { method = 8, data_packed = stored_block(floats):sub(1, -2) }, "zip-data", "cut off" },
    { "bytes after the deflate data", zip { method = 8, data_packed = stored_block(floats) .. "x" }, "zip-data", "expected" },
  { "deflate data of more bytes", zip { method = 8, data_packed = stored_block(floats .. "x") }, "zip-data", "more than the 16 bytes" },
    { "of fewer bytes", zip { method = 8, data_packed = stored_block(floats:sub(2)) }, "zip-data", "unpack to 15" },
  { "of another CRC", zip { method = 8, data_packed = stored_block(floats:reverse()) }, "zip-crc" },
  { "sizes that need 1 GiB", zip { method = 8, data_packed = "xx", central = { size = 1 << 30 }, local_ = { size = 1 << 30 } }, "zip-bomb",
    "1073741" },
}
refuses("zip archives", archives)

describe("zip archives", function()
  it("refuses a deflate bomb in time and memory", function()
    local pipe = io.popen "head -c 120000000 /dev/zero | gzip -9"
    local packed = pipe:read("a"):sub(11, -9)
    pipe:close()
    local start = core.now()
    local entry = with(data, { method = 8, data_packed = packed, data = "", central = { size = 120000000 }, local_ = { size = 120000000 } })
    put((make.zip { good, entry }))
    assert.is_true(peak(function() assert.equal("zip-bomb", refused(core.load, path).id) end) < 16 * 1024)
    entry.central.size, entry.local_.size = 1000, 1000
    local wanted = { name = "a/data.pkl", data = make.pickle(dict { text "w", tensor { count = 250 } }) }
    put((make.zip { wanted, entry }))
    assert.is_true(peak(function() assert.equal("zip-data", refused(core.load, path).id) end) < 16 * 1024)
    assert.is_true(core.now() - start < 5)
  end)
  it("refuses every cut and loads or refuses every flipped byte", function()
    for n = 0, #sample - 1 do assert.equal(65, refused(core.load, put(sample:sub(1, n))).code) end
    for n = 1, #sample do
      put(sample:sub(1, n - 1) .. string.char(sample:byte(n) ~ 255) .. sample:sub(n + 1))
      local ok, e = pcall(core.load, path)
      assert.is_true(ok or e.code == 65, tostring(e))
    end
  end)
  it("are refused where they hold no checkpoint, or two", function()
    assert.equal("pth-archive", refused(core.load, put((make.zip { data }))).id)
    assert.equal("pth-archive", refused(core.load, put((make.zip { good, with(good, { name = "b/data.pkl" }) }))).id)
  end)
  it("reads zip64 records, descriptors, deflate", function()
    for _, bytes in ipairs { zip(nil, { zip64 = {} }), zip(nil, { zip64 = {}, ending = { count = 0xffff, here = 0xffff, at = 0xffffffff,
      size = 0xffffffff } }),
      zip { flags = 8, gap = string.pack("<c4I4I4I4", "PK\7\8", make.crc(floats), 16, 16), local_ = { crc = 0, size = 0, packed = 0 } },
      zip { flags = 8, gap = string.pack("<c4I4I8I8", "PK\7\8", make.crc(floats), 16, 16) }, zip { flags = 8, gap = string.pack("<I4I4I4",
        make.crc(floats), 16, 16) },
      zip { method = 8, data_packed = stored_block(floats) }, zip { flags = 0x800 },
      zip { central = { size = 0xffffffff, packed = 0xffffffff, extra = string.pack("<I2I2i8i8", 1, 16, 16, 16) } } } do
      assert.same({ 1, 2, 3, 4 }, core.load(put(bytes)).w:totable())
    end
  end)
end)

-- ---- other formats ----------------------------------------------------------------------------------
local legacy = {}
for version = 2, 5 do
  local proto = "\x80" .. string.char(version)
  for _, case in ipairs { { "a legacy checkpoint", "\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\2M\xe9\3." }, { "a pickled dict", "}q\0X\4\0\0\0name" },
    { "a pickled framed dict", "\x95\30\0\0\0\0\0\0\0}." },
    { "a pickle that calls", "cos\nsystem\nX\2\0\0\0lsR." } } do
    legacy[#legacy + 1] = { ("%s of protocol %d"):format(case[1], version), proto .. case[2], "pth-legacy",
      "legacy format: re-save with torch >= 1.6", 0 }
  end
end
for _, name in ipairs { "storages", "tensors", "sys_info", "pickle" } do
  for _, mark in ipairs { "ustar\00000", "ustar  \0" } do
    legacy[#legacy + 1] = { "a tar of " .. name, name .. ("\0"):rep(257 - #name) .. mark .. ("\0"):rep(1000), "pth-legacy", "legacy format", 0 }
  end
end
for _, name in ipairs { "a", "archive" } do
  legacy[#legacy + 1] = { "a TorchScript program named " .. name, (make.zip { with(good, { name = name .. "/data.pkl" }),
    { name = name .. "/constants.pkl", data = "\x80\2)." } }), "pth-torchscript", "legacy format" }
end
refuses("legacy formats", legacy)

-- ---- NumPy -----------------------------------------------------------------------------------------
local function npy(descr, shape, bytes, o)
  o = o or {}
  local head = o.head or ("{'descr': %s, 'fortran_order': %s, 'shape': %s, }"):format(descr, o.fortran and "True" or "False", shape)
  return (o.magic or "\x93NUMPY\1\0") .. string.pack(o.wide and "<s4" or "<s2", head .. "  \n") .. bytes
end
local arrays = {
  { "no version", "\x93NUMPY", "npy-header" }, { "version 4", npy("'<f4'", "(4,)", floats, { magic = "\x93NUMPY\4\0" }), "npy-header", "format 4.0" },
  { "version 1.1", npy("'<f4'", "(4,)", floats, { magic = "\x93NUMPY\1\1" }), "npy-header", "format 1.1" }, { "a header past the end",
    "\x93NUMPY\1\0\xff\xff{", "npy-header", "a header of 65535 bytes" },
  { "a wide header past the end", "\x93NUMPY\2\0\xff\xff\xff\xff{", "npy-header" }, { "an empty header", npy("", "", "", { head = "" }),
    "npy-header", "expected '{'" },
  { "big-endian floats", npy("'>f4'", "(4,)", floats), "npy-dtype", "'>f4' is not read" }, { "objects", npy("'|O'", "(4,)", floats), "npy-dtype",
    "'|O'" }, { "strings", npy("'<U4'", "(1,)", floats), "npy-dtype" },
  { "raw bytes", npy("'|V2'", "(8,)", floats), "npy-dtype" }, { "complex numbers", npy("'<c8'", "(2,)", floats), "npy-dtype" }, { "long doubles",
    npy("'<f16'", "(1,)", floats), "npy-dtype" },
  { "a structure", npy("[('a', '<f4')]", "(4,)", floats), "npy-dtype", "structured" }, { "a long dtype", npy("'<f4xxxxxxxx'", "(4,)", floats),
    "npy-dtype" }, { "an empty dtype", npy("''", "(4,)", floats), "npy-dtype" },
  { "a shape without brackets", npy("'<f4'", "4", floats), "npy-header", "expected a shape" }, { "a list as shape", npy("'<f4'", "[4]", floats),
    "npy-header" }, { "a negative size", npy("'<f4'", "(-4,)", floats), "npy-header" },
  { "a size of 2^63", npy("'<f4'", "(9223372036854775808,)", floats), "npy-header" }, { "an expression", npy("'<f4'", "(2*2,)", floats),
    "npy-header", "expected ','" },
  { "nine dimensions", npy("'<f4'", "(1,1,1,1,1,1,1,1,1)", floats), "npy-header", "more than 8" }, { "an open shape", npy("", "", floats,
    { head = "{'shape': (4," }), "npy-header" },
  { "sizes whose product wraps", npy("'<f4'", "(4611686018427387904, 4)", floats), "npy-size" }, { "one element more", npy("'<f4'", "(5,)", floats),
    "npy-size", "needs 20 bytes, 16 are there" },
  { "one element less", npy("'<f4'", "(3,)", floats), "npy-size" }, { "data cut by one", npy("'<f4'", "(4,)", floats:sub(2)), "npy-size" },
    { "a field twice", npy("", "", floats, { head = "{'shape': (4,), 'shape': (4,)}" }), "npy-header", "twice" },
  { "an unknown field", npy("", "", floats, { head = "{'descr': '<f4', 'order': 1}" }), "npy-header", "expected 'descr'" }, { "a missing field",
    npy("", "", floats, { head = "{'descr': '<f4', 'shape': (4,)}" }), "npy-header", "is missing" },
  { "an order that is a number", npy("", "", floats, { head = "{'fortran_order': 1}" }), "npy-header", "neither True nor False" },
    { "code in place of a header", npy("", "", floats, { head = "__import__('os').system('ls')" }), "npy-header" },
  { "bytes after the header", npy("", "", floats, { head = "{'descr': '<f4', 'fortran_order': False, 'shape': (4,)} x" }), "npy-header", "follows" },
  { "an entry that is no array", (make.zip { { name = "x.npy", data = "hello" } }), "npy-header", "no NumPy array", 35 },
}
refuses("NumPy files", arrays)

describe("NumPy files", function()
  it("are refused when cut anywhere, and read or refused with any byte changed", function()
    local array = npy("'<f4'", "(2, 2)", floats)
    for n = 0, #array - 1 do assert.equal(65, refused(core.load, put(array:sub(1, n))).code) end
    for n = 1, #array do
      local ok, e = pcall(core.load, put(array:sub(1, n - 1) .. string.char(array:byte(n) ~ 1) .. array:sub(n + 1)))
      assert.is_true(ok or e.code == 65, tostring(e))
    end
  end)
  it("reads arrays in both orders, alone and in an archive, plain and deflated", function()
    local a = npy("'<f4'", "(2, 2)", floats)
    assert.same({ { 1, 2 }, { 3, 4 } }, core.load(put(a)).arr_0:totable())
    assert.same({ { 1, 3 }, { 2, 4 } }, core.load(put(npy("'<f4'", "(2, 2)", floats, { fortran = true }))).arr_0:totable())
    assert.same({ 1, 2, 3, 4 }, core.load(put(npy("'<f4'", "(4,)", floats, { magic = "\x93NUMPY\3\0", wide = true }))).arr_0:totable())
    assert.equal(8.5, core.load(put(npy("'<f8'", "()", string.pack("<d", 8.5)))).arr_0:item())
    local t = core.load(put((make.zip { { name = "w.npy", data = a }, { name = "b/c.npy", data = npy("'|b1'", "(2,)", "\1\0"), method = 8,
      data_packed = stored_block(npy("'|b1'", "(2,)", "\1\0")) },
      { name = "h.npy", data = npy("'<f2'", "(0, 3)", "") } })))
    assert.same({ { 1, 2 }, { 3, 4 } }, t.w:totable())
    assert.same({ 1, 0 }, t["b/c"]:totable())
    assert.same({ 0, 3 }, t.h:shape())
  end)
end)
