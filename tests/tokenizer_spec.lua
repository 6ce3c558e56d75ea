-- Tokenizers: ids against two references, decode, added tokens, malformed files, time.
local cab = require "cab"
local core = cab.core
local lfs = require "lfs"
local refused = require "refused"

local fixtures = "tests/fixtures/tokenizer/"
local dir = os.tmpname()
os.remove(dir)
lfs.mkdir(dir)

local function put(name, bytes)
  local f <close> = assert(io.open(dir .. "/" .. name, "wb"))
  f:write(bytes)
  return dir .. "/" .. name
end

local function read(path)
  local f <close> = assert(io.open(path, "rb"))
  return f:read "a"
end

local function ids_of(t, text, control)
  local ids <close> = t:encode(text, control)
  return ids:count() > 0 and ids:totable() or {}
end

local gpt2, phi = cab.tokenizer.open "gpt2", cab.tokenizer.open "phi"

describe("tokenizer", function()
  it("gives GPT-2's ids for 249 texts that two encoders agree on, and their text back", function()
    local count = 0
    for line in io.lines(fixtures .. "gpt2.jsonl") do
      local case = core.json_decode(line)
      assert.same(table.concat(case.ids, ","), table.concat(ids_of(gpt2, case.text, false), ","), case.text)
      assert.equal(case.text, gpt2:decode(case.ids))
      count = count + 1
    end
    assert.equal(249, count)
  end)

  it("gives the ids of Hugging Face's tokenizers for random text: GPT-2, Phi, NFC, tokens that take white space", function()
    local open = { gpt2 = gpt2, phi = phi, small = cab.tokenizer.open(fixtures .. "small.json"), strip = cab.tokenizer.open(fixtures .. "strip.json") }
    local count = 0
    for line in io.lines(fixtures .. "cases.jsonl") do
      local case = core.json_decode(line)
      assert.same(table.concat(case.ids, ","), table.concat(ids_of(open[case.kind], case.text), ","), line)
      count = count + 1
    end
    assert.equal(600, count)
  end)

  it("has GPT-2's and Phi's ids", function()
    assert.equal(50257, gpt2:count())
    assert.equal(50256, cab.tokenizer.ending(gpt2))
    assert.equal(50295, phi:count())
    assert.equal(50257, phi:id((" "):rep(31)))
    assert.same({ 50284, 87 }, ids_of(phi, "    x"))
    assert.same({ 220, 220, 220, 2124 }, ids_of(gpt2, "    x"))
    local bytes, kind = gpt2:token(50256)
    assert.equal("<|endoftext|>", bytes)
    assert.same({ added = true, special = true }, kind)
    assert.is_nil((gpt2:token(50257)))
    assert.is_nil((gpt2:token(-1)))
    assert.is_nil((gpt2:id "no token has this text"))
  end)

  it("takes special tokens in the text as such, or as text", function()
    local text = "a<|endoftext|>b"
    assert.same({ 64, 50256, 65 }, ids_of(gpt2, text))
    local plain = ids_of(gpt2, text, false)
    assert.equal(9, #plain)
    assert.equal(text, gpt2:decode(plain))
    assert.equal(text, gpt2:decode { 64, 50256, 65 })
    assert.equal("ab", gpt2:decode({ 64, 50256, 65 }, false))
  end)

  it("reads a prefix of the merges as a smaller vocabulary", function()
    local small = cab.tokenizer.open "gpt2:743"
    assert.equal(1000, small:count())
    assert.equal(999, cab.tokenizer.ending(small))
    local text = "It is a truth universally acknowledged — “naïve” \0 \255"
    assert.equal(text:sub(1, -2), small:decode(small:encode(text:sub(1, -2))))
    for _, id in ipairs(ids_of(small, text:sub(1, -2))) do assert.is_true(id < 1000) end
  end)

  it("keeps NUL bytes and cuts nothing", function()
    assert.equal("a\0b\0", gpt2:decode(gpt2:encode "a\0b\0"))
    assert.same({}, ids_of(gpt2, ""))
    assert.equal("", gpt2:decode {})
  end)

  it("comes back the same from the compact form", function()
    local path = dir .. "/phi.cab"
    phi:save(path)
    local again = cab.tokenizer.open(path)
    assert.equal(phi:hash(), again:hash())
    assert.are_not.equal(phi:hash(), gpt2:hash())
    local text = "def f(x):\n        return x  # “é”<|endoftext|>"
    assert.same(ids_of(phi, text), ids_of(again, text))
    local bytes = read(path)
    for _, n in ipairs { 8, 20, 35, #bytes - 8, #bytes - 1 } do
      assert.equal("tok-compact", refused(65, core.tokenizer, { file = put("cut", bytes:sub(1, n)) }).id)
    end
    for _, at in ipairs { 9, 30, 5000, #bytes } do
      local changed = bytes:sub(1, at - 1) .. string.char(bytes:byte(at) ~ 1) .. bytes:sub(at + 1)
      assert.equal("tok-compact", refused(65, core.tokenizer, { file = put("bit", changed) }).id)
    end
  end)

  it("opens folders as models come with them", function()
    lfs.mkdir(dir .. "/m")
    put("m/merges.txt", "#version: 0.2\nĠ l\nĠl o\n")
    put("m/vocab.json", '{"l": 0, "o": 1, "Ġ": 2, "Ġl": 3, "Ġlo": 4, "<|endoftext|>": 5}')
    local t = cab.tokenizer.open(dir .. "/m")
    assert.same({ 4, 1, 5 }, ids_of(t, " loo<|endoftext|>"))
    local e = refused(65, t.encode, t, "lx")
    assert.matches("no token for byte 0x78", e.message)
    assert.equal(74, refused(74, cab.tokenizer.open, dir).code)
  end)

  it("explains vocabularies that do not match", function()
    assert.is_nil(cab.tokenizer.mismatch(gpt2, cab.tokenizer.open "gpt2"))
    assert.matches("the teacher has 50257 ids, the student 50295", cab.tokenizer.mismatch(gpt2, phi))
    local function of(vocab, merges) return cab.tokenizer.open { file = put("m.txt", merges), vocab = put("v.json", vocab) } end
    local a, b = of('{"a":0,"b":1,"ab":2}', "a b\n"), of('{"a":0,"c":1,"ac":2}', "a c\n")
    assert.equal('id 1 is "b" for the left, "c" for the right', cab.tokenizer.mismatch(a, b, { "left", "right" }))
    assert.matches("the same tokens, but other merges", cab.tokenizer.mismatch(a, of('{"a":0,"b":1,"ab":2}', "")))
  end)

  it("takes flags that decide nothing for equal", function()
    local function file(name, normalized, normalizer)
      return cab.tokenizer.open(put(name, ('{"model":{"type":"BPE","vocab":{"a":0},"merges":[]},"pre_tokenizer":{"type":"ByteLevel"},"normalizer":%s,'
        .. '"added_tokens":[{"id":1,"content":"x","special":true,"normalized":%s}]}'):format(normalizer, normalized)))
    end
    assert.is_nil(cab.tokenizer.mismatch(file("n1.json", "true", "null"), file("n2.json", "false", "null")))
    assert.is_not_nil(cab.tokenizer.mismatch(file("n1.json", "true", '{"type":"NFC"}'), file("n2.json", "false", '{"type":"NFC"}')))
  end)

  it("finds what a model came with", function()
    lfs.mkdir(dir .. "/model")
    put("model/vocab.bpe", "#version: 0.2\nt h\n")
    put("model/model.safetensors", "")
    local t, folder = cab.tokenizer.beside(dir .. "/model/model.safetensors")
    assert.same({ 258, dir .. "/model" }, { t:count(), folder })
    assert.equal(258, cab.tokenizer.beside(dir .. "/model"):count())
    assert.is_nil(cab.tokenizer.beside(dir .. "/phi.cab"))
  end)

  it("refuses bad UTF-8, bad ids and closed tokenizers", function()
    local e = refused(65, gpt2.encode, gpt2, "abc\xffd")
    assert.matches("bad UTF%-8 at byte 3: 0xff", e.message)
    assert.matches("bad UTF%-8 at byte 0", refused(65, gpt2.encode, gpt2, "\xed\xa0\x80").message)
    assert.matches("id 50257 at position 2: out of range", refused(1, gpt2.decode, gpt2, { 1, 50257 }).message)
    assert.matches("id %-1 at position 1: out of range", refused(1, gpt2.decode, gpt2, { -1 }).message)
    assert.matches("position 1: integer expected, got string", refused(1, gpt2.decode, gpt2, { "1" }).message)
    assert.matches("i32%[n%] on the cpu", refused(1, gpt2.decode, gpt2, core.zeros { 2 }).message)
    assert.matches("string expected, got nil", refused(1, gpt2.encode, gpt2).message)
    local t = cab.tokenizer.open "gpt2:1"
    t:close()
    t:close()
    assert.matches("closed", refused(1, t.encode, t, "a").message)
    assert.matches("tokenizer expected, got string", refused(1, gpt2.encode, "x", "a").message)
  end)

  -- Seconds of processor time: other work on the machine does not count.
  it("ends in time on a million equal letters, spaces, marks and quotes", function()
    local nfc = cab.tokenizer.open(fixtures .. "small.json")
    for _, piece in ipairs { "a", " ", "é", "'", "\n", "ab", "\u{301}\u{323}", "\u{1100}\u{1161}", "日" } do
      local text = piece:rep(math.ceil(1e6 / #piece))
      for _, t in ipairs { gpt2, phi, nfc } do
        local begun = os.clock()
        local ids <close> = t:encode(text)
        assert.is_true(os.clock() - begun < 5, piece)
        if t ~= nfc then assert.equal(text, t:decode(ids)) end
      end
    end
  end)

  it("ends in time where many long added tokens nearly match", function()
    local added = {}
    for i = 1, 250 do added[i] = ('{"id":%d,"content":"%sb%d"}'):format(i, ("a"):rep(250), i) end
    local t = cab.tokenizer.open(put("long.json", '{"model":{"type":"BPE","vocab":{"a":0},"merges":[]},"pre_tokenizer":{"type":"ByteLevel"},"added_tokens":['
      .. table.concat(added, ",") .. "]}"))
    local begun = os.clock()
    assert.equal(1000000, t:encode(("a"):rep(1000000)):count())
    assert.is_true(os.clock() - begun < 5)
  end)
end)

-- A whole file with parts replaced.
local function json(parts)
  parts = parts or {}
  local function part(name, text) return parts[name] or text end
  return '{"version":"1.0","truncation":' .. part("truncation", "null") .. ',"padding":null,"added_tokens":' .. part("added", "[]")
    .. ',"normalizer":' .. part("normalizer", "null") .. ',"pre_tokenizer":' .. part("pre", '{"type":"ByteLevel","use_regex":true}')
    .. ',"post_processor":' .. part("post", "null") .. ',"decoder":' .. part("decoder", '{"type":"ByteLevel"}') .. ',"model":'
    .. part("model", '{"type":"BPE","vocab":' .. part("vocab", '{"a":0,"b":1,"ab":2}') .. ',"merges":' .. part("merges", '["a b"]') .. part("more", "") .. "}")
    .. part("tail", "") .. "}" .. part("after", "")
end

describe("tokenizer.json", function()
  it("loads the smallest that is whole", function()
    local t = cab.tokenizer.open(put("t.json", json()))
    assert.same({ 2, 0 }, ids_of(t, "aba"))
    assert.same({ 2 }, ids_of(cab.tokenizer.open(put("t.json", json { merges = '[["a","b"]]' })), "ab"))
  end)

  for _, case in ipairs {
    { "no JSON", "{", "tok-json", "end of the text" },
    { "an array", "[]", "tok-merge", "line 1" },
    { "bytes behind it", json { after = "x" }, "tok-json", "expected the end of the file, got 'x'" },
    { "bad UTF-8", json { vocab = '{"a\xff":0}' }, "tok-json", "bad UTF%-8" },
    { "an unpaired surrogate", json { vocab = '{"\\ud800":0}' }, "tok-json", "bad escape" },
    { "a NUL in a token", json { vocab = '{"\\u0000":0}' }, "tok-json", "NUL" },
    { "a negative id", json { vocab = '{"a":0,"b":-1}' }, "tok-id", 'model.vocab%["b"%] is %-1' },
    { "a fraction as id", json { vocab = '{"a":0,"b":1.5}' }, "tok-id", 'model.vocab%["b"%] is 1.5' },
    { "an exponent as id", json { vocab = '{"a":0,"b":1e1}' }, "tok-id", 'model.vocab%["b"%] is 1e1' },
    { "a string as id", json { vocab = '{"a":"0"}' }, "tok-id", 'model.vocab%["a"%] is "0"' },
    { "an object as id", json { vocab = '{"a":{}}' }, "tok-id", 'model.vocab%["a"%] is {' },
    { "a huge id", json { vocab = '{"a":0,"b":4294967296}' }, "tok-id", 'model.vocab%["b"%] is 4294967296' },
    { "an id past 64 bits", json { vocab = '{"a":0,"b":99999999999999999999999}' }, "tok-id", 'model.vocab%["b"%]' },
    { "a gap", json { vocab = '{"a":0,"b":1,"ab":13}' }, "tok-gap", 'model.vocab%["ab"%]: id 13 with only 3 tokens' },
    { "an id twice", json { vocab = '{"a":0,"b":1,"ab":1}' }, "tok-duplicate", 'model.vocab%["ab"%]: id 1 belongs to "b"' },
    { "a token twice", json { vocab = '{"a":0,"b":1,"ab":2,"\\u0061":3}' }, "tok-duplicate", 'model.vocab%["a"%]: stands here twice' },
    { "an empty token", json { vocab = '{"a":0,"b":1,"ab":2,"":3}' }, "tok-empty", 'model.vocab%[""%]' },
    { "no tokens", json { vocab = "{}", merges = "[]" }, "tok-empty", "no tokens" },
    { "a merge of an unknown token", json { merges = '["a c"]' }, "tok-merge", 'model.merges%[0%]: "c" is no token' },
    { "a merge into an unknown token", json { merges = '["a b","b a"]' }, "tok-merge", 'model.merges%[1%]: "ba" is no token' },
    { "a merge of one", json { merges = '["ab"]' }, "tok-merge", 'model.merges%[0%] is "ab"' },
    { "a merge of three", json { merges = '["a b c"]' }, "tok-merge", "model.merges%[0%]" },
    { "a merge twice", json { merges = '["a b","a b"]' }, "tok-duplicate", "model.merges%[1%]" },
    { "a merge list of three", json { merges = '[["a","b","c"]]' }, "tok-json", "expected '%]'" },
    { "another model", json { model = '{"type":"Unigram","vocab":[]}' }, "tok-model", 'model.type is "Unigram"' },
    { "no vocab", json { model = '{"type":"BPE","merges":[]}' }, "tok-model", "model.vocab is missing" },
    { "dropout", json { more = ',"dropout":0.1' }, "tok-model", "model.dropout is 0.1" },
    { "byte fallback", json { more = ',"byte_fallback":true' }, "tok-model", "model.byte_fallback is true" },
    { "ignored merges", json { more = ',"ignore_merges":true' }, "tok-model", "model.ignore_merges is true" },
    { "a suffix of words", json { more = ',"end_of_word_suffix":"</w>"' }, "tok-model", "model.end_of_word_suffix" },
    { "an unknown option", json { more = ',"speed":1' }, "tok-field", 'model%["speed"%]: unknown' },
    { "an option twice", json { more = ',"merges":[]' }, "tok-field", 'model%["merges"%]: twice' },
    { "an unknown field", json { tail = ',"x":1' }, "tok-field", '%["x"%]: unknown' },
    { "truncation", json { truncation = '{"max_length":8}' }, "tok-field", "truncation is {" },
    { "a replacing normalizer", json { normalizer = '{"type":"Replace","pattern":{"String":"a"},"content":"aa"}' },
      "tok-normalizer", 'normalizer.type is "Replace"' },
    { "a chain of 40 doublings", json { normalizer = '{"type":"Sequence","normalizers":[' .. ('{"type":"Replace","pattern":{"String":"a"},"content":"aa"},'):rep(39)
      .. '{"type":"Replace","pattern":{"String":"a"},"content":"aa"}]}' }, "tok-normalizer", 'normalizer.type is "Sequence"' },
    { "a normalizer without type", json { normalizer = "{}" }, "tok-normalizer", "normalizer.type is missing" },
    { "an unknown regex", json { pre = '{"type":"Split","pattern":{"Regex":"(a+)+$"},"behavior":"Isolated"}' },
      "tok-pretokenizer", 'pre_tokenizer.type is "Split"' },
    { "a regex field first", json { pre = '{"pattern":{"Regex":"(a+)+$"},"type":"ByteLevel"}' }, "tok-field", 'pre_tokenizer%["pattern"%]: unknown' },
    { "no pattern", json { pre = '{"type":"ByteLevel","use_regex":false}' }, "tok-pretokenizer", "use_regex is false" },
    { "no pre-tokenizer", json { pre = "null" }, "tok-pretokenizer", "pre_tokenizer is null" },
    { "a template", json { post = '{"type":"TemplateProcessing"}' }, "tok-processor", "post_processor.type" },
    { "another decoder", json { decoder = '{"type":"WordPiece"}' }, "tok-decoder", "decoder.type" },
    { "an added token without id", json { added = '[{"content":"x"}]' }, "tok-added", "added_tokens%[0%].id is missing" },
    { "an added token that is empty", json { added = '[{"id":3,"content":""}]' }, "tok-empty", 'added_tokens%[""%]' },
    { "an added token on another's id", json { added = '[{"id":1,"content":"x"}]' }, "tok-duplicate", 'added_tokens%["x"%]: id 1 belongs to "b"' },
    { "an added token under two ids", json { added = '[{"id":3,"content":"b"}]' }, "tok-id", 'added_tokens%["b"%]: id 3, but in model.vocab it has id 1' },
    { "an added token twice", json { added = '[{"id":3,"content":"x"},{"id":4,"content":"x"}]' }, "tok-duplicate", 'added_tokens%["x"%]: stands here twice' },
    { "an added token of 257 bytes", json { added = '[{"id":3,"content":"' .. ("x"):rep(257) .. '"}]' }, "tok-long", "at most 256 bytes" },
    { "an added token for whole words", json { added = '[{"id":3,"content":"x","single_word":true}]' }, "tok-added", "single_word is true" },
    { "an added token's flag as number", json { added = '[{"id":3,"content":"x","lstrip":1}]' }, "tok-added", "added_tokens%[0%].lstrip is 1" },
    { "nesting", ("["):rep(1000000), "tok-merge", "line 1" },
    { "nesting in a field", '{"version":' .. ("["):rep(1000000), "tok-field", "version is %[" },
  } do
    it("refuses " .. case[1], function()
      local path = put("bad.json", case[2])
      local begun = core.now()
      local e = refused(65, core.tokenizer, { file = path })
      assert.same({ case[3], path }, { e.id, e.file }, tostring(e))
      assert.matches(case[4], e.message)
      assert.is_true(core.now() - begun < 1)
    end)
  end

  it("refuses every prefix of a file", function()
    local whole = json { added = '[{"id":3,"content":"x","special":true}]' }
    for n = 1, #whole - 1 do refused(65, core.tokenizer, { file = put("cut.json", whole:sub(1, n)) }) end
  end)

  it("names the file that is wrong among several", function()
    local vocab = put("v.json", '{"a":0,"b":1,"ab":2}')
    for _, case in ipairs {
      { { file = put("m1", "a b\nb\n"), vocab = vocab }, "m1", "tok-merge", "line 2" },
      { { file = put("m2", "a \xff\n"), vocab = vocab }, "m2", "tok-utf8", "bad UTF%-8" },
      { { file = put("m3", "a z\n"), vocab = vocab }, "m3", "tok-merge", '"z" is no token' },
      { { file = put("m4", "a b\n"), vocab = put("v4", '{"a":0,"b":0}') }, "v4", "tok-duplicate", "id 0" },
      { { file = put("m5", "a b\n"), vocab = vocab, added = put("a5", '{"x":2}') }, "a5", "tok-duplicate", 'added_tokens%["x"%]: id 2' },
      { { file = put("m6", "a b\n"), vocab = vocab, added = put("a6", '{"x":3') }, "a6", "tok-json", "end of the text" },
      { { file = put("m7", "a b\r\n"), vocab = put("v7", "") }, "v7", "tok-json", "expected '{'" },
    } do
      local e = refused(65, core.tokenizer, case[1])
      assert.same({ dir .. "/" .. case[2], case[3] }, { e.file, e.id }, tostring(e))
      assert.matches(case[4], e.message)
    end
    assert.matches("vocab, added and merges go with a list of merges", refused(1, core.tokenizer, { file = put("t.json", json()), vocab = vocab }).message)
    assert.matches("unknown option 'vcoab'; did you mean 'vocab'", refused(1, core.tokenizer, { vcoab = "x" }).message)
    assert.equal(74, refused(74, core.tokenizer, { file = dir .. "/none" }).code)
    assert.equal("file-kind", refused(65, core.tokenizer, { file = dir }).id)
  end)
end)
