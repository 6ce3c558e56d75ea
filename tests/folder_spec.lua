-- Run folders: what they say of themselves, going on, forking, running again, and leaving nothing behind.
local cab = require "cab"
local core = require "cab.core"
local folder = require "cab.folder"
local lfs = require "lfs"
local process = require "process"
local refused = require "refused"

local dir = process.folder()
teardown(function() os.execute("rm -r " .. dir) end)
local count = 0
local function out() count = count + 1 return ("%s/run%d"):format(dir, count) end

local text = [[
local cab = require "cab"
local strategy = cab.strategy { name = "own", needs = {}, options = { scale = 1 } }
function strategy:loss(_, batch) return cab.op.cross_entropy(batch.logits, batch.labels) * self.scale end
local recipe = { data = cab.data.fashion { fraction = 0.01 }, student = cab.models.vim { image = 28, patch = 14, dim = 8, depth = 1, state = 2 },
  teacher = cab.models.vit { image = 28, patch = 14, dim = 8, depth = 1, heads = 1 },
  stages = { { loss = { own = { strategy }, soft = 0.5 }, steps = 12 } }, batch = 10, log = 1, eval = { batch = 2000 }, checkpoint = { every = 4, keep = 5 } }
return %s]]
local one = process.put(dir .. "/one.lua", text:format "cab.recipe(recipe)")
local two = process.put(dir .. "/two.lua",
  text:format 'cab.compare { base = recipe, pictures = 0, runs = { { name = "a", stages = recipe.stages }, { name = "b", stages = recipe.stages, seed = 3 } } }')
local function program(args) return process.sh(("'%s' %s"):format(process.program, args)) end
local function metrics(path) return folder.read(path .. "/metrics.jsonl") end

describe("a run folder", function()
  local path = out()
  it("explains itself: recipe, source, manifest, terms raw and weighted, speed, result", function()
    local code, said = program(("run %s optim.lr=2e-3 --out %s"):format(one, path))
    assert.equal(0, code, said)
    local manifest = folder.manifest(path)
    assert.same({ "optim.lr=2e-3" }, manifest.source.overrides)
    assert.equal(folder.read(one), folder.read(path .. "/source.lua"))
    assert.equal(core.hash(process.program), manifest.program.xxh64)
    for _, key in ipairs { "seed", "versions", "hardware", "data", "device", "started" } do assert.is_not_nil(manifest[key], key) end
    for _, row in ipairs((folder.metrics(path .. "/metrics.jsonl"))) do
      if row.loss then
        assert.equal(0.5 * row["loss.soft"], row["weighted.soft"])
        assert.is_true(math.abs(row.loss - row["weighted.own"] - row["weighted.soft"]) < 1e-6 * row.loss)
        assert.is_number(row.grad_norm)
      end
    end
    local speeds = folder.metrics(path .. "/speed.jsonl")
    assert.equal(11, #speeds)
    for _, row in ipairs(speeds) do assert.is_true(row.rate > 0 and row.wait >= 0 and row.peak > 0) end
    assert.equal(12, core.json_decode(folder.read(path .. "/result.json")).steps)
    assert.same({ 4, 8, 12 }, (folder.view(path):checkpoints()))
  end)
  it("is run again with the same numbers, also with a strategy of the recipe's own", function()
    local code, said = program(("run --reproduce %s --out %s"):format(path, out()))
    assert.equal(0, code, said)
    assert.matches("reproduced: all %d+ numbers of 13 lines are equal, bit for bit", said)
  end)
  it("says where the numbers of a second run are others", function()
    local rows = folder.metrics(path .. "/metrics.jsonl")
    local lines = {}
    for i, row in ipairs(rows) do
      if row.step == 7 and row.loss then row.loss = row.loss * 1.001 end
      lines[i] = core.json_encode(row)
    end
    local whole = metrics(path)
    core.write_file(path .. "/metrics.jsonl", table.concat(lines, "\n") .. "\n")
    local code, said = program(("run --reproduce %s --out %s --quiet"):format(path, out()))
    core.write_file(path .. "/metrics.jsonl", whole)
    assert.equal(1, code, said)
    assert.matches("other one is loss at step 7: [%d.]+, now [%d.]+; largest relative difference 0.000999", said)
  end)
  it("is not resumed with another recipe: the differences are shown", function()
    local code, said = program(("run %s --resume --out %s batch=20 optim.lr=1e-4"):format(one, path))
    assert.equal(2, code, said)
    assert.matches("batch: 10, now 20\n  optim.lr: 0.002, now 0.0001", said)
  end)
  it("of an older program goes on: options that came since have their defaults", function()
    local short = out()
    refused(75, function() core.loadfile(one)():run { out = short, quiet = true, stop_after = 6, source = require "cab.runs".source(one) } end)
    local saved = core.json_decode(folder.read(short .. "/recipe.json"))
    saved.recipe.guard.spike, saved.recipe.stages[1].loss.soft.hard = nil, nil
    core.write_file(short .. "/recipe.json", core.json_encode(saved))
    local code, said = program(("resume %s --quiet"):format(short))
    assert.equal(0, code, said)
  end)
  it("goes on by its name alone, with the file's text of now checked against its recipe", function()
    local calm, path2 = out(), out()
    refused(75, function() core.loadfile(one)():run { out = path2, quiet = true, stop_after = 6, source = require "cab.runs".source(one) } end)
    core.loadfile(one)():run { out = calm, quiet = true }
    local code, said = program(("resume %s/"):format(path2))
    assert.equal(0, code, said)
    assert.matches("resumed at step 6", said)
    assert.equal(metrics(calm), metrics(path2))
    core.write_file(one, (text:format "cab.recipe(recipe)":gsub("steps = 12", "steps = 14")))
    code, said = program("resume " .. path2)
    assert.equal(2, code, said)
    assert.matches("stages.1.steps: 12, now 14", said)
    os.remove(one) -- then its own copy is what counts
    code, said = program("resume " .. path2)
    core.write_file(one, (text:format "cab.recipe(recipe)"))
    assert.equal(0, code, said)
  end)
end)

describe("a comparison's folder", function()
  it("goes on as a whole, or one run of it", function()
    local path = out()
    refused(75, function() core.loadfile(two)():run { out = path, quiet = true, stop_after = 5, source = require "cab.runs".source(two) } end)
    local code, said = program(("resume %s/a --quiet"):format(path))
    assert.equal(0, code, said)
    assert.is_nil(lfs.attributes(path .. "/b"))
    code, said = program("resume " .. path)
    assert.equal(0, code, said)
    assert.is_not_nil(lfs.attributes(path .. "/b/result.json"))
    assert.equal("b", folder.manifest(path .. "/b").source.run)
  end)
end)

describe("a fork", function()
  local path, forked = out(), out()
  it("begins with another run's state and keeps what differs", function()
    assert.equal(0, (program(("run %s --out %s --quiet"):format(one, path))))
    local code, said = program(("run %s optim.lr=1e-5 --fork %s@8 --out %s"):format(one, path, forked))
    assert.equal(0, code, said)
    assert.matches("forked from .* at step 8, with\n  optim.lr: 0.0005, now 1e%-05", said)
    local a, b = folder.metrics(path .. "/metrics.jsonl"), folder.metrics(forked .. "/metrics.jsonl")
    for i = 1, 9 do
      assert.equal(a[i].step, b[i].step)
      assert.equal(i <= 9, a[i].loss == b[i].loss) -- step 9's loss is that of the weights after step 8
    end
    assert.is_false(a[12].loss == b[12].loss)
    assert.equal(path .. "@8", folder.manifest(forked).fork)
  end)
  it("with the same recipe is the run itself", function()
    local again = out()
    assert.equal(0, (program(("run %s --fork %s@4 --out %s --quiet"):format(one, path, again))))
    assert.equal(metrics(path), metrics(again))
    assert.equal(core.hash(path .. "/checkpoints/step-12.safetensors"), core.hash(again .. "/checkpoints/step-12.safetensors"))
  end)
  it("of a step without checkpoint names those there are, and leaves no folder", function()
    local none = out()
    local code, said = program(("run %s --fork %s@5 --out %s"):format(one, path, none))
    assert.equal(2, code, said)
    assert.matches("there are those of 4, 8, 12", said)
    assert.is_nil(lfs.attributes(none))
  end)
end)

describe("a run that fails before its first step", function()
  it("leaves no folder, and what was there before stays", function()
    local function fails(path, overrides)
      local code, said = program(("run %s --out %s %s"):format(one, path, overrides))
      assert.is_true(code ~= 0, said)
    end
    local path = out()
    fails(path, "teacher.weights=/nothing/there")
    assert.is_nil(lfs.attributes(path))
    lfs.mkdir(path)
    core.write_file(path .. "/notes.txt", "mine")
    fails(path, "data.root=/nothing")
    assert.equal("mine", folder.read(path .. "/notes.txt"))
    assert.is_nil(lfs.attributes(path .. "/recipe.json"))
    local dead = cab.strategy { name = "dead", needs = {}, options = {} }
    function dead:loss() return cab.tensor { 1 }:reshape {} end
    local p = out()
    refused(2, function()
      cab.recipe { data = cab.data.fashion { fraction = 0.01 }, student = cab.models.vim { image = 28, patch = 14, dim = 8, depth = 1, state = 2 },
        teacher = cab.models.vit { image = 28, patch = 14, dim = 8, depth = 1, heads = 1 },
        stages = { { loss = { vanilla = 1, dead = { dead } }, steps = 2 } }, batch = 10 }:run { out = p, quiet = true }
    end)
    assert.is_nil(lfs.attributes(p))
  end)
end)
