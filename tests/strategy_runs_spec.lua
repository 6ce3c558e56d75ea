-- Strategies and layer maps in whole runs, as recipes name them: stages, weights that are written as a stage begins, learned and searched
-- layer maps, resuming; the example of a user's own strategy; the table of docs.
local core = require "cab.core"
local cab = require "cab"
local folder = require "cab.folder"
local lfs = require "lfs"

local root = os.tmpname()
os.remove(root)
lfs.mkdir(root)
local count = 0
local function out() count = count + 1 return ("%s/run%d"):format(root, count) end

local fails = require "fails"

local function recipe(loss, change)
  local r = {
    data = cab.data.fashion { fraction = 0.02 }, teacher = cab.models.vit { image = 28, patch = 7, dim = 16, depth = 2, heads = 2 },
    student = cab.models.vim { image = 28, patch = 7, dim = 16, depth = 2, state = 4 }, stages = { { loss = loss, steps = 4 } },
    optim = { "adamw", lr = 1e-2, clip = 1, ema = 0.9 }, device = "cpu", batch = 40, log = 1, eval = { every = 1, batch = 500 }, checkpoint = { every = 2 },
  }
  for k, v in pairs(change or {}) do r[k] = v end
  return cab.recipe(r)
end

local function log(path) return folder.read(path .. "/log.txt") end
local function rows(path)
  local list = {}
  for line in folder.read(path .. "/metrics.jsonl"):gmatch "[^\n]+" do list[#list + 1] = core.json_decode(line) end
  return list
end
local function final(path, step)
  return (core.load(("%s/checkpoints/step-%d.safetensors"):format(path, step)))
end
local function same(a, b)
  for name, t in pairs(a) do assert.same(t:totable(), b[name]:totable(), name) end
end

describe("a run", function()
  teardown(function() os.execute("rm -rf " .. root) end)

  for _, name in ipairs(cab.strategy.names) do
    if name ~= "linearised" then
      it("takes " .. name .. " by its name, with its defaults", function()
        local vit = name == "attention_copy" or name == "attention_distill"
        local r = recipe({ [name] = 1 }, vit and { student = cab.models.vit { image = 28, patch = 7, dim = 16, depth = 2, heads = 2 } } or nil)
        local result = r:run { out = out(), quiet = true }
        assert.equal(4, result.steps)
        for _, row in ipairs(rows(result.path)) do assert.is_true(row.eval ~= nil or row.loss == row.loss) end
      end)
    end
  end

  it("goes through MOHAWK's three stages; the third begins with the teacher's weights", function()
    local path = out()
    recipe(nil, { stages = { { loss = { mohawk_orientation = 1 }, steps = 3 }, { loss = { mohawk_hidden = 1 }, steps = 3 },
      { loss = { mohawk_transfer = 1 }, steps = 1, lr = 1e-30 } }, optim = { "adamw", lr = 1e-2 } }):run { out = path, quiet = true }
    assert.truthy(log(path):find "stage 3: %d+ tensors or parts of them taken from the teacher")
    local teacher = cab.models.vit { image = 28, patch = 7, dim = 16, depth = 2, heads = 2 }:build { classes = 10, channels = 1 }
    assert.same(teacher.norm.weight:totable(), final(path, 7)["student.norm_f.weight"]:totable())
    local first, last = nil, nil
    for _, row in ipairs(rows(path)) do
      if row["loss.mohawk_orientation"] then first, last = first or row.loss, row.loss end
    end
    assert.is_true(last < first)
  end)

  it("begins a stage alike at the prompt, and where a step is replayed", function()
    local path = out()
    local function make() return recipe(nil, { stages = { { loss = { soft = 1 }, steps = 2 },
      { loss = { weight_reuse = 1, align = { "attention_bridge", hidden = 8 } }, steps = 2 } }, pairs = { "learned" },
      checkpoint = { every = 1, keep = 9 }, optim = { "adamw", lr = 1e-2 } }) end
    make():run { out = path, quiet = true }
    local session, said, print_ = require "cab.session".of(make().resolved, "recipe"), {}, print
    session.stepper.say = function(text) said[#said + 1] = text end
    session.job:measure()
    for _ = 1, 4 do session:one() end
    assert.equal(print_, print)
    assert.truthy(said[1]:find "stage 2: %d+ tensors or parts of them taken")
    local state = session.job:state()
    session:close()
    same(final(path, 4), state)
    local r = require "cab.replay".step(path, 3)
    assert.is_true(r.equal, r.text)
  end)

  it("learns a layer map, reports it and goes on bit for bit", function()
    local function make() return recipe({ align = { "attention_bridge", hidden = 8 } }, { pairs = { "learned", final = 0.2 } }) end
    local whole, parted = out(), out()
    make():run { out = whole, quiet = true }
    assert.equal(75, fails("stopped", function() make():run { out = parted, quiet = true, stop_after = 2 } end).code)
    make():run { out = parted, quiet = true, resume = true }
    same(final(whole, 4), final(parted, 4))
    local weight = final(whole, 4)["layer_map.weight"]
    assert.is_true(weight:range().max > 0)
    local reported
    for _, row in ipairs(rows(whole)) do reported = row.eval and row.eval.layer_map or reported end
    assert.equal(2, #reported)
    assert.near(1, reported[1][1] + reported[1][2], 1e-5)
    assert.truthy(log(whole):find "layer map 1>%d 0%.%d+, 2>%d")
  end)

  it("reports the R2 of each student layer, of a closed-form bridge as of trained ones", function()
    for _, given in ipairs { { "attention_bridge", hidden = 8 }, { "attention_bridge", kind = "ridge" } } do
      local path, found = out(), nil
      recipe({ align = given }):run { out = path, quiet = true }
      for _, row in ipairs(rows(path)) do found = row.eval and row.eval or found end
      assert.near(found.r2.align, (found.r2_layers.align["1"] + found.r2_layers.align["2"]) / 2, 1e-6)
    end
  end)

  for _, by in ipairs { "cka", "ridge" } do
    it("searches a layer map by " .. by .. ", says it and keeps it", function()
      local function make() return recipe({ align = { "attention_bridge", hidden = 8 } }, { pairs = { "search", by = by, images = 50 },
        teacher = cab.models.vit { image = 28, patch = 7, dim = 16, depth = 3, heads = 2 } }) end
      local whole, parted = out(), out()
      make():run { out = whole, quiet = true }
      assert.truthy(log(whole):find "layer map found: 1>%d 2>%d")
      fails("stopped", function() make():run { out = parted, quiet = true, stop_after = 2 } end)
      make():run { out = parted, quiet = true, resume = true }
      same(final(whole, 4), final(parted, 4))
      local map = final(whole, 4)["pairs.map"]:totable()
      assert.is_true(map[1] >= 1 and map[2] <= 3 and map[1] <= map[2])
    end)
  end

  it("copies attention in evaluation too", function()
    local student = cab.models.vit { image = 28, patch = 7, dim = 16, depth = 2, heads = 2 }
    local path = out()
    local result = recipe({ attention_copy = 1 }, { student = student }):run { out = path, quiet = true }
    local scope <close> = core.scope() -- luacheck: ignore scope
    local job = require "cab.evaluate".open(path)
    job.student:load(final(path, 4), "student.")
    assert.equal(result.loss, cab.eval.classify(job.student, job.data, { batch = 500 }).loss)
    job.student.borrow = nil
    assert.not_equal(result.loss, cab.eval.classify(job.student, job.data, { batch = 500 }).loss)
  end)

  it("refuses unknown modes of a recipe by the nearest name, before it begins", function()
    fails("did you mean 'matrix_distill'", recipe, { matrix_distil = 1 })
    fails("did you mean 'mean'", recipe, { mohawk_orientation = { heads = "men" } })
    fails("did you mean 'norms'", recipe, { weight_reuse = { parts = { "norm" } } })
    fails("did you mean 'identity'", recipe, { weight_reuse = { conv = "identiy" } })
    local r = recipe({ soft = 1 }, { pairs = { "serch" } })
    fails("did you mean 'search'", r.run, r, { out = out(), quiet = true })
  end)
end)

describe("examples/relation.lua", function()
  it("is a strategy in at most 25 lines", function()
    local _, lines = folder.read "examples/relation.lua":gsub("\n", "")
    assert.is_true(lines <= 25, lines .. " lines")
  end)
  it("trains from a recipe: the loss falls", function()
    local path = out()
    local class = dofile "examples/relation.lua"
    local r = recipe(nil, { stages = { { loss = { relation = { class, weight = 10 } }, steps = 30 } }, eval = { every = 0 },
      optim = { "adamw", lr = 1e-3, schedule = "constant" } })
    r:run { out = path, quiet = true }
    local losses = {}
    for _, row in ipairs(rows(path)) do losses[#losses + 1] = row.loss end
    assert.is_true(losses[30] < 0.9 * losses[1], ("%g after %g"):format(losses[30], losses[1]))
    fails("did you mean 'center'", recipe, { relation = { class, centr = true } })
  end)
end)

describe("docs/strategies.md", function()
  it("stands as the strategies are", function()
    local process = require "process" -- of its own: maps that specs define are not in the docs
    local code, text = process.sh(("'%s' run tests/strategies_table.lua"):format(process.program))
    assert.equal(0, code)
    assert(text == folder.read "docs/strategies.md",
      "docs/strategies.md is old: build/cab run tests/strategies_table.lua > docs/strategies.md")
  end)
  it("has a line for each file of lua/cab/strategies, with what it does and its source", function()
    local files = 0
    for name in lfs.dir "lua/cab/strategies" do
      local strategy = name:match "^(.*)%.lua$"
      if strategy then
        files = files + 1
        local d = cab.strategy.described(strategy)
        assert(d.about and d.source, strategy)
        assert.truthy(folder.read "docs/strategies.md":find("| `" .. strategy .. "` |", 1, true))
        assert.truthy(cab.strategy.help(strategy):find(d.about, 1, true))
      end
    end
    assert.equal(files, #cab.strategy.names)
  end)
end)
