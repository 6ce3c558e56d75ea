-- Runs that meet trouble: saves that fail, checkpoints that are not what they should be, numbers that are not finite, loader threads
-- that do not start.
local cab = require "cab"
local core = require "cab.core"
local lfs = require "lfs"
local folder = require "cab.folder"
local process = require "process"
local refused = require "refused"

local root = process.folder()
local count = 0
local function out() count = count + 1 return ("%s/run%d"):format(root, count) end

-- A run of 8 steps whose loss is `loss(student's loss, step)`; checkpoints at each step unless told otherwise.
local function run(loss, change, options)
  local strategy, step = cab.strategy { needs = {}, options = {}, name = "test" }, -2 -- the first two calls are the stage's audit
  function strategy:loss(_, batch)
    step = step + 1
    return loss(cab.op.cross_entropy(batch.logits, batch.labels), step)
  end
  local r = {
    data = cab.data.fashion { fraction = 0.01 },
    teacher = cab.models.vit { image = 28, patch = 14, dim = 8, depth = 1, heads = 1 },
    student = cab.models.vim { image = 28, patch = 14, dim = 8, depth = 1, state = 2 },
    stages = { { loss = { test = { strategy } }, steps = options and options.steps or 8 } },
    device = "cpu", batch = 10, log = 1, eval = { batch = 2000, shares = false }, checkpoint = { every = 1, keep = 3 },
  }
  for k, v in pairs(change or {}) do r[k] = v end
  options = options or {}
  options.out, options.quiet = options.out or out(), true
  return options.out, cab.recipe(r):run(options)
end
local function same(loss) return loss end

teardown(function() os.execute("rm -r " .. root) end)

describe("a save that fails", function()
  -- Steps first..last find a file where the folder of checkpoints was.
  local function blocked(path, first, last)
    return function(loss, step)
      local at = path .. "/checkpoints"
      if step == first then
        os.rename(at, path .. "/away")
        core.write_file(at, "in the way")
      elseif step == last + 1 then
        os.remove(at)
        os.rename(path .. "/away", at)
      end
      return loss
    end
  end
  it("is a warning, and training goes on", function()
    local path = out()
    run(blocked(path, 3, 4), nil, { out = path })
    local _, warnings = folder.read(path .. "/log.txt"):gsub("warning: [^\n]*training goes on", "")
    assert.equal(2, warnings)
    assert.same({ 6, 7, 8 }, (folder.view(path):checkpoints()))
  end)
  it("three times in a row ends the run with 74; the old checkpoint is whole", function()
    local path = out()
    refused(74, run, blocked(path, 3, 9), nil, { out = path })
    os.remove(path .. "/checkpoints")
    os.rename(path .. "/away", path .. "/checkpoints")
    local _, manifest = folder.view(path):load(false)
    assert.equal(2, manifest.step)
  end)
end)

describe("a checkpoint that is not what it should be", function()
  local function stopped()
    local path = out()
    refused(75, run, same, nil, { out = path, stop_after = 5 })
    return path, path .. "/checkpoints/step-5.safetensors", path .. "/checkpoints/step-4.safetensors"
  end
  local function resume(path, how) return select(2, run(same, nil, { out = path, resume = how or true })) end
  for what, damage in pairs {
    ["has a tail of zeros"] = function(file)
      local bytes = folder.read(file)
      core.write_file(file, bytes:sub(1, -101) .. ("\0"):rep(100))
    end,
    ["is cut"] = function(file) core.write_file(file, (folder.read(file):sub(1, -101))) end,
    ["is missing"] = function(file) os.remove(file) end,
    ["is that of another step"] = function(file, older) core.write_file(file, folder.read(older)) end,
    ["has a manifest of zeros"] = function(file) core.write_file((file:gsub("safetensors$", "json")), ("\0"):rep(200)) end,
  } do
    it(what .. ": 65 with the file's name; the older one only if asked for", function()
      local path, file, older = stopped()
      damage(file, older)
      local e = refused(65, resume, path)
      assert.truthy(e.message:find("step-5", 1, true), e.message)
      assert.equal(8, resume(path, "latest-good").steps)
      assert.truthy(folder.read(path .. "/log.txt"):find "warning: [^\n]*step%-5[^\n]*trying an older checkpoint")
    end)
  end
  it("is of another model: 65 with the tensor", function()
    local path, file = stopped()
    for name, change in pairs { missing = function(t) t["student.head.bias"] = nil end, unexpected = function(t) t.more = core.zeros { 1 } end,
      expected = function(t) t["student.head.bias"] = core.zeros { 3 } end } do
      local tensors, meta = core.load(path .. "/checkpoints/step-4.safetensors")
      change(tensors)
      core.save(file, tensors, meta)
      folder.view(path):json("checkpoints/step-5.json",
        { step = 5, file = "step-5.safetensors", size = lfs.attributes(file, "size"), xxh64 = core.hash(file), meta = {} })
      local e = refused(65, resume, path)
      assert.truthy(e.message:find("step-5.safetensors", 1, true) and e.message:find(name), e.message)
    end
  end)
end)

describe("a number that is not finite", function()
  local function at(...)
    local bad = {}
    for _, step in ipairs { ... } do bad[step] = true end
    return function(loss, step) return bad[step] and loss * (0 / 0) or loss end
  end
  local skip = { guard = { nonfinite = "skip", skips = 2 } }
  it("is skipped if the recipe says so: weights and moments as if that step had not been", function()
    local path = run(at(3), skip)
    local two, three = path .. "/2", path .. "/3"
    for file, step in pairs { [two] = 2, [three] = 3 } do
      local p = out()
      refused(75, run, at(3), skip, { out = p, stop_after = step })
      os.rename(("%s/checkpoints/step-%d.safetensors"):format(p, step), file)
    end
    local a, b = core.load(two), core.load(three)
    for name, t in pairs(a) do assert.same(t:totable(), b[name]:totable(), name) end
    local report = core.json_decode(folder.read(path .. "/nan-report.json"))
    assert.same({ 3, "test" }, { report.step, report.first_bad.tensor })
  end)
  it("is not skipped more often in a row than the recipe allows", function()
    run(at(2, 3, 5, 6), skip)
    assert.truthy(refused(76, run, at(2, 3, 4), skip).message:find "step 4")
  end)
  it("in a weight or an image is named", function()
    local model = cab.models.vim { dim = 8, depth = 1, state = 2, patch = 14 }:build { image = 28, classes = 10, channels = 1 }
    local state = model:state()
    core.no_grad(function() state["head.weight"]:slice(1, 2, 2):fill(0 / 0) end)
    core.save(root .. "/nan.safetensors", state)
    local path = out()
    refused(76, run, same, { student = cab.models.vim { image = 28, patch = 14, dim = 8, depth = 1, state = 2,
      weights = root .. "/nan.safetensors" } }, { out = path })
    local report = core.json_decode(folder.read(path .. "/nan-report.json"))
    assert.same({ 1, "weight", "head.weight", 8 }, { report.step, report.first_bad.what, report.first_bad.tensor, report.first_bad.bad })
    assert.same({}, (folder.view(path):checkpoints()))
  end)
end)

describe("a run that goes back", function()
  -- Times `factor` at these calls: of step 14, and, once the run went back to step 12, of step 14 again.
  local function at(factor, ...)
    local calls = {}
    for _, n in ipairs { ... } do calls[n] = true end
    return function(loss, call) return calls[call] and loss * factor or loss end
  end
  local function change(spike) return { checkpoint = { every = 3, keep = 3 }, guard = { nonfinite = "rewind", spike = spike } } end
  for what, factor in pairs { ["a loss that is not finite"] = 0 / 0, ["a spike of the gradient"] = 1e6 } do
    local spike = factor == factor and 100 or 0
    it("after " .. what .. " has the curve of one that never met it", function()
      local clean, path = out(), out()
      run(same, change(spike), { out = clean, steps = 16 })
      run(at(factor, 14), change(spike), { out = path, steps = 16 })
      assert.equal(folder.read(clean .. "/metrics.jsonl"), folder.read(path .. "/metrics.jsonl"))
      assert.equal(core.hash(clean .. "/checkpoints/step-16.safetensors"), core.hash(path .. "/checkpoints/step-16.safetensors"))
      assert.truthy(folder.read(path .. "/log.txt"):find "warning: step 14: [^\n]*back to the checkpoint of step 12")
    end)
    it("and meets " .. what .. " again ends with 76; the checkpoint stays", function()
      local path = out()
      assert.truthy(refused(76, run, at(factor, 14, 16), change(spike), { out = path, steps = 16 }).message:find "step 14")
      assert.equal(14, core.json_decode(folder.read(path .. "/nan-report.json")).step)
      assert.same({ 6, 9, 12 }, (folder.view(path):checkpoints()))
    end)
  end
  it("stops at once where there is no checkpoint to go back to", function()
    assert.truthy(refused(76, run, at(0 / 0, 2), change(0), { out = out(), steps = 16 }).message:find "step 2")
  end)
end)

describe("a loader thread that does not start", function()
  it("is an error with the reason, and nothing hangs", function()
    if not core.fault then return pending "needs a build with fault points (make asan)" end
    local ds = core.data.open { kind = "cifar", files = { "tests/fuzz/seeds/cifar/gzip" } }
    local function read()
      local loader <close> = core.data.loader { dataset = ds, batch = 1, threads = 2 }
      loader:next()
    end
    assert.equal(2, (core.fault("thread", 0, false, read)))
    for n = 1, 2 do
      local _, ok, e = core.fault("thread", n, true, read) -- once: it is tried again
      assert.is_false(ok)
      assert.truthy(tostring(e):find "thread", tostring(e))
    end
    ds:close()
  end)
end)
