-- The teacher cache: what it holds is what the teacher says, within its coding; it survives kills; it refuses what it cannot hold.
local cab = require "cab"
local core = require "cab.core"
local jobs = require "cab.job"
local folder = require "cab.folder"
local lfs = require "lfs"

local root = os.tmpname()
os.remove(root)
lfs.mkdir(root)

local function fault(f, ...)
  local ok, e = pcall(f, ...)
  assert.is_false(ok)
  return e
end

local count = 0
local function fresh(name) count = count + 1 return ("%s/%s%d"):format(root, name, count) end

local function given(change)
  local r = {
    data = cab.data.fashion { fraction = 0.02 },
    teacher = cab.models.vit { image = 28, patch = 7, dim = 16, depth = 4, heads = 2 },
    student = cab.models.vim { image = 28, patch = 7, dim = 16, depth = 2, state = 4 },
    stages = { { loss = { soft = 1, align = { "attention_bridge", hidden = 8, weight = 2 } }, steps = 11 } },
    optim = { "adamw", lr = 1e-2, warmup = 0.2, clip = 1, ema = 0.9 },
    device = "cpu", batch = 40, log = 1, eval = { every = 1, batch = 500 }, checkpoint = { every = 4 },
  }
  for k, v in pairs(change or {}) do r[k] = v end
  return r
end
local function run(cache, change, o)
  local r = given(change)
  r.cache = cache
  o = o or {}
  o.out, o.quiet = o.out or fresh "run", true
  return cab.recipe(r):run(o)
end
local function built(cache, change)
  local r = given(change)
  r.cache = cache
  return jobs.build(cab.recipe(r).resolved, { cached = true })
end

-- name -> hash of every file of the only cache under `path`.
local function files(path)
  local out, inner = {}, nil
  for name in lfs.dir(path) do if name:find "^%x+$" then inner = path .. "/" .. name end end
  for name in lfs.dir(inner) do
    if lfs.attributes(inner .. "/" .. name, "mode") == "file" and name ~= "lock" then out[name] = core.hash(inner .. "/" .. name) end
  end
  return out, inner
end

local forms = { f32 = 0, f16 = 0x1p-11, bf16 = 0x1p-8, int8 = 0.5 / 127 } -- largest error, of the number or, int8, of the token's largest

describe("coded rows", function()
  local x = core.normal({ 5, 3, 8 }, 0, 3, 1, "rows", "f32")
  for coding, bound in pairs(forms) do
    it("come back within the error of " .. coding, function()
      local path, form = fresh "rows", { tokens = 3, width = 8, coding = coding }
      core.write_file(path, core.rows_encode(x, 0, form))
      assert.are.equal(5 * core.rows_bytes(form), lfs.attributes(path, "size"))
      local rows <close> = core.rows { file = path, tokens = 3, width = 8, coding = coding }
      assert.are.equal(5, rows:count())
      local y = core.zeros { 5, 3, 8 }
      rows:read({ 4, 0, 2, 2, 1 }, y)
      local a, b = x:totable(), y:totable()
      for i, from in ipairs { 5, 1, 3, 3, 2 } do
        for t = 1, 3 do
          local largest = 0
          for d = 1, 8 do largest = math.max(largest, math.abs(a[from][t][d])) end
          for d = 1, 8 do
            local scale = coding == "int8" and largest * (1 + 1e-6) or math.abs(a[from][t][d])
            assert.is_true(math.abs(a[from][t][d] - b[i][t][d]) <= bound * scale, coding)
          end
        end
      end
    end)
  end

  it("round to nearest, ties to even, below normal halves too, as bf16 of tensors does", function()
    local values = { 1, 1 + 0x1p-11, 1 + 3 * 0x1p-11, 65504, 65519, 0x1p-24, 0x1.8p-24, 0x1p-25, -0x1.4p-15, 0.0 }
    local halves = { 1, 1, 1 + 0x1p-9, 65504, 65504, 0x1p-24, 0x1p-23, 0, -0x1.4p-15, 0 }
    local path, t = fresh "rows", core.tensor { { values } }
    core.write_file(path, core.rows_encode(t, 0, { tokens = 1, width = #values, coding = "f16" }))
    local y = core.zeros { 1, 1, #values }
    do
      local rows <close> = core.rows { file = path, tokens = 1, width = #values, coding = "f16" }
      rows:read({ 0 }, y)
    end
    assert.are.same(halves, y:totable()[1][1])
    local n = core.normal({ 1, 1, 500 }, 0, 1, 2, "bf16", "f32")
    core.write_file(path, core.rows_encode(n, 0, { tokens = 1, width = 500, coding = "bf16" }))
    local z, rows <close> = core.zeros { 1, 1, 500 }, core.rows { file = path, tokens = 1, width = 500, coding = "bf16" }
    rows:read({ 0 }, z)
    assert.are.same(n:to("bf16"):to("f32"):totable(), z:totable())
  end)

  it("of zeros are zeros; what no coding holds is a fault (76)", function()
    local path, y = fresh "rows", core.ones { 1, 2, 4 }
    core.write_file(path, core.rows_encode(core.zeros { 1, 2, 4 }, 0, { tokens = 2, width = 4, coding = "int8" }))
    local rows <close> = core.rows { file = path, tokens = 2, width = 4, coding = "int8" }
    rows:read({ 0 }, y)
    assert.are.same({ 0, 0 }, { y:range().min, y:range().max })
    for _, case in ipairs { { "f16", 65520 }, { "f16", -1e6 }, { "f32", 0 / 0 }, { "int8", math.huge }, { "bf16", 3.4e38 } } do
      local e = fault(core.rows_encode, core.full({ 1, 1, 1 }, case[2]), 7, { tokens = 1, width = 1, coding = case[1] })
      assert.are.equal(76, e.code, case[1])
      assert.matches("row 7", e.message)
    end
  end)

  it("know damage, and a row in another's place", function()
    local path, form = fresh "rows", { tokens = 3, width = 8, coding = "int8" }
    local bytes, size = core.rows_encode(x, 0, form), core.rows_bytes(form)
    local y = core.zeros { 1, 3, 8 }
    for _, change in ipairs { function(b) return b:sub(1, size) .. string.char(b:byte(size + 1) ~ 4) .. b:sub(size + 2) end,
      function(b) return b:sub(1, size) .. b:sub(1, size) .. b:sub(2 * size + 1) end, function(b) return b:sub(1, size) .. ("\0"):rep(4 * size) end } do
      core.write_file(path, change(bytes))
      local rows <close> = core.rows { file = path, tokens = 3, width = 8, coding = "int8" }
      rows:read({ 0 }, y)
      local e = fault(rows.read, rows, { 1 }, y)
      assert.are.equal(65, e.code)
      assert.are.equal("rows-damaged", e.id)
      assert.are.equal(size, e.offset)
    end
    core.write_file(path, bytes:sub(1, -2))
    assert.are.equal(65, fault(core.rows, { file = path, tokens = 3, width = 8, coding = "int8" }).code)
  end)

  it("refuse misuse with the place and what was expected", function()
    local path, y = fresh "rows", core.zeros { 1, 1, 4 }
    core.write_file(path, core.rows_encode(y, 0, { tokens = 1, width = 4 }))
    local rows = core.rows { file = path, tokens = 1, width = 4 }
    for _, case in ipairs { { { 1 }, y, "row 1 of 1" }, { { -1 }, y, "row" }, { {}, y, "nil" }, { { 0 }, core.zeros { 1, 1, 3 }, "f32[n,1,4]" },
      { { 0 }, core.zeros({ 1, 1, 4 }, "f64"), "f64" }, { 0, y, "table" } } do
      local e = fault(rows.read, rows, case[1], case[2])
      assert.are.equal(1, e.code)
      assert.truthy(e.message:find(case[3], 1, true), e.message)
    end
    rows:close()
    rows:close()
    assert.matches("closed", fault(rows.read, rows, { 0 }, y).message)
    assert.are.equal(74, fault(core.rows, { file = root .. "/none", tokens = 1, width = 4 }).code)
    assert.matches("int8", fault(core.rows_bytes, { tokens = 1, width = 4, coding = "int4" }).message)
    assert.are.equal(1, fault(core.rows_bytes, { tokens = 0, width = 4 }).code)
  end)
end)

describe("the teacher cache", function()
  teardown(function() os.execute("rm -rf " .. root) end)

  it("in f32 trains as the live teacher does, bit for bit; the run after it without the teacher's weights", function()
    local path, live = fresh "cache", run()
    local kept
    for _ = 1, 2 do
      local cached = run { path = path, coding = "f32" }
      assert.are.equal(folder.read(live.path .. "/metrics.jsonl"), folder.read(cached.path .. "/metrics.jsonl"))
      assert.are.equal(core.hash(live.path .. "/checkpoints/step-11.safetensors"), core.hash(cached.path .. "/checkpoints/step-11.safetensors"))
      kept = kept or files(path)
      assert.are.same(kept, (files(path)))
    end
    assert.matches("all there", folder.read(("%s/run%d/log.txt"):format(root, count)))
  end)

  it("is what an adaptive weight looks at too: held out, live and cached alike", function()
    local align = { "attention_bridge", hidden = 8, weight = { "adaptive", to = 2, watch = "plateau", patience = 1, delta = 1, factor = 0.5 } }
    local change = { stages = { { loss = { soft = 1, align = align }, epochs = 4 } } }
    local live, path = run(nil, change), fresh "cache"
    assert.matches('"held_out"', folder.read(live.path .. "/metrics.jsonl"))
    for _ = 1, 2 do
      assert.are.equal(folder.read(live.path .. "/metrics.jsonl"), folder.read(run({ path = path, coding = "f32" }, change).path .. "/metrics.jsonl"))
    end
    change.data = cab.data.fashion { fraction = 0.02, validation = 0.2 }
    assert.are.equal(folder.read(run(nil, change).path .. "/metrics.jsonl"), folder.read(run({ path = path, coding = "f32" }, change).path .. "/metrics.jsonl"))
  end)

  it("feeds parts of a batch as whole ones", function()
    local live, cached = run(nil, { accumulate = 3 }), run({ path = fresh "cache", coding = "f32" }, { accumulate = 3 })
    assert.are.equal(folder.read(live.path .. "/metrics.jsonl"), folder.read(cached.path .. "/metrics.jsonl"))
  end)

  -- Images drawn anew: two epochs of five batches, and one more.
  local function drawn(steps, more)
    local d = { fraction = 0.02, flip = true, pad = 2, erase = 0.3, mixup = 0.4, validation = 0.2 }
    for k, v in pairs(more or {}) do d[k] = v end
    return { data = cab.data.fashion(d), batch = 32, stages = { { loss = { soft = 1, align = { "attention_bridge", hidden = 8, weight = 2 } }, steps = steps } } }
  end

  it("of images drawn anew holds the views of some epochs: in f32 they train as the live teacher does, bit for bit", function()
    local path, live = fresh "cache", run(nil, drawn(10))
    for _ = 1, 2 do
      local cached = run({ path = path, coding = "f32", epochs = 2 }, drawn(10))
      assert.are.equal(folder.read(live.path .. "/metrics.jsonl"), folder.read(cached.path .. "/metrics.jsonl"))
      assert.are.equal(core.hash(live.path .. "/checkpoints/step-10.safetensors"), core.hash(cached.path .. "/checkpoints/step-10.safetensors"))
    end
    assert.matches("training sees the views of 2 epochs again and again", folder.read(("%s/run%d/log.txt"):format(root, count)))
    local want, inner = files(path)
    local bytes = folder.read(inner .. "/q.1.train.f32") -- ends in the second epoch, in the middle of a batch
    os.remove(inner .. "/q.1.train.f32")
    core.write_file(inner .. "/q.1.train.f32.part", bytes:sub(1, #bytes * 7 // 10))
    run({ path = path, coding = "f32", epochs = 2 }, drawn(10))
    assert.are.same(want, (files(path)))
    assert.is_false(built({ path = path, epochs = 2 }, drawn(10)).cache.path == built({ path = path, epochs = 3 }, drawn(10)).cache.path)
  end)

  it("of images drawn anew comes again after these epochs, images and targets", function()
    local cache = { path = fresh "cache", coding = "f32", epochs = 2 }
    local job, whole = built(cache, drawn(15)), built(nil, drawn(15))
    job.cache:fill(job, function() end)
    assert.are.same({ 0, 1, 0, 1 }, { job:pass(0), job:pass(1), job:pass(2), job:pass(3) })
    assert.are.equal(3, whole:pass(3))
    for epoch = 2, 3 do
      local feed = job.data:loader("train", { batch = 32, seed = 0, epoch = job:pass(epoch), start = 2 })
      local images = feed:next()
      job.cache:take(feed, 2)
      local logits, taps = core.no_grad(function() return whole.teacher:forward(images, { q = true }) end)
      assert.are.same(logits:totable(), job.cache.now.logits:totable())
      assert.are.same(taps.q[3]:totable(), job.cache.now.taps.q[3]:totable())
      feed:close()
    end
    local log = run(cache, drawn(15)).path
    local a, b = fresh "run", fresh "run"
    run(cache, drawn(15), { out = a })
    assert.are.equal(folder.read(log .. "/metrics.jsonl"), folder.read(a .. "/metrics.jsonl"))
    assert.are.equal(75, fault(run, cache, drawn(15), { out = b, stop_after = 12 }).code) -- in the third epoch
    run(cache, drawn(15), { out = b, resume = true })
    assert.are.equal(core.hash(a .. "/checkpoints/step-15.safetensors"), core.hash(b .. "/checkpoints/step-15.safetensors"))
  end)

  it("is refused above its limit, before anything is computed", function()
    local path = fresh "cache"
    local e = fault(run, { path = path, epochs = 2, limit = 1e-3 }, drawn(10))
    assert.are.equal(2, e.code)
    assert.matches("its files need 0.0%d GiB, more than cache.limit = 0.001: fewer cache.epochs", e.message)
    assert.is_nil(lfs.attributes(path, "mode"))
  end)

  local function language(soft, more)
    local change = { data = cab.data.text { tokenizer = "gpt2:743", length = 32, holdout = 0.02, validation = 0.02 }, batch = 4,
      teacher = cab.models.gpt2 { dim = 24, depth = 3, heads = 3, positions = 32 }, student = cab.models.phi_mamba { dim = 16, depth = 2, heads = 2, state = 4 },
      stages = { { loss = { soft = soft, align = { "attention_bridge", hidden = 8, map = "standard", weight = 2 } }, steps = 6 } },
      eval = { every = "3 steps", tokens = 500 } }
    for k, v in pairs(more or {}) do change[k] = v end
    return change
  end

  it("of a text holds taps and the largest logits: in f32 it trains as the live teacher does, bit for bit", function()
    local path, live = fresh "cache", run(nil, language { weight = 1, hard = 1, top = 8 })
    for _ = 1, 2 do
      local cached = run({ path = path, coding = "f32", top = 8 }, language { weight = 1, hard = 1, top = 8 })
      assert.are.equal(folder.read(live.path .. "/metrics.jsonl"), folder.read(cached.path .. "/metrics.jsonl"))
      assert.are.equal(core.hash(live.path .. "/checkpoints/step-6.safetensors"), core.hash(cached.path .. "/checkpoints/step-6.safetensors"))
    end
    assert.matches("all there", folder.read(("%s/run%d/log.txt"):format(root, count)))
    local few = run(nil, language { weight = 1, hard = 1, top = 3 })
    local cached = run({ path = path, coding = "f32", top = 8 }, language { weight = 1, hard = 1, top = 3 })
    assert.are.equal(folder.read(few.path .. "/metrics.jsonl"), folder.read(cached.path .. "/metrics.jsonl"))
    assert.is_false(folder.read(few.path .. "/metrics.jsonl") == folder.read(live.path .. "/metrics.jsonl"))
    local parts = { accumulate = 2 }
    assert.are.equal(folder.read(run(nil, language({ weight = 1, hard = 1, top = 8 }, parts)).path .. "/metrics.jsonl"),
      folder.read(run({ path = path, coding = "f32", top = 8 }, language({ weight = 1, hard = 1, top = 8 }, parts)).path .. "/metrics.jsonl"))
  end)

  it("of a text in int8 is near the live teacher; what it does not hold is refused", function()
    local path, soft = fresh "cache", { weight = 1, top = 8 }
    local live = folder.metrics(run(nil, language(soft)).path .. "/metrics.jsonl")
    local cached = folder.metrics(run({ path = path, coding = "int8", top = 8 }, language(soft)).path .. "/metrics.jsonl")
    for i, row in ipairs(live) do
      if row.loss then assert.is_true(math.abs(row.loss - cached[i].loss) < 2 * forms.int8 * row.loss, ("step %d"):format(row.step)) end
    end
    for text, case in pairs { ["has the 4 largest of the teacher's logits, the loss asks for all"] = { 4, 1 },
      ["has the 4 largest of the teacher's logits, the loss asks for the 8 largest"] = { 4, soft }, ["none are kept: set cache.top"] = { 0, soft } } do
      local e = fault(run, { path = path, top = case[1] }, language(case[2]))
      assert.are.equal(2, e.code)
      assert.matches(text, e.message)
    end
    assert.matches("cache.epochs is of images", fault(run, { path = path, epochs = 2 }, language(soft)).message)
    assert.matches("cache.top is of text", fault(run, { path = path, top = 2 }).message)
    assert.matches("cache.top is 4000, the teacher has", fault(run, { path = path, top = 4000 }, language(soft)).message)
  end)

  for _, coding in ipairs { "f16", "bf16", "int8" } do
    it(("in %s gives targets within its error, and a loss near the live one"):format(coding), function()
      local live = folder.metrics(run().path .. "/metrics.jsonl")
      local cached = folder.metrics(run({ path = fresh "cache", coding = coding }).path .. "/metrics.jsonl")
      for i, row in ipairs(live) do
        if row.loss then assert.is_true(math.abs(row.loss - cached[i].loss) < 2 * forms[coding] * row.loss, ("step %d"):format(row.step)) end
      end
      assert.is_false(live[1].loss == cached[1].loss)
    end)
  end

  it("shuffles with the images: each batch has its own taps", function()
    local path = fresh "cache"
    run { path = path, coding = "f32" }
    local job, whole = built { path = path, coding = "f32" }, built(nil)
    job.cache:fill(job, function() end)
    for at = 0, 3, 3 do
      local feed = job.data:loader("train", { batch = 40, seed = 3, epoch = at, start = at })
      local images = feed:next()
      job.cache:take(feed, at)
      local logits, taps = core.no_grad(function() return whole.teacher:forward(images, { q = true, k = true }) end)
      assert.are.same(logits:totable(), job.cache.now.logits:totable())
      for _, layer in ipairs { 1, 3 } do
        for _, name in ipairs { "q", "k" } do assert.are.same(taps[name][layer]:totable(), job.cache.now.taps[name][layer]:totable()) end
      end
      feed:close()
    end
  end)

  it("takes the teacher out of memory, and whoever wants its weights then is told", function()
    local path = fresh "cache"
    local change = { teacher = cab.models.vit { image = 28, patch = 7, dim = 64, depth = 4, heads = 2 } }
    run({ path = path }, change)
    local function live(cache, o)
      collectgarbage()
      local before = core.memory("cpu").live
      local r = given(change)
      r.cache = cache
      local job = jobs.build(cab.recipe(r).resolved, o)
      return core.memory("cpu").live - before, job
    end
    local with, job = live(nil)
    local bytes = 4 * job.teacher:size()
    local without, hollow = live({ path = path }, { cached = true })
    assert.is_true(with - without > 0.95 * bytes, ("%d, %d, teacher %d"):format(with, without, bytes))
    local e = fault(hollow.teacher.parameters, hollow.teacher)
    assert.are.equal(2, e.code)
    assert.matches("cache.live=true", e.message)
    local both = jobs.build(cab.recipe(given { teacher = change.teacher, cache = { path = path, live = true } }).resolved, { cached = true })
    assert.are.equal(bytes, 4 * both.teacher:size())
  end)

  it("is shared: another layer map computes its own layers, another teacher or data its own folder", function()
    local path = fresh "cache"
    run { path = path }
    local first = files(path)
    assert.is_nil(first["q.2.train.bf16"])
    run({ path = path }, { pairs = { "manual", 2, 3 } })
    local second = files(path)
    for name, hash in pairs(first) do assert.are.equal(hash, second[name]) end
    assert.is_string(second["q.2.train.bf16"])
    local keys = { [built({ path = path }).cache.path] = true }
    for _, change in ipairs { { data = cab.data.fashion { fraction = 0.03 } }, { data = cab.data.fashion { fraction = 0.02, mean = 0.5 } }, { seed = 1 },
      { teacher = cab.models.vit { image = 28, patch = 7, dim = 16, depth = 4, heads = 4 } } } do
      local key = built({ path = path }, change).cache.path
      assert.is_nil(keys[key])
      keys[key] = true
    end
    assert.is_true(keys[built({ path = path }, { batch = 20, optim = { lr = 1e-3 } }).cache.path])
  end)

  it("resumes a run bit by bit", function()
    local path, a, b = fresh "cache", fresh "run", fresh "run"
    run({ path = path, coding = "int8" }, nil, { out = a })
    for _, stop in ipairs { 3, 7 } do
      assert.are.equal(75, fault(run, { path = path, coding = "int8" }, nil, { out = b, stop_after = stop, resume = stop > 3 }).code)
    end
    run({ path = path, coding = "int8" }, nil, { out = b, resume = true })
    assert.are.equal(folder.read(a .. "/metrics.jsonl"), folder.read(b .. "/metrics.jsonl"))
    assert.are.equal(core.hash(a .. "/checkpoints/step-11.safetensors"), core.hash(b .. "/checkpoints/step-11.safetensors"))
  end)

  it("goes on where a process ended: torn, damaged and whole parts", function()
    local path = fresh "cache"
    run { path = path }
    local want, inner = files(path)
    local function part(name, change)
      local bytes = folder.read(inner .. "/" .. name)
      os.remove(inner .. "/" .. name)
      core.write_file(inner .. "/" .. name .. ".part", change(bytes))
    end
    part("q.1.train.bf16", function(b) return b:sub(1, #b // 3) end)
    part("k.1.train.bf16", function(b) return b:sub(1, #b // 2) .. ("\0"):rep(#b // 2) end)
    part("q.3.train.bf16", function(b) return b end)
    part("k.3.train.bf16", function() return "" end)
    os.remove(inner .. "/logits.test.f32")
    run { path = path }
    assert.are.same(want, (files(path)))
    core.write_file(inner .. "/q.1.train.bf16", "short")
    assert.are.equal(65, fault(run, { path = path }).code)
  end)

  it("killed at random points, ends with the files of an undisturbed one", function()
    local recipe, calm, wild = fresh "slow" .. ".lua", fresh "cache", fresh "cache"
    core.write_file(recipe, [[
      local cab = require "cab"
      return cab.recipe { data = cab.data.fashion { fraction = 0.3 }, batch = 40, device = "cpu", threads = 1, checkpoint = { every = 0 },
        teacher = cab.models.vit { image = 28, patch = 7, dim = 32, depth = 6, heads = 2 },
        student = cab.models.vim { image = 28, patch = 7, dim = 16, depth = 2, state = 4 }, eval = { batch = 500 },
        stages = { { loss = { align = { "attention_bridge", hidden = 8 } }, steps = 1 } } }]])
    local line = ("OMP_NUM_THREADS=1 %sbuild/cab run %s cache.path=%s --out %s --quiet >%s/out.txt 2>&1")
    local begun = core.now()
    assert(os.execute(line:format("", recipe, calm, fresh "run", root)))
    local whole, kills = core.now() - begun, 0
    for i = 1, 40 do
      local moment = whole * (0.15 + 0.5 * core.uniform({ 1 }, 0, 1, 1, i):item())
      local _, _, code = os.execute(line:format(("timeout -s KILL %.3f "):format(moment), recipe, wild, fresh "run", root))
      if code == 137 then kills = kills + 1 elseif code ~= 74 then break end
      if kills == 10 then break end
    end
    assert.is_true(kills >= 2, kills .. " kills")
    assert(os.execute(line:format("", recipe, wild, fresh "run", root)), folder.read(root .. "/out.txt"))
    assert.are.same((files(calm)), (files(wild)))
  end)

  it("refuses what it cannot hold, and says why", function()
    local path = fresh "cache"
    for text, change in pairs {
      ["data.flip=false"] = { data = cab.data.fashion { flip = true } },
      ["data.pad=0"] = { data = cab.data.fashion { pad = 2 } },
      ["data.mixup=0"] = { data = cab.data.fashion { mixup = 0.8 } },
      ["data.augment=(empty)"] = { data = cab.data.fashion { augment = "3-augment" } },
      ["data.on_bad"] = { data = cab.data.fashion { on_bad = "skip" } },
      ["search once"] = { pairs = { "search" } },
    } do
      local e = fault(built, { path = path }, change)
      assert.are.equal(2, e.code, text)
      assert.truthy(e.message:find(text, 1, true), e.message)
    end
    local class = cab.strategy { name = "maps", needs = { teacher = { "attention" } } }
    function class:loss(_, batch) return core.ops.mse(batch.logits, batch.teacher) end
    local e = fault(built, { path = path }, { stages = { { loss = { maps = { class } }, steps = 1 } } })
    assert.matches("'attention' of the teacher is not kept", e.message)
    assert.matches("did you mean 'coding'", fault(cab.recipe, given { cache = { codin = "f32" } }).message)
    assert.matches("int8", fault(cab.recipe, given { cache = { coding = "int4" } }).message)
  end)
end)
