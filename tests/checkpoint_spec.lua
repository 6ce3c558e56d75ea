-- PyTorch checkpoints: the pickles and storages in them, what is read, and what is refused with which id.
local core = require "cab.core"
local lfs = require "lfs"
local make = require "archive"
local malformed = require "malformed"
local put, path, refuses, refused, peak = malformed.put, malformed.path, malformed.refuses, malformed.refused, malformed.peak
local text, int, tuple, global, dict, tensor = make.text, make.int, make.tuple, make.global, make.dict, make.tensor
local floats = string.pack("<ffff", 1, 2, 3, 4)
local function pickle(body) return (make.checkpoint(body, { ["0"] = floats })) end

-- ---- globals: nothing outside the list, and nothing runs ---------------------------------------
local globals = {}
for name in ([[os.system posix.system nt.system builtins.eval builtins.exec builtins.getattr builtins.__import__ __builtin__.eval subprocess.Popen
    sys.exit runpy._run_code importlib.import_module pickle.loads marshal.loads ctypes.CDLL code.interact shutil.rmtree socket.socket
    webbrowser.open torch.load torch.hub.load torch.storage._load_from_bytes numpy.load operator.attrgetter torch.nn.modules.linear.Linear
    torch.serialization.load collections.OrderedDict.update]]):gmatch "%S+" do
  local module, last = name:match "^(.*)%.([^.]+)$"
  globals[#globals + 1] = { name, pickle(dict { text "x", global(module, last) .. tuple(text "touch " .. text(malformed.dir .. "/ran")) .. "R" }),
    "pickle-global",
    "global " .. name .. " is not allowed" }
end
for _, case in ipairs {
  { "a global by strings on the stack", text "os" .. text "system" .. "\x93", "global os.system is not allowed" },
  { "an instance of a forbidden class", "(" .. text "ls" .. "ios\nsystem\n", "global os.system is not allowed" },
  { "an instance of an allowed class", "(icollections\nOrderedDict\n", "not allowed" },
  { "an object", "(" .. global("collections", "OrderedDict") .. "o", "not allowed" },
  { "extension code 1", "\x82\1", "extension codes" }, { "extension code 2", "\x83\1\0", "extension codes" },
  { "extension code 4", "\x84\1\0\0\0", "extension codes" },
  { "a new object with keywords", global("os", "system") .. ")" .. "}" .. "\x92", "global os.system" },
  { "a global with control bytes", global("o\27s", "sys\1tem"), "o\\x1bs.sys\\x01tem" },
  { "a global of no name", global("", ""), "global . is" }, { "a global with a dot for a name", global("torch", "Size.x"), "torch.Size.x" },
} do globals[#globals + 1] = { case[1], pickle(case[2]), "pickle-global", case[3] } end
refuses("pickle globals", globals)

describe("pickle globals", function()
  it("touch no file", function() assert.is_nil(lfs.attributes(malformed.dir .. "/ran")) end)
end)

-- ---- opcodes ---------------------------------------------------------------------------------------
local start = 30 + #"a/data.pkl" -- of the pickle in the file
local function opcode(what, body, id, message, at)
  local entries = { { name = "a/data.pkl", data = "\x80\2" .. body } }
  return { what, (make.zip(entries)), id, message, at and start + at }
end
local opcodes = {
  opcode("no STOP", "}", "pickle-end", "no STOP", 3), opcode("nothing on the stack at STOP", ".", "pickle-stack", "STOP", 2),
  opcode("two values at STOP", "}}.", "pickle-stack", "2 values", 4), opcode("a mark at STOP", "(}.", "pickle-stack", "1 marks", 4),
  opcode("bytes after STOP", "}.x", "pickle-end", "1 bytes follow"), opcode("an unknown opcode", "\xff.", "pickle-opcode", "unknown opcode 0xff", 2),
  opcode("an opcode of protocol 0", "I1\n.", "pickle-opcode", "INT at byte 2", 2), opcode("a line of protocol 0", "Sx\n.", "pickle-opcode", "STRING"),
  opcode("a buffer outside the file", "\x97.", "pickle-opcode", "NEXT_BUFFER"),
  opcode("a second PROTO", "\x80\2}.", "pickle-proto", "at the start", 2),
  opcode("POP on nothing", "0.", "pickle-stack", "POP"), opcode("DUP on nothing", "2.", "pickle-stack", "DUP"),
  opcode("POP_MARK without a mark", "1.", "pickle-stack", "no mark"), opcode("TUPLE without a mark", "t.", "pickle-stack", "no mark"),
  opcode("LIST without a mark", "l.", "pickle-stack", "no mark"), opcode("DICT of three", "(NNNd.", "pickle-operand", "keys and values"),
  opcode("TUPLE1 on nothing", "\x85.", "pickle-stack", "needs 1"), opcode("TUPLE2 on one", "N\x86.", "pickle-stack",
    "needs 2 values, the stack has 1"),
  opcode("TUPLE3 below a mark", "NN(N\x87.", "pickle-stack", "above the mark"), opcode("APPEND on nothing", "a.", "pickle-stack", "APPEND"),
  opcode("APPEND to a dict", "}Na.", "pickle-operand", "expected a list, got a dict", 4), opcode("APPENDS without a mark", "]e.", "pickle-stack",
    "no mark"),
  opcode("APPENDS to nothing", "(Ne.", "pickle-stack", "nothing below"), opcode("APPENDS to a tuple", ")(Ne.", "pickle-operand", "got a tuple"),
  opcode("SETITEM of two", "NNs.", "pickle-stack", "SETITEM"), opcode("SETITEM in a list", "]NNs.", "pickle-operand", "expected a dict, got a list"),
  opcode("SETITEMS of three", "}(NNNu.", "pickle-operand", "keys and values"), opcode("a list as key", "}]Ns.", "pickle-operand", "expected a key"),
  opcode("a dict as key", "}(}Nu.", "pickle-operand", "expected a key"), opcode("BINGET of nothing", "h\0.", "pickle-memo", "index 0", 2),
  opcode("LONG_BINGET far out", "j\xff\xff\xff\xff.", "pickle-memo", "index 4294967295"), opcode("BINPUT of nothing", "q\0.", "pickle-stack",
    "BINPUT"),
  opcode("BINPUT beyond the opcodes", "}q\200.", "pickle-memo", "after 3 opcodes"), opcode("LONG_BINPUT of 2^32 - 1", "}r\xff\xff\xff\xff.",
    "pickle-memo"),
  opcode("MEMOIZE on nothing", "\x94.", "pickle-stack", "MEMOIZE"), opcode("REDUCE of a string", text "f" .. ").", "pickle-stack"),
  opcode("REDUCE that calls a string", text "f" .. ")R.", "pickle-operand", "expected a global, got a string"),
  opcode("REDUCE without a tuple", global("collections", "OrderedDict") .. "NR.", "pickle-operand", "expected a tuple of arguments"),
  opcode("REDUCE that calls a dtype", global("torch", "float32") .. ")R.", "pickle-operand", "torch.float32 cannot be called"),
  opcode("REDUCE on one", ")R.", "pickle-stack", "needs 2"), opcode("BUILD on a string", text "s" .. "}b.", "pickle-operand", "expected an object"),
  opcode("NEWOBJ of nothing", "\x81.", "pickle-stack", "NEWOBJ"), opcode("NEWOBJ_EX without a dict", ")))\x92.", "pickle-operand"),
  opcode("STACK_GLOBAL of integers", "K\1K\2\x93.", "pickle-operand", "a module's name"),
  opcode("STACK_GLOBAL of one", text "os" .. "\x93.", "pickle-stack"), opcode("a global cut off", "cos\nsys", "pickle-end", "GLOBAL"),
  opcode("BINPERSID of a string", text "x" .. "Q.", "pickle-operand", "the tuple of a storage"),
  opcode("a storage of three parts", tuple(text "storage", "N", "N") .. "Q.", "pickle-operand", "3 parts"),
  opcode("a storage of another word", tuple(text "module", "N", "N", "N", "N") .. "Q.", "pickle-operand", "the word storage"),
  opcode("a storage of no type", tuple(text "storage", "N", "N", "N", "N") .. "Q.", "pickle-operand", "a storage type"),
  opcode("a storage of a dtype", tuple(text "storage", global("torch", "float32"), "N", "N", "N") .. "Q.", "pickle-operand", "a storage type"),
  opcode("a storage with a number as key", tuple(text "storage", global("torch", "FloatStorage"), "K\0", text "cpu", "K\4") .. "Q.",
    "pickle-operand", "a key"),
  opcode("a storage without a count", tuple(text "storage", global("torch", "FloatStorage"), text "0", text "cpu", "N") .. "Q.", "pickle-operand",
    "a number of elements"),
  opcode("a tensor of nothing", global("torch._utils", "_rebuild_tensor_v2") .. ")R.", "pickle-operand", "0 arguments"),
  opcode("a tensor without a storage", global("torch._utils", "_rebuild_tensor_v2") .. tuple("N", "K\0", ")", ")", "\x89", "}") .. "R.",
    "pickle-operand",
    "expected a storage"),
  opcode("a parameter that is no tensor", global("torch._utils", "_rebuild_parameter") .. tuple("}", "\x88", "}") .. "R.", "pickle-operand",
    "a tensor"),
  opcode("a size that is no tuple", global("torch", "Size") .. tuple("]") .. "R.", "pickle-operand", "a tuple of sizes"),
  opcode("a frame longer than the file", "\x95" .. string.pack("<I8", 100) .. "}.", "pickle-end", "a frame of 100 bytes"),
}
for _, argument in ipairs { "K", "M\1", "J\1\2\3", "G\0\0\0\0\0\0\0", "q", "h", "r\0\0\0", "j\0\0\0", "\x8a", "\x8a\5abc", "\x8b\2\0\0", "X\1\0\0",
  "X\5\0\0\0abc",
  "\x8c\3ab", "\x8d\1\0\0", "U\2a", "T\2\0\0\0a", "B\1\0\0\0", "C\1", "\x96\1\0\0\0\0\0\0\0", "\x95\0" } do
  opcodes[#opcodes + 1] = opcode(("a cut argument of opcode 0x%02x"):format(argument:byte()), argument, "pickle-end", "ends within its argument", 2)
end
for _, version in ipairs { 0, 1, 6, 255 } do
  opcodes[#opcodes + 1] = { "protocol " .. version, (make.zip { { name = "a/data.pkl", data = "\x80" .. string.char(version) .. "}." } }),
    "pickle-proto",
    "protocol " .. version, start }
end
opcodes[#opcodes + 1] = { "no PROTO", (make.zip { { name = "a/data.pkl", data = "}." } }), "pickle-proto", "no protocol number", start }
opcodes[#opcodes + 1] = { "an empty pickle", (make.zip { { name = "a/data.pkl", data = "" } }), "pickle-proto", "no protocol number", start }
refuses("pickle opcodes", opcodes)

-- ---- bombs ------------------------------------------------------------------------------------------
local million = 1000000
local function deep(n) return ")" .. ("\x85"):rep(n) end
local bombs = {
  { "three million nested tuples", deep(3 * million) }, { "three million nested lists", "]" .. ("]\x94"):rep(3) .. ("(l"):rep(3 * million) },
  { "three million marks", ("("):rep(3 * million) }, { "three million integers on the stack", ("K\1"):rep(3 * million) },
  { "three million copies on the stack", "N" .. ("2"):rep(3 * million) }, { "three million empty dicts", ("}0"):rep(3 * million) },
  { "five million opcodes", ("(1"):rep(5 * million // 2) }, { "a list of nine million references", "]q\0(" .. ("h\0"):rep(9 * million) .. "e" },
  { "three million memo entries", "N" .. ("\x94"):rep(3 * million) .. ("2"):rep(2 * million) },
  { "a dict of three million keys", "}(" .. ("K\1N"):rep(3 * million // 2) .. "u" },
  { "three million strings", ("\x8c\0000"):rep(3 * million) }, { "three million big integers", ("\x8a\0000"):rep(3 * million) },
  { "three million floats", ("G\0\0\0\0\0\0\0\0000"):rep(3 * million // 2) }, { "three million globals", (global("torch",
    "Size") .. "0"):rep(3 * million // 2) },
  { "three million sets", ("\x8f0"):rep(3 * million) }, { "three million frozen sets", ("(\x910"):rep(3 * million) },
}
for i, case in ipairs(bombs) do bombs[i] = { case[1], pickle(case[2]), "pickle-limit", "more than" } end
for _, case in ipairs { { "a string of 4 GiB", "X\xff\xff\xff\xff" }, { "a string of 2^64 bytes", "\x8d" .. ("\xff"):rep(8) }, { "bytes of 2^63",
  "\x8e" .. ("\0"):rep(7) .. "\x80" },
  { "an integer of 4 GiB", "\x8b\xff\xff\xff\xff" }, { "bytes of 4 GiB", "B\xff\xff\xff\xff" }, { "an array of 2^63 bytes",
    "\x96" .. ("\xff"):rep(8) } } do
  bombs[#bombs + 1] = { case[1], pickle(case[2]), "pickle-end", "ends within its argument" }
end
-- one dict below itself, and 2^40 paths through shared dicts
bombs[#bombs + 1] = { "a state dict within itself", pickle(dict { text "model", "}q\1(" .. text "w" .. tensor {} .. text "self" .. "h\1" .. "u" }),
  "pth-limit", "nested" }
local doubling = "}q\0(" .. text "w" .. tensor {} .. "u"
for i = 1, 14 do doubling = doubling .. "0}q" .. string.char(i) .. "(" .. text "a" .. "h" .. string.char(i - 1) .. text "b" .. "h" .. string.char(i - 1) .. "u" end
doubling = doubling .. "0}(" .. text "w" .. tensor {} .. text "x" .. "h\14" .. text "y" .. "h\14" .. text "z" .. "h\14" .. text "u" .. "h\14" .. "u"
bombs[#bombs + 1] = { "65536 tensors by doubling", pickle(doubling), "pth-limit", "names of more than" }
local shared = tensor { shape = { 1 << 20, 1 << 4 }, stride = { 0, 0 } }
bombs[#bombs + 1] = { "a tensor of 2^24 elements from one", pickle(dict { text "w", shared, text "v", shared }), "pth-limit",
  "too many for a file of this size" }
refuses("pickle bombs", bombs)

describe("pickle bombs", function()
  it("stay within 128 MiB beyond the file", function()
    for _, case in ipairs(bombs) do
      put(case[2])
      local most = peak(pcall, core.load, path)
      assert.is_true(most < 128 * 1024 + #case[2] // 1024, case[1] .. ": " .. most)
    end
  end)
  it("load where they are harmless: a tuple that doubles 60 times, a list within itself, a million shared references", function()
    local body = "N" .. ("2\x86"):rep(60) .. "q\0" .. "0"
    put(pickle(body .. dict { text "w", tensor {}, text "t", "h\0", text "l", "]q\1h\1a", text "m", "](" .. ("h\0"):rep(million) .. "e" }))
    local begun = core.now()
    local t, m = core.load(path)
    assert.same({ 1, 2, 3, 4 }, t.w:totable())
    assert.equal("t, l, m", m["not read"])
    assert.is_true(core.now() - begun < 5)
  end)
end)

-- ---- storages and views ---------------------------------------------------------------------------
local function view(what, t, id, message) return { what, pickle(dict { text "w", tensor(t) }), id, message } end
local huge = 1 << 62
local views = {
  view("a storage that is not there", { key = "7" }, "pth-storage", 'storage "7" is not in the archive'),
  view("a key that leaves the folder", { key = "../data.pkl" }, "pth-storage", "is not in the archive"),
  view("a key with NUL", { key = "0\0" }, "pth-storage", "is not in the archive"), view("an empty key", { key = "" }, "pth-storage",
    "is not in the archive"),
  view("a key of 400 letters", { key = ("k"):rep(400) }, "pth-storage", "is not in the archive"),
  view("a storage of more elements", { count = 5 }, "pth-storage", "5 x 4 bytes has 16 bytes"), view("of fewer elements", { count = 3 },
    "pth-storage", "3 x 4 bytes"),
  view("of no elements", { count = 0 }, "pth-storage", "0 x 4"), view("of a negative number", { count = -4 }, "pth-storage", "-4 x 4"),
  view("of 2^62 elements", { count = huge }, "pth-storage", "x 4 bytes has 16"), view("of another type", { type = "DoubleStorage" }, "pth-storage",
    "4 x 8 bytes"),
  view("of half floats", { type = "HalfStorage" }, "pth-storage", "4 x 2 bytes"), view("of complex numbers", { type = "ComplexFloatStorage" },
    "pth-dtype"),
  view("of quantized numbers", { type = "QInt8Storage" }, "pth-dtype"), view("a view one too long", { shape = { 5 } }, "pth-view",
    "passes the 4 elements"),
  view("an offset at the end", { offset = 4, shape = { 1 } }, "pth-view"), view("an offset that shifts it out", { offset = 1 }, "pth-view",
    "from element 1"),
  view("an offset past an empty view", { offset = 5, shape = { 0 } }, "pth-view"), view("a negative offset", { offset = -1 }, "pth-view"),
  view("an offset of 2^62", { offset = huge, shape = { 4 } }, "pth-view"), view("a negative size", { shape = { -4 } }, "pth-view", "size -4"),
  view("a negative stride", { offset = 3, stride = { -1 } }, "pth-view", "stride -1"), view("a stride too long", { shape = { 2 }, stride = { 4 } },
    "pth-view"),
  view("a stride of 2^62", { shape = { 3 }, stride = { huge } }, "pth-view"), view("sizes whose product wraps", { shape = { huge, 4 }, stride = { 0,
    0 } }, "pth-view"),
  view("a product that wraps beside 0", { shape = { 0, huge, huge }, stride = { 1, 1, 1 } }, "pth-view"),
  view("more strides than sizes", { stride = { 1, 1 } }, "pth-view", "1 sizes, 2 strides"), view("no strides", { stride = {} }, "pth-view",
    "1 sizes, 0 strides"),
  view("nine dimensions", { shape = { 1, 1, 1, 1, 1, 1, 1, 1, 1 }, stride = { 1, 1, 1, 1, 1, 1, 1, 1, 1 } }, "pickle-operand", "9 dimensions"),
  view("a complex dtype", { rebuild = "_rebuild_tensor_v3", type = "UntypedStorage", count = 16, dtype = global("torch", "complex64") }, "pth-dtype"),
  view("a dtype too wide", { rebuild = "_rebuild_tensor_v3", type = "UntypedStorage", count = 16, dtype = global("torch", "float64") }, "pth-view"),
  { "an integer that fits no i32", make.checkpoint(dict { text "w", tensor { type = "LongStorage", count = 2, shape = { 2 } } },
    { ["0"] = string.pack("<i8i8", 5, 1 << 31) }), "weights-value", "value 2147483648 (int64) at element 1" },
}
describe("storages and views", function()
  for _, case in ipairs(views) do
    it("refuses " .. case[1], function()
      local e = refused(core.load, put(case[2]))
      assert.same({ 65, case[3] }, { e.code, e.id }, tostring(e))
      assert.truthy(e.message:find('"w"', 1, true) or e.id == "pickle-operand", e.message)
      if case[4] then assert.truthy(e.message:find(case[4], 1, true), e.message) end
    end)
  end
  it("has at least 20 of them", function() assert.is_true(#views >= 20) end)
end)

describe("checkpoints", function()
  local w, v = tensor {}, tensor { key = "1", count = 2, shape = { 2, 1 }, stride = { 1, 1 } }
  local storages = { ["0"] = floats, ["1"] = string.pack("<ff", 7, 8) }
  local function load(body, key, more) return core.load(put((make.checkpoint(body, storages, more))), key) end
  local function names(t)
    local list = {}
    for name in pairs(t) do list[#list + 1] = name end
    table.sort(list)
    return table.concat(list, " ")
  end

  it("chooses the state dict by the stated rule", function()
    local t, m = load(dict { text "w", w, text "epoch", int(7) })
    assert.same({ "w", "", "epoch" }, { names(t), m.key, m["not read"] })
    local both = dict { text "model_ema", dict { text "w", v }, text "model", dict { text "w", w }, text "optimizer", dict { text "state",
      dict { int(0), dict { text "m", v } } },
      text "args", global("argparse", "Namespace") .. ")\x81" .. dict { text "lr", "G?\xf0\0\0\0\0\0\0" } .. "b", text "epoch", int(3) }
    t, m = load(both)
    assert.same({ { 4 }, "model", "model_ema, optimizer, args, epoch" }, { t.w:shape(), m.key, m["not read"] })
    assert.same({ 2, 1 }, load(both, "model_ema").w:shape())
    assert.equal("state_dict", select(2, load(dict { text "state_dict", dict { text "w", w } })).key)
    t, m = load(dict { text "rng", v, text "module", dict { text "w", w } }) -- the state of a generator beside it
    assert.same({ "w", "module", "rng" }, { names(t), m.key, m["not read"] })
    assert.equal("mine", select(2, load(dict { text "mine", dict { text "w", w }, text "config", dict { text "x", int(1) } })).key)
    assert.equal("a.b", select(2, load(dict { text "a", dict { text "b", dict { text "w", w } } }, "a.b")).key)
    assert.equal("tensor", names(load(w)))
    assert.equal("block.w block.x w", names(load(dict { text "w", w, text "block", dict { text "w", v, text "x", v } })))
  end)

  it("says what keys there are", function()
    local function message(...) return refused(load, ...).message end
    assert.truthy(message(dict { text "a", dict { text "w", w }, text "b", dict { text "w", w } }):find("choose one with key: a, b", 1, true))
    assert.truthy(message(dict { text "model", dict { text "w", w } }, "modle"):find("no key 'modle' in it (there are: model)", 1, true))
    assert.truthy(message(dict { text "epoch", int(1) }):find("no state dict in it (entries: epoch)", 1, true))
    assert.truthy(message(int(3)):find("expected a dict of tensors", 1, true))
    assert.truthy(message(dict { text "w", w }, "w"):find("'w' is no dict", 1, true))
    assert.equal("pth-duplicate", refused(load, dict { text "w", w, text "w", v }).id)
    assert.equal("pth-name", refused(load, dict { text "a\0b", w }).id)
    assert.equal("pth-name", refused(load, dict { text "\xff", w }).id)
    assert.equal("pth-name", refused(load, dict { text "v", w, text "a\0b", dict { text "w", w } }).id)
    assert.equal("pth-byteorder", refused(load, dict { text "w", w }, nil, { { name = "a/byteorder", data = "big" } }).id)
    core.save(path, {})
    assert.equal(2, refused(core.load, path, "model").code)
  end)

  it("reads shared, transposed, expanded and parameter tensors", function()
    local param = global("torch._utils", "_rebuild_parameter") .. tuple(w, "\x88", "}") .. "R"
    local t = load(dict { text "p", param, text "t", tensor { shape = { 2, 2 }, stride = { 1, 2 } }, text "e", tensor { offset = 3, shape = { 2,
      2 }, stride = { 0, 0 } },
      text "s", tensor { offset = 1, shape = { 2 }, stride = { 2 } }, text "n", tensor { offset = 4, shape = { 0, 3 }, stride = { 3, 1 } },
        text "i", tensor { offset = 2, shape = {}, stride = {} } })
    assert.same({ 1, 2, 3, 4 }, t.p:totable())
    assert.same({ { 1, 3 }, { 2, 4 } }, t.t:totable())
    assert.same({ { 4, 4 }, { 4, 4 } }, t.e:totable())
    assert.same({ 2, 4 }, t.s:totable())
    assert.same({ 0, 3 }, t.n:shape())
    assert.equal(3, t.i:item())
  end)

  it("converts what has no dtype here", function()
    local cases = { { "HalfStorage", "<I2I2I2I2", { 0x3c00, 0xc000, 0x0001, 0x7bff }, { 1, -2, 2 ^ -24, 65504 }, "f32" }, { "BFloat16Storage",
      "<I2I2", { 0x3f80, 0xc040 }, { 1, -3 }, "bf16" },
      { "LongStorage", "<i8i8", { -5, 2147483647 }, { -5, 2147483647 }, "i32" }, { "ShortStorage", "<i2i2", { -5, 32767 }, { -5, 32767 }, "i32" },
        { "CharStorage", "<bb", { -128, 127 }, { -128, 127 }, "i32" },
      { "BoolStorage", "<BB", { 1, 0 }, { 1, 0 }, "u8" }, { "ByteStorage", "<BB", { 255, 0 }, { 255, 0 }, "u8" }, { "IntStorage", "<i4i4", { -7,
        9 }, { -7, 9 }, "i32" }, { "DoubleStorage", "<dd", { .1, 2 }, { .1, 2 }, "f64" } }
    for _, case in ipairs(cases) do
      local bytes = string.pack(case[2], table.unpack(case[3]))
      put((make.checkpoint(dict { text "w", tensor { type = case[1], count = #case[3], shape = { #case[3] } } }, { ["0"] = bytes })))
      local t = core.load(path).w
      assert.equal(case[5], t:dtype())
      assert.same(case[4], (t:dtype() == "bf16" and t:to "f32" or t):totable(), case[1])
    end
    -- quarter floats come with an untyped storage
    for _, case in ipairs { { "float8_e4m3fn", { 0x38, 0xc0, 0x01, 0x7e }, { 1, -2, 2 ^ -9, 448 } }, { "float8_e5m2", { 0x3c, 0xc0, 0x01, 0x7b },
      { 1, -2, 2 ^ -16, 57344 } } } do
      put((make.checkpoint(dict { text "w", tensor { rebuild = "_rebuild_tensor_v3", type = "UntypedStorage", dtype = global("torch", case[1]) } },
        { ["0"] = string.char(table.unpack(case[2])) })))
      assert.same(case[3], core.load(path).w:totable())
    end
  end)
end)

-- ---- files of many PyTorch versions ---------------------------------------------------------------
describe("published checkpoints", function()
  local folder = "../shared/data/weights/pt-fixtures/"
  if not lfs.attributes(folder) then return pending("needs " .. folder) end
  local expected = { ["complex_structure.pt"] = "pth-key", ["legacy_uncloned_views.pt"] = "pth-legacy", ["simple_legacy.pt"] = "pth-legacy" }
  for name in lfs.dir(folder) do
    if name:match "%.pth?$" or name:match "%.safetensors$" then
      it("are read or refused with a reason: " .. name, function()
        local id = expected[name:match ".*__(.-)$"]
        if id then
          local e = refused(core.load, folder .. name)
          assert.same({ 65, id }, { e.code, e.id })
        else
          assert.is_not_nil(next((core.load(folder .. name))))
          for _, t in ipairs(core.inspect(folder .. name)) do assert.equal(0, t.nan) end
        end
      end)
    end
  end
end)

describe("memory and reads", function()
  -- Each allocation and each read of a file, once: 71 or 74 or the same values after a second try, never a crash or a leak.
  it("may fail anywhere while weights are read", function()
    if core.doctor().build ~= "faults" then return pending "needs a build with fault points (make asan)" end
    local pipe = io.popen "readlink /proc/$PPID/exe"
    local program = pipe:read "l"
    pipe:close()
    local script = malformed.dir .. "/read.lua"
    local file <close> = assert(io.open(script, "wb"))
    file:write [[
      local core = require "cab.core"
      local ok, e = pcall(function()
        local folder = "tests/fixtures/weights/"
        for _, name in ipairs { "checkpoint_2.pth", "checkpoint_4.pth", "arrays.npz", "checkpoint_expected.safetensors" } do
          core.load(folder .. name)
          core.inspect(folder .. name)
        end
      end)
      if not ok then os.exit(type(e) == "table" and e.code or 3) end
    ]]
    file:close()
    pipe = io.popen(("CAB_FAULT_COUNTS=1 '%s' run '%s' 2>&1"):format(program, script))
    local counts = pipe:read "a"
    pipe:close()
    for point, code in pairs { malloc = 71, ["file.read"] = 74, ["file.open"] = 74 } do
      local count = tonumber(counts:match("fault " .. point:gsub("%.", "%%.") .. " (%d+)"))
      assert.is_true(count >= 8, counts)
      for n = 1, count, math.max(1, count // 200) do
        local _, _, got = os.execute(("CAB_FAULT=%s:%d '%s' run '%s' >/dev/null 2>&1"):format(point, n, program, script))
        assert.is_true(got == code or got == 0 and point == "malloc", ("%s:%d ends with %d"):format(point, n, got))
      end
    end
  end)
end)
