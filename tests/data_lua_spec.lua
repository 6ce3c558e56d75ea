local cab = require "cab"
local core = require "cab.core"

local function fault(f, ...) return require "refused"(2, f, ...).message end

describe("data", function()
  it("makes plain specs and refuses unknown options with the nearest name", function()
    local spec = cab.data.fashion { fraction = 0.1 }
    assert.are.equal("fashion", spec.kind)
    assert.is_nil(getmetatable(spec))
    assert.matches("'fractoin'; did you mean 'fraction'", fault(cab.data.fashion, { fractoin = 1 }))
    assert.matches("fraction is 2, expected 0", fault(cab.data.fashion, { fraction = 2 }))
    assert.matches("data.cifar.root is missing", fault(cab.data.cifar, {}))
  end)

  it("opens the embedded images: 10000 and 2000 of ten classes", function()
    local data = cab.data.build(cab.data.fashion {})
    assert.are.same({ train = 10000, test = 2000 }, data.count)
    assert.are.equal(10, data.classes)
    assert.are.equal(1, data.channels)
    assert.are.equal(28, data.size)
    local loader = data:loader("test", { batch = 300 })
    local seen, sum, square = 0, 0, 0
    while true do
      local scope <close> = core.scope()
      local x, y = loader:next()
      if not x then break end
      assert.are.same({ y:count(), 1, 28, 28 }, x:shape())
      seen = seen + y:count()
      local range = x:range()
      sum, square = sum + y:count() * range.mean, square + y:count() * (range.std ^ 2 + range.mean ^ 2)
    end
    loader:close()
    assert.are.equal(2000, seen)
    assert.is_true(math.abs(sum / seen) < 0.05)
    assert.is_true(math.abs(square / seen - 1) < 0.05)
  end)

  it("takes the same share of each class, nested", function()
    local small = cab.data.build(cab.data.fashion { fraction = 0.01 })
    local large = cab.data.build(cab.data.fashion { fraction = 0.1 })
    assert.are.equal(100, small.count.train)
    assert.are.equal(1000, large.count.train)
    local labels, classes, inside = large.sets.train:labels():totable(), {}, {}
    for _, i in ipairs(large.indices.train:totable()) do
      inside[i] = true
      classes[labels[i + 1]] = (classes[labels[i + 1]] or 0) + 1
    end
    for c = 0, 9 do assert.are.equal(100, classes[c]) end
    for _, i in ipairs(small.indices.train:totable()) do assert.is_true(inside[i]) end
  end)

  it("gives the same batches for the same seed and epoch, from any batch on, with any number of threads", function()
    local function batches(threads, epoch, start)
      local data = cab.data.build(cab.data.fashion { fraction = 0.02, flip = true, pad = 2, threads = threads })
      local loader, list = data:loader("train", { batch = 50, seed = 3, epoch = epoch, start = start }), {}
      while true do
        local x, y = loader:next()
        if not x then break end
        list[#list + 1] = { core.ops.sum(x):item(), y:totable() }
      end
      loader:close()
      return list
    end
    local all = batches(1, 4, 0)
    assert.are.equal(4, #all)
    assert.are.same(all, batches(0, 4, 0))
    assert.are.same(all, batches(3, 4, 0))
    assert.are.same({ all[3], all[4] }, batches(2, 4, 2))
    assert.are_not.same(all, batches(1, 5, 0))
  end)

  it("leaves the rest of an epoch out of training", function()
    local data = cab.data.build(cab.data.fashion { fraction = 0.01 })
    assert.are.equal(3, data:batches(30))
    local loader, n = data:loader("train", { batch = 30 }), 0
    while loader:next() do n = n + 1 end
    loader:close()
    assert.are.equal(3, n)
  end)

  it("checks means per channel", function()
    assert.matches("mean has 3 values, the images have 1", fault(cab.data.build, cab.data.fashion { mean = { 0, 0, 0 } }))
  end)
end)
