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

  it("takes validation images out of the training images of each class, nested, seen as test images are", function()
    local function build(o) return cab.data.build(cab.data.fashion(o)) end
    local larger
    for _, fraction in ipairs { 0.05, 0.02, 0.01 } do
      local with, without = build { fraction = fraction, validation = 0.2, flip = true, pad = 2 }, build { fraction = fraction }
      local held, all = {}, {}
      for _, v in ipairs(with.indices.validation:totable()) do held[v] = true end
      for _, v in ipairs(without.indices.train:totable()) do all[v] = not held[v] or nil end
      for _, v in ipairs(with.indices.train:totable()) do
        assert.is_true(all[v])
        all[v] = nil
      end
      assert.is_nil(next(all))
      assert.same({ 8000 * fraction, 2000 * fraction }, { with.count.train, with.count.validation })
      for v in pairs(held) do assert.is_true(not larger or larger[v]) end
      larger = held
      local feed, classes = with:loader("validation", { batch = 1000 }), {}
      local x, labels = feed:next()
      feed:close()
      for _, c in ipairs(labels:totable()) do classes[c] = (classes[c] or 0) + 1 end
      for c = 0, 9 do assert.equal(200 * fraction, classes[c]) end
      local first = with.indices.validation:totable()[1]
      local path = os.tmpname()
      core.write_file(path, (first + 1) .. "\n")
      local images = cab.data.build(cab.data.fashion { list = path })
      os.remove(path)
      local plain = images:loader("train", { batch = 1, in_order = true })
      assert.same(plain:next():totable()[1], x:totable()[1]) -- neither mirrored nor moved
      plain:close()
    end
    local e = fault(cab.data.build, cab.data.fashion { fraction = 0.005, validation = 0.1 })
    assert.matches("data.validation: a share of 0.1 of 50 training images in 10 classes is none of any class", e)
    assert.matches("validation is 1, expected", fault(cab.data.fashion, { validation = 1 }))
  end)

  it("takes them out of a list too", function()
    local path, lines = os.tmpname(), {}
    for i = 1, 200 do lines[i] = tostring(i) end
    core.write_file(path, table.concat(lines, "\n"))
    local data = cab.data.build(cab.data.fashion { list = path, validation = 0.25 })
    local all = {}
    for _, split in ipairs { "train", "validation" } do
      for _, v in ipairs(data.indices[split]:totable()) do
        assert.is_true(v < 200 and not all[v])
        all[v] = split
      end
    end
    assert.equal(200, data.count.train + data.count.validation)
    assert.is_true(data.count.validation > 40 and data.count.validation <= 50)
    os.remove(path)
  end)

  it("holds the last training windows of a text out", function()
    local o = { tokenizer = "gpt2:743", length = 64, holdout = 0.1 }
    local plain = cab.data.build(cab.data.text(o))
    o.validation = 0.25
    local data = cab.data.build(cab.data.text(o))
    assert.equal(plain.count.train // 4, data.count.validation)
    assert.equal(plain.count.train, data.count.train + data.count.validation)
    assert.same(plain:read("train", data.tokens.train, 100):totable(), data:read("validation", 0, 100):totable())
    assert.same(plain:ids("test"):totable(), data:ids("test"):totable())
    o.validation, o.length = 0.01, 4096
    assert.matches("of %d+ training windows is none", fault(cab.data.build, cab.data.text(o)))
  end)

  it("checks means per channel", function()
    assert.matches("mean has 3 values, the images have 1", fault(cab.data.build, cab.data.fashion { mean = { 0, 0, 0 } }))
  end)
end)
