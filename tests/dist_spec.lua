-- Several ranks under mpirun: the training of one process, to reduction order; faults end all ranks in time.
local core = require "cab.core"
local process = require "process"
local folder = require "cab.folder"

local ranks = require "ranks"
local dir = process.folder()
local recipe, language, launch = ranks.recipe, ranks.language, ranks.launch
local train, difference, last_row, orphans = ranks.train, ranks.difference, ranks.last_row, ranks.orphans

local always = it
local it = ranks.found and always or function(name) -- luacheck: ignore 431
  always(name, function() pending "there is no mpirun here: apt-get install openmpi-bin" end)
end

describe("several ranks", function()
  local one, plain
  lazy_setup(function()
    if not ranks.found then return end
    local code, output
    code, output, one = train(1, { mixup = 0.4 })
    assert(code == 0, output)
    code, output, plain = train(1, {})
    assert(code == 0, output)
  end)

  it("train as one process does, to reduction order: 2 and 3 ranks, mixed records", function()
    for size = 2, 3 do
      local code, output, path = train(size, { mixup = 0.4 })
      assert.equal(0, code, output)
      assert.is_true(difference(one, path) < 1e-6, ("%d ranks: %g"):format(size, difference(one, path)))
      assert.equal(last_row(one).top1, last_row(path).top1)
      assert.is_true(math.abs(last_row(one).loss - last_row(path).loss) < 1e-6)
    end
  end)
  it("train as one process does where the batch is no multiple of the ranks", function()
    local _, _, alone = train(1, { overrides = "'batch=40'" })
    local code, output, path = train(3, { overrides = "'batch=40'" })
    assert.equal(0, code, output)
    assert.is_true(difference(alone, path) < 1e-6)
  end)
  it("train as one process does with their batches in parts", function()
    local code, output, path = train(2, { mixup = 0.4, overrides = "'accumulate=3'" })
    assert.equal(0, code, output)
    assert.is_true(difference(one, path) < 1e-6, ("%g"):format(difference(one, path)))
  end)
  it("train a language model as one process does: packed documents, uneven rows, in parts too", function()
    local _, _, alone = train(1, { recipe = language })
    for _, parts in ipairs { 1, 2 } do
      local code, output, path = train(3, { recipe = language, overrides = ("'accumulate=%d'"):format(parts) })
      assert.equal(0, code, output)
      assert.is_true(difference(alone, path) < 1e-6, ("%d parts: %g"):format(parts, difference(alone, path)))
      assert.near(last_row(alone).perplexity, last_row(path).perplexity, 1e-2)
    end
  end)
  it("give the same bits in two runs of the same size", function()
    local _, _, a = train(2, {})
    local code, output, b = train(2, {})
    assert.equal(0, code, output)
    assert.equal(folder.read(a .. "/metrics.jsonl"), folder.read(b .. "/metrics.jsonl"))
    assert.equal(folder.read(a .. "/best.safetensors"), folder.read(b .. "/best.safetensors"))
  end)
  it("go on from a checkpoint on another number of ranks, in the middle of an epoch: 2, 1, 3", function()
    local code, output, path = train(2, { stop_after = 17 })
    assert.equal(75, code, output)
    code, output = train(1, { out = path, resume = true, stop_after = 31 })
    assert.equal(75, code, output)
    code, output = train(3, { out = path, resume = true })
    assert.equal(0, code, output)
    assert.is_true(difference(plain, path) < 1e-5, ("%g"):format(difference(plain, path)))
  end)
  it("have the same bits with the optimizer's state spread over them: images on 2, text on 3", function()
    for _, row in ipairs { { 2, recipe, "'student.dim=64'" }, { 3, language, "" } } do
      local size, file, set = row[1], row[2], row[3]
      local _, _, whole = train(size, { recipe = file, overrides = set })
      local code, output, spread = train(size, { recipe = file, overrides = set .. (set == "" and "" or ", ") .. "'dist.shard=true'" })
      assert.equal(0, code, output)
      for _, name in ipairs { "metrics.jsonl", "best.safetensors", "checkpoints/step-50.safetensors" } do
        assert(folder.read(whole .. "/" .. name) == folder.read(spread .. "/" .. name), ("%d ranks: %s"):format(size, name))
      end
      local function moments(path) return tonumber(folder.read(path .. "/log.txt"):match "plan: ([%d.]+) MiB") end
      assert.is_true(moments(spread) < moments(whole), ("%g and %g"):format(moments(spread), moments(whole)))
    end
  end)
  it("go on from checkpoints of spread state on another number of ranks: spread on 3, whole on 1, spread on 2", function()
    local code, output, path = train(3, { stop_after = 17, overrides = "'dist.shard=true'" })
    assert.equal(75, code, output)
    code, output = train(1, { out = path, resume = true, stop_after = 31 })
    assert.equal(75, code, output)
    code, output = train(2, { out = path, resume = true, overrides = "'dist.shard=true'" })
    assert.equal(0, code, output)
    assert.is_true(difference(plain, path) < 1e-5, ("%g"):format(difference(plain, path)))
  end)
  it("say how a batch is spread, once", function()
    local code, output = process.sh(launch .. ("2 '%s' run '%s' stages.1.steps=1 --out '%s/say'"):format(process.program,
      process.put(dir .. "/say.lua", "MIX = 0 return dofile '" .. recipe .. "'"), dir))
    assert.equal(0, code, output)
    assert.matches("2 ranks %(Open MPI v[%d.]+, MPI%) x 24 rows = batch 48", output)
    assert.equal(1, select(2, output:gsub("x 24 rows", "")))
  end)
  it("refuse a batch smaller than the ranks", function()
    local code, output = train(3, { overrides = "'batch=2'" })
    assert.equal(2, code)
    assert.matches("batch is 2, for 3 ranks it must be at least 3", output)
  end)
end)

describe("a rank that is lost", function()
  for _, row in ipairs { { "KILL", "has died" }, { "STOP", "is stopped" } } do
    it(("SIG%s: the other ends with 69 in time, naming collective, number, bytes and rank, and the next start resumes"):format(row[1]), function()
      local output, path, seconds, script = ranks.hurt(row[1])
      assert.is_true(seconds < 8, output)
      assert.matches("error%[E69%-dist%]: step %d+: rank %d: collective '[%w ]+' #%d+, %d+ bytes: [^\n]*rank %d %([^)]*" .. row[2], output)
      assert.equal("", orphans())
      assert.equal(true, ranks.goes_on(path, script))
      assert.equal("", orphans())
    end)
  end
  it("leaves: the others end with 69", function()
    local code, output, seconds = ranks.script(3, "core.dist.meet 'begin'\nif rank == 1 then os.exit(3) end\ncore.dist.sum('losses', { 1, 2, 3 })")
    assert.is_true(code == 3 or code == 69, output)
    assert.is_true(seconds < 9, output)
    for _, rank in ipairs { 0, 2 } do
      assert.matches(("rank %d: collective 'losses' #%%d+, 24 bytes: [^\n]*rank 1 %%([^)]*has died"):format(rank), output)
    end
    assert.equal("", orphans())
  end)
  it("has a parameter of another shape: each says so", function()
    local code, output, seconds = ranks.script(2, [[
local w = core.zeros({ 4, rank == 0 and 3 or 5 }, "f32")
w.requires_grad = true
local reducer = core.dist.reducer({ w }, 1024)
reducer:begin()
core.ops.sum(core.ops.sum(w, { dim = 1 }), { dim = 1 }):backward()
reducer:finish()]])
    assert.equal(69, code, output)
    assert.is_true(seconds < 7, output)
    assert.matches("rank [01]: collective 'gradients' #%d+, %d+ bytes: rank [01] %([^)]*%) is in 'gradients' #%d+, %d+ bytes", output)
  end)
  it("has its parameters in another order: named before a number is wrong", function()
    local code, output = ranks.script(2, [[
local a, b = core.zeros({ 64 }, "f32"), core.zeros({ 8, 8 }, "f32")
a.requires_grad, b.requires_grad = true, true
local reducer = core.dist.reducer(rank == 0 and { a, b } or { b, a }, 1024)
reducer:begin()
core.ops.sum(a + b:reshape(64), { dim = 1 }):backward()
reducer:finish()]])
    assert.equal(69, code, output)
    assert.matches("collective 'order of gradients' #%d+, 8 bytes: parameters, or the order of their gradients, differ", output)
  end)
  it("misses a call: both calls are named", function()
    local code, output, seconds = ranks.script(2, "if rank == 0 then core.dist.sum('one', { 1 }) end\ncore.dist.sum('two', { 1, 2 })")
    assert.equal(69, code, output)
    assert.is_true(seconds < 7, output)
    -- mpirun's own words may come in the middle of one of the two lines
    assert.is_true((output:find "collective 'one' #%d+, 8 bytes: rank 1 %([^)]*%) is in 'two' #%d+, 16 bytes"
      or output:find "collective 'two' #%d+, 16 bytes: rank 0 %([^)]*%) is in 'one' #%d+, 8 bytes") ~= nil, output)
  end)
  it("has another weight: the check names it", function()
    local code, output = ranks.script(3, "local w = core.zeros({ 9 }, 'f32')\nif rank == 2 then w:fill(1e-30) end\ndist.compare { w }")
    assert.equal(69, code, output)
    assert.matches("collective 'check' #%d+, 8 bytes: weights differ: those of rank 2 %([^)]*%) are not those of most ranks", output)
  end)
  it("cannot write: rank 0's fault is all ranks'", function()
    local code, output = ranks.script(2, [[
local ok, e = pcall(dist.first, "checkpoint", function() core.write_file("/nowhere/at/all", "x") end)
print(rank, ok, e.code)
core.dist.meet "after"]])
    assert.equal(0, code, output)
    assert.matches("0\tfalse\t74", output)
    assert.matches("1\tfalse\t74", output)
  end)
end)

describe("a sweep over ranks", function()
  local study = process.put(dir .. "/study.lua", [[
local cab = require "cab"
return cab.study { base = {
  data = cab.data.fashion { fraction = 0.02 }, student = cab.models.vim { image = 28, patch = 7, dim = 16, depth = 1, state = 4 },
  stages = { { loss = { vanilla = 1 }, steps = 30 } }, device = "cpu", batch = 20, threads = 1, eval = { batch = 500 }, checkpoint = { every = 5 },
}, arms = { { name = "a" }, { name = "b", set = { "optim.lr=1e-3" } } }, seeds = { 0, 1, 2 } }
]])
  local function sweep(out, more)
    return ("%s2 '%s' sweep '%s' --quiet --out '%s/%s' %s"):format(launch, process.program, study, dir, out, more or "")
  end
  it("deals its runs, and has the table of one process", function()
    assert.equal(0, (process.sh(("'%s' sweep '%s' --quiet --out '%s/alone'"):format(process.program, study, dir))))
    local code, output = process.sh(sweep "dealt")
    assert.equal(0, code, output)
    assert.equal(folder.read(dir .. "/alone/table.csv"), folder.read(dir .. "/dealt/table.csv"))
    code, output = process.sh(sweep("dealt", "--part 1/2"))
    assert.equal(2, code)
    assert.matches("--part: ranks divide the runs already", output, 1, true)
  end)
  it("ends with 69 and the names of what is missing where a worker is killed, after the others finished; then goes on", function()
    local code, output = process.sh(([[
(%s; echo "ends with $?") >%s/lost.log 2>&1 &
for i in $(seq 400); do ls '%s/lost/a_seed=1/checkpoints/'step-* >/dev/null 2>&1 && break; sleep 0.05; done
for p in /proc/[0-9]*; do tr '\0' ' ' <$p/cmdline 2>/dev/null | grep -q "^%s sweep .*%s/lost --part 2/2" && kill -9 ${p#/proc/}; done
wait
cat %s/lost.log]]):format(sweep("lost", "stages.1.steps=2000"), dir, dir, process.program, dir, dir))
    assert.equal(0, code, output)
    assert.matches("error[E69-sweep]: 3 of 6 runs are missing, since a rank or its worker died: a_seed=1, b_seed=0, b_seed=2; go on with --out", output,
      1, true)
    assert.matches("ends with 69", output)
    code, output = process.sh(sweep("lost", "stages.1.steps=2000"))
    assert.equal(0, code, output)
    assert.matches("resumed at step %d+", folder.read(dir .. "/lost/a_seed=1/log.txt"))
    assert.is_nil(folder.read(dir .. "/lost/a_seed=0/log.txt"):match "resumed") -- the other rank had finished
  end)
end)

describe("one rank", function()
  always("needs no MPI, and a job without it is refused", function()
    local code, output = process.sh(("ASAN_OPTIONS=detect_leaks=0 OMPI_COMM_WORLD_SIZE=2 LD_LIBRARY_PATH=/nowhere '%s' run '%s'"):format(process.program,
      process.put(dir .. "/alone.lua", "print((require 'cab.core').dist.open(1))")))
    assert.is_true(code == 69, output)
    assert.matches("MPI", output)
    code, output = process.sh(("'%s' run '%s/alone.lua'"):format(process.program, dir))
    assert.equal(0, code)
    assert.matches("^0\t1\t0", output)
  end)
  always("cuts parameters for ranks at borders and multiples of 8192, and moves them unchanged", function()
    local params, values = {}, {}
    for i, n in ipairs { 5, 100000, 1, 8192, 0, 30000 } do
      params[i] = core.normal({ n }, 0, 1, i, "shard")
      values[i] = params[i]:totable()
    end
    local shard <close> = core.dist.shard(params, 3)
    local place, border = shard:layout()
    assert.equal(4, #border)
    for r = 2, 3 do
      local inside = false
      for i, at in ipairs(place) do
        inside = inside or border[r] == at or (border[r] > at and border[r] < at + #values[i] and (border[r] - at) % 8192 == 0)
      end
      assert.is_true(inside, ("border %d"):format(border[r]))
      assert.is_true(math.abs(border[r] - border[4] * (r - 1) / 3) <= 8192 + 32)
    end
    for i, p in ipairs(params) do assert.are.same(values[i], p:totable()) end
    local w = core.zeros({ 4 }, "f32")
    local alias <const> = w:reshape(2, 2)
    local ok, e = pcall(core.dist.shard, { w }, 2)
    assert.is_false(ok)
    assert.matches("move: f32%[4%] is computed, shared or not alike", tostring(e))
    assert.equal(4, alias:count())
  end)
  always("finds its gradients as they are after a reducer", function()
    local w, x = core.tensor({ { 1, 2, 3, 4 }, { 5, 6, 7, 8 }, { 0, 1, 0, 1 } }, "f32"), core.tensor({ 3, -1, 2, 5 }, "f32")
    w.requires_grad = true
    local reducer <close> = core.dist.reducer({ w }, 16)
    local function backward() core.ops.sum(core.ops.sum(w * x, { dim = 1 }), { dim = 1 }):backward() end
    backward()
    local expected = w.grad:totable()
    for _ = 1, 3 do
      w.grad = nil
      reducer:begin()
      backward()
      reducer:finish()
      assert.are.same(expected, w.grad:totable())
    end
    assert.equal(1, reducer:buckets())
  end)
end)
