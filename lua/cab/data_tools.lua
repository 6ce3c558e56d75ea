--- `cab data`: the picture that the network saw, and lists of training images.
local core = require "cab.core"
local check = require "cab.check"
local M = {}

-- Where a record stands in an epoch: number of the batch from 0, place in it from 1.
local function find(data, r, sample, epoch)
  local loader <close> = data:loader("train", { batch = r.batch, seed = r.seed, epoch = epoch })
  local last = data:batches(r.batch) * r.batch
  for at, record in ipairs(loader:order():totable()) do
    if record == sample - 1 then
      if at > last then
        check.fail(2, ("record %d is left out of epoch %d: it would be number %d, and the epoch's whole batches end at %d"):format(
          sample, epoch, at, last), { id = "sample" })
      end
      return (at - 1) // r.batch, (at - 1) % r.batch + 1
    end
  end
  check.fail(2, ("record %d is not among the %d of epoch %d"):format(sample, data.count.train, epoch), { id = "sample" })
end

-- "0.70 cat + 0.30 dog" of a target row, or the name of a label.
local function classes(set, label, target)
  local names, parts = set:names() or {}, {}
  local function name(class) return core.escape(names[class + 1] or tostring(class)) end
  for class, share in ipairs(target or {}) do
    if share > 0 then parts[#parts + 1] = { share, name(class - 1) } end
  end
  if #parts < 2 then return name(label) end
  table.sort(parts, function(a, b) return a[1] > b[1] end)
  for i, p in ipairs(parts) do parts[i] = ("%.2f %s"):format(p[1], p[2]) end
  return table.concat(parts, " + ")
end

--- Writes the pixels of a training record as the network sees them in an epoch, before they are normalised.
---@param r table resolved recipe
---@param o {sample: integer, epoch: integer, out: string} sample from 1, epoch from 0
---@return string what it shows
function M.show(r, o)
  local spec = check.copy(r.data)
  spec.threads = 0
  local data = require "cab.job".helped(r, "data", require "cab.data".build, spec)
  local set = data.sets.train
  if o.sample < 1 or o.sample > set:count() then
    check.fail(2, ("--sample %d: there are records 1 to %d"):format(o.sample, set:count()), { id = "sample" })
  end
  local batch, row = find(data, r, o.sample, o.epoch)
  local feed <close> = data:loader("train", { batch = r.batch, seed = r.seed, epoch = o.epoch, start = batch, dtype = "u8" })
  local images, labels, targets = feed:raw()
  if images:size(1) < r.batch then
    check.fail(65, ("batch %d of epoch %d has images that cannot be read"):format(batch, o.epoch), { id = "sample" })
  end
  local C, S = data.channels, data.size
  local image = images:slice(1, row, row):reshape(C, S, S)
  core.write_png(o.out, C == 1 and image:reshape(S, S) or image:permute(2, 3, 1))
  return ("%s: record %d (%s) in epoch %d, batch %d, place %d: %s, %d x %d pixels"):format(o.out, o.sample, core.escape(set:name(o.sample)),
    o.epoch, batch, row, classes(set, labels:totable()[row], targets and targets:totable()[row]), S, S)
end

--- Writes the names of a seeded share of each class, a line each, for data.list; smaller shares of a seed lie in larger ones.
---@param r table resolved recipe
---@param o {fraction: number, seed?: integer, out: string}
---@return string what was written
function M.subset(r, o)
  if not (o.fraction > 0 and o.fraction <= 1) then
    check.fail(2, ("--fraction %g: expected 0 < fraction <= 1"):format(o.fraction), { id = "fraction" })
  end
  local seed, spec = o.seed or r.data.seed, check.copy(r.data)
  spec.list, spec.fraction = "", 1
  local data = require "cab.job".helped(r, "data", require "cab.data".build, spec)
  local set = data.sets.train
  local picked = core.data.subset(set:labels(), o.fraction, seed):totable()
  local what = ("%g %% of each class of %s, seed %d: %d of %d images"):format(100 * o.fraction, core.escape(data.files.train[1]), seed, #picked, set:count())
  local lines = { "# " .. what }
  for i, record in ipairs(picked) do lines[i + 1] = set:name(record + 1) end
  lines[#lines + 1] = ""
  core.write_file(o.out, table.concat(lines, "\n"))
  data:close()
  return ("%s: %s; train on it with data.list=%s data.fraction=1"):format(o.out, what, o.out)
end

return M
