local cab = require "cab"

local function given(change)
  local r = {
    data = cab.data.fashion {}, teacher = cab.models.vit { image = 28, patch = 4 }, student = cab.models.vim { image = 28, patch = 4 },
    stages = { { loss = { soft = 1, align = { "attention_bridge", hidden = 64, weight = 3 } }, epochs = 2 } },
  }
  for k, v in pairs(change or {}) do r[k] = v end
  return r
end
local function fault(f, ...) return require "refused"(2, f, ...).message end

describe("recipe", function()
  it("fills in the defaults", function()
    local r = cab.recipe(given()).resolved
    assert.are.equal(64, r.batch)
    assert.are.equal("adamw", r.optim.name)
    assert.are.equal(1, r.stages[1].loss.soft.weight)
    assert.are.equal("attention_bridge", r.stages[1].loss.align.strategy)
    assert.are.equal("standard", r.stages[1].loss.align.map)
  end)

  local wrong = {
    { { bacth = 3 }, "unknown option 'bacth'; did you mean 'batch'" },
    { { batch = "x" }, "batch is x %(string%), expected integer" },
    { { batch = 0 }, "batch is 0, expected 1" },
    { { batch = 1.5 }, "expected integer" },
    { { precision = "f16" }, "precision: unknown value 'f16'" },
    { { optim = { "adamw", lrr = 1 } }, "optim: unknown option 'lrr'; did you mean 'lr'" },
    { { optim = { "sgd" } }, "optim.name: unknown value 'sgd'" },
    { { eval = { metrics = { "top2" } } }, "unknown metric 'top2'" },
    { { draw = { "similarty" } }, "unknown chart 'similarty'; did you mean 'similarity'" },
    { { data = {} }, "data is a plain table" },
    { { stages = {} }, "stages is empty" },
    { { stages = { { loss = { [";vanilla"] = 1 }, steps = 1 } } }, "unknown strategy ';vanilla'; did you mean 'vanilla'" },
    { { stages = { { loss = { soft = 1 } } } }, "one of epochs, steps and tokens" },
    { { stages = { { loss = { soft = 1 }, epochs = 1, steps = 1 } } }, "one of epochs, steps and tokens" },
    { { stages = { { loss = {}, epochs = 1 } } }, "has no term" },
    { { stages = { { loss = { sotf = 1 }, epochs = 1 } } }, "'sotf'.*'soft'" },
    { { stages = { { loss = { align = { "attention_bridge", hiden = 1 } }, epochs = 1 } } }, "'hiden'.*'hidden'" },
    { { stages = { { loss = { soft = -1 }, epochs = 1 } } }, "weight is %-1" },
    { { guard = { nonfinite = "go" } }, "guard.nonfinite: unknown value 'go'" },
  }
  for i, case in ipairs(wrong) do
    it("refuses with the nearest name: " .. case[2], function()
      local _ = i
      assert.matches(case[2], fault(cab.recipe, given(case[1])))
    end)
  end

  it("names the recipe's line", function()
    assert.matches("recipe_spec.lua:%d+: ", fault(function() cab.recipe(given { bacth = 1 }) end))
  end)

  it("needs a teacher for what learns from one", function()
    local r = given()
    r.teacher = nil
    assert.matches("needs a teacher", fault(cab.recipe, r))
  end)

  it("takes typed overrides before anything is built", function()
    local r = cab.recipe(given()):override { "optim.lr=1e-3", "data.fraction=0.05", "student.depth=3", "stages.1.epochs=7",
      "stages.1.loss.align.weight=10", "stages.1.loss.soft=2", "eval.shares=false", "batch=1e2", "name=x", "student.decay=s4d" }.resolved
    assert.are.equal(1e-3, r.optim.lr)
    assert.are.equal(0.05, r.data.fraction)
    assert.are.equal(3, r.student.depth)
    assert.are.equal(7, r.stages[1].epochs)
    assert.are.equal(10, r.stages[1].loss.align.weight)
    assert.are.equal(2, r.stages[1].loss.soft.weight)
    assert.is_false(r.eval.shares)
    assert.are.equal("integer", math.type(r.batch))
    assert.are.equal("s4d", r.student.decay)
  end)

  local bad = {
    { "optim.lrr=1", "'lrr'.*did you mean 'lr'" }, { "optm.lr=1", "'optm'.*'optim'" }, { "batch=many", "'many' is no integer" },
    { "data.fractoin=1", "'fractoin'.*'fraction'" }, { "student.dpth=1", "'dpth'.*'depth'" }, { "optim=3", "optim is a table" },
    { "data.fraction=2", "expected 0" }, { "nothing", "expected key=value" }, { "stages.2.epochs=1", "unknown key '2'" },
    { "stages.1.loss.align.hiden=1", "'hiden'.*'hidden'" }, { "eval.shares=1", "is no boolean" }, { "batch.x=1", "not a table" },
    { "optim.lr=1e999", "finite" }, { "optim.lr=nan", "no number" }, { "name=\xff", "name: '\\xff' is not UTF%-8" },
    { 'pairs=["manual","\xff"]', "pairs" }, { ("x"):rep(100000) .. "=1", "unknown key 'x+%.%.%.'" }, { "\27[31m=1", "'\\x1b%[31m=1': expected" },
  }
  for _, case in ipairs(bad) do
    it("refuses the override " .. cab.core.escape(case[1]), function()
      assert.matches(case[2], fault(function() cab.recipe(given()):override { case[1] } end))
    end)
  end
  it("leaves the recipe as it was when an override is refused", function()
    local r = cab.recipe(given())
    pcall(r.override, r, { "batch=3", "optim.lrr=1" })
    assert.are.equal(64, r.resolved.batch)
  end)
end)

describe("compare", function()
  local function two()
    local base = given()
    base.stages = nil
    return cab.compare { base = base, runs = {
      { name = "a", stages = { { loss = { soft = 1 }, epochs = 1 } } },
      { name = "b", stages = { { loss = { soft = 1, align = { "attention_bridge" } }, epochs = 1 } } } } }
  end
  it("gives every run the overrides, and those of a term to the runs that have it", function()
    local c = two():override { "batch=16", "stages.1.loss.align.weight=5" }
    assert.are.equal(16, c.runs[1].recipe.resolved.batch)
    assert.are.equal(5, c.runs[2].recipe.resolved.stages[1].loss.align.weight)
    assert.matches("'bacth'", fault(function() two():override { "bacth=1" } end))
    assert.matches("'none'", fault(function() two():override { "stages.1.loss.none.weight=1" } end))
  end)
  it("needs names that differ", function()
    assert.matches("name of its own", fault(cab.compare, { base = given(), runs = { { name = "a" }, { name = "a" } } }))
  end)
end)
