--- The teacher's taps and logits of all training images, computed once and read back by every run that wants them: the teacher's
--- weights need not be in memory then. Files stand in PATH/KEY/, KEY a hash of the teacher, the data and its transform; one for
--- each tap, layer and coding, with a checksum in each row, so runs share what they have in common. Row i is training image (or window
--- of a text) i of the data in use, in the order of the files; where images are drawn anew, the i-th that training sees in cache.epochs
--- epochs, which then come again. `test` and `validation` hold the first images of those, for R2 and decisions, `sample` those that
--- measure the teacher. Of a text, the largest logits of each token take the place of all.
local core = require "cab.core"
local check = require "cab.check"
local options = require "cab.options"
local folders = require "cab.folder"
local lfs = require "lfs"
local M = {}

M.options = {
  path   = { "string", default = "" },
  coding = { "string", default = "bf16", one_of = { "f32", "f16", "bf16", "int8" } },
  live   = { "boolean", default = false },
  epochs = { "integer", default = 0, min = 0 }, -- whose views are kept, where data are drawn anew; 0: one view of each image
  top    = { "integer", default = 0, min = 0 }, -- of text: the largest logits of each token; 0: none
  limit  = { "number", default = 64, min = 0 }, -- GiB
}

local TAPS = { q = true, k = true, v = true, hidden = true, input = true } -- [b,tokens,width]
local BATCH = 100  -- images of a pass of the teacher, and of the test images kept
local TOKENS = 5000 -- of text, in place of that

---@class Cache
---@field now table? what it has of the batch at hand: {taps, logits (of images) | top and place (of a text, if cache.top)}
---@field epochs integer whose views it has; 0: one view of each image
local Cache = {}
Cache.__index = Cache

local function fail(text) check.fail(2, "cache: " .. text, { id = "cache" }) end

-- An image must look the same whenever it is read, or come in views that are counted.
local function refuse(r)
  local d = r.data
  local draws = { flip = d.flip, pad = (d.pad or 0) > 0, augment = (d.augment or "") ~= "", erase = (d.erase or 0) > 0, mixup = (d.mixup or 0) > 0,
    cutmix = (d.cutmix or 0) > 0, jitter = type(d.jitter) == "table" or (d.jitter or 0) > 0, crop = d.crop == "resized" or d.crop == "random" }
  for _, key in ipairs(r.cache.epochs == 0 and options.names(draws) or {}) do
    if draws[key] then
      fail(("data.%s draws each image anew in every epoch, and the cache holds one view of it: set cache.epochs to keep the views of so many epochs, "
        .. "which then come again, or %s, or leave cache.path empty"):format(key,
        key == "crop" and "data.crop=center" or ("data.%s=%s"):format(key, key == "flip" and "false" or key == "augment" and "(empty)" or "0")))
    end
  end
  if d.kind == "text" and r.cache.epochs > 0 then fail "cache.epochs is of images: a text looks the same in every epoch" end
  if d.kind ~= "text" and r.cache.top > 0 then fail "cache.top is of text: the logits of images are few beside their taps" end
  if require "cab.dist".size > 1 then fail "its batches are those of one rank: run without mpirun or srun, or leave cache.path empty" end
  if d.on_bad == "skip" then fail "data.on_bad is 'skip': which images a batch has would depend on those left out" end
  local map = type(r.pairs) == "table" and (r.pairs[1] or r.pairs.kind) or r.pairs
  if map == "search" then fail "the layer map 'search' looks at all layers of the teacher first: search once, then give the list found as pairs" end
end

-- What decides the numbers in the files, as text for the hash.
local function identity(r, data)
  local teacher, spec = check.copy(r.teacher), check.copy(r.data)
  local views = r.cache.epochs > 0 and { epochs = r.cache.epochs, batch = r.batch, seed = r.seed } or nil -- they have an order
  for _, key in ipairs { "threads", "index", "test", "tolerant", not views and "repeats" or nil, not views and "switch" or nil } do spec[key] = nil end
  local weights = (teacher.weights or "") ~= "" and require "cab.data".find(teacher.weights)
  teacher.weights = weights and core.hash(weights) or ("untrained, seed %d"):format(r.seed)
  local files = data:hashes()
  if not data.folder then -- the hashes say what the files are, wherever they lie
    local sorted = {}
    for _, hash in pairs(files) do sorted[#sorted + 1] = hash end
    table.sort(sorted)
    spec.root, files = nil, sorted
  end
  local record = { teacher = teacher, data = spec, files = files, precision = r.precision, images = data.count, views = views, version = 2 }
  local parts = {}
  local function add(path, value)
    if type(value) ~= "table" then parts[#parts + 1] = ("%s=%s"):format(path, math.type(value) == "float" and ("%.17g"):format(value) or tostring(value)) end
    for _, k in ipairs(type(value) == "table" and options.names(value) or {}) do add(path .. "." .. k, value[k]) end
    for i, v in ipairs(type(value) == "table" and value or {}) do add(path .. "." .. i, v) end
  end
  add("", record)
  return table.concat(parts, "\n")
end

--- The cache of a recipe, nil where it wants none; faults (2) where what it holds would not be what the teacher says.
---@param r table resolved recipe
---@param data Data
---@return Cache?
function M.open(r, data)
  if r.cache.path == "" or not r.teacher then return nil end
  refuse(r)
  local text = identity(r, data)
  local self = setmetatable({ coding = r.cache.coding, live = r.cache.live, identity = text, batch = r.batch, readers = {},
    path = ("%s/%s"):format(r.cache.path, core.hash(nil, text)), data = data, seed = r.seed, epochs = r.cache.epochs, top = r.cache.top,
    limit = r.cache.limit, few = data.vocab and math.max(1, TOKENS // data.length) or BATCH, each = data:batches(r.batch) * r.batch }, Cache)
  self.counts = { train = self.epochs > 0 and self.epochs * self.each or data.count.train, test = math.min(self.few, data.count.test),
    validation = data.count.validation and math.min(self.few, data.count.validation) }
  if self.epochs > 0 then
    local batches, rows = require "cab.job".sampled(data, 1000)
    self.counts.sample, self.sampled = batches * rows, rows
  end
  local bytes = lfs.attributes(self.path .. "/manifest.json", "mode") and folders.read(self.path .. "/manifest.json")
  self.manifest = bytes and check.decode(bytes) or nil
  if bytes and (type(self.manifest) ~= "table" or type(self.manifest.options) ~= "table") then
    check.fail(65, self.path .. "/manifest.json: no JSON object with the teacher's options", { file = self.path .. "/manifest.json", id = "cache" })
  end
  return self
end

--- Why the teacher's weights are not there, for whoever asks for them.
function Cache:why()
  return ("the teacher's weights are not in memory: its taps come from %s; cache.live=true keeps both"):format(self.path)
end

--- Which taps and layers the stages of a job read.
---@param job Job
function Cache:plan(job)
  local p, layers, names = job.pairs, {}, {}
  for _, entry in ipairs(p) do
    for t = p.mix and p.mix.from(entry.layer) or entry.teacher, p.mix and p.mix.to(entry.layer) or entry.teacher do layers[t] = true end
  end
  for _, stage in ipairs(job.stages) do
    for name in pairs(stage.teacher_taps or {}) do
      if name ~= "logits" and not TAPS[name] then
        fail(("'%s' of the teacher is not kept in files, only %s"):format(name, table.concat(options.names(TAPS), ", ")))
      end
      names[name] = TAPS[name]
    end
  end
  self.taps, self.files = names, {}
  local function add(name, layer, tokens, width)
    for _, split in ipairs(options.names(self.counts)) do
      local coding = layer and self.coding or "f32"
      table.insert(self.files, { name = name, layer = layer, split = split, form = { tokens = tokens, width = width, coding = coding } })
    end
  end
  local length = self.data.vocab and self.data.length
  for name in pairs(names) do
    for layer in pairs(layers) do add(name, layer, length or job.teacher.tokens, job.teacher.width) end
  end
  if not length then add("logits", nil, 1, job.data.classes) end
  if self.top > 0 then
    if self.top > job.teacher.vocab then fail(("cache.top is %d, the teacher has %d logits"):format(self.top, job.teacher.vocab)) end
    add("top", nil, length, self.top)
    add("place", nil, length, self.top) -- ids, exact in f32 below 2^24
  end
  if #self.files == 0 then fail "no loss reads a tap of the teacher, and of its logits none are kept: set cache.top" end
  for _, f in ipairs(self.files) do
    local name = f.layer and ("%s.%d"):format(f.name, f.layer) or f.name == "logits" and f.name or f.name .. self.top
    f.path = ("%s/%s.%s.%s"):format(self.path, name, f.split, f.form.coding)
    f.size = core.rows_bytes(f.form) * self.counts[f.split]
  end
  table.sort(self.files, function(a, b) return a.path < b.path end)
end

--- The files that are not there, and bytes of all and of those.
---@return table[] missing
---@return integer bytes
---@return integer left
function Cache:lacks()
  local out, bytes, left = {}, 0, 0
  for _, f in ipairs(self.files) do
    bytes = bytes + f.size
    local size = lfs.attributes(f.path, "size")
    if not size then out[#out + 1], left = f, left + f.size
    elseif size ~= f.size then
      check.fail(65, ("%s: %d bytes, expected %d: remove it, and it is computed again"):format(f.path, size, f.size), { file = f.path, id = "cache" })
    end
  end
  return out, bytes, left
end

local function open(path, form)
  return core.rows { file = path, tokens = form.tokens, width = form.width, coding = form.coding }
end

local function rename(from, to)
  local ok, why = os.rename(from, to)
  if not ok then check.fail(74, why, { file = from }) end
end

-- The first bytes of a file stay.
local function cut(path, bytes)
  local new = path .. ".cut"
  core.write_file(new, "")
  do
    local file <close> = assert(io.open(path, "rb"))
    for at = 0, bytes - 1, 1 << 22 do core.append_file(new, file:read(math.min(1 << 22, bytes - at))) end
  end
  rename(new, path)
end

-- Whole rows of a file that a process left behind before its end; damaged ones at its end are cut.
local function whole_rows(f)
  local part = f.path .. ".part"
  local size, bytes = lfs.attributes(part, "size"), core.rows_bytes(f.form)
  if not size then return 0 end
  if size % bytes ~= 0 then cut(part, size - size % bytes) end
  local kept = size // bytes
  do
    local rows <close> = open(part, f.form)
    local one = core.zeros { 1, f.form.tokens, f.form.width }
    while kept > 0 and not pcall(rows.read, rows, { kept - 1 }, one) do kept = kept - 1 end
  end
  if kept < size // bytes then cut(part, kept * bytes) end
  return kept
end

-- A pass over a split from a row on, and how many rows its batches have: a divisor of `row`.
local function feed_of(self, split, row)
  local data = self.data
  if split == "sample" then
    return data:loader("train", { batch = self.sampled, seed = self.seed, epoch = require "cab.job".SAMPLED, start = row // self.sampled })
  elseif split == "train" and self.epochs > 0 then
    return data:loader("train", { batch = self.batch, seed = self.seed, epoch = row // self.each, start = row % self.each // self.batch })
  end
  return data:loader(split, { batch = self.few, start = row // self.few, in_order = true })
end

-- What the teacher says of a batch: taps, and by name what has no layer, each [n,tokens,width].
local function said(self, job, images, segment)
  return core.no_grad(function()
    if not self.data.vocab then
      local logits, taps = job.teacher:forward(images, self.taps)
      return taps, { logits = logits:reshape(logits:size(1), 1, logits:size(2)) }
    end
    local hidden, taps = job.teacher:body(images, self.taps, { segment = segment })
    local top, place = {}, {}
    for i = 1, self.top > 0 and images:size(1) or 0 do -- logits of a row at a time
      local logits = job.teacher:logits(hidden:slice(1, i, i)):reshape(images:size(2), job.teacher.vocab)
      local x, at = core.ops.largest(logits, { k = self.top })
      top[i], place[i] = x:reshape(1, x:size(1), self.top), at:to("f32"):reshape(1, x:size(1), self.top)
    end
    return taps, { top = top[1] and core.concat(top, 1), place = place[1] and core.concat(place, 1) }
  end)
end

-- The teacher over one split from the first row that some file lacks; each file takes the rows that it lacks.
local function pass(self, job, split, files, tell)
  local first = math.huge
  for _, f in ipairs(files) do
    f.rows = whole_rows(f)
    first = math.min(first, f.rows)
  end
  local batch = split == "sample" and self.sampled or split == "train" and self.epochs > 0 and self.batch or self.few
  local at, count = first // batch * batch, self.counts[split]
  local current <close> = setmetatable({}, { __close = function(t) if t.feed then t.feed:close() end end })
  while at < count do
    local scope <close> = core.scope()
    current.feed = current.feed or feed_of(self, split, at)
    local images, second = current.feed:next()
    if not images then -- the next epoch
      current.feed:close()
      current.feed = feed_of(self, split, at)
      images, second = current.feed:next()
    end
    local taps, others = said(self, job, images, self.data.vocab and second)
    local n = math.min(images:size(1), count - at)
    for _, f in ipairs(files) do
      if f.rows < at + n then
        local x = f.layer and taps[f.name][f.layer] or others[f.name]
        x = x:to("f32"):to("cpu"):slice(1, f.rows - at + 1, n):clone()
        core.append_file(f.path .. ".part", core.rows_encode(x, f.rows, f.form), at + n == count)
        f.rows = at + n
      end
    end
    at = at + n
    if core.interrupted() > 0 then check.fail(75, ("stopped at row %d of %d of the cache; start it again to go on"):format(at, count), { id = "stopped" }) end
    tell(at, count)
  end
  for _, f in ipairs(files) do rename(f.path .. ".part", f.path) end
end

-- The lock of the folder; another process that fills it is waited for.
local function lock(self, say)
  local told
  while true do
    local ok, handle = pcall(core.lock, self.path)
    if ok then return handle end
    if check.code(handle) ~= 74 or not tostring(handle):find("locked", 1, true) or core.interrupted() > 0 then error(handle, 0) end
    if not told then say("waiting for the cache: " .. tostring(handle)) end
    told = true
    os.execute "sleep 0.2"
  end
end

-- Tensors for a batch of a split and the files that fill them.
local function buffers(self, count, split)
  local set = { taps = {}, list = {}, count = count }
  for name in pairs(self.taps) do set.taps[name] = {} end
  for _, f in ipairs(self.files) do
    if f.split == split then
      local host = core.zeros { count, f.form.tokens, f.form.width }
      local there = f.name == "place" and host:to "i32" or host
      if self.data.device ~= "cpu" then there = there:to(self.data.device) end
      set.list[#set.list + 1] = { reader = self.readers[f], host = host, there = there, dtype = f.name == "place" and "i32" }
      if f.layer then set.taps[f.name][f.layer] = there
      else set[f.name] = f.name == "logits" and there:reshape(count, f.form.width) or there end
    end
  end
  return set
end

--- Computes what is missing, going on where a killed process ended, and opens all files. The teacher's weights leave the memory
--- after that, unless cache.live.
---@param job Job
---@param say fun(text: string)
function Cache:fill(job, say)
  local missing, bytes, left = self:lacks()
  say(("cache of the teacher: %.1f MiB in %d files, %s, %s"):format(bytes / (1 << 20), #self.files, self.path,
    #missing == 0 and "all there" or ("%.1f MiB to compute"):format(left / (1 << 20))))
  if self.epochs > 0 then say(("training sees the views of %d epochs again and again"):format(self.epochs)) end
  if #missing > 0 and bytes > self.limit * (1 << 30) then
    fail(("its files need %.2f GiB, more than cache.limit = %g: fewer cache.epochs or cache.top, a smaller cache.coding, or a larger limit"):format(
      bytes / (1 << 30), self.limit))
  end
  if #missing > 0 then
    folders.make(self.path)
    local _lock <close> = lock(self, say)
    missing = self:lacks()
    if not self.manifest then
      core.write_file(self.path .. "/manifest.json", core.json_encode { identity = self.identity, options = job.teacher.options } .. "\n")
    end
    local begun, told = core.now(), core.now()
    for _, split in ipairs(options.names(self.counts)) do
      local files = {}
      for _, f in ipairs(missing) do if f.split == split then files[#files + 1] = f end end
      if #files > 0 then
        pass(self, job, split, files, function(at, count)
          if core.now() - told > 10 then
            told = core.now()
            say(("cache: %s image %d of %d"):format(split, at, count))
          end
        end)
      end
    end
    say(("cache computed in %.1f s"):format(core.now() - begun))
  end
  for _, f in ipairs(self.files) do
    self.readers[f] = open(f.path, f.form)
  end
  self.train = buffers(self, self.batch, "train")
  if not self.live then job.teacher:hollow(self:why()) end
end

-- All are decoded before the first is sent: meanwhile a GPU is still at its last step.
local function read(set, rows)
  for _, b in ipairs(set.list) do b.reader:read(rows, b.host) end
  for _, b in ipairs(set.list) do
    if b.there ~= b.host then b.there:copy(b.dtype and b.host:to(b.dtype) or b.host) end
  end
  return set
end

-- Rows of the records first + 1 .. first + count of a pass.
local function rows_of(self, feed, first, count)
  if self.epochs > 0 then
    local rows, before = {}, feed.epoch == require "cab.job".SAMPLED and 0 or feed.epoch * self.each
    for i = 1, count do rows[i] = before + first + i - 1 end
    return rows
  end
  if not feed.records then
    feed.records = feed:order():totable()
    if not self.place and self.data.indices and self.data.indices.train then
      self.place = {}
      for i, record in ipairs(self.data.indices.train:totable()) do self.place[record] = i - 1 end
    end
  end
  local rows = {}
  for i = 1, count do
    local record = feed.records[first + i]
    rows[i] = self.place and self.place[record] or record
  end
  return rows
end

--- Brings the taps and logits of a training batch to where losses read them: always the same tensors, as a captured step wants.
---@param feed Feed the pass that the batch is of
---@param at integer batches of the pass before it
function Cache:take(feed, at)
  self.now = read(self.train, rows_of(self, feed, at * self.batch, self.batch))
end

--- What some rows of the batch at hand have: {taps, logits?, top?, place?}. @param part? {first: integer, last: integer} nil: all
function Cache:rows(part)
  local now = self.now
  if not part or part.last - part.first + 1 == now.count then return now end
  local function own(t) return t and t:slice(1, part.first, part.last) end
  local out = { taps = {}, logits = own(now.logits), top = own(now.top), place = own(now.place) }
  for name, list in pairs(now.taps) do
    out.taps[name] = {}
    for layer, t in pairs(list) do out.taps[name][layer] = own(t) end
  end
  return out
end

--- The k largest logits of each token of such rows, as op.head_loss takes them: their ids i32[n,l,k], and f32[n,l,k].
---@param rows table
---@param k integer
---@return any top
---@return any top_logits
function Cache:largest(rows, k)
  if self.top == 0 then fail "of the teacher's logits none are kept: set cache.top, and the loss's top to as many" end
  if k == 0 or k > self.top then
    fail(("it has the %d largest of the teacher's logits, the loss asks for %s: set its top to at most cache.top"):format(self.top,
      k == 0 and "all" or "the " .. k .. " largest"))
  end
  if k == self.top then return rows.place, rows.top end
  return rows.place:slice(3, 1, k), rows.top:slice(3, 1, k)
end

--- The fault of a loss that reads what the cache of a text does not have.
function Cache:refuse_all() fail(("of the teacher's logits and states it has the %d largest logits only; a loss reads all"):format(self.top)) end

--- Calls f with the taps and logits of the first images of a split at hand.
---@param split string "test" or "validation"
---@param count integer at most self.counts[split]
---@param f function
function Cache:with(split, count, f)
  local before, rows = self.now, {}
  for i = 1, count do rows[i] = i - 1 end
  self.now = read(buffers(self, count, split), rows)
  local ok, e = pcall(f)
  self.now = before
  if not ok then error(e, 0) end
end

--- In the teacher's place for pairs:measure: what it says of the batches of one pass, in their order. @param feed Feed
function Cache:reader(feed)
  local at = 0
  return { dtype = "f32", forward = function(_, images)
    local count = images:size(1)
    local set = read(buffers(self, count, self.epochs > 0 and "sample" or "train"), rows_of(self, feed, at, count))
    at = at + count
    return set.logits, set.taps
  end }
end

return M
