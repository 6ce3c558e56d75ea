local cab = require "cab"
local core = require "cab.core"
local lfs = require "lfs"
local folder = require "cab.folder"
local schedule = require "cab.schedule"

local root = os.tmpname()
os.remove(root)
lfs.mkdir(root)
local function clean(path)
  for name in lfs.dir(path) do
    if name ~= "." and name ~= ".." then
      local at = path .. "/" .. name
      if lfs.attributes(at, "mode") == "directory" then clean(at) else os.remove(at) end
    end
  end
  lfs.rmdir(path)
end

local function recipe(change)
  local r = {
    data = cab.data.fashion { fraction = 0.02, flip = true },
    teacher = cab.models.vit { image = 28, patch = 7, dim = 16, depth = 2, heads = 2 },
    student = cab.models.vim { image = 28, patch = 7, dim = 16, depth = 2, state = 4 },
    stages = { { loss = { soft = 1, align = { "attention_bridge", hidden = 8, weight = 2 } }, steps = 11 } },
    optim = { "adamw", lr = 1e-2, warmup = 0.2, clip = 1, ema = 0.9 },
    device = "cpu", batch = 40, log = 1, eval = { every = 1, batch = 500 }, checkpoint = { every = 4 },
  }
  for k, v in pairs(change or {}) do r[k] = v end
  return cab.recipe(r)
end

local count = 0
local function out() count = count + 1 return ("%s/run%d"):format(root, count) end
local function fault(f, ...)
  local ok, e = pcall(f, ...)
  assert.is_false(ok)
  return e
end
local function read(path) return folder.read(path) end
describe("schedule", function()
  it("warms up, follows the cosine and ends low", function()
    local s = { kind = "cosine", lr = 1, low = 0.1, start = 0, warmup = 10, cooldown = 10, steps = 120 }
    assert.are.equal(0.5, schedule.rate(s, 5))
    assert.are.equal(1, schedule.rate(s, 10))
    assert.is_true(math.abs(schedule.rate(s, 60) - 0.55) < 1e-12)
    assert.is_true(math.abs(schedule.rate(s, 110) - 0.1) < 1e-12)
    assert.is_true(math.abs(schedule.rate(s, 120) - 0.1) < 1e-12)
  end)
  it("refuses unknown names", function()
    local e = fault(schedule.rate, { kind = "cosin", lr = 1, warmup = 0, cooldown = 0, steps = 3 }, 1)
    assert.are.equal(2, e.code)
    assert.matches("did you mean 'cosine'", e.message)
  end)
end)

describe("train", function()
  teardown(function() clean(root) end)

  it("learns: the loss falls", function()
    local r = recipe { stages = { { loss = { vanilla = 1 }, epochs = 12 } }, eval = { every = 0, batch = 500 } }:run { out = out(), quiet = true }
    assert.is_true(r.top1 > 30, "top1 " .. r.top1)
    local rows = folder.metrics(r.path .. "/metrics.jsonl")
    assert.is_true(rows[#rows - 1].loss < 0.8 * rows[1].loss)
  end)

  it("keeps a run folder: resolved recipe, metrics, checkpoints with manifests, best weights", function()
    local r = recipe():run { out = out(), quiet = true }
    local saved = core.json_decode(read(r.path .. "/recipe.json"))
    assert.are.equal(0.05, saved.recipe.optim.weight_decay)
    assert.are.equal(0.02, saved.recipe.data.fraction)
    local manifest = folder.manifest(r.path)
    assert.is_true(next(manifest.data) ~= nil)
    assert.are.equal(core.hash "/proc/self/exe", manifest.program.xxh64)
    assert.are.equal(0, manifest.seed)
    assert.is_string(manifest.hardware.processor)
    local names = {}
    for name in lfs.dir(r.path .. "/checkpoints") do names[#names + 1] = name end
    table.sort(names)
    assert.are.same({ ".", "..", "step-11.json", "step-11.safetensors", "step-8.json", "step-8.safetensors" }, names)
    assert.is_not_nil(core.load(r.path .. "/best.safetensors")["head.weight"])
    local rows, evals, shares = folder.metrics(r.path .. "/metrics.jsonl"), 0, 0
    for _, row in ipairs(rows) do
      if row.eval then
        evals = evals + 1
        assert.is_number(row.eval.top1)
        assert.is_number(row.eval.average.top1)
        assert.is_number(row.eval.r2.align)
        for _, share in pairs(row.eval.share) do shares = shares + share end
      end
    end
    assert.are.equal(3, evals)
    assert.is_true(math.abs(shares - evals) < 1e-6)
  end)

  it("resumes bit by bit, in the middle of an epoch", function()
    local a, b = out(), out()
    recipe():run { out = a, quiet = true }
    for _, stop in ipairs { 3, 7, 9 } do
      local e = fault(function() recipe():run { out = b, quiet = true, stop_after = stop, resume = stop > 3 } end)
      assert.are.equal(75, e.code)
    end
    recipe():run { out = b, quiet = true, resume = true }
    assert.are.equal(read(a .. "/metrics.jsonl"), read(b .. "/metrics.jsonl"))
    assert.are.equal(core.hash(a .. "/checkpoints/step-11.safetensors"), core.hash(b .. "/checkpoints/step-11.safetensors"))
  end)

  it("cuts the metrics to the checkpoint and drops a torn tail; a bad line in the middle is a fault", function()
    local a, b = out(), out()
    recipe():run { out = a, quiet = true }
    pcall(function() recipe():run { out = b, quiet = true, stop_after = 6 } end)
    core.append_file(b .. "/metrics.jsonl", '{"step":7,"loss":1}\n{"step":8,"lo')
    recipe():run { out = b, quiet = true, resume = true }
    assert.are.equal(read(a .. "/metrics.jsonl"), read(b .. "/metrics.jsonl"))
    core.write_file(b .. "/metrics.jsonl", '{"step":1}\n{"st\n{"step":2}\n')
    local e = fault(folder.metrics, b .. "/metrics.jsonl")
    assert.are.equal(65, e.code)
    assert.matches("line 2", e.message)
  end)

  it("refuses a damaged checkpoint, and takes an older one when asked", function()
    local a, b = out(), out()
    recipe():run { out = a, quiet = true }
    pcall(function() recipe():run { out = b, quiet = true, stop_after = 9 } end)
    local path = b .. "/checkpoints/step-9.safetensors"
    local bytes = read(path)
    core.write_file(path, bytes:sub(1, -2) .. string.char(bytes:byte(-1) ~ 1))
    local e = fault(function() recipe():run { out = b, quiet = true, resume = true } end)
    assert.are.equal(65, e.code)
    assert.matches("step%-9%.safetensors", e.message)
    assert.matches("xxh64", e.message)
    recipe():run { out = b, quiet = true, resume = "latest-good" }
    assert.matches("warning: .*step%-9", read(b .. "/log.txt"))
    assert.are.equal(read(a .. "/metrics.jsonl"), read(b .. "/metrics.jsonl"))
  end)

  it("refuses to resume with another recipe, and to write into a finished run", function()
    local a = out()
    pcall(function() recipe():run { out = a, quiet = true, stop_after = 5 } end)
    local e = fault(function() recipe { batch = 20 }:run { out = a, quiet = true, resume = true } end)
    assert.are.equal(2, e.code)
    assert.matches("'batch'", e.message)
    e = fault(function() recipe():run { out = a, quiet = true } end)
    assert.are.equal(2, e.code)
    assert.matches("%-%-resume", e.message)
  end)

  it("locks its folder", function()
    local a = out()
    lfs.mkdir(a)
    local lock <close> = core.lock(a)
    local e = fault(function() recipe():run { out = a, quiet = true } end)
    assert.are.equal(74, e.code)
    assert.matches("locked by pid", e.message)
  end)

  it("stops with 76 and a report at a gradient that is not finite; the checkpoint stays", function()
    local bad = cab.strategy { needs = {}, options = {} }
    local calls = 0
    function bad:loss(_, batch)
      calls = calls + 1
      return cab.op.cross_entropy(batch.logits, batch.labels) * (calls > 7 and 0 / 0 or 1) -- the audit has two
    end
    local a = out()
    local e = fault(function()
      recipe { stages = { { loss = { bad = { bad } }, steps = 12 } }, eval = { every = 0, batch = 500 } }:run { out = a, quiet = true }
    end)
    assert.are.equal(76, e.code)
    local report = core.json_decode(read(a .. "/nan-report.json"))
    assert.are.equal(6, report.step)
    assert.are.equal("bad", report.first_bad.tensor)
    assert.are.same({ 4 }, (folder.open(a, true):checkpoints()))
  end)

  it("names a loss that reaches no parameter at the first step", function()
    local dead = cab.strategy { needs = {}, options = {} }
    function dead:loss(_, batch) return cab.op.mean(batch.logits:detach()) end
    local e = fault(function()
      recipe { stages = { { loss = { soft = 1, dead = { dead } }, steps = 2 } } }:run { out = out(), quiet = true }
    end)
    assert.are.equal(2, e.code)
    assert.matches("'dead' reaches no parameter", e.message)
  end)

  it("says that a detached bridge reaches no parameter of the student", function()
    local r = recipe { stages = { { loss = { soft = 1, align = { "attention_bridge", hidden = 8, detach = true } }, steps = 1 } } }
    r = r:run { out = out(), quiet = true }
    assert.matches("'align' reaches no parameter of the student", read(r.path .. "/log.txt"))
  end)

  it("does not decay A_log, D, biases, norms, positions and class tokens", function()
    local job = require "cab.job".build(recipe().resolved)
    local decayed = {}
    for _, p in ipairs(job.params) do
      if p.student and p.decay then
        decayed[#decayed + 1] = p.name
        assert.is_nil(p.name:find "A_log" or p.name:find "bias" or p.name:find "norm" or p.name:find "pos_embed" or p.name:find "cls_token" or p.name:find "%.D")
      end
    end
    assert.is_true(#decayed > 8)
  end)

  it("leaves no tensor behind", function()
    recipe():run { out = out(), quiet = true }
    collectgarbage() collectgarbage()
    local before = core.memory().live
    recipe():run { out = out(), quiet = true }
    collectgarbage() collectgarbage()
    assert.are.equal(before, core.memory().live)
  end)

  it("trains in stages, with a rate of its own for one", function()
    local r = recipe { stages = {
      { loss = { align = { "attention_bridge", hidden = 8 } }, steps = 3, lr = 5e-3 },
      { loss = { soft = 1, align = { "attention_bridge", hidden = 8, weight = 0.5 } }, steps = 3 } } }:run { out = out(), quiet = true }
    local rows = {}
    for _, row in ipairs((folder.metrics(r.path .. "/metrics.jsonl"))) do if row.loss then rows[row.step] = row end end
    assert.are.equal(2, rows[4].stage)
    assert.is_nil(rows[3]["loss.soft"])
    assert.is_number(rows[4]["loss.soft"])
    assert.is_true(rows[2].lr <= 5e-3)
  end)
end)
