-- Training on a machine that fails: kills inside a write, disks that are full or read-only, fsync that fails, a second process on the folder,
-- a calendar that jumps, foreign locales, suspected hardware. Calls fail through tests/crash/inside.c.
local core = require "cab.core"
local folder = require "cab.folder"
local lfs = require "lfs"
local process = require "process"

local dir = process.folder()
teardown(function() os.execute("chmod -R u+w " .. dir .. "; rm -rf " .. dir) end)
local count = 0
local function out() count = count + 1 return ("%s/run%d"):format(dir, count) end

local recipe = process.put(dir .. "/r.lua", [[
local cab = require "cab"
return cab.recipe { data = cab.data.fashion { fraction = 0.01 }, student = cab.models.vim { image = 28, patch = 14, dim = 8, depth = 1, state = 2 },
  teacher = cab.models.vit { image = 28, patch = 14, dim = 8, depth = 1, heads = 1 },
  stages = { { loss = { soft = 1, align = { "attention_bridge", hidden = 4 } }, steps = 12 } }, batch = 10, log = 1,
  eval = { batch = 2000 }, checkpoint = { every = 1, keep = 3 }, device = "cpu" }]])
-- The program on the recipe. @return integer code, string output
local function run(path, more, prefix)
  return process.sh(("timeout 120 env %s '%s' run %s --out %s %s; code=$?; exit $code"):format(prefix or "", process.program, recipe, path, more or ""))
end
local function ended(path)
  return folder.read(path .. "/metrics.jsonl") .. core.hash(path .. "/checkpoints/step-12.safetensors")
end
local function temporary(path) return io.popen(("find %s -name '*.tmp'"):format(path)):read "a" end

local shim = dir .. "/inside.so"
local compiled = os.execute(("cc -shared -fPIC -O1 -o %s tests/crash/inside.c -ldl 2>/dev/null"):format(shim))
local sanitized = core.doctor().build == "faults" -- AddressSanitizer takes no preloaded library before its own
local preload = compiled and not sanitized

local calm = out()
assert(run(calm, "--quiet") == 0)
local want = ended(calm)

describe("training", function()
  if not preload then
    pending "with calls that fail: no C compiler, or the sanitizer's build"
    return
  end
  local function with(what) return ("%s LD_PRELOAD=%s"):format(what, shim) end
  it("killed inside any kind of write goes on bit for bit, and leaves no temporary file", function()
    local _, _ = run(out(), "--quiet", with(("CAB_KILL_COUNT=%s/count"):format(dir)))
    local calls = tonumber(folder.read(dir .. "/count"))
    assert.is_true(calls > 80, tostring(calls))
    for k = 1, 20 do
      local path = out()
      local code = run(path, "--quiet", with(("CAB_KILL_AT=%d"):format(1 + (k - 1) * calls // 20)))
      assert.equal(137, code)
      local again, said = run(path, lfs.attributes(path .. "/recipe.json") and "--resume --quiet" or "--quiet")
      assert.equal(0, again, said)
      assert.equal(want, ended(path))
      assert.equal("", temporary(path))
    end
  end)
  it("on a disk that is full for a while warns, and ends as ever", function()
    local path = out()
    local code, said = run(path, "", with "CAB_FAIL=write:28:60:4")
    assert.equal(0, code, said)
    assert.matches("No space left on device; training goes on", said)
    assert.equal(want, ended(path))
  end)
  it("on a disk that stays full ends with 74, old checkpoints whole; with room again it goes on", function()
    local path = out()
    local code, said = run(path, "", with "CAB_FAIL=write:28:400:0")
    assert.equal(74, code, said)
    assert.matches("No space left on device", said)
    local _, manifest = folder.view(path):load(false)
    assert.is_true(manifest.step >= 1)
    code, said = run(path, "--resume --quiet")
    assert.equal(0, code, said)
    assert.equal(want, ended(path))
  end)
  it("with fsync failing once writes that file anew, failing on ends with 74 and the old checkpoint whole", function()
    local path = out()
    local code, said = run(path, "", with "CAB_FAIL=fsync:5:12:1")
    assert.equal(0, code, said)
    assert.equal(want, ended(path))
    path = out()
    code, said = run(path, "", with "CAB_FAIL=fsync:5:40:0")
    assert.equal(74, code, said)
    assert.matches("fsync: Input/output error", said)
    assert.is_not_nil((folder.view(path):load(false)))
    assert.equal("", temporary(path))
  end)
  it("with a calendar that jumps for days does the same", function()
    local path = out()
    local code, said = run(path, "", with "CAB_JUMP=1 TZ=Asia/Kathmandu")
    assert.equal(0, code, said)
    assert.equal(want, ended(path))
    assert.is_nil(said:find "%-%d+:%d%d left", said)
    assert.is_true(core.json_decode(folder.read(path .. "/result.json")).seconds < 60)
  end)
end)

describe("a run folder", function()
  it("on a disk that is read-only is 74, and nothing was touched", function()
    local place = dir .. "/mnt"
    lfs.mkdir(place)
    if not os.execute(("mount -t tmpfs -o size=16m tmpfs %s 2>/dev/null"):format(place)) then
      pending "no mount here"
      return
    end
    local code, said = run(place .. "/a", "--quiet stages.1.steps=6")
    os.execute(("mount -o remount,ro %s"):format(place))
    local again, why = run(place .. "/a", "--resume --quiet stages.1.steps=6")
    local new, other = run(place .. "/b", "--quiet")
    os.execute("umount " .. place)
    assert.equal(0, code, said)
    assert.equal(74, again, why)
    assert.equal(74, new, other)
    assert.matches("[Rr]ead%-only file system", why)
    assert.matches("[Rr]ead%-only file system", other)
  end)
  it("on a real disk of 1 MiB that fills up is 74, and the newest whole checkpoint loads", function()
    local place = dir .. "/small"
    lfs.mkdir(place)
    if not os.execute(("mount -t tmpfs -o size=1m tmpfs %s 2>/dev/null"):format(place)) then
      pending "no mount here"
      return
    end
    local code, said = run(place .. "/a", "--quiet checkpoint.keep=500 stages.1.steps=400 eval.every=0")
    local ok, tensors = pcall(function() return (folder.view(place .. "/a"):load(false)) end)
    os.execute("umount " .. place)
    assert.equal(74, code, said)
    assert.matches("No space left on device", said)
    assert.is_true(ok and tensors ~= nil, tostring(tensors))
  end)
  it("takes one process at a time: the second says who has it, and the first ends as ever", function()
    local path = out()
    local code, said = process.sh(("'%s' run %s --out %s --quiet stages.1.steps=3000 & first=$!; while ! [ -f %s/recipe.json ]; do sleep 0.02; done; "
      .. "'%s' run %s --out %s --resume --quiet stages.1.steps=3000; second=$?; kill -TERM $first; wait $first; echo second $second first $?"):format(
      process.program, recipe, path, path, process.program, recipe, path))
    assert.equal(0, code, said)
    assert.matches("locked by pid %d+ on host", said)
    assert.matches("second 74 first 75", said)
  end)
  it("in a locale with commas and another time zone has the same numbers", function()
    local path = out()
    local code, said = run(path, "", "LC_ALL=de_DE.UTF-8 LC_NUMERIC=de_DE.UTF-8 LANG=de_DE TZ=America/St_Johns")
    assert.equal(0, code, said)
    assert.equal(want, ended(path))
    assert.equal("C", core.doctor().locale)
  end)
end)

describe("a step in doubt", function()
  local function replay(path, step) return process.sh(("'%s' resume %s --replay-step %d"):format(process.program, path, step)) end
  it("that comes out the same is the data's or the recipe's", function()
    local code, said = replay(calm, 12)
    assert.equal(0, code, said)
    assert.matches("steps 12 to 12 are the same again, twice", said)
  end)
  it("that was another number is the hardware's: 76", function()
    local path = out()
    assert(run(path, "--quiet") == 0)
    local text = folder.read(path .. "/metrics.jsonl"):gsub('("loss":)([%d.e-]+)(,[^\n]*"step":12)', function(before, x, after)
      return before .. ("%.17g"):format(tonumber(x) + 1e-6) .. after
    end)
    core.write_file(path .. "/metrics.jsonl", text)
    local code, said = replay(path, 12)
    assert.equal(76, code, said)
    assert.matches("E76%-replay%-differs.*step 12 was loss .* passing fault, hardware or a race", said)
  end)
  it("whose numbers are not finite again is the data's: 76", function()
    local bad = process.put(dir .. "/bad.lua", [[
local cab = require "cab"
local bad = cab.strategy { name = "bad", needs = {}, options = {} }
function bad:loss(_, batch) -- breaks on one batch of the data
  local first = batch.images:slice(1, 1, 1):range().max
  return cab.op.cross_entropy(batch.logits, batch.labels) * (math.abs(first - KEY) < 1e-6 and 0 / 0 or 1)
end
return cab.recipe { data = cab.data.fashion { fraction = 0.01 }, student = cab.models.vim { image = 28, patch = 14, dim = 8, depth = 1, state = 2 },
  teacher = cab.models.vit { image = 28, patch = 14, dim = 8, depth = 1, heads = 1 },
  stages = { { loss = { bad = { bad } }, steps = 9 } }, batch = 10, log = 1, eval = { batch = 2000 }, checkpoint = { every = 1, keep = 3 }, device = "cpu" }]])
    -- the key: the largest pixel of the first image of step 5
    local session = require "cab".open(recipe)
    session:step(5)
    local key = session.batch.images:slice(1, 1, 1):range().max
    session:close()
    core.write_file(bad, (folder.read(bad):gsub("KEY", ("%.9g"):format(key))))
    local path = out()
    local code, said = process.sh(("'%s' run %s --out %s --quiet"):format(process.program, bad, path))
    assert.equal(76, code, said)
    local step = math.tointeger(tonumber(said:match "step (%d+):"))
    code, said = replay(path, step)
    if step == 1 then return assert.equal(2, code, said) end
    assert.equal(76, code, said)
    assert.matches("E76%-replay%-equal.*of the data or the recipe", said)
  end)
  it("without a checkpoint before it is refused, with those there are", function()
    local code, said = replay(calm, 10)
    assert.equal(2, code, said)
    assert.matches("there are those of 10, 11, 12", said)
  end)
end)
