-- cab new: what it writes runs as it is. cab bench measures what a step costs.
local cab = require "cab"
local core = require "cab.core"
local lfs = require "lfs"
local new = require "cab.new"
local process = require "process"

local dir = process.folder()
teardown(function() os.execute("rm -r " .. dir) end)
local function program(args) return process.sh(("cd %s && '%s' %s"):format(dir, process.program, args)) end

describe("cab new", function()
  it("writes a recipe that trains", function()
    local code, said = program "new recipe first"
    assert.equal(0, code, said)
    assert.equal("first.lua; next: cab run first.lua\n", said)
    code, said = program "run first.lua stages.1.epochs=0.5 --out a"
    assert.equal(0, code, said)
    assert.matches("align R2", said)
  end)
  it("writes a strategy that cab run tries, and that a recipe takes", function()
    local code, said = program "new strategy sub/mine --quiet"
    assert.equal(74, code, said) -- no such folder
    assert.equal(0, (program "new strategy mine --quiet"))
    code, said = program "run mine.lua stages.1.steps=6 --out b"
    assert.equal(0, code, said)
    assert.matches("R2 of align", said)
    local class = core.loadfile(dir .. "/mine.lua")()
    cab.recipe { data = cab.data.fashion { fraction = 0.01 }, student = cab.models.vim { image = 28, patch = 7, dim = 8, depth = 2, state = 2 },
      teacher = cab.models.vit { image = 28, patch = 7, dim = 8, depth = 2, heads = 2 },
      stages = { { loss = { align = { class, cosine = true } }, steps = 2 } }, batch = 10, eval = { batch = 2000 } }:run { out = dir .. "/c", quiet = true }
  end)
  if rawget(cab.models, "define") then
    it("writes a model that cab run tries", function()
      local code, said = program "new model lina"
      assert.equal(0, code, said)
      code, said = program "run lina.lua stages.1.steps=6 --out d"
      assert.equal(0, code, said)
      assert.matches("top%-1", said)
    end)
  else
    pending "writes a model that cab run tries: cab.models.define is not there yet"
  end
  it("has comments and stays small", function()
    for _, kind in ipairs(new.kinds) do
      local path = new.write(kind, dir .. "/small_" .. kind)
      local f <close> = io.open(path)
      local text = f:read "a"
      assert.matches("^%-%-%- small_" .. kind, text)
      assert.is_true(select(2, text:gsub("\n", "")) <= 50, kind)
      assert.is_true(select(2, text:gsub("%-%-", "")) >= 4, kind)
      assert.is_nil(text:find "NAME" or text:find "FILE", kind)
    end
  end)
  it("replaces nothing, and refuses what is no name or kind", function()
    core.write_file(dir .. "/there.lua", "mine")
    for line, expected in pairs { ["recipe there"] = "exists", ["recipe end"] = "no name", ["recipe 'a b'"] = "no name", ["strategy 1x"] = "no name",
      ["recpie x"] = "did you mean 'recipe'", ["recipe"] = "missing" } do
      local code, said = program("new " .. line)
      assert.equal(2, code, said)
      assert.matches(expected, said)
    end
    assert.equal("mine", require "cab.folder".read(dir .. "/there.lua"))
    assert.is_nil(lfs.attributes(dir .. "/x.lua"))
  end)
end)

describe("cab bench", function()
  it("measures a step and its parts", function()
    local code, said = program "bench first.lua --steps 3 --json batch=10"
    assert.equal(0, code, said)
    local m = core.json_decode(said)
    assert.equal(10, m.batch)
    for _, part in ipairs { "step", "batch", "teacher", "backward" } do assert.is_true(m.seconds[part] >= 0, part) end
    assert.is_true(m.seconds.step > m.seconds.batch)
    assert.is_true(m.rate > 0 and m.memory > 0)
    code, said = program "bench batch=4 --steps 2"
    assert.equal(0, code, said)
    assert.matches("a whole step", said)
    assert.equal(2, (program "bench first.lua --steps 0"))
  end)
end)
