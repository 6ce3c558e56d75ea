-- Devices and precision from the recipe down; steps captured as one graph. What needs a GPU is skipped, and said so, without one.
local cab = require "cab"
local core = require "cab.core"
local lfs = require "lfs"
local devices = require "devices"
local folder = require "cab.folder"
local refused = require "refused"

local root = os.tmpname()
os.remove(root)
lfs.mkdir(root)
local count = 0
local function out() count = count + 1 return ("%s/run%d"):format(root, count) end

local function recipe(change)
  local r = {
    data = cab.data.fashion { fraction = 0.02, flip = true },
    teacher = cab.models.vit { image = 28, patch = 7, dim = 16, depth = 2, heads = 2 },
    student = cab.models.vim { image = 28, patch = 7, dim = 16, depth = 2, state = 4 },
    stages = { { loss = { soft = 1, align = { "attention_bridge", hidden = 8, weight = 2 } }, steps = 20 } },
    optim = { "adamw", lr = 1e-2, warmup = 0.2, clip = 1, ema = 0.9 },
    batch = 40, log = 1, eval = { every = 2, batch = 500 }, checkpoint = { every = 4 },
  }
  for k, v in pairs(change or {}) do r[k] = v end
  return cab.recipe(r)
end

local function train(change, o)
  o = o or {}
  return recipe(change):run { out = o.out or out(), quiet = true, resume = o.resume, stop_after = o.stop_after }
end

local function log_of(run) return folder.read((type(run) == "table" and run.path or run) .. "/log.txt") end
local function metrics_of(run) return folder.read((type(run) == "table" and run.path or run) .. "/metrics.jsonl") end
local function weights_of(run, step)
  return core.hash(("%s/checkpoints/step-%d.safetensors"):format(type(run) == "table" and run.path or run, step or 20))
end

describe("a device", function()
  it("has a name and a chip; the list begins with the CPU", function()
    local name, chip = core.device "cpu"
    assert.equal("cpu", name)
    assert.matches("^x86%-64%-v[234]$", chip)
    local list, why = core.devices()
    assert.same({ name = "cpu", chip = chip }, list[1])
    assert.equal("string", type(why))
    assert.equal(#list > 1, core.device_available "cuda")
    assert.is_true(core.device_available "cpu")
  end)
  it("that nobody knows is refused", function()
    for _, f in ipairs { core.device, core.device_available, core.sync, core.trim, core.memory } do
      assert.matches("unknown device 'gpu'", refused(1, f, "gpu").message)
    end
    assert.matches("unknown dtype or device 'f33'", refused(1, function() core.zeros({ 1 }):to "f33" end).message)
  end)
  it("that is absent is refused with 69 and the reason", function()
    local ok, why = core.device_available "cuda:15"
    assert.is_false(ok)
    assert.equal(why, refused(69, core.zeros, { 1 }, "f32", "cuda:15").message)
    refused(69, function() core.zeros({ 1 }):to "cuda:15" end)
    refused(69, train, { device = "cuda:15" })
  end)
  it("computes f32 products on the CPU in f32 only", function()
    core.precision("cpu", "f32")
    assert.matches("cpu multiplies f32 matrices in f32, not in tf32", refused(1, core.precision, "cpu", "tf32").message)
  end)
end)

describe("a recipe's device and precision", function()
  it("are names that exist", function()
    assert.equal("auto", recipe().resolved.device)
    assert.equal("cuda:1", recipe():override({ "device=cuda:1" }).resolved.device)
    assert.matches("device: unknown value 'gpu'", refused(2, recipe, { device = "gpu" }).message)
    assert.matches("device: unknown value 'cuda:'", refused(2, recipe, { device = "cuda:" }).message)
    assert.matches("precision: unknown value 'f16'", refused(2, recipe, { precision = "f16" }).message)
  end)
  it("say what the CPU cannot do", function()
    for _, name in ipairs { "tf32", "bf16" } do
      assert.matches("precision is '" .. name .. "', which needs a GPU", refused(2, train, { device = "cpu", precision = name }).message)
    end
    refused(2, function() return cab.models.vit { dim = 16, depth = 1, heads = 1 }:build { precision = "bf16" } end)
  end)
  it("are told by the run", function()
    local r = train { device = "cpu", stages = { { loss = { vanilla = 1 }, steps = 1 } } }
    assert.equal("cpu", r.device)
    assert.is_true(r.peak > 0)
    assert.matches("on cpu, x86%-64%-v%d, f32", log_of(r))
    assert.matches("at most [%d.]+ MiB in tensors on cpu", log_of(r))
    assert.matches("waited for data [%d.]+ %%", log_of(r))
    assert.matches("^cpu, ", folder.manifest(r.path).device)
  end)
end)

describe("a teacher", function()
  it("without weights is called untrained", function()
    local one = { { loss = { soft = 1 }, steps = 1 } }
    local vit = { image = 28, patch = 7, dim = 16, depth = 1, heads = 1, weights = "" }
    assert.matches("warning: the teacher is untrained", log_of(train { device = "cpu", stages = one, teacher = cab.models.vit(vit) }))
    vit.weights = root .. "/none.safetensors"
    local e = refused(74, train, { device = "cpu", stages = one, teacher = cab.models.vit(vit) })
    assert.matches("teacher.weights: .*/none.safetensors: no such file", e.message)
  end)
end)

describe("a model", function()
  it("stays where it is when moved there", function()
    local model = cab.models.vim { dim = 8, depth = 1, state = 2, patch = 2 }:build { image = 4, classes = 3 }
    local before = model:state()
    for name, t in pairs(model:to("cpu"):state()) do assert.equal(before[name], t) end
  end)
  it("frees what neither backward nor a tap needs, layer by layer", function()
    local images = core.normal({ 2, 1, 28, 28 }, 0, 1, 1, "images")
    local function held(depth, taps)
      local model = cab.models.vim { dim = 16, depth = depth, state = 4, patch = 4 }:build { image = 28, channels = 1, classes = 3 }
      local scope <close> = core.scope()
      collectgarbage() -- nothing of earlier tests may go in between
      local before = core.memory().live
      local _, kept = core.no_grad(model.forward, model, images, taps)
      return core.memory().live - before, kept
    end
    assert.equal(held(1), held(9))
    assert.is_true(held(9, { hidden = true }) > held(9))
  end)
end)

describe("bytes from the loader", function()
  it("are the pixels that normalised batches are made of", function()
    local data = cab.data.build(cab.data.fashion { fraction = 0.02, flip = true, pad = 2 })
    local function batch(dtype)
      local loader = core.data.loader { dataset = data.sets.train, batch = 50, seed = 3, shuffle = true,
        transform = { size = 28, channels = 1, crop = "random", pad = 2, flip = true, mean = 0.25, std = 0.5, dtype = dtype } }
      local x, y = loader:next()
      loader:close()
      return x, y
    end
    local x, labels = batch "f32"
    local bytes, same = batch "u8"
    assert.equal("u8", bytes:dtype())
    assert.same(x:shape(), bytes:shape())
    assert.same(labels:totable(), same:totable())
    local difference = (bytes:to("f32") * (1 / (255 * 0.5)) + -0.25 / 0.5 - x):range()
    assert.is_true(difference.max <= 1e-6 and difference.min >= -1e-6)
  end)
end)

describe("a batch into tensors", function()
  it("is the one that next() would give; another shape takes nothing", function()
    local data = cab.data.build(cab.data.fashion { fraction = 0.01, threads = 0 })
    local a, b = data:loader("test", { batch = 300 }), data:loader("test", { batch = 300 })
    local images, labels = core.empty { 300, 1, 28, 28 }, core.empty({ 300 }, "i32")
    assert.is_false(b:into(core.empty { 299, 1, 28, 28 }, labels))
    for _ = 1, 6 do
      local x, y = a:next()
      assert.is_true(b:into(images, labels))
      assert.same(y:totable(), labels:totable())
      assert.equal(core.ops.sum(x):item(), core.ops.sum(images):item())
    end
    assert.is_false(b:into(images, labels)) -- 200 are left
    assert.same(a:raw():shape(), b:raw():shape())
    assert.is_false(b:into(images, labels))
    assert.is_nil(b:raw())
    assert.is_true(b:waited() > 0)
    a:close() b:close()
  end)
end)

describe("capture", function()
  it("is refused on the CPU, before anything runs", function()
    local ran = false
    local e = refused(69, core.capture, "cpu", function() ran = true end)
    assert.equal("capture", e.id)
    assert.is_false(ran)
    refused(1, core.capture, "cpu", 3)
  end)
end)

if not devices.cuda then
  pending("steps on CUDA: " .. devices.reason)
  teardown(function() os.execute("rm -r " .. root) end)
  return
end

describe("a captured graph on cuda", function()
  local op = core.ops
  local x = core.tensor({ 1, 2, 3 }, "f32", "cuda")

  it("computes anew at each replay, nothing before", function()
    local scope <close> = core.scope()
    local y = core.zeros({ 3 }, "f32", "cuda")
    local graph <close> = core.capture("cuda", function() y:copy(op.exp(x * 2 + 1) - x) end)
    assert.same({ 0, 0, 0 }, y:totable())
    for i = 1, 3 do
      x:copy(core.tensor({ i, -i, 0.5 }, "f32"))
      graph:replay()
      assert.same((op.exp(x * 2 + 1) - x):totable(), y:totable())
    end
  end)

  it("keeps the memory of what it makes", function()
    local scope <close> = core.scope()
    local kept
    local graph <close> = core.capture("cuda", function()
      local inner <close> = core.scope()
      kept = scope:keep(op.square(x) * 3 + x)
    end)
    for _ = 1, 20 do core.normal({ 1000, 100 }, 0, 1, 1, "other", "f32", "cuda") end
    graph:replay()
    assert.same((op.square(x) * 3 + x):totable(), kept:totable())
  end)

  it("goes through backward", function()
    local scope <close> = core.scope()
    local w = core.tensor({ 1, 2, 3 }, "f32", "cuda")
    w.requires_grad = true
    local graph <close> = core.capture("cuda", function()
      local inner <close> = core.scope()
      op.sum(op.exp(w * x)):backward()
    end)
    graph:replay()
    local replayed = w.grad:totable()
    w.grad = nil
    op.sum(op.exp(w * x)):backward()
    assert.same(w.grad:totable(), replayed)
  end)

  local cases = {
    { "a value read back", function() return op.sum(x):item() end },
    { "a value from the host", function() x:copy(core.tensor { 1, 2, 3 }) end },
    { "random numbers", function() core.uniform({ 3 }, 0, 1, 1, "capture") end },
    { "waiting", function() core.sync "cuda" end },
    { "another capture", function() core.capture("cuda", function() end) end },
  }
  for _, case in ipairs(cases) do
    it("is given up at " .. case[1], function()
      local e = refused(69, core.capture, "cuda", function()
        local scope <close> = core.scope()
        local y = x * 2
        case[2]()
        return y
      end)
      assert.equal("capture", e.id, tostring(e))
      assert.equal(1, op.sum(core.tensor({ 1 }, "f32", "cuda")):item())
    end)
  end

  it("is given up at any other error, which arrives unchanged", function()
    local e = { "mine" }
    local ok, got = pcall(core.capture, "cuda", function() error(e) end)
    assert.is_false(ok)
    assert.equal(e, got)
    assert.equal(1, op.sum(core.tensor({ 1 }, "f32", "cuda")):item())
  end)

  it("is closed once, and then cannot be replayed", function()
    local graph = core.capture("cuda", function() local scope <close> = core.scope() return x * 2 end)
    graph:close()
    graph:close()
    refused(1, graph.replay, graph)
  end)
end)

describe("a model on cuda", function()
  it("has the initial values of the CPU, bit for bit, and comes back with them", function()
    local vim = cab.models.vim { dim = 16, depth = 2, state = 4, patch = 7 }
    local extra = { image = 28, channels = 1, classes = 10 }
    local here = vim:build(extra)
    extra.device = "cuda"
    local there = vim:build(extra)
    local state = there:state()
    for name, t in pairs(here:state()) do
      assert.equal("cuda:0", state[name]:device())
      assert.is_true(state[name].requires_grad)
      assert.same(t:totable(), state[name]:totable())
    end
    for name, t in pairs(there:to("cpu"):state()) do
      assert.equal("cpu", t:device())
      assert.same(state[name]:totable(), t:totable())
    end
  end)
  it("saves and loads weights of any device", function()
    local vim = cab.models.vim { dim = 16, depth = 1, state = 4, patch = 7 }
    local there = vim:build { image = 28, channels = 1, classes = 10, device = "cuda" }
    core.save(root .. "/w.safetensors", there:state())
    local here = vim:build { image = 28, channels = 1, classes = 10, seed = 5 }
    here:load((core.load(root .. "/w.safetensors")))
    assert.same(there:state()["head.weight"]:totable(), here:state()["head.weight"]:totable())
  end)
end)

describe("batches on cuda", function()
  it("are those of the CPU to 1e-6", function()
    local spec = cab.data.fashion { fraction = 0.02, flip = true, pad = 2 }
    local here, there = cab.data.build(spec), cab.data.build(spec, "cuda")
    local a, b = here:loader("train", { batch = 40 }), there:loader("train", { batch = 40 })
    for _ = 1, 3 do
      local x, labels = a:next()
      local y, same = b:next()
      assert.equal("cuda:0", y:device())
      assert.same(labels:totable(), same:totable())
      local difference = (y:to("cpu") - x):range()
      assert.is_true(difference.max <= 1e-6 and difference.min >= -1e-6)
    end
    a:close() b:close()
  end)
end)

describe("training on cuda", function()
  teardown(function() os.execute("rm -r " .. root) end)
  local whole

  it("replays steps that equal those run as they come, bit for bit", function()
    whole = train { device = "cuda" }
    local eager = train { device = "cuda", capture = false }
    assert.is_nil(log_of(whole):find "not captured")
    assert.matches("on cuda:0, .*, f32", log_of(whole))
    assert.equal(metrics_of(eager), metrics_of(whole))
    assert.equal(weights_of(eager), weights_of(whole))
  end)

  it("is the same with fewer looks at it", function()
    local r = train { device = "cuda", log = 7 }
    assert.equal(weights_of(whole), weights_of(r))
  end)

  it("resumes bit by bit", function()
    local path = out()
    for _, stop in ipairs { 3, 9, 14 } do
      refused(75, train, { device = "cuda" }, { out = path, stop_after = stop, resume = stop > 3 })
    end
    train({ device = "cuda" }, { out = path, resume = true })
    assert.equal(metrics_of(whole), metrics_of(path))
    assert.equal(weights_of(whole), weights_of(path))
  end)

  it("stays near the CPU, and goes on there, and says so", function()
    local path = out()
    refused(75, train, { device = "cuda" }, { out = path, stop_after = 10 })
    local r = train({ device = "cpu" }, { out = path, resume = true })
    assert.matches("warning: the steps before ran on cuda:0, .* these run on cpu", log_of(path))
    local cpu = train { device = "cpu" }
    for _, run in ipairs { whole, r } do
      local a, b = folder.metrics(run.path .. "/metrics.jsonl"), folder.metrics(cpu.path .. "/metrics.jsonl")
      for i, row in ipairs(b) do
        if row.loss then assert.near(1, a[i].loss / row.loss, 2e-3, "step " .. row.step) end
      end
    end
  end)

  it("captures again where the losses change", function()
    local stages = {
      { loss = { align = { "attention_bridge", hidden = 8 } }, steps = 8 },
      { loss = { soft = 1, align = { "attention_bridge", hidden = 8, weight = 0.5 } }, steps = 8 } }
    local a, b = train { device = "cuda", stages = stages }, train { device = "cuda", stages = stages, capture = false }
    assert.equal(metrics_of(b), metrics_of(a))
    assert.equal(weights_of(b, 16), weights_of(a, 16))
  end)

  it("says once that a step cannot be captured, and goes on", function()
    local reads = cab.strategy { needs = {}, options = {} }
    function reads:loss(_, batch)
      self.seen = batch.logits:slice(1, 1, 1):slice(2, 1, 1):item()
      return cab.op.cross_entropy(batch.logits, batch.labels)
    end
    local r = train { device = "cuda", stages = { { loss = { reads = { reads } }, steps = 8 } } }
    local _, times = log_of(r):gsub("step not captured: ", "")
    assert.equal(1, times)
  end)

  it("is finite in tf32 and bf16", function()
    for _, precision in ipairs { "tf32", "bf16" } do
      local r = train { device = "cuda", precision = precision }
      assert.is_nil(log_of(r):find "not captured", log_of(r))
      for _, row in ipairs((folder.metrics(r.path .. "/metrics.jsonl"))) do
        assert.is_nil(row.skipped)
      end
    end
  end)

  -- A loss times factor(n), n counting its runs on the device: step s is run s + 2, since the audit has two.
  local function counted(factor)
    local runs, bad = core.zeros({}, "f32", "cuda"), cab.strategy { needs = {}, options = {} }
    function bad:loss(_, batch)
      runs:add_(1)
      return cab.op.cross_entropy(batch.logits, batch.labels) * cab.op.sqrt(factor(runs))
    end
    return { device = "cuda", stages = { { loss = { bad = { bad } }, steps = 12 } }, eval = { every = 0, batch = 500 }, log = 10 }
  end

  it("stops where numbers are read after a step that is not finite, and names that step", function()
    local path = out()
    local e = refused(76, train, counted(function(n) return 7.5 - n end), { out = path })
    assert.matches("step 6: loss 'bad' is not finite", e.message)
    local report = core.json_decode(folder.read(path .. "/nan-report.json"))
    assert.equal(6, report.step)
    assert.equal(8, report.seen_at) -- a checkpoint was due
    assert.equal(3, report.skipped)
    assert.same({ what = "loss", tensor = "bad", bad = 1 }, report.first_bad)
    assert.same({ 4 }, (folder.open(path, true):checkpoints()))
  end)

  it("skips such a step if the recipe says so", function()
    local change = counted(function(n) return cab.op.square(n - 8) - 0.25 end)
    change.guard = { nonfinite = "skip", skips = 3 }
    local r = train(change)
    assert.matches("warning: step 6: .* is not finite; step skipped", log_of(r))
    for _, t in pairs((core.load(r.path .. "/checkpoints/step-12.safetensors"))) do assert.equal(0, t:range().bad) end
  end)

  it("leaves no tensor behind", function()
    train { device = "cuda" }
    collectgarbage() collectgarbage()
    local before = core.memory("cuda").live
    train { device = "cuda" }
    collectgarbage() collectgarbage()
    assert.equal(before, core.memory("cuda").live)
  end)
end)
