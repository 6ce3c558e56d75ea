-- Training and measuring language models: losses by the head, strategies on ids, whole runs, perplexity.
local core = require "cab.core"
local cab = require "cab"
local lfs = require "lfs"
local parity = require "parity"
local text = require "cab.text"
local op = core.ops

local fails = require "fails"

-- ---- text as a loader gives it: ids i32[b,l] and segments i32[b,l], from a language in which each id has two likely followers ----

local V, L = 17, 24
local Text, Feed = {}, {}
Text.__index, Feed.__index = Text, Feed

local function stream(n, seed)
  local dice, ids, at = core.uniform({ n }, 0, 1, seed, "text", "f64"):totable(), {}, 0
  for i = 1, n do
    at = dice[i] < 0.1 and math.floor(dice[i] * 10 * V) or (at * 3 + (dice[i] < 0.55 and 1 or 5)) % V
    ids[i] = at
  end
  return ids
end

function Text:row(i, part)
  local ids, segment = {}, {}
  for t = 1, L do
    ids[t] = part[(i - 1) * L + t]
    segment[t] = i % 3 == 0 and t > 10 and 1 or 0 -- every third row holds two documents
  end
  return ids, segment
end

function Text:loader(split, o)
  return setmetatable({ data = self, part = self[split], at = o.start or 0, batch = o.batch }, Feed)
end

function Feed:raw()
  local ids, segments = {}, {}
  for k = 1, self.batch do
    local i = self.at * self.batch + k
    if i * L > #self.part then break end -- test batches end short
    ids[k], segments[k] = self.data:row(i, self.part)
  end
  if #ids == 0 then return nil end
  self.at = self.at + 1
  return core.tensor(ids, "i32"), core.tensor(segments, "i32")
end
Feed.next = Feed.raw
function Feed.into() return false end
function Feed.complaints() end
function Feed.waited() return 0 end
function Feed.close() end
Feed.__close = Feed.close

function Text:batches(batch) return self.count.train // batch end
function Text.normalise(_, ids) return ids end
function Text.hashes() return {} end
function Text.close() end
function Text:ids(split) return core.tensor(self[split], "i32") end

local function with_text(f)
  local data = setmetatable({ vocab = V, length = L, device = "cpu", train = stream(200 * L, 1), test = stream(20 * L, 2),
    count = { train = 200, test = 20 } }, Text)
  local build = cab.data.build
  cab.data.build = function() return data end
  local ok, e = pcall(f, data)
  cab.data.build = build
  if not ok then error(e, 0) end
end

local function recipe(more)
  local r = { data = cab.data.fashion {}, teacher = cab.models.gpt2 { dim = 16, depth = 2, heads = 2, positions = L },
    student = cab.models.phi_mamba { dim = 16, depth = 2, heads = 2, state = 4 }, batch = 4, device = "cpu",
    optim = { lr = 3e-3 }, stages = { { loss = { vanilla = 1 }, steps = 4 } } }
  for k, v in pairs(more or {}) do r[k] = v end
  return cab.recipe(r).resolved
end

describe("a job on text", function()
  it("has the losses of whole logits, without the first of another document", function()
    with_text(function(data)
      local job = cab.job.build(recipe { stages = { { steps = 2, loss = { vanilla = { weight = 1, smoothing = 0.1 },
        soft = { weight = 0.5, temperature = 2, hard = 0.3 } } } } })
      local feed = data:loader("train", { batch = 4 })
      local ids, segment = feed:raw()
      local terms = job:losses(job.stages[1], ids, segment)
      local about = { segment = segment }
      local logits, teacher = job.student:forward(ids, nil, about), job.teacher:forward(ids, nil, about)
      local targets, s = {}, segment:totable()
      for b, row in ipairs(ids:totable()) do
        for t = 1, L do targets[#targets + 1] = t < L and s[b][t] == s[b][t + 1] and row[t + 1] or -1 end
      end
      assert.equal(-1, targets[2 * L + 10])
      local x, labels = logits:reshape(4 * L, V), core.tensor(targets, "i32")
      local value = {}
      for _, t in ipairs(terms) do value[t.name] = t.value:item() end
      assert.near(op.cross_entropy(x, labels, nil, { smoothing = 0.1 }):item(), value.vanilla, 1e-5)
      local kl = op.kl(x, teacher:reshape(4 * L, V), { temperature = 2 }):item()
      assert.near(kl + 0.3 * op.cross_entropy(x, labels):item(), value.soft, 1e-5)
    end)
  end)

  it("lets a strategy read whole logits", function()
    with_text(function(data)
      local whole = cab.strategy { name = "whole" }
      function whole:loss(_, batch) return op.mse(batch.logits, batch.teacher) end -- luacheck: ignore self
      local job = cab.job.build(recipe { stages = { { steps = 1, loss = { whole = { whole, weight = 1 } } } } })
      local terms = job:losses(job.stages[1], data:loader("train", { batch = 2 }):raw())
      assert.is_true(terms[1].value:item() > 0)
    end)
  end)

  it("goes through the strategies of text, packed documents and all, stage by stage", function()
    with_text(function(data)
      local student = cab.models.phi_mamba { dim = 16, depth = 2, heads = 2, state = 8 }
      local stages = {}
      for i, loss in ipairs { { mohawk_orientation = 1 }, { mohawk_hidden = 1 }, { linear = { "linear_attention", kind = "linear" } }, { linearised = 1 },
        { weight_reuse = 1 }, { mohawk_transfer = 1 }, { soft = { top = 3 } }, { hidden_state = 1 }, { align = { "attention_bridge", heads = "each" } },
        { soft = { divergence = "jsd" }, align = { "attention_bridge", map = "elu", onto = { x = "v" } } } } do
        stages[i] = { steps = 1, loss = loss }
      end
      local job = cab.job.build(recipe { student = student, stages = stages })
      job:measure()
      local ids, segment = data:loader("train", { batch = 4 }):raw()
      for i, stage in ipairs(job.stages) do
        local said = job:begin(stage)
        assert.equal((i >= 4 and i <= 6) and 1 or 0, #said)
        for name, norm in pairs(job:shares(stage, ids, segment)) do
          assert.is_true(norm.all > 0 and norm.all < 1e6, i .. name)
          assert.equal(i ~= 3, norm.student > 0, i .. name)
        end
      end
    end)
  end)
  it("keeps the documents of packed rows apart in what runs a layer alone", function()
    with_text(function(data)
      local job = cab.job.build(recipe { student = cab.models.phi_mamba { dim = 16, depth = 2, heads = 2, state = 8 },
        stages = { { steps = 1, loss = { mohawk_orientation = 1, mohawk_hidden = 1, linear_attention = 1 } } } })
      local ids, segment = data:loader("train", { batch = 3 }):raw() -- the third row: ten tokens, then fourteen
      local row, parts = ids:slice(1, 3, 3):clone(), segment:slice(1, 3, 3):clone()
      local function mohawk(i, s)
        local t = {}
        for _, term in ipairs(job:losses(job.stages[1], i, s)) do t[term.name] = term.value:item() end
        return t
      end
      local whole = mohawk(row, parts)
      local a, b = mohawk(row:slice(2, 1, 10):clone(), parts:slice(2, 1, 10):clone()), mohawk(row:slice(2, 11, L):clone(), parts:slice(2, 11, L):clone())
      -- positions go on in one row and begin again in a row of its own: hidden states of the teacher are those of its documents either way
      assert.near((10 * a.mohawk_hidden + 14 * b.mohawk_hidden) / L, whole.mohawk_hidden, 1e-5)
      assert.near((10 * a.linear_attention + 14 * b.linear_attention) / L, whole.linear_attention, 1e-5)
      -- Frobenius norms add as squares, layer by layer and head by head: between the largest part and their sum
      assert.is_true(whole.mohawk_orientation < a.mohawk_orientation + b.mohawk_orientation)
      assert.is_true(whole.mohawk_orientation > math.max(a.mohawk_orientation, b.mohawk_orientation))
    end)
  end)

  it("refuses vocabularies and lengths that do not go together, and says why", function()
    with_text(function()
      local function built(more) return function() cab.job.build(recipe(more)) end end
      local small = cab.models.phi_mamba { dim = 16, depth = 2, heads = 2, state = 4, vocab = 12 }
      assert.equal(2, fails("the data has 17 ids, the student (phi_mamba) only 12", built { student = small }).code)
      fails("the student has 17 ids, the teacher 20", built { teacher = cab.models.gpt2 { dim = 16, depth = 1, heads = 2, vocab = 20 } })
      fails("rows have 24 tokens, the teacher (gpt2) has 20 positions", built { teacher = cab.models.gpt2 { dim = 16, depth = 1, heads = 2, positions = 20 } })
      fails("the data is text, but the student is a vim", built { student = cab.models.vim { dim = 8, depth = 1 }, teacher = false or nil })
    end)
  end)
end)

describe("training on text", function()
  local root = os.tmpname()
  os.remove(root)
  setup(function() lfs.mkdir(root) end)
  teardown(function() os.execute("rm -rf " .. root) end)

  it("lowers the perplexity: a teacher, then a student by soft labels and the bridge, both learn", function()
    with_text(function()
      local teacher = recipe { stages = { { loss = { vanilla = 1 }, epochs = 3 } }, student = cab.models.gpt2 { dim = 16, depth = 2, heads = 2, positions = L },
        optim = { lr = 1e-2 }, export = root .. "/teacher.safetensors" }
      teacher.teacher = nil
      local r = cab.train.run(teacher, { out = root .. "/teacher", quiet = true })
      assert.is_true(r.perplexity < 0.75 * V, tostring(r.perplexity))
      local weights = root .. "/teacher.safetensors"
      local student = recipe { stages = { { loss = { align = { "attention_bridge", hidden = 8 } }, steps = 5 },
        { loss = { soft = 1, align = { "attention_bridge", hidden = 8, weight = 0.3 } }, epochs = 2 } }, optim = { lr = 1e-2 },
        teacher = cab.models.gpt2 { dim = 16, depth = 2, heads = 2, positions = L, weights = weights } }
      local s = cab.train.run(student, { out = root .. "/student", quiet = true })
      assert.is_true(s.perplexity < 0.9 * V, tostring(s.perplexity))
      assert.is_true(s.r2.align > 0, tostring(s.r2.align))
      assert.is_true(s.tokens_per_second > 0)
      local best, meta = core.load(root .. "/student/best.safetensors")
      assert.truthy(best["backbone.embedding.weight"])
      assert.near(math.exp(-s.best), tonumber(meta.perplexity), 1e-3)
    end)
  end)

  it("stopped and resumed gives the same weights", function()
    with_text(function()
      local function go(name, o)
        o.out, o.quiet = root .. "/" .. name, true
        return pcall(cab.train.run, recipe { stages = { { loss = { soft = { weight = 1, hard = 1 } }, steps = 6 } } }, o)
      end
      assert(go("whole", {}))
      local ok = go("parts", { stop_after = 3 })
      assert.is_false(ok)
      assert(go("parts", { resume = true }))
      local a, b = core.load(root .. "/whole/best.safetensors"), core.load(root .. "/parts/best.safetensors")
      for name, t in pairs(a) do assert.equal(0, parity.worst(t:to "f64", b[name]:to "f64"), name) end
    end)
  end)
end)

describe("perplexity", function()
  local model = cab.models.mamba2 { dim = 8, depth = 1, state = 3, head = 4 }:build { vocab = V, dtype = "f64" }
  local ids = core.tensor(stream(50, 3), "i32")
  -- Token by token: that of place t given those of first(t) .. t-1.
  local function direct(window, stride)
    local total, tokens, list, known = 0, 0, ids:totable(), 1
    for start = 1, #list, stride do
      local stop = math.min(start + window - 1, #list)
      if start > 1 and stop <= known then break end
      local logits = model:forward(ids:slice(1, start, stop):reshape(1, stop - start + 1))
      for t = math.max(known, start) + 1, stop do
        local row = logits:slice(2, t - start, t - start):reshape(1, V)
        total = total + op.cross_entropy(row, ids:slice(1, t, t)):item()
        tokens = tokens + 1
      end
      known = math.max(known, stop)
    end
    return math.exp(total / tokens), tokens
  end
  for _, case in ipairs { { 50, 50 }, { 64, 64 }, { 12, 12 }, { 12, 5 }, { 12, 1 }, { 7, 7 }, { 49, 10 } } do
    it(("with window %d and stride %d is that of each token in its window"):format(case[1], case[2]), function()
      local want, tokens = direct(math.min(case[1], 50), math.min(case[2], 50))
      for _, batch in ipairs { 1, 3 } do
        local got = text.perplexity(model, ids, { window = case[1], stride = case[2], batch = batch })
        assert.equal(tokens, got.tokens)
        assert.near(want, got.perplexity, 1e-9)
      end
    end)
  end
  it("of too little text is refused", function()
    fails("1 tokens", text.perplexity, model, ids:slice(1, 1, 1))
  end)
  it("in longer and longer windows is that of the same tokens, each with more before it", function()
    local rows = text.lengths(model, ids, { length = 6, times = 4 })
    assert.equal(3, #rows)
    for i, window in ipairs { 6, 12, 24 } do
      local total, tokens = 0, 0
      for start = 24 - window + 1, 50 - window + 1, 6 do -- the first ends at 24, the last at 48
        local logits = model:forward(ids:slice(1, start, start + window - 1):reshape(1, window))
        for t = math.max(window - 6, 1) + 1, window do
          total = total + op.cross_entropy(logits:slice(2, t - 1, t - 1):reshape(1, V), ids:slice(1, start + t - 1, start + t - 1)):item()
          tokens = tokens + 1
        end
      end
      assert.same({ window, tokens }, { rows[i].length, rows[i].tokens })
      assert.near(math.exp(total / tokens), rows[i].perplexity, 1e-9)
    end
  end)
  it("in windows longer than a model's positions is left out, with the reason; than the text, refused", function()
    local short = cab.models.gpt2 { dim = 16, depth = 1, heads = 2, positions = 12 }:build { vocab = V }
    local rows = text.lengths(short, ids, { length = 6, times = 4 })
    assert.is_true(rows[2].perplexity > 1)
    assert.same({ length = 24, why = "12 positions" }, rows[3])
    assert.matches("16 times 6 tokens are 96, the text has 50", require "refused"(2, text.lengths, model, ids, { length = 6, times = 16 }).message)
  end)
end)

describe("recipes/phi_mamba_*", function()
  local function shipped(name) return core.loadfile("recipes/" .. name .. ".lua")() end
  it("are method.md's section 6: two stages, their tokens, rates and sizes", function()
    for name, size in pairs { phi_mamba_distilgpt2 = "123m", phi_mamba_1_5b = "1.5b" } do
      local r = shipped(name).resolved
      assert.same({ "200M", "2B", size, 2e-5, 32, 1024, 128 },
        { r.stages[1].tokens, r.stages[2].tokens, r.student.size, r.optim.lr, r.batch, r.data.length, r.student.chunk })
      assert.same({ "align" }, cab.options.names(r.stages[1].loss))
    end
    local soft = shipped "phi_mamba_distilgpt2":override { "preset=soft" }.resolved
    assert.equal(1, #soft.stages)
    for preset, tokens in pairs { reuse = { "2B" }, mohawk = { "80M", "160M", "4B" }, linearised = { "200M", "2B" } } do
      local stages = shipped("phi_mamba_distilgpt2"):override { "preset=" .. preset, preset == "mohawk" and "preset=4B" or nil }.resolved.stages
      for i, n in ipairs(tokens) do assert.equal(n, stages[i].tokens) end
      assert.equal(#tokens, #stages)
    end
    local mohawk = shipped("vim_tiny"):override { "preset=1%", "preset=mohawk" }.resolved.stages
    assert.same({ 300, 300, 2400 }, { mohawk[1].epochs, mohawk[2].epochs, mohawk[3].epochs })
    assert.same({ 6, 12, 18, 24 }, shipped "phi_mamba_1_5b":override { "preset=hybrid" }.resolved.student.attention)
  end)
  it("say what is missing, and which command then works", function()
    local root = os.tmpname()
    os.remove(root)
    for name, command in pairs { phi_mamba_distilgpt2 = "cab tokenize FILES %-o data/openwebtext.bin", phi_mamba_1_5b = "%-%-tokenizer phi" } do
      local r = shipped(name)
      local e = require "refused"(74, r.run, r, { out = root, quiet = true })
      assert.matches(command, e.message)
      assert.matches("then: cab run recipes/" .. name .. ".lua", e.message)
      os.execute("rm -rf " .. root)
    end
  end)
end)
