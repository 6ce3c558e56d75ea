-- accumulate = n: a batch in n parts, one after the other, is the training of the whole batch, to reduction order.
local core = require "cab.core"
local cab = require "cab"
local process = require "process"
local folder = require "cab.folder"
local fails = require "fails"

local dir = process.folder()
local count = 0

local function images(o)
  local fields = {
    data = cab.data.fashion { fraction = 0.05, flip = true, mixup = o.mixup or 0 },
    teacher = cab.models.vit { image = 28, patch = 7, dim = 16, depth = 2, heads = 2 },
    student = cab.models.vim { image = 28, patch = 7, dim = 16, depth = 2, state = 4 },
    stages = { { loss = { soft = 1, align = { "attention_bridge", hidden = 8, weight = 2 } }, steps = 50 } },
    optim = { "adamw", lr = 1e-3, warmup = 0.2, clip = 1, ema = 0.9 },
    device = "cpu", batch = 48, log = 1, eval = { every = 1, batch = 500 }, checkpoint = { every = 10 }, threads = 1,
  }
  for k, v in pairs(o.set or {}) do fields[k] = v end
  return cab.recipe(fields)
end

-- Documents of very different lengths, so that parts have very different numbers of targets.
local function corpus()
  local lines, words = {}, { "the", "river", "ran", "over", "stones", "and", "no", "one", "saw", "it" }
  for i = 1, 900 do
    local text = {}
    for k = 1, i % 7 == 0 and 60 or 1 + i % 3 do text[k] = words[(i * 7 + k * k) % #words + 1] end
    lines[i] = ('{"text": "%s"}'):format(table.concat(text, " "))
  end
  return process.put(dir .. "/corpus.jsonl", table.concat(lines, "\n") .. "\n")
end

local function text(set)
  local fields = {
    data = cab.data.text { train = corpus(), length = 32, holdout = 0.1 },
    teacher = cab.models.gpt2 { dim = 16, depth = 2, heads = 2, positions = 32 },
    student = cab.models.phi_mamba { dim = 16, depth = 2, heads = 2, state = 4 },
    stages = { { loss = { soft = { hard = 1 }, align = { "attention_bridge", hidden = 8 } }, steps = 12 } },
    optim = { "adamw", lr = 1e-3, clip = 1 }, device = "cpu", batch = 12, log = 1, threads = 1,
  }
  for k, v in pairs(set or {}) do fields[k] = v end
  return cab.recipe(fields)
end

local function train(recipe, o)
  count = count + 1
  local all = { out = ("%s/run%d"):format(dir, count), quiet = true }
  for k, v in pairs(o or {}) do all[k] = v end
  recipe:run(all)
  return all.out
end

local function rows(path)
  local out = {}
  for _, row in ipairs((folder.metrics(path .. "/metrics.jsonl"))) do if row.loss then out[row.step] = row end end
  return out
end

-- The largest relative difference of losses, terms and gradient norms; terms relative to the loss.
local function difference(a, b)
  local x, y, most = rows(a), rows(b), 0
  assert.equal(#x, #y)
  for step = 1, #x do
    for key, to in pairs { loss = "loss", grad_norm = "grad_norm", ["loss.soft"] = "loss", ["loss.align"] = "loss" } do
      most = math.max(most, math.abs(x[step][key] - y[step][key]) / math.abs(x[step][to]))
    end
  end
  return most
end

describe("accumulate", function()
  local plain
  lazy_setup(function() plain = train(images { mixup = 0.4 }) end)

  it("trains as the whole batch does: 3 parts, 5 uneven ones, mixed records", function()
    for _, n in ipairs { 3, 5 } do
      local path = train(images { mixup = 0.4, set = { accumulate = n } })
      assert.is_true(difference(plain, path) < 1e-6, ("%d parts: %g"):format(n, difference(plain, path)))
      local a, b = folder.metrics(plain .. "/metrics.jsonl"), folder.metrics(path .. "/metrics.jsonl")
      assert.equal(a[#a].eval.top1, b[#b].eval.top1)
      assert.equal(a[#a].eval.average.top1, b[#b].eval.average.top1)
      assert.near(a[#a].eval.share.align, b[#b].eval.share.align, 1e-4)
    end
  end)
  it("differs where a part weighs wrongly", function() -- the measure of the tests here sees it
    local dist = require "cab.dist"
    local each = dist.each
    dist.each = function(job, batch, f) return each(job, batch, function(part, share) return f(part, part.first == 1 and 1.001 * share or share) end) end
    local path = train(images { mixup = 0.4, set = { accumulate = 3 } })
    dist.each = each
    assert.is_true(difference(plain, path) > 1e-5)
  end)
  it("goes on in the middle of an epoch with another number of parts", function()
    local out = dir .. "/resumed"
    fails("stopped after step 17", train, images { mixup = 0.4, set = { accumulate = 4 } }, { out = out, stop_after = 17 })
    train(images { mixup = 0.4, set = { accumulate = 2 } }, { out = out, resume = true })
    assert.is_true(difference(plain, out) < 1e-5, ("%g"):format(difference(plain, out)))
  end)
  it("weighs cross-entropy of text by targets and the rest by rows: packed documents of all lengths", function()
    local whole = train(text())
    for _, n in ipairs { 3, 5, 12 } do
      local path = train(text { accumulate = n })
      assert.is_true(difference(whole, path) < 1e-6, ("%d parts: %g"):format(n, difference(whole, path)))
    end
  end)
  it("says how a batch is cut, and what is too many parts", function()
    local out = dir .. "/said"
    train(images { set = { accumulate = 4, stages = { { loss = { vanilla = 1 }, steps = 1 } } } }, { out = out })
    assert.matches("4 parts x 12 rows = batch 48\n", folder.read(out .. "/log.txt"), 1, true)
    fails("batch is 48, for accumulate=49 it must be at least 49", train, images { set = { accumulate = 49 } })
    fails("batch is 48, for accumulate=25 with mixed records it must be at least 50", train, images { mixup = 0.4, set = { accumulate = 25 } })
  end)
  it("takes the memory of a part", function()
    local function peak(n)
      local r = images { set = { batch = 240, accumulate = n, stages = { { loss = { soft = 1 }, steps = 2 } }, eval = { batch = 8 } } }
      core.trim "cpu"
      return r:run { out = ("%s/peak%d"):format(dir, n), quiet = true }.peak
    end
    local all, part = peak(1), peak(8)
    assert.is_true(part < 0.35 * all, ("%d and %d bytes"):format(all, part))
    local found = require "cab.checkup".recipe(images { set = { batch = 240, accumulate = 8 } }.resolved)
    local whole = require "cab.checkup".recipe(images { set = { batch = 240 } }.resolved)
    assert.is_true(found.plan.rows[7][2] < 0.3 * whole.plan.rows[7][2])
    assert.is_true(found.plan.step > 0)
  end)
  it("finds what is not finite in any part, and skips the step", function()
    local broken = cab.strategy { name = "broken" }
    local calls = 0
    function broken:loss(_, batch) -- luacheck: ignore self
      calls = calls + 1
      local loss = cab.op.mean(batch.logits)
      return calls == 8 and loss * (0 / 0) or loss -- audit: 2; steps of 3 parts
    end
    local out = dir .. "/broken"
    train(images { set = { accumulate = 3, guard = { nonfinite = "skip" }, eval = { shares = false },
      stages = { { loss = { broken = { broken, weight = 1 } }, steps = 6 } } } }, { out = out })
    local skipped = 0
    for _, row in pairs(rows(out)) do skipped = skipped + (row.skipped and 1 or 0) end
    assert.equal(1, skipped)
    assert.matches("step skipped", folder.read(out .. "/log.txt"))
  end)
end)
