-- Tasks, scores, pass keys and associative recall, with models whose answers are known.
local cab = require "cab"
local core = cab.core
local harness, tasks, recall = cab.harness, cab.tasks, cab.recall
local refused = require "refused"

local tokenizer = cab.tokenizer.open "gpt2:743"
local V = tokenizer:count()

-- The model of tests/reference/tasks.py: row u of the table are the logits after token u.
local function table_of()
  local rows = {}
  for u = 0, V - 1 do
    local row = {}
    for v = 0, V - 1 do
      local sum = 0
      for k = 0, 3 do sum = sum + ((u * (7 + 2 * k) % 97) / 48 - 1) * ((v * (11 + 3 * k) % 89) / 44 - 1) end
      row[v + 1] = sum
    end
    local v = (37 * u + 5) % V + 1
    row[v] = row[v] + 6
    rows[u + 1] = row
  end
  return core.tensor(rows, "f32")
end
local logits = table_of()
local function bigram(ids, first) return core.ops.embedding(ids:slice(2, first, ids:size(2)), logits) end

describe("core.token_scores", function()
  it("is the log of the softmax, and says what greedy decoding takes", function()
    local x = core.tensor({ { 1, 2, 3 }, { 5, 5, 1 }, { 0, 0, 1000 }, { 1, 1, 1 } }, "f32")
    local p, greedy = core.token_scores(x, core.tensor({ 2, 1, 0, -1 }, "i32"))
    p = p:totable()
    assert.is_true(math.abs(p[1] - (3 - math.log(math.exp(1) + math.exp(2) + math.exp(3)))) < 1e-6)
    assert.is_true(math.abs(p[2] + math.log(2 + math.exp(-4))) < 1e-6)
    assert.same({ -1000, 0 }, { p[3], p[4] })
    assert.same({ 1, 0, 0, 0 }, greedy:totable()) -- the first of equal ones
  end)

  it("refuses targets that are no ids, and shapes", function()
    local x = core.zeros { 2, 3 }
    assert.matches("target 3 at row 2, expected %-1 to 2", refused(1, core.token_scores, x, core.tensor({ 0, 3 }, "i32")).message)
    assert.matches("expected i32%[R=2%]", refused(1, core.token_scores, x, core.tensor({ 0 }, "i32")).message)
    assert.matches("expected %[R,V%]", refused(1, core.token_scores, core.zeros { 2 }, core.tensor({ 0, 1 }, "i32")).message)
  end)
end)

describe("tasks", function()
  local folder = "tests/fixtures/tasks/"
  local expected = core.json_decode(require "cab.folder".read(folder .. "expected.json"))
  for name, row in pairs(expected) do
    it("have the scores of an independent reference: " .. name, function()
      for _, room in ipairs { 1, 100, 4096 } do
        local got = harness.task(name, folder .. name .. ".jsonl", bigram, tokenizer, { positions = 48, tokens = room })
        for key, value in pairs(row) do
          local near = type(value) == "number" and math.abs(got[key] - value) <= 1e-5 * math.abs(value)
          assert.is_true(near or got[key] == value, ("%s %s: %s, expected %s"):format(name, key, got[key], value))
        end
        for key in pairs(got) do assert.is_not_nil(row[key], key) end
      end
    end)
  end

  local function read(name, ...)
    local path = os.tmpname()
    core.write_file(path, table.concat({ ... }, "\n"))
    local docs = tasks.read(tasks.all[name], path)
    os.remove(path)
    return docs
  end

  it("are read as the harness does", function()
    local doc = read("hellaswag",
      [[{"activity_label":"Roof","ctx_a":"A man  sits.","ctx_b":"he STARTS","endings":["[substeps] cut [title] it"," go"],"label":"1"}]])[1]
    assert.same({ "Roof: A man sits. He starts", { "  cut. it", " go" }, { 8, 2 }, 2 }, { doc.context, doc.choices, doc.lengths, doc.gold })
    doc = read("winogrande", [[{"sentence":"The cup fell off _ because it was wet.","option1":"the cup","option2":"the table","answer":"2"}]])[1]
    assert.same({ { "The cup fell off the cup", "The cup fell off the table" }, { " because it was wet.", " because it was wet." }, 2 },
      { doc.contexts, doc.choices, doc.gold })
    doc = read("arc_challenge", [[{"question":"Q?","choices":{"text":["é","bb"],"label":["A","B"]},"answerKey":"A"}]])[1]
    assert.same({ "Question: Q?\nAnswer:", { " é", " bb" }, { 1, 2 }, 1 }, { doc.context, doc.choices, doc.lengths, doc.gold })
    doc = read("lambada", [[{"context":"a b","continuation":"c"}]])[1]
    assert.same({ "a b", { " c" } }, { doc.context, doc.choices })
    assert.equal(2, #read("piqa", [[{"goal":"a","sol1":"b","sol2":"c","label":0}]], "", [[{"query":"Question: a\n","choices":["b","c"],"gold":1}]]))
  end)

  it("refuse a bad line with its number", function()
    local good = [[{"goal":"a","sol1":"b","sol2":"c","label":0}]]
    for _, case in ipairs {
      { "piqa", [[{"goal":"a","sol1":"b","label":0}]], 'line 2: field "sol2" is missing' },
      { "piqa", [[{"goal":"a","sol1":"b","sol2":3,"label":0}]], 'line 2: field "sol2" is no string' },
      { "piqa", [[{"goal":"a","sol1":"b","sol2":"c","label":2}]], "line 2: the right choice is 2 of 2" },
      { "piqa", [[{"goal":"a","sol1":"","sol2":"c","label":1}]], "line 2: choice 1 is empty" },
      { "piqa", [[{"query":"a","choices":["b"],"gold":0}]], "line 2: 1 choices" },
      { "piqa", [[{"query":"a","choices":["b",1],"gold":0}]], "line 2: field \"choices\": item 2 is no string" },
      { "piqa", "{", "line 2: " }, { "piqa", "3", "line 2: no JSON object" },
    } do
      assert.matches(case[3], refused(65, read, case[1], good, case[2]).message)
    end
    assert.matches('answerKey "C" is none', refused(65, read, "arc_easy",
      [[{"question":"q","choices":{"text":["a","b"],"label":["A","B"]},"answerKey":"C"}]]).message)
    assert.matches("the sentence has no _", refused(65, read, "winogrande", [[{"sentence":"a","option1":"b","option2":"c","answer":"1"}]]).message)
    assert.matches("no documents", refused(65, read, "piqa", "").message)
    assert.matches("unknown task 'pica'; did you mean 'piqa'", refused(2, harness.task, "pica", "x", bigram, tokenizer).message)
  end)

  it("read the published files that are here", function()
    local shared = "../shared/data/text/tasks/"
    for name, row in pairs { piqa = { "piqa", 1838 }, arc_easy = { "arc_easy", 2376 }, lambada = { "lambada_openai", 5153 } } do
      local f = io.open(shared .. row[1] .. ".jsonl")
      if not f then return pending(shared .. " is not here") end
      f:close()
      assert.equal(row[2], #tasks.read(tasks.all[name], shared .. row[1] .. ".jsonl"))
    end
  end)
end)

describe("harness", function()
  it("moves white space at a context's end to what follows, and begins an empty one with <|endoftext|>", function()
    local context, continuation = harness.pair(tokenizer, "Hello  ", "world")
    assert.equal("Hello", tokenizer:decode(context))
    assert.equal("  world", tokenizer:decode(continuation))
    context, continuation = harness.pair(tokenizer, " ", "x")
    assert.same({ { 999 }, " x" }, { context, tokenizer:decode(continuation) })
  end)

  it("keeps the last ids where a model takes fewer", function()
    local seen
    local function spy(ids, first)
      seen = ids:totable()
      return bigram(ids, first)
    end
    local request = { context = { 1, 2, 3, 4, 5 }, continuation = { 6, 7 } }
    harness.loglikelihoods(spy, { request }, { positions = 3 })
    assert.same({ { 4, 5, 6 } }, seen)
    local short = { context = { 5 }, continuation = { 6, 7 } }
    harness.loglikelihoods(spy, { short })
    assert.is_true(math.abs(request.loglikelihood - short.loglikelihood) < 1e-9)
    assert.matches("3 ids to score, the model takes 2", refused(65, harness.loglikelihoods, spy, { { context = { 1 }, continuation = { 1, 2, 3 } } },
      { positions = 2 }).message)
    assert.matches("empty continuation", refused(65, harness.loglikelihoods, spy, { { context = { 1 }, continuation = {} } }).message)
  end)

  it("stops at logits that are not finite", function()
    local function broken(ids, first) return bigram(ids, first) * (0 / 0) end
    assert.equal("nonfinite", refused(76, harness.loglikelihoods, broken, { { context = { 1 }, continuation = { 2 } } }).id)
  end)
end)

describe("recall", function()
  it("hides a key at a depth of a text of the length asked for", function()
    for _, length in ipairs { 100, 256, 1024 } do
      for _, depth in ipairs { 0, 0.5, 1 } do
        local r = recall.passkey(tokenizer, { length = length, depth = depth, seed = 3 })
        local n, text = #r.context + #r.continuation, tokenizer:decode(r.context)
        assert.is_true(n <= length and n > length - 60, n)
        assert.equal(" " .. r.key, tokenizer:decode(r.continuation))
        local at = text:find("The pass key is " .. r.key, 1, true) / #text
        if length == 1024 then assert.is_true(math.abs(at - depth) < 0.15, at) end
        assert.matches("What is the pass key%? The pass key is$", text)
        assert.same(r, recall.passkey(tokenizer, { length = length, depth = depth, seed = 3 }))
      end
    end
    assert.are_not.equal(recall.passkey(tokenizer, { length = 200, seed = 1 }).key, recall.passkey(tokenizer, { length = 200, seed = 2 }).key)
    assert.matches("length is 20, the text without filler has", refused(2, recall.passkey, tokenizer, { length = 20 }).message)
    assert.matches("depth is 2", refused(2, recall.passkey, tokenizer, { length = 200, depth = 2 }).message)
  end)

  it("finds that a model with a perfect memory says every key, and one without none", function()
    local function copying(ids, first) -- after the last two ids, what followed them before
      local rows, out = ids:totable(), {}
      for b, row in ipairs(rows) do
        out[b] = {}
        for t = first, #row do
          local guess = 0
          for s = 2, t - 1 do if row[s] == row[t] and row[s - 1] == row[t - 1] and row[s + 1] then guess = row[s + 1] end end
          local line = {}
          for v = 1, V do line[v] = v == guess + 1 and 20 or 0 end
          out[b][#out[b] + 1] = line
        end
      end
      return core.tensor(out, "f32")
    end
    local o = { lengths = { 120, 160 }, depths = { 0, 1 }, count = 2 }
    for _, row in ipairs(recall.passkeys(bigram, tokenizer, o)) do assert.equal(0, row.acc) end
    local rows = recall.passkeys(copying, tokenizer, o)
    assert.equal(4, #rows)
    for _, row in ipairs(rows) do
      local blind = recall.passkeys(bigram, tokenizer, { lengths = { row.length }, depths = { row.depth }, count = 2 })[1]
      assert.is_true(row.loss < blind.loss)
    end
  end)

  it("makes associative recall whose answers stand in the row", function()
    local o = { vocab = 64, length = 48, pairs = 6, batch = 3, seed = 2 }
    local ids, recalled = recall.associative(o)
    ids, recalled = ids:totable(), recalled:totable()
    for b = 1, 3 do
      local value, seen = {}, 0
      for i = 1, 6 do
        local k, v = ids[b][2 * i - 1], ids[b][2 * i]
        assert.is_true(k >= 1 and k < 32 and v >= 32 and v < 64 and not value[k])
        value[k] = v
      end
      for t = 1, 48 do
        if recalled[b][t] == 1 then
          assert.is_true(t > 12)
          assert.equal(value[ids[b][t]], ids[b][t + 1])
          seen = seen + 1
        end
      end
      assert.equal(6, seen)
    end
    assert.same(ids, (recall.associative(o)):totable())
    o.index = 1
    assert.are_not.same(ids, (recall.associative(o)):totable())
    assert.matches("6 pairs need 24 ids", refused(2, recall.associative, { length = 20, pairs = 6 }).message)
    assert.matches("a vocabulary of 10 has no 6 keys", refused(2, recall.associative, { vocab = 10, length = 48, pairs = 6 }).message)
  end)

  it("scores a model that looks keys up as perfect, and a blind one as not", function()
    local function lookup(ids)
      local out = {}
      for b, row in ipairs(ids:totable()) do
        out[b] = {}
        for t = 1, #row do
          local line = {}
          for v = 1, 64 do line[v] = 0 end
          for s = 1, 11, 2 do if s < t and row[s] == row[t] then line[row[s + 1] + 1] = 9 end end
          out[b][t] = line
        end
      end
      return core.tensor(out, "f32")
    end
    local o = { vocab = 64, length = 48, pairs = 6, batch = 4, seed = 1, batches = 3 }
    assert.equal(1, recall.associative_accuracy(lookup, o))
    assert.is_true(recall.associative_accuracy(function(ids) return core.zeros { ids:size(1), ids:size(2), 64 } end, o) < 0.2)
  end)
end)

describe("a language model of a run", function()
  local root = os.tmpname()
  os.remove(root)
  setup(function() require "lfs".mkdir(root) end)
  teardown(function() os.execute("rm -rf " .. root) end)

  local function recipe(more)
    local r = { data = cab.data.text { tokenizer = "gpt2:743", length = 48, holdout = 0.005 },
      student = cab.models.gpt2 { dim = 16, depth = 1, heads = 2, positions = 48 },
      stages = { { loss = { vanilla = 1 }, tokens = 4 * 48 * 6 } }, batch = 4, optim = { lr = 1e-2, warmup = "50 %" }, checkpoint = { every = 1 }, log = 1 }
    for k, v in pairs(more or {}) do r[k] = v end
    return cab.recipe(r).resolved
  end

  it("trains on the novel for a budget of tokens, and goes on exactly where it stopped", function()
    local whole = cab.train.run(recipe(), { out = root .. "/whole", quiet = true })
    assert.equal(6, whole.steps)
    assert.equal(75, refused(75, cab.train.run, recipe(), { out = root .. "/cut", quiet = true, stop_after = 3 }).code)
    cab.train.run(recipe(), { out = root .. "/cut", quiet = true, resume = true })
    assert.equal(core.hash(root .. "/whole/best.safetensors"), core.hash(root .. "/cut/best.safetensors"))
  end)

  it("is scored as its logits say, packed or padded", function()
    local model = cab.models.gpt2 { dim = 16, depth = 1, heads = 2, positions = 48, vocab = V }:build { seed = 3 }
    local score, requests = harness.model(model), {}
    for i = 1, 6 do requests[i] = { context = { i, 7, i + 1 }, continuation = i % 2 == 0 and { 5, 6 } or { 9 } } end
    harness.loglikelihoods(score, requests)
    for _, r in ipairs(requests) do
      local ids = table.move(r.continuation, 1, #r.continuation, 4, table.move(r.context, 1, 3, 1, {}))
      local logits_of, sum = core.no_grad(function() return model:logits((model:body(core.tensor({ ids }, "i32")))) end), 0
      local rows = logits_of:totable()[1]
      for k, id in ipairs(r.continuation) do
        local total = 0
        for _, x in ipairs(rows[2 + k]) do total = total + math.exp(x) end
        sum = sum + rows[2 + k][id + 1] - math.log(total)
      end
      assert.is_true(math.abs(sum - r.loglikelihood) < 1e-5)
    end
  end)

  it("is evaluated on tasks by the command", function()
    local folder = "tests/fixtures/tasks/"
    local pipe = io.popen(("%s/../build/cab eval %s/whole --task lambada=%slambada.jsonl --task winogrande=%swinogrande.jsonl 2>&1"):format(core.library,
      root, folder, folder))
    local out = pipe:read "a"
    pipe:close()
    assert.matches("lambada: acc [%d.]+ %+%- [%d.]+ %%  perplexity [%d.]+  %(40 documents%)", out)
    assert.matches("winogrande: acc [%d.]+ %+%- [%d.]+ %%  %(40 documents%)", out)
  end)

  it("is refused weights that came with another tokenizer, with the first id that differs", function()
    local folder = root .. "/model"
    require "lfs".mkdir(folder)
    local model = cab.models.gpt2 { dim = 16, depth = 1, heads = 2, positions = 48, vocab = V }:build { seed = 3 }
    core.save(folder .. "/m.safetensors", model:state())
    cab.tokenizer.open("gpt2:743"):save(folder .. "/tokenizer.cab")
    local teacher = cab.models.gpt2 { dim = 16, depth = 1, heads = 2, positions = 48, weights = folder .. "/m.safetensors" }
    local given = recipe { teacher = teacher, stages = { { loss = { soft = 1 }, steps = 1 } } }
    cab.job.build(given)
    core.write_file(folder .. "/tokenizer.cab", "t h\nt e\n")
    local e = refused(2, cab.job.build, given)
    assert.matches("model has another tokenizer than data.tokenizer: id 256 is \"th\" for the teacher, \" t\" for the data", e.message)
  end)
end)
