-- Documents, token files, windows, data.text, cab tokenize.
local cab = require "cab"
local core = cab.core
local lfs = require "lfs"
local refused = require "refused"

local dir = os.tmpname()
os.remove(dir)
lfs.mkdir(dir)

local function put(name, bytes)
  local f <close> = assert(io.open(dir .. "/" .. name, "wb"))
  f:write(bytes)
  return dir .. "/" .. name
end

local function gzip(path)
  os.execute(("gzip -kf '%s'"):format(path))
  return path .. ".gz"
end

local function list(t)
  local out = t:count() > 0 and t:totable() or {}
  return out
end

local function all(path, field)
  local docs <close> = core.documents(path, field)
  local out, part = {}, ""
  while true do
    local text, last = docs:next()
    if not text then break end
    part = part .. text
    if last then out[#out + 1], part = part, "" end
  end
  assert.equal("", part)
  return out
end

local gpt2 = cab.tokenizer.open "gpt2"
local function writer(options)
  local o = { vocab = gpt2:count(), ending = 50256, hash = gpt2:hash() }
  for k, v in pairs(options or {}) do o[k] = v end
  return core.token_writer(o)
end

local function encode(paths, options)
  local w <close> = writer(options)
  for _, path in ipairs(paths) do
    local docs <close> = core.documents(path, path:find "jsonl" and "text" or nil)
    while w:take(docs, gpt2) do end
  end
  local ids, documents, tokens = w:commit()
  return tokens, ids, documents
end

-- 3 MB of words, lines, quotes, long spaces and characters of all lengths.
local function long_text()
  local novel, parts = all "data/austen/persuasion.txt.gz"[1], {}
  for i = 1, 6 do
    parts[#parts + 1] = novel:gsub(i % 2 == 0 and "\n" or "x", i % 2 == 0 and " \n\n  " or "“é” 日本")
    parts[#parts + 1] = (" "):rep(i) .. "\u{3000}\u{a0}" .. ("\n"):rep(i)
  end
  return table.concat(parts)
end

describe("documents", function()
  it("gives a text in parts, plain and gzip, and lines of JSONL", function()
    local text = long_text()
    local path = put("long.txt", text)
    assert.same({ text }, all(path))
    assert.same({ text }, all(gzip(path)))
    local docs <close> = core.documents(path)
    local count = 0
    while docs:next() do count = count + 1 end
    assert.is_true(count > 2)
    local read, size = docs:position()
    assert.same({ #text, #text }, { read, size })
    local lines = put("a.jsonl", '{"text": "a\\u00e9\\n", "n": [1, {"x": []}, null, true, -1.5e3]}\n\n  \r\n{"id": "}", "text": "b"}')
    assert.same({ "aé\n", "b" }, all(lines, "text"))
    assert.same({ "aé\n", "b" }, all(gzip(lines), "text"))
    assert.same({}, all(put("none.jsonl", "\n"), "text"))
  end)

  it("encodes a text in parts as in one", function()
    local text = long_text()
    local tokens, ids, documents = encode { put("long.txt", text) }
    local whole = gpt2:encode(text, false)
    assert.same({ whole:count() + 1, 1 }, { ids, documents })
    local got = tokens:read(0, ids)
    assert.equal(core.hash(nil, table.concat(whole:totable(), ",") .. ",50256"), core.hash(nil, table.concat(got:totable(), ",")))
  end)

  for _, case in ipairs {
    { "bad UTF-8 in line 2", "a\nb\xffc\n", nil, "text-utf8", 3, "line 2: bad UTF%-8: 0xff" },
    { "a NUL", "a b\n\n\0", nil, "text-nul", 5, "line 3: a NUL byte" },
    { "an empty text", "", nil, "text-empty", 0, "line 1: an empty document" },
    { "bad UTF-8", '{"text":"a"}\n{"text":"\xc0\x80"}\n', "text", "text-utf8", 22, "line 2: bad UTF%-8" },
    { "a raw NUL", '{"text":"a"}\n{"text":"b\0c"}\n', "text", "text-nul", 23, "line 2: a NUL byte" },
    { "an escaped NUL", '{"text":"b\\u0000c"}\n', "text", "jsonl", 11, "line 1: a string must not hold NUL" },
    { "a line that is no object", '{"text":"a"}\n[1]\n', "text", "jsonl", 13, "line 2: expected '{', got '%['" },
    { "an object cut off", '{"text":"a"', "text", "jsonl", 11, "line 1: expected ','" },
    { "a string cut off", '\n{"text":"a\n', "text", "jsonl", 11, "line 2: expected the end of a string" },
    { "two objects on a line", '{"text":"a"} {"text":"b"}\n', "text", "jsonl", 13, "line 1: expected the end of the line" },
    { "a missing field", '{"text":"a"}\n{"txt":"b"}\n', "text", "jsonl-field", 13, 'line 2: field "text" is missing' },
    { "a field twice", '{"text":"a","text":"b"}\n', "text", "jsonl-field", 12, 'line 1: field "text" stands there twice' },
    { "a field that is no string", '{"text":3}\n', "text", "jsonl-field", 8, 'line 1: field "text" is no string' },
    { "an empty document", '{"text":"a"}\n\n{"text":""}\n', "text", "jsonl-field", 22, 'line 3: field "text" is empty' },
    { "deep nesting", '{"x":' .. ("["):rep(200000) .. "\n", "text", "jsonl-depth", 133, "line 1: nested deeper than 128" },
    { "brackets that do not match", '{"x":[},"text":"a"}\n', "text", "jsonl", 6, "line 1: expected a value, got '}'" },
    { "a word that is no value", '{"x":?,"text":"a"}\n', "text", "jsonl", 5, "line 1: expected a value" },
    { "a bad escape", '{"text":"\\x"}\n', "text", "jsonl", 10, "line 1: bad escape" },
  } do
    it("refuse " .. case[1], function()
      local path = put("bad", case[2])
      local e = refused(65, all, path, case[3])
      assert.same({ case[4], path, case[5] }, { e.id, e.file, e.offset }, tostring(e))
      assert.matches(case[6], e.message)
    end)
  end

  it("refuse a line, and a text without a space, longer than 64 MiB", function()
    local path = put("line", '{"text":"' .. ("x"):rep(65 << 20) .. '"}\n')
    local e = refused(65, all, path, "text")
    assert.same({ "text-line", 0 }, { e.id, e.offset })
    assert.matches("line 1: longer than 64 MiB", e.message)
    assert.matches("64 MiB without a space", refused(65, all, path).message)
    os.remove(path)
  end)

  it("refuse what is no file, damaged gzip and misuse", function()
    assert.equal(74, refused(74, core.documents, dir .. "/none").code)
    assert.equal("file-kind", refused(65, core.documents, dir).id)
    local f <close> = assert(io.open(gzip(put("z.txt", ("word "):rep(100000))), "rb"))
    local bytes = f:read "a"
    for _, n in ipairs { 3, 10, #bytes // 2, #bytes - 8, #bytes - 1 } do
      assert.equal("gz-truncated", refused(65, all, put("cut.gz", bytes:sub(1, n))).id)
    end
    assert.equal("gz-data", refused(65, all, put("more.gz", bytes .. "xxxxxxxxxxxx")).id)
    assert.equal(2, #all(put("two.gz", bytes .. bytes))[1] // 500000)
    local docs = core.documents(put("t.txt", "a"))
    docs:close()
    assert.matches("documents is closed", refused(1, docs.next, docs).message)
  end)

  it("are refused by a tokenizer with file and line", function()
    local t = core.tokenizer { file = put("m.txt", "a b\n"), vocab = put("v.json", '{"a":0,"b":1,"ab":2," ":3}') }
    local w <close> = core.token_writer { vocab = 4 }
    local docs <close> = core.documents(put("c.jsonl", '{"text":"ab"}\n{"text":"abc"}\n'), "text")
    assert.equal(2, w:take(docs, t))
    local e = refused(65, w.take, w, docs, t)
    assert.matches("c.jsonl: line 2: no token for byte 0x63", e.message)
  end)
end)

describe("token files", function()
  local ids = { 0, 1, 2, 3, 40000, 50255, 50256, 7 }
  local function pack(format)
    local out = {}
    for i, id in ipairs(ids) do out[i] = string.pack(format, id) end
    return table.concat(out)
  end

  it("are read without a header, with ours and with llm.c's", function()
    local llmc = string.pack("<i4i4i4", 20240520, 1, #ids) .. ("\0"):rep(1012) .. pack "<I2"
    for _, case in ipairs {
      { put("a.bin", pack "<I2"), "u16" }, { put("b.bin", pack "<I4"), "u32" }, { put("c.bin", llmc) },
      { put("d.bin", string.pack("<i4i4i4", 20240801, 7, #ids) .. ("\0"):rep(1012) .. pack "<I4") },
    } do
      local t <close> = core.tokens { file = case[1], raw = case[2], vocab = 50257, ending = 50256 }
      assert.equal(#ids, t:count())
      assert.same(ids, t:read(0, #ids):totable())
      assert.same({ 40000, 50255 }, t:read(4, 2):totable())
      assert.same({}, list(t:read(8, 0)))
      assert.equal(50256, t:format().ending)
    end
  end)

  it("come back as they were written, and hold the tokenizer's hash", function()
    local path = dir .. "/w.bin"
    local w = writer { path = path }
    local docs <close> = core.documents(put("two.jsonl", '{"text":"Hello world"}\n{"text":"again <|endoftext|>"}\n'), "text")
    while w:take(docs, gpt2) do end
    assert.is_nil(lfs.attributes(path))
    assert.same({ 12, 2 }, { w:commit() })
    local t <close> = core.tokens { file = path }
    assert.same({ width = 2, vocab = 50257, ending = 50256, hash = gpt2:hash() }, t:format())
    assert.equal("Hello world<|endoftext|>again <|endoftext|><|endoftext|>", gpt2:decode(t:read(0, t:count())))
    assert.equal(2, select(2, table.concat(t:read(0, 12):totable(), " "):gsub("50256", "")))
    assert.matches("closed", refused(1, w.commit, w).message)
    local raw = writer { path = path, raw = true }
    raw:commit()
    assert.equal(0, lfs.attributes(path, "size"))
  end)

  it("leave nothing behind where writing fails, and an old file as it was", function()
    local path = put("old.bin", "old")
    local w = writer { path = path }
    local docs <close> = core.documents(put("bad.jsonl", '{"text":"a"}\n{}\n'), "text")
    w:take(docs, gpt2)
    refused(65, w.take, w, docs, gpt2)
    w:close()
    assert.equal(3, lfs.attributes(path, "size"))
    assert.is_nil(lfs.attributes(path .. ".tmp"))
    assert.equal(74, refused(74, writer, { path = dir .. "/no/such/folder.bin" }).code)
    assert.equal("file-kind", refused(74, writer, { path = dir }).id)
  end)

  local function header(fields)
    local f = { "CABTOKEN", 1, 2, 8, 0, 50256, 50257 }
    for i, v in pairs(fields or {}) do f[i] = v end
    return string.pack("<c8I4I4I8I8i8I8", table.unpack(f)) .. ("\0"):rep(16)
  end

  for _, case in ipairs {
    { "no header", pack "<I2", nil, "tok-header", 0, "say whether its ids are u16 or u32" },
    { "an empty file", "", nil, "tok-header", 0, "no header" },
    { "a header cut off", header():sub(1, 20), nil, "tok-header", 0, "cut off" },
    { "an unknown version", header { [2] = 2 } .. pack "<I2", nil, "tok-header", 8, "unknown version" },
    { "ids of 3 bytes", header { [3] = 3 } .. pack "<I2", nil, "tok-header", 12, "2 or 4 bytes" },
    { "an ending that is no id", header { [6] = 50257 } .. pack "<I2", nil, "tok-header", 32, "out of range" },
    { "a vocabulary of 2^31", header { [7] = 1 << 31 } .. pack "<I2", nil, "tok-header", 32, "out of range" },
    { "a count too large", header { [4] = 9 } .. pack "<I2", nil, "tok-size", 64, "9 ids of 2 bytes need 82 bytes, the file has 80" },
    { "a count too small", header { [4] = 7 } .. pack "<I2", nil, "tok-size", 64, "need 78 bytes" },
    { "a count that wraps", header { [4] = -1 } .. pack "<I2", nil, "tok-size", 64, "ids of 2 bytes need" },
    { "half an id", pack "<I2" .. "x", "u16", "tok-size", 0, "the file has 17" },
    { "a header where none is", header() .. pack "<I2", "u16", "tok-header", 0, "has a header" },
    { "an llm.c file cut off", string.pack("<i4i4i4", 20240520, 1, 100) .. ("\0"):rep(1012), nil, "tok-size", 1024, "need 1224" },
  } do
    it("refuse " .. case[1], function()
      local path = put("bad.bin", case[2])
      local e = refused(65, core.tokens, { file = path, raw = case[3] })
      assert.same({ case[4], path, case[5] }, { e.id, e.file, e.offset }, tostring(e))
      assert.matches(case[6], e.message)
    end)
  end

  it("refuse an id out of range with file, place and value", function()
    local path = put("range.bin", pack "<I2")
    local t <close> = core.tokens { file = path, raw = "u16", vocab = 50256 }
    assert.same({ 0, 1, 2, 3, 40000, 50255 }, t:read(0, 6):totable())
    local e = refused(65, t.read, t, 5, 2)
    assert.same({ "tok-id", path, 12 }, { e.id, e.file, e.offset })
    assert.matches("id 50256 at position 6, the vocabulary has 50256", e.message)
    local wide <close> = core.tokens { file = put("wide.bin", "\255\255\255\255"), raw = "u32" }
    assert.matches("id 4294967295 at position 0", refused(65, wide.read, wide, 0, 1).message)
    assert.matches("ids 7 to 9 of 8", refused(1, t.read, t, 7, 2).message)
    assert.matches("'ending' is 9 of 9 ids", refused(1, core.tokens, { file = path, raw = "u16", vocab = 9, ending = 9 }).message)
  end)

  it("notice a file that shrinks", function()
    local path = put("shrink.bin", ("\1\0"):rep(1000))
    local t <close> = core.tokens { file = path, raw = "u16", vocab = 10 }
    put("shrink.bin", "\1\0")
    assert.equal("file-changed", refused(65, t.read, t, 500, 10).id)
  end)
end)

describe("windows", function()
  local path = put("count.bin", (function()
    local out = {}
    for i = 0, 102 do out[#out + 1] = string.pack("<I2", i % 10 == 9 and 200 or i) end
    return table.concat(out)
  end)())
  local function open() return core.tokens { file = path, raw = "u16", vocab = 201, ending = 200 } end
  local function drain(o)
    local t <close> = open()
    local w <close> = t:windows(o)
    local out = {}
    while true do
      local ids, segments = w:next()
      if not ids then break end
      out[#out + 1] = { ids:totable(), segments:totable() }
    end
    return out
  end

  it("follow one another, with the number of each id's document", function()
    local all_of = drain { length = 10, batch = 4 }
    assert.equal(3, #all_of)
    assert.same({ 10, 11, 12, 13, 14, 15, 16, 17, 18, 200 }, all_of[1][1][2])
    assert.same({ 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }, all_of[1][2][2])
    assert.equal(2, #all_of[3][1])
    local odd = drain { length = 25, batch = 1 }
    assert.equal(4, #odd)
    assert.same({ 25, 26, 27, 28, 200, 30 }, { table.unpack(odd[2][1][1], 1, 6) })
    assert.same({ 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2 }, odd[2][2][1])
    assert.equal(2, #drain { length = 10, batch = 4, drop_last = true })
    assert.same({ all_of[1][1][3] }, drain { length = 10, batch = 1, first = 20, count = 1 }[1][1])
  end)

  it("have an order of (seed, epoch), from any batch on", function()
    local function run(o) return drain { length = 10, batch = 2, shuffle = true, seed = o[1], epoch = o[2], start = o[3] } end
    local one = run { 1, 5, 0 }
    assert.same(one, run { 1, 5, 0 })
    assert.are_not.same(one, run { 1, 6, 0 })
    assert.are_not.same(one, run { 2, 5, 0 })
    assert.same({ one[4], one[5] }, run { 1, 5, 3 })
    do
      local t <close> = open()
      local w <close> = t:windows { length = 10, batch = 2, shuffle = true, seed = 1, epoch = 5 }
      local order = w:order():totable()
      assert.equal(10, #order)
      for i = 1, 10 do assert.equal(order[i] * 10, one[(i + 1) // 2][1][(i - 1) % 2 + 1][1]) end
      local plain <close> = t:windows { length = 25, batch = 3 }
      assert.same({ 0, 1, 2, 3 }, plain:order():totable())
    end
    assert.same({}, run { 1, 5, 9 })
    local seen = {}
    for _, batch in ipairs(one) do for _, row in ipairs(batch[1]) do seen[row[1]] = true end end
    for i = 0, 9 do assert.is_true(seen[10 * i]) end
  end)

  it("are written into tensors of their shape", function()
    local t <close> = open()
    local w <close> = t:windows { length = 10, batch = 4 }
    local ids, segments = core.zeros({ 4, 10 }, "i32"), core.zeros({ 4, 10 }, "i32")
    assert.is_true(w:into(ids, segments))
    assert.equal(200, ids:totable()[1][10])
    assert.is_false(w:into(core.zeros({ 4, 9 }, "i32"), segments))
    assert.is_true(w:into(ids, segments))
    assert.is_false(w:into(ids, segments))
    assert.same({ 2, 10 }, w:next():shape())
    assert.is_nil((w:next()))
    assert.equal(3, w:batches())
    assert.is_true(w:wait() >= 0)
  end)

  it("refuse what does not fit", function()
    local t <close> = open()
    for _, case in ipairs { { { batch = 1 }, "'length' is 0" }, { { length = 4 }, "'batch' is 0" },
      { { length = 10, batch = 1, count = 11 }, "11 windows of 10 ids" },
      { { length = 10, batch = 1, first = 104 }, "'first' is 104 of 103" }, { { length = 10, batch = 1, lenght = 1 }, "did you mean 'length'" } } do
      assert.matches(case[2], refused(1, t.windows, t, case[1]).message)
    end
  end)
end)

describe("data.text", function()
  it("has a novel to begin with, held-out windows at its end", function()
    local data = cab.data.build(cab.data.text { tokenizer = "gpt2:743", length = 64, holdout = 0.1 })
    assert.same({ 1000, 999, 64 }, { data.vocab, data.ending, data.length })
    assert.equal(data.tokens.train, data.count.train * 64)
    assert.is_true(math.abs(data.count.test / (data.count.train + data.count.test) - 0.1) < 0.001)
    local whole = data.tokenizer:encode(all "data/austen/persuasion.txt.gz"[1])
    assert.equal(whole:count() + 1, data.tokens.train + data.tokens.test)
    local feed = data:loader("test", { batch = 8 })
    local ids, segments = feed:next()
    assert.same({ 8, 64 }, ids:shape())
    assert.equal(table.concat(whole:totable(), " ", data.tokens.train + 1, data.tokens.train + 64), table.concat(ids:totable()[1], " "))
    assert.equal(0, segments:range().max)
    assert.same(ids:totable()[1], data:read("test", 0, 64):totable())
    assert.matches("ids %-1 to 4", refused(2, data.read, data, "test", -1, 5).message)
    feed:close()
    assert.same({ data.tokens.test, 100 }, { data:ids("test"):count(), data:ids("test", 100):count() })
    assert.equal(data.count.train // 16, data:batches(16))
    assert.is_not_nil(data:hashes()["data/austen/persuasion.txt.gz"])
    data:close()
  end)

  it("gives the same batches again from any step on, of text and of its token file", function()
    local path = dir .. "/novel.bin"
    cab.corpus.convert({ "data/austen/persuasion.txt.gz" }, path)
    local function batches(train, start)
      local data = cab.data.build(cab.data.text { train = train, length = 512 })
      local feed <close>, out = data:loader("train", { batch = 20, seed = 4, epoch = 2, start = start }), {}
      for ids, segments in function() return feed:next() end do
        out[#out + 1] = { core.hash(nil, table.concat(ids:reshape(-1):totable(), ",")), segments:range().max }
      end
      return out
    end
    local text = batches("data/austen/persuasion.txt.gz", 0)
    assert.equal(10, #text)
    assert.same(text, batches(path, 0))
    assert.same({ table.unpack(text, 6) }, batches(path, 5))
  end)

  it("takes lists, JSONL and another file for tests, and says what is wrong", function()
    local a, b = put("a.jsonl", ('{"body":"one two three four five six"}\n'):rep(20)), put("b.txt", ("seven eight "):rep(30))
    local data = cab.data.build(cab.data.text { train = { a, b }, test = b, field = "body", length = 16 })
    assert.equal(20 * 7 + 61 + 1, data.tokens.train)
    assert.is_true(data.count.test > 2)
    local function fault(code, o) return refused(code, function() return cab.data.build(cab.data.text(o)) end) end
    assert.matches("did you mean 'length'", fault(2, { lenght = 4 }).message)
    assert.matches("none.txt: no such file %(data.train%)", fault(74, { train = "none.txt" }).message)
    assert.matches('line 1: field "text" is missing', fault(65, { train = a }).message)
    assert.matches("data.train: 20 ids, a window has 1024", fault(65, { train = put("s.txt", ("word "):rep(18)) }).message)
    assert.matches("data.test: 20 ids, a window has 32", fault(65, { train = b, test = dir .. "/s.txt", length = 32 }).message)
    local other = dir .. "/other.bin"
    cab.corpus.convert({ b }, other, { tokenizer = "gpt2:100" })
    assert.matches("its ids are of a tokenizer of 357 ids", fault(65, { train = other, length = 8 }).message)
    assert.matches("a token file stands alone", fault(2, { train = { other, b }, length = 8 }).message)
    assert.matches("say whether its ids are u16 or u32", fault(65, { train = put("r.bin", "\1\0\2\0"), length = 2 }).message)
    local raw = cab.data.build(cab.data.text { train = put("r.bin", ("\1\0\2\0"):rep(40)), raw = "u16", length = 2 })
    assert.same({ 50257, 50256 }, { raw.vocab, raw.ending })
  end)
end)

describe("cab tokenize", function()
  local function run(args)
    local pipe = io.popen(("%s/../build/cab tokenize %s 2>&1; echo $?"):format(core.library, args))
    local out = pipe:read "a"
    pipe:close()
    return out
  end

  it("prints ids, writes token files and prints their text", function()
    assert.equal("15496 995 27 91 437 1659 5239 91 29\n0\n", run "--text 'Hello world<|endoftext|>'")
    assert.equal("15496 50256\n0\n", run "--control --text 'Hello<|endoftext|>'")
    local text, bin = put("cli.txt", "Hello world, again"), dir .. "/cli.bin"
    assert.matches("5 ids of 1 documents, 18 bytes of text", run(("%s -o %s"):format(text, bin)))
    assert.equal(" world, again<|endoftext|>\n0\n", run(("--decode --from 1 %s"):format(bin)))
    assert.matches("5 ids", run(("%s --raw -o %s.raw"):format(text, bin)))
    assert.equal("Hello world\n0\n", run(("--decode --raw --count 2 %s.raw"):format(bin)))
    assert.equal(10, lfs.attributes(bin .. ".raw", "size"))
  end)

  it("refuses what it cannot do", function()
    assert.matches("expected one of %-%-out FILE.*\n2\n", run "x.txt")
    assert.matches("expected .txt or .jsonl.*\n2\n", run "x.bin -o y.bin")
    assert.matches("no files given.*\n2\n", run "-o y.bin")
    assert.matches("no such file\n74\n", run "--decode none.bin" :gsub("open: No such file or directory", "no such file"))
    assert.matches("line 2: field \"text\" is missing\n65\n", run(put("c.jsonl", '{"text":"a"}\n{}\n') .. " -o " .. dir .. "/refused.bin"))
    assert.is_nil(lfs.attributes(dir .. "/refused.bin"))
  end)
end)

describe("spans", function()
  local schedule = cab.schedule
  local facts = { per_epoch = 100, tokens = 8 * 1024, steps = 1000 }
  it("are epochs, steps, tokens or a share", function()
    for value, steps in pairs { [0] = 0, [2] = 200, [0.255] = 26, ["500 steps"] = 500, ["1 epochs"] = 100, ["10 %"] = 100, ["2.5%"] = 25,
      ["200M tokens"] = 24415, ["8192 tokens"] = 1, ["8193 tokens"] = 2 } do
      assert.equal(steps, schedule.steps(value, "x", facts), tostring(value))
    end
    assert.equal(24415, schedule.budget("200M", "x", facts))
    assert.equal(244141, schedule.budget(2e9, "x", facts))
    for text, count in pairs { ["200M"] = 2e8, ["1.5B"] = 1.5e9, ["2e8"] = 2e8, ["64k"] = 64000, ["12"] = 12 } do assert.equal(count, schedule.count(text, "x")) end
  end)

  it("are refused where they mean nothing", function()
    for _, text in ipairs { "ten steps", "10", "10 stairs", "101 %", "tokens", "-3 steps", "" } do
      assert.matches("optim.warmup is", refused(2, schedule.steps, text, "optim.warmup", facts).message, text)
    end
    assert.matches("stages.1.tokens is 200M, but the data has no tokens", refused(2, schedule.budget, "200M", "stages.1.tokens", {}).message)
    local function recipe(stage, optim)
      return cab.recipe { data = cab.data.fashion {}, student = cab.models.vim { size = "tiny" }, stages = { stage }, optim = optim }
    end
    assert.matches("needs one of epochs, steps and tokens", refused(2, recipe, { loss = { vanilla = 1 }, epochs = 1, tokens = "1M" }).message)
    assert.matches("expected a count", refused(2, recipe, { loss = { vanilla = 1 }, tokens = "many" }).message)
    assert.matches("optim.warmup is 'soon'", refused(2, recipe, { loss = { vanilla = 1 }, epochs = 1 }, { warmup = "soon" }).message)
    local r = recipe({ loss = { vanilla = 1 }, epochs = 1 }, { warmup = "10 %" }):override { "stages.1.tokens=2M" }
    assert.same({ nil, "2M" }, { r.resolved.stages[1].epochs, r.resolved.stages[1].tokens })
  end)
end)
