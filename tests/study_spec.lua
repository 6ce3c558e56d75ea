-- Studies: which runs they are, tables and intervals by hand, workers, kills, failures, and the studies that are shipped.
local core = require "cab.core"
local cab = require "cab"
local lfs = require "lfs"
local process = require "process"
local refused = require "refused"
local statistics = require "cab.statistics"

local tiny = [[
local cab = require "cab"
return cab.study {
  base = {
    data    = cab.data.fashion { fraction = 0.01 },
    teacher = cab.models.vit { image = 28, patch = 14, dim = 8, depth = 1, heads = 2 },
    student = cab.models.vim { image = 28, patch = 14, dim = 8, depth = 1, state = 2 },
    batch   = 10, optim = { "adamw", lr = 1e-3 }, eval = { metrics = { "top1" }, shares = false }, checkpoint = { every = 2 },
  },
  arms = {
    { name = "soft", stages = { { loss = { soft = 1 }, steps = 6 } } },
    { name = "bridge", stages = { { loss = { soft = 1, align = { "attention_bridge", weight = 3 } }, steps = 6 } }, set = { "optim.lr=2e-3" } },
  },
  vary = { ["data.fraction"] = { 0.005, 0.01 } }, seeds = { 0, 1, 2, 3, 4 }, against = "soft",
}
]]
local function study(change)
  local value = load(tiny)()
  return change and change(value) or value
end

describe("statistics", function()
  it("are mean, sample deviation and Student's interval", function()
    local s = statistics.summary { 1, 2, 3, 6 }
    assert.near(3, s.mean, 1e-12)
    assert.near(math.sqrt(14 / 3), s.sd, 1e-12)
    assert.near(3 + 3.182 * math.sqrt(14 / 3) / 2, s.high, 1e-9)
    assert.same({ n = 1, mean = 5 }, statistics.summary { 5 })
    assert.is_nil(statistics.summary {})
    for degrees, want in pairs { [1] = 12.706, [10] = 2.228, [11] = 2.201, [20] = 2.086, [60] = 2.000, [1000] = 1.962 } do
      assert.near(want, statistics.t975(degrees), 1e-3)
    end
  end)
end)

describe("a study", function()
  it("is every arm with every value and seed", function()
    local s, names = study(), {}
    for _, run in ipairs(s.runs) do names[run.name] = run.recipe.resolved end
    assert.equal(20, #s.runs)
    local one = names["bridge_fraction=0.005_seed=3"]
    assert.same({ 0.005, 3, 2e-3, 3 }, { one.data.fraction, one.seed, one.optim.lr, one.stages[1].loss.align.weight })
    assert.equal(1e-3, names["soft_fraction=0.01_seed=0"].optim.lr)
    s:override { "stages.1.loss.align.weight=7", "batch=5" }
    assert.same({ 5, 7 }, { s.runs[20].recipe.resolved.batch, s.runs[20].recipe.resolved.stages[1].loss.align.weight })
  end)

  it("compares with an arm seed by seed", function()
    local s = study()
    for _, run in ipairs(s.runs) do
      run.result = { top1 = 10 * run.column + run.seed + (run.arm == "bridge" and 2 + 0.1 * run.seed or 0) }
    end
    local rows = s:rows()
    assert.same({ "soft", "fraction=0.005", 5 }, { rows[1].arm, rows[1].column, rows[1].n })
    assert.near(12, rows[1].mean, 1e-12)
    assert.is_nil(rows[1].difference)
    assert.near(2.2, rows[4].difference.mean, 1e-9)
    assert.near(0.1 * math.sqrt(2.5), rows[4].difference.sd, 1e-9)
  end)

  it("names what is wrong with it", function()
    local base = { data = cab.data.fashion {}, student = cab.models.vim {}, stages = { { loss = { vanilla = 1 }, steps = 1 } } }
    local function fails(text, more)
      local given = { base = base, arms = { { name = "a" } } }
      for k, v in pairs(more) do given[k] = v end
      assert.matches(text, refused(2, cab.study, given).message)
    end
    fails("did you mean 'seeds'", { seed = { 1 } })
    fails("two arms are called 'a'", { arms = { { name = "a" }, { name = "a" } } })
    fails("arms.1 needs a name", { arms = { { name = "a b" } } })
    fails("unknown arm 'b' %(known: a%)", { against = "b" })
    fails("did you mean 'fraction'", { vary = { ["data.fracton"] = { 0.1 } } })
    fails("needs a list of values", { vary = { batch = 3 } })
    fails("metric: unknown value 'top2'", { metric = "top2" })
    fails("did you mean 'stages'", { arms = { { name = "a", stags = {} } } })
  end)

  for name in lfs.dir "recipes/studies" do
    if name:find "%.lua$" then
      it("is shipped, and every run of it is a valid recipe: " .. name, function()
        local s = core.loadfile("recipes/studies/" .. name)()
        assert.is_true(require "cab.study".is(s))
        assert.is_true(#s.runs >= 12)
        local images = 10000 -- of Fashion-MNIST; a share of each of its ten classes
        for _, run in ipairs(s.runs) do
          local r = run.recipe.resolved
          if r.data.kind == "fashion" then assert.is_true(r.batch <= images * r.data.fraction, run.name) end
        end
      end)
    end
  end

  -- One seed of a shipped study on small models, for two steps.
  local function small(file, texts, seed)
    local s, root = core.loadfile("recipes/studies/" .. file)(), process.folder()
    s:override(texts)
    local kept = {}
    for _, run in ipairs(s.runs) do if run.seed == (seed or 0) then kept[#kept + 1] = run end end
    s.runs = kept
    local result = s:run { out = root, quiet = true }
    os.execute("rm -rf " .. root)
    assert.same({ {}, 0 }, { result.failed, result.missing })
    return s, result.rows
  end

  it("of teachers of several sizes runs", function()
    local s, rows = small("teacher_size.lua", { "teacher.weights=", "stages.1.steps=2", "student.dim=8", "student.depth=1", "teacher.depth=2",
      "eval.metrics=[\"top1\"]", "data.fraction=0.02" })
    assert.equal(6, #rows)
    assert.same({ "bridge", "preset=large", 1 }, { rows[6].arm, rows[6].column, rows[6].n })
    assert.same({ 32, 96 }, { s.runs[1].recipe.resolved.teacher.dim, s.runs[6].recipe.resolved.teacher.dim })
  end)

  it("of the best combination runs, its adaptive arm with a held-out tenth", function()
    local s, rows = small("best.lua", { "teacher.weights=", "stages.1.steps=2", "stages.2.steps=1", "student.dim=8", "student.depth=1", "teacher.depth=2",
      "eval.metrics=[\"top1\"]", "eval.every=1 steps", "batch=5", "data.fraction=0.02" }, 3)
    assert.equal(27, #rows)
    local held = {}
    for _, run in ipairs(s.runs) do
      local r = run.recipe.resolved
      assert.equal(3, r.seed)
      if r.data.validation > 0 then held[run.arm] = r.data.validation end
    end
    assert.same({ adaptive = 0.1, ["all-90"] = 0.1 }, held)
  end)

  it("of lengths runs once an arm and has a row a length", function()
    local s, rows = small("lengths.lua", { "teacher.weights=", "teacher.depth=1", "stages.1.steps=2", "student.dim=8", "student.heads=2", "student.depth=1",
      "student.state=4", "batch=2", "eval.lengths=4", "data.length=32", "eval.tokens=256" })
    assert.equal(4, #s.runs)
    assert.equal(12, #rows)
    for _, row in ipairs(rows) do assert.is_true(row.n == 1 and row.mean > 1, row.arm .. row.column) end
    assert.same({ "vanilla", "length=128" }, { rows[3].arm, rows[3].column })
    assert.near(rows[3].mean, s.runs[1].result.lengths[3].perplexity, 1e-9)
    assert.matches("eval.lengths: 3 is no power", refused(2, s.override, s, { "eval.lengths=3" }).message)
    assert.matches("the base needs eval.lengths", refused(2, s.override, s, { "eval.lengths=0" }).message)
  end)

  it("takes an override of a stage where there is that stage", function()
    local s = core.loadfile "recipes/studies/stopping.lua"()
    s:override { "stages.2.steps=7" }
    for _, run in ipairs(s.runs) do
      local stages = run.recipe.resolved.stages
      if stages[2] then assert.equal(7, stages[2].steps) else assert.equal(1000, stages[1].steps) end
    end
    assert.matches("unknown key '3'", refused(2, s.override, s, { "stages.3.steps=7" }).message)
    assert.matches("did you mean 'steps'", refused(2, s.override, s, { "stages.2.stps=7" }).message)
  end)
end)

describe("cab sweep", function()
  local dir = process.folder()
  local file = process.put(dir .. "/study.lua", tiny)
  teardown(function() os.execute("rm -rf " .. dir) end)
  local function sweep(words, prefix) return process.sh(("%s %s sweep %s %s"):format(prefix or "OMP_NUM_THREADS=1", process.program, file, words)) end
  local function read(path) return require "cab.folder".read(path) end

  it("killed five times ends with the table of an undisturbed one", function()
    local begun = core.now()
    local code, out = sweep(("--out %s/calm"):format(dir))
    assert.equal(0, code, out)
    local whole, kills = core.now() - begun, 0
    for i = 1, 5 do
      local moment = (0.04 + 0.1 * core.uniform({ 1 }, 0, 1, 11, "kill " .. i):item()) * whole
      repeat -- the one before may hold its lock for a moment longer
        code, out = sweep(("--out %s/cut --quiet"):format(dir), ("OMP_NUM_THREADS=1 timeout -s KILL %.2f"):format(moment))
      until code ~= 74 or not out:find("locked", 1, true) or core.now() - begun > 60 + 4 * whole
      assert.is_true(code == 137, out)
      kills = kills + 1
    end
    assert.equal(5, kills)
    for _ = 1, 20 do -- the last killed process may still hold its lock
      code, out = sweep(("--out %s/cut --quiet"):format(dir))
      if code ~= 74 then break end
      os.execute "sleep 0.2"
    end
    assert.equal(0, code, out)
    assert.equal(read(dir .. "/calm/table.csv"), read(dir .. "/cut/table.csv"))
    assert.matches("bridge,fraction=0.01,top1,5,", read(dir .. "/cut/table.csv"))
  end)

  it("runs in parts and with workers to the same table, and does nothing twice", function()
    assert.equal(0, (sweep(("--out %s/two --workers 2 --quiet"):format(dir))))
    assert.equal(read(dir .. "/calm/table.csv"), read(dir .. "/two/table.csv"))
    local function when() return lfs.attributes(dir .. "/two/soft_fraction=0.01_seed=0/result.json", "modification") end
    local before = when()
    local code, out = sweep(("--out %s/two"):format(dir))
    assert.equal(0, code)
    assert.equal(before, when())
    assert.matches("minus soft", out)
    code, out = sweep(("--out %s/two batch=5"):format(dir))
    assert.equal(2, code)
    assert.matches("is a run of another recipe.*batch: 10, now 5", out)
  end)

  it("lists what failed and goes on", function()
    local bad = process.put(dir .. "/bad.lua", (tiny:gsub('{ name = "soft"', '{ name = "lost", teacher = cab.models.vit { image = 28, patch = 14, '
      .. 'dim = 8, depth = 1, heads = 2, weights = "nowhere.safetensors" }, stages = { { loss = { soft = 1 }, steps = 1 } } }, %0')
      :gsub("seeds = %b{}", "seeds = { 0 }")))
    local code, out = process.sh(("OMP_NUM_THREADS=1 %s sweep %s --out %s/bad"):format(process.program, bad, dir))
    assert.equal(1, code)
    assert.matches("failed: lost_fraction=0.005_seed=0: .*nowhere.safetensors", out)
    assert.matches("bridge +fraction=0.01 +[%d.]+", out)
    code, out = process.sh(("OMP_NUM_THREADS=1 %s sweep %s --out %s/bad2 --workers 2"):format(process.program, bad, dir))
    assert.equal(1, code)
    assert.matches("\nfailed: lost_fraction=0.005_seed=0\n", out)
  end)

  it("is refused what it cannot do", function()
    local code, out = sweep("--part 3/2")
    assert.same({ 2, true }, { code, out:find("expected I/N", 1, true) ~= nil })
    code, out = sweep("--workers 2 --part 1/2")
    assert.same({ 2, true }, { code, out:find("give one", 1, true) ~= nil })
    code, out = process.sh(process.program .. " sweep recipes/quickstart.lua")
    assert.same({ 2, true }, { code, out:find("returns no cab.study", 1, true) ~= nil })
  end)
end)

describe("cab compare", function()
  local dir = process.folder()
  teardown(function() os.execute("rm -rf " .. dir) end)
  local function put(name, seed, lr, top1)
    lfs.mkdir(dir .. "/" .. name)
    process.put(dir .. "/" .. name .. "/recipe.json", core.json_encode { recipe = { seed = seed, optim = { lr = lr }, batch = 8 } })
    if top1 then process.put(dir .. "/" .. name .. "/result.json", core.json_encode { top1 = top1, seconds = 3 }) end
  end
  it("puts runs together that differ in their seed, and says where the others differ", function()
    put("a", 0, 1e-3, 60)
    put("b", 1, 1e-3, 62)
    put("c", 0, 1e-2, 50)
    local rows, text = require "cab.grouped".compare { dir }
    assert.same({ 2, 61, "optim.lr=0.001" }, { rows[1].n, rows[1].mean, rows[1].label })
    assert.same({ 1, 50, "optim.lr=0.01" }, { rows[2].n, rows[2].mean, rows[2].label })
    assert.matches("optim.lr=0.001 +61.00 ± 1.41 +%[48.29, 73.71%] +2 +3", text)
    assert.matches("top5", refused(2, require "cab.grouped".compare, { dir }, "top5").message)
    assert.matches("did you mean 'top1'", refused(2, require "cab.grouped".compare, { dir }, "topp").message)
    put("d", 0, 1e-2)
    assert.matches("d has no result.json: the run has not ended", refused(2, require "cab.grouped".compare, { dir }).message)
  end)
end)
