-- Models that users define: what is refused. A whole one is in docs/models-howto.md, which is run.
local cab = require "cab"

local function new(o)
  local m = cab.nn.module("own", { forward = function(self, images) return self.head(images:reshape(images:size(1), 4)), {} end })
  m.head, m.taps, m.depth = cab.nn.linear(4, o.classes), cab.taps.declare {}, 1
  return m
end

describe("cab.models.define", function()
  it("makes a model by its name, again where a file is read twice", function()
    for _ = 1, 2 do
      local own = cab.models.define { kind = "own_of_spec", new = new, options = { width = 3 } }
      local model = own { width = 4, patch = 1 }:build { image = 2, channels = 1, classes = 5 }
      assert.are.same({ 7, 5 }, model:forward(cab.zeros { 7, 1, 2, 2 }):shape())
      assert.equal(own, cab.models.own_of_spec)
    end
  end)
  it("takes sizes, the first of them as default where none is tiny", function()
    local own = cab.models.define { kind = "own_sizes", new = function(o) local m = new(o) m.got = o.depth return m end,
      sizes = { big = { depth = 9 } } }
    assert.equal(9, own { patch = 1 }:build { image = 2, channels = 1, classes = 5 }.got)
  end)
  it("refuses what is there, what is no name, and options that are none", function()
    for _, case in ipairs {
      { { kind = "vim", new = new }, "'vim' already" }, { { kind = "build", new = new }, "'build' already" },
      { { kind = "a b", new = new }, "is no name" }, { { kind = "x" }, "new is missing" }, { { kind = "x", new = 3 }, "expected function" },
      { { kind = "x", new = new, option = {} }, "did you mean 'options'" } } do
      local ok, e = pcall(cab.models.define, case[1])
      assert.is_false(ok)
      assert.matches(case[2], tostring(e))
      assert.equal(2, e.code)
    end
    local ok, e = pcall(cab.models.define { kind = "own_of_spec", new = new }, { widht = 3 })
    assert.is_false(ok)
    assert.matches("unknown option 'widht'", tostring(e))
  end)
end)
