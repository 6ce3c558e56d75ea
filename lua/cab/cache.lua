--- The teacher's taps and logits of all training images, computed once and read back by every run that wants them: the teacher's
--- weights need not be in memory then. Files stand in PATH/KEY/, KEY a hash of the teacher, the data and its transform; one for
--- each tap, layer and coding, with a checksum in each row, so runs share what they have in common. Row i is training image i of the
--- data in use, in the order of the files; `test` and `validation` hold the first images of those, for R2 and decisions.
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
}

local TAPS = { q = true, k = true, v = true, hidden = true, input = true } -- [b,tokens,width]
local BATCH = 100 -- images of a pass of the teacher, and of the test images kept

---@class Cache
---@field now table? taps and logits of the batch at hand: {taps: table, logits: cab.Tensor}
local Cache = {}
Cache.__index = Cache

local function fail(text) check.fail(2, "cache: " .. text, { id = "cache" }) end

-- Each image must look the same whenever it is read.
local function refuse(r)
  local d = r.data
  local draws = { flip = d.flip, pad = (d.pad or 0) > 0, augment = (d.augment or "") ~= "", erase = (d.erase or 0) > 0, mixup = (d.mixup or 0) > 0,
    cutmix = (d.cutmix or 0) > 0, jitter = type(d.jitter) == "table" or (d.jitter or 0) > 0, crop = d.crop == "resized" or d.crop == "random" }
  if d.kind == "text" then fail "is of images: the taps of a text are larger than what computing them again costs" end
  for _, key in ipairs(options.names(draws)) do
    if draws[key] then
      fail(("data.%s draws each image anew in every epoch, and the cache holds one view of it: set %s, or leave cache.path empty"):format(key,
        key == "crop" and "data.crop=center" or ("data.%s=%s"):format(key, key == "flip" and "false" or key == "augment" and "(empty)" or "0")))
    end
  end
  if require "cab.dist".size > 1 then fail "its batches are those of one rank: run without mpirun or srun, or leave cache.path empty" end
  if d.on_bad == "skip" then fail "data.on_bad is 'skip': which images a batch has would depend on those left out" end
  local map = type(r.pairs) == "table" and (r.pairs[1] or r.pairs.kind) or r.pairs
  if map == "search" then fail "the layer map 'search' looks at all layers of the teacher first: search once, then give the list found as pairs" end
end

-- What decides the numbers in the files, as text for the hash.
local function identity(r, data)
  local teacher, spec = check.copy(r.teacher), check.copy(r.data)
  for _, key in ipairs { "threads", "index", "repeats", "switch", "test", "tolerant" } do spec[key] = nil end
  local weights = (teacher.weights or "") ~= "" and require "cab.data".find(teacher.weights)
  teacher.weights = weights and core.hash(weights) or ("untrained, seed %d"):format(r.seed)
  local files = data:hashes()
  if not data.folder then -- the hashes say what the files are, wherever they lie
    local sorted = {}
    for _, hash in pairs(files) do sorted[#sorted + 1] = hash end
    table.sort(sorted)
    spec.root, files = nil, sorted
  end
  local record = { teacher = teacher, data = spec, files = files, precision = r.precision, images = data.count, version = 1 }
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
    path = ("%s/%s"):format(r.cache.path, core.hash(nil, text)), data = data }, Cache)
  self.counts = { train = data.count.train, test = math.min(BATCH, data.count.test),
    validation = data.count.validation and math.min(BATCH, data.count.validation) }
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
      local coding = name == "logits" and "f32" or self.coding
      table.insert(self.files, { name = name, layer = layer, split = split, form = { tokens = tokens, width = width, coding = coding } })
    end
  end
  for name in pairs(names) do
    for layer in pairs(layers) do add(name, layer, job.teacher.tokens, job.teacher.width) end
  end
  add("logits", nil, 1, job.data.classes)
  for _, f in ipairs(self.files) do
    local name = f.layer and ("%s.%d"):format(f.name, f.layer) or f.name
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

-- The teacher over one split from the first row that some file lacks; each file takes the rows that it lacks.
local function pass(self, job, split, files, tell)
  local first = math.huge
  for _, f in ipairs(files) do
    f.rows = whole_rows(f)
    first = math.min(first, f.rows)
  end
  local skip = first // BATCH
  local loader <close> = self.data:loader(split, { batch = BATCH, start = skip, in_order = true })
  local at, count = skip * BATCH, self.counts[split]
  while at < count do
    local scope <close> = core.scope()
    local images = loader:next()
    local logits, taps = core.no_grad(function() return job.teacher:forward(images, self.taps) end)
    local n = math.min(images:size(1), count - at)
    for _, f in ipairs(files) do
      if f.rows < at + n then
        local x = f.layer and taps[f.name][f.layer] or logits:reshape(logits:size(1), 1, logits:size(2))
        x = x:to("f32"):to("cpu"):slice(1, f.rows - at + 1, n):clone()
        core.append_file(f.path .. ".part", core.rows_encode(x, f.rows, f.form), at + n == count)
        f.rows = at + n
      end
    end
    at = at + n
    if core.interrupted() > 0 then check.fail(75, ("stopped at image %d of %d of the cache; start it again to go on"):format(at, count), { id = "stopped" }) end
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
  local set = { taps = {}, list = {} }
  for name in pairs(self.taps) do set.taps[name] = {} end
  for _, f in ipairs(self.files) do
    if f.split == split then
      local host = core.zeros { count, f.form.tokens, f.form.width }
      local there = self.data.device == "cpu" and host or host:to(self.data.device)
      set.list[#set.list + 1] = { reader = self.readers[f], host = host, there = there }
      if f.layer then set.taps[f.name][f.layer] = there else set.logits = there:reshape(count, f.form.width) end
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

local function read(set, rows)
  for _, b in ipairs(set.list) do
    b.reader:read(rows, b.host)
    if b.there ~= b.host then b.there:copy(b.host) end
  end
  return set
end

-- Rows of the records first + 1 .. first + count of a pass.
local function rows_of(self, feed, first, count)
  if not feed.records then
    feed.records = feed:order():totable()
    if not self.place and self.data.indices.train then
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

--- Logits and taps of some rows of the batch at hand. @param part? {first: integer, last: integer} nil: all
function Cache:rows(part)
  local now = self.now
  if not part or part.last - part.first + 1 == now.logits:size(1) then return now.logits, now.taps end
  local function own(t) return t:slice(1, part.first, part.last) end
  local taps = {}
  for name, list in pairs(now.taps) do
    taps[name] = {}
    for layer, t in pairs(list) do taps[name][layer] = own(t) end
  end
  return own(now.logits), taps
end

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
    local set = read(buffers(self, count, "train"), rows_of(self, feed, at, count))
    at = at + count
    return set.logits, set.taps
  end }
end

return M
