-- Length generalisation: perplexity by the window's length, of models whose memory is known.
local cab = require "cab"
local core = require "cab.core"
local text = require "cab.text"
local op = core.ops

describe("perplexity by the window's length", function()
  -- The next id is the one of 12 tokens ago: a model that looks exactly there knows it as soon as its window reaches that far, and gives
  -- every id the same probability until then.
  it("falls with what a longer window shows, of the same tokens", function()
    local vocab, period, ids = 16, 12, {}
    for t = 1, 90 do ids[t] = (t % period) * 5 % vocab end
    local eye, rows = {}, {}
    for i = 1, vocab do
      eye[i] = {}
      for j = 1, vocab do eye[i][j] = i == j and 1 or 0 end
    end
    local one_hot = core.tensor(eye, "f64")
    local model = {}
    function model:body(x) -- luacheck: ignore self
      local b, l, back = x:size(1), x:size(2), period - 1
      if l <= back then return core.zeros({ b, l, vocab }, "f64") end
      return core.concat({ core.zeros({ b, back, vocab }, "f64"), op.embedding(x:slice(2, 1, l - back), one_hot) * 100 }, 2)
    end
    function model:head() return one_hot, core.zeros({ vocab }, "f64") end -- luacheck: ignore self
    for _, row in ipairs(text.lengths(model, core.tensor(ids, "i32"), { length = 8, times = 4 })) do rows[row.length] = row.perplexity end
    assert.near(16, rows[8], 1e-9)  -- tokens 2 to 8 of a window
    assert.near(4, rows[16], 1e-9)  -- tokens 9 to 16: the last four of eight are known
    assert.near(1, rows[32], 1e-9)
  end)

  -- The same weights with a decay of 1/2 a token, as a model begins (softplus(0) = log 2), and with hardly any.
  it("of a Mamba stays where its decay forgets within a window, and changes where it does not", function()
    local numbers = {}
    for t = 1, 600 do numbers[t] = math.floor(core.uniform({ 1 }, 0, 23, 5, "id " .. t):item()) end
    local ids = core.tensor(numbers, "i32")
    local function measured(a)
      local model = cab.models.phi_mamba { dim = 16, depth = 2, heads = 2, state = 4, chunk = 16 }:build { vocab = 23, dtype = "f64" }
      core.no_grad(function()
        for i = 1, model.depth do
          local L = model.backbone.layers[i]
          local w = L.mixer.in_proj.weight
          local rest, decay = w:split(1, { w:size(1) - 2, 2 })
          L.mixer.in_proj.weight = core.concat({ rest, core.zeros(decay:shape(), "f64") + a / 16 }, 1) -- a for every token:
          L.input_layernorm.bias = core.zeros({ 16 }, "f64") + 1                                        -- a norm's output has mean 1
        end
      end)
      local out = {}
      for i, row in ipairs(text.lengths(model, ids, { length = 64, times = 8 })) do out[i] = row.perplexity end
      return out
    end
    local short, long = measured(0), measured(-10)
    for i = 3, 4 do
      assert.is_true(math.abs(short[i] / short[2] - 1) < 1e-12)
      assert.is_true(math.abs(long[i] / long[i - 1] - 1) > 1e-4, ("%.12g %.12g"):format(long[i], long[i - 1]))
    end
  end)
end)
