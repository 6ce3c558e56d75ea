--- Data sets: constructors return plain specs, `build` opens the files. Batches are f32 [b, C, H, W], normalised as
--- (x/255 - mean) / std: by the loader on the CPU, elsewhere on the device, to which the bytes travel. A per-class fraction is a
--- list of indices, nested: 5 % is part of 10 %. What is drawn for an image is a function of (seed, epoch, record).
local core = require "cab.core"
local check = require "cab.check"
local lfs = require "lfs"
local M = {}

local share, positive = { "number", default = 0, min = 0, max = 1 }, { "number", default = 0, min = 0, max = 100 }

local shared = {
  fraction  = { "number", default = 1, min = 0, max = 1 },  -- of the training images of each class
  seed      = { "integer", default = 0, min = 0 },           -- of fraction and validation: the same images for every method
  validation = { "number", default = 0, min = 0, max = 0.9 }, -- share of those images of each class that is held out of training, rounded down
  list      = { "string", default = "" },                    -- a file of `cab data subset`: the training images
  flip      = { "boolean", default = false },                -- mirrored left-right with probability 1/2
  pad       = { "integer", default = 0, min = 0, max = 64 }, -- random crop after padding each side by so many pixels
  size      = { "integer", min = 1, max = 1024 },            -- side in pixels; default: as in the files
  mean      = { "number|table" },                            -- one number or one a channel
  std       = { "number|table" },
  threads   = { "integer", default = 1, min = 0, max = 64 }, -- loader threads
  augment   = { "string", default = "" },                    -- "rand-m9-mstd0.5-inc1", "3-augment"
  jitter    = { "number|table", default = 0 },               -- of brightness, contrast, saturation: factors 1 - j .. 1 + j
  erase     = share,                                         -- probability that a rectangle becomes noise
  mixup     = positive,                                      -- alpha of Beta(alpha, alpha), 0: never
  cutmix    = positive,
  switch    = { "number", default = 0.5, min = 0, max = 1 }, -- probability of cutmix where both are on
  repeats   = { "integer", default = 1, min = 1, max = 16 }, -- of each image in an epoch, which then has that much fewer
  on_bad    = { "string", default = "error", one_of = { "error", "skip" } }, -- skip: left out and counted, an error above 1 %
  tolerant  = { "boolean", default = false },                -- warnings of decoders are counted, not errors
}

local function schema(extra)
  local s = {}
  for k, v in pairs(shared) do s[k] = v end
  for k, v in pairs(extra) do s[k] = v end
  return s
end

--- Files that come with the program: from the working directory, or else beside the library.
local function find(path)
  for _, root in ipairs { "", core.library .. "/../" } do
    local f = io.open(root .. path, "rb")
    if f then f:close(); return root .. path end
  end
  return path
end
M.find = find

local function idx(files) return core.data.open { kind = "idx", images = files[1], labels = files[2] } end

local function under(root, name) return root == "" and name or root .. "/" .. name end

--- Each kind: its option schema, the usual normalisation, the files of a split, and how they are opened.
M.kinds = {
  fashion = {
    options = schema { root = "data/fashion-mnist" },
    mean = { 0.2860 }, std = { 0.3530 },
    files = function(spec, split)
      local part = under(spec.root, split == "train" and "train" or "t10k")
      return { find(part .. "-images-idx3-ubyte.gz"), find(part .. "-labels-idx1-ubyte.gz") }
    end,
    open = idx,
  },
  idx = {
    options = schema { root = "", train_images = { "string", required = true }, train_labels = { "string", required = true },
      test_images = { "string", required = true }, test_labels = { "string", required = true } },
    mean = { 0.5 }, std = { 0.5 },
    files = function(spec, split) return { under(spec.root, spec[split .. "_images"]), under(spec.root, spec[split .. "_labels"]) } end,
    open = idx,
  },
  cifar = {
    options = schema { root = { "string", required = true }, train = { "table", default = { "data_batch_1.bin", "data_batch_2.bin",
      "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin" } }, test = { "table", default = { "test_batch.bin" } } },
    mean = { 0.4914, 0.4822, 0.4465 }, std = { 0.2470, 0.2435, 0.2616 },
    files = function(spec, split)
      local files = {}
      for i, name in ipairs(spec[split]) do files[i] = under(spec.root, name) end
      return files
    end,
    open = function(files) return core.data.open { kind = "cifar", files = files } end,
  },
}

-- ROOT/train/CLASS/IMAGE.png|jpg: any sizes.
local function folder(defaults)
  return {
    folder = true, hint = defaults.hint,
    options = schema { root = defaults.root, train = "train", test = defaults.test,
      crop = { "string", default = "resized", one_of = { "resized", "random", "center", "none" } }, -- of training images
      scale = { "table", default = { 0.08, 1 } }, ratio = { "table", default = { 3 / 4, 4 / 3 } },  -- area and shape where resized
      crop_ratio = { "number", default = 0.875, min = 0.01, max = 1 },    -- in tests: the part of the shorter side that is left
      interpolation = { "string", default = "bicubic", one_of = { "bicubic", "bilinear" } },
      draft = { "boolean", default = true },  -- training images of at least four times the size: shrunk while they are decoded
      index = { "string", default = "" } },   -- where the list of files is kept; "": in the user's cache, "none": nowhere
    mean = { 0.485, 0.456, 0.406 }, std = { 0.229, 0.224, 0.225 },
    files = function(spec, split) return { under(spec.root, spec[split]) } end,
    open = function(files, names, spec)
      return core.data.open { kind = "folder", root = files[1], names = names, index = M.index_path(spec, files[1]) }
    end,
  }
end
M.kinds.folder = folder { root = { "string", required = true }, test = "test", hint = "one folder a class with images in it, PNG or JPEG" }
M.kinds.imagenet = folder { root = "data/imagenet", test = "val",
  hint = "the 1000 folders n01440764 .. n15075141 of ILSVRC 2012 with their JPEG files" }

--- The file that keeps the list of a folder's files, nil for none.
---@param spec table
---@param root string
---@return string?
function M.index_path(spec, root)
  local home, at = os.getenv "HOME", spec.index
  if at == "" then at = os.getenv "XDG_CACHE_HOME" or home and home .. "/.cache" or "none" end
  if at == "none" then return nil end
  lfs.mkdir(at)
  if spec.index == "" then at = at .. "/cab"; lfs.mkdir(at) end
  local full = root:sub(1, 1) == "/" and root or lfs.currentdir() .. "/" .. root
  local name = full:gsub("[^%w._-]", function(c) return ("%%%02X"):format(c:byte()) end)
  return #name <= 240 and ("%s/%s.index"):format(at, name) or nil
end

--- "rand-m9-mstd0.5-inc1" (also n: operations an image, p: probability of each) or "3-augment" as the loader's options.
---@param text string
---@return table
function M.parse_augment(text)
  local out = {}
  if text == "" then return out end
  if text == "3-augment" then return { three = true } end
  local parts, keys = {}, { m = "magnitude", n = "layers", mstd = "spread", p = "chance", inc = "inc" }
  for part in text:gmatch "[^-]+" do parts[#parts + 1] = part end
  if parts[1] ~= "rand" then check.usage("data.augment: " .. check.unknown("value", text, { "rand-m9-mstd0.5-inc1", "3-augment" })) end
  for i = 2, #parts do
    local key, value = parts[i]:match "^(%a+)([%d.]+)$"
    if not keys[key] or not tonumber(value) then
      check.usage(("data.augment: '%s' in '%s': expected m, mstd, n, p or inc with a number"):format(parts[i], text))
    end
    out[keys[key]] = tonumber(value)
  end
  if out.inc ~= 1 then check.usage(("data.augment: '%s': only inc1, where every operation grows with its level, is known"):format(text)) end
  out.inc, out.layers = nil, math.tointeger(out.layers or 2) or check.usage "data.augment: n is no integer"
  return out
end

for kind, def in pairs(M.kinds) do
  --- A spec of this kind; unknown options are faults with code 2.
  M[kind] = function(options)
    local spec = check.options(def.options, options, "data." .. kind)
    M.parse_augment(spec.augment)
    spec.kind = kind
    return spec
  end
end

--- Text for language models: lua/cab/corpus.lua.
M.kinds.text = { options = require "cab.corpus".options, build = function(spec, device) return require "cab.corpus".build(spec, device) end }
---@param options? table docs/recipe.md, data.text
---@return table spec
function M.text(options)
  local spec = check.options(M.kinds.text.options, options, "data.text")
  spec.kind = "text"
  return spec
end

---@class Data
---@field device string where batches go: "cpu", "cuda:0"
---@field classes integer
---@field channels integer
---@field size integer side of an image in pixels
---@field count table train, validation (nil: none) and test images in use
local Data = {}
Data.__index = Data

-- What is drawn for training images beside the crop. RandAugment takes the place of jitter, as in DeiT's own pipeline.
local function augmentation(spec)
  local a = M.parse_augment(spec.augment)
  a.jitter, a.erase = not a.layers and spec.jitter or nil, spec.erase
  return a
end

local function transform(self, split, dtype)
  local spec, train, folders = self.spec, split == "train", M.kinds[self.spec.kind].folder
  local t = { size = self.size, channels = self.channels, mean = self.mean, std = self.std, dtype = dtype or self.scale and "u8" or "f32" }
  if train then t.flip, t.pad, t.augment = spec.flip, spec.pad, augmentation(spec) end
  if folders then
    t.crop, t.interpolation = train and spec.crop or "center", spec.interpolation
    if train and t.crop == "resized" then t.scale, t.ratio, t.draft = spec.scale, spec.ratio, spec.draft end
    if train and (t.crop == "random" or t.crop == "center") then t.resize = self.size end
    if not train then t.resize = math.floor(self.size / spec.crop_ratio) end
  elseif train and spec.pad > 0 then
    t.crop = "random"
  end
  return t
end

--- One pass over a split.
---@class Feed
---@field epoch integer from 0
local Feed = {}
Feed.__index = Feed

--- The next batch as the loader has it, on the CPU: images f32 or u8 [b,C,H,W], labels i32[b], targets f32[b,classes] if records
--- are mixed; nil at the end.
---@return cab.Tensor? images
---@return cab.Tensor? labels
---@return cab.Tensor? targets
function Feed:raw() return self.loader:next() end

--- The next batch, as raw() gives it, written to tensors on any device. False, and nothing is taken, if there is none of their
--- shape.
---@param images any u8 or f32 [b,C,H,W]
---@param labels any i32[b]
---@param targets? any f32[b,classes]
---@return boolean
function Feed:into(images, labels, targets) return self.loader:into(images, labels, targets) end

--- Records of the split in the order of this pass: i32[n], from 0. A training pass ends with its last whole batch.
---@return cab.Tensor
function Feed:order() return self.loader:order() end

--- What was left out or let pass so far, as a line for the log; nil if nothing was.
---@return string?
function Feed:complaints()
  local skipped, warnings = self.loader:skipped(), self.loader:warnings()
  if skipped + warnings == 0 then return nil end
  return ("%d images could not be read and were left out, %d warnings of decoders were tolerated"):format(skipped, warnings)
end

--- Seconds that batches were waited for so far.
---@return number
function Feed:waited() return self.loader:wait() end

--- The next batch on the data's device: images f32[b,C,H,W], normalised, labels i32[b], targets as in raw(); nil at the end.
---@return cab.Tensor? images
---@return cab.Tensor? labels
---@return cab.Tensor? targets
function Feed:next()
  local images, labels, targets = self:raw()
  if not images then return nil end
  local data = self.data
  if not data.scale then return images, labels, targets end
  return data:normalise(images:to(data.device)), labels:to(data.device), targets and targets:to(data.device)
end

--- Ends the pass and its threads.
function Feed:close() self.loader:close() end
Feed.__close = Feed.close

--- Bytes as they travelled become f32, (x/255 - mean) / std; what is f32 already stays. Launches only.
---@param images any u8 or f32 [b,C,H,W]
---@return any f32[b,C,H,W]
function Data:normalise(images)
  if images:dtype() ~= "u8" then return images end
  return images:to("f32") * self.scale + self.shift
end

--- A pass over a split. Training batches all have `batch` images (the rest of an epoch is left out); others end short, and those
--- in_order.
---@param split string "train", "validation" or "test"
---@param options table batch, seed, epoch (0-based), start (batches to leave out), dtype ("u8": bytes, not normalised), part and parts
--- (from 0: of several ranks, rows of every training batch, every parts-th test batch),
--- in_order (of training images: not shuffled, each once)
---@return Feed
function Data:loader(split, options)
  local train, spec = split == "train", self.spec
  local shuffled = train and not options.in_order
  local o = {
    dataset = self.sets[split == "validation" and "train" or split], indices = self.indices[split], batch = options.batch, seed = options.seed or 0,
    epoch = options.epoch or 0, shuffle = shuffled, start = options.start or 0, threads = spec.threads,
    transform = transform(self, split, options.dtype), drop_last = shuffled, on_bad = spec.on_bad, tolerant = spec.tolerant,
  }
  if options.parts then o.part, o.parts = options.part, options.parts end
  if shuffled then o.repeats, o.mixup, o.cutmix, o.switch = spec.repeats, spec.mixup, spec.cutmix, spec.switch end
  local loader = core.data.loader(o)
  return setmetatable({ loader = loader, data = self, epoch = o.epoch }, Feed)
end

--- Whole training batches of an epoch.
---@param batch integer
---@return integer
function Data:batches(batch)
  return self.count.train // batch
end

--- xxh64 of the files behind the data, for the run folder; folders are known by their counts.
---@return table name -> hex
function Data:hashes()
  local out = {}
  for _, split in ipairs { "train", "test" } do
    if M.kinds[self.spec.kind].folder then
      out[self.files[split][1]] = ("%d images"):format(self.sets[split]:count())
    else
      for _, path in ipairs(self.files[split]) do out[path] = core.hash(path) end
    end
  end
  if self.spec.list ~= "" then out[self.spec.list] = core.hash(self.spec.list) end
  return out
end

--- Closes the files.
function Data:close()
  for _, set in pairs(self.sets) do set:close() end
end

-- [C,1,1] on the device: scale x + shift = (x/255 - mean) / std.
local function affine(self)
  local scale, shift = {}, {}
  for c = 1, self.channels do
    scale[c], shift[c] = { { 1 / (255 * self.std[c]) } }, { { -self.mean[c] / self.std[c] } }
  end
  self.scale, self.shift = core.tensor(scale, "f32", self.device), core.tensor(shift, "f32", self.device)
end

-- Says what is expected where, before anything is opened.
local function check_there(spec, def, files)
  for _, split in ipairs { "train", "test" } do
    for _, path in ipairs(files[split]) do
      if not lfs.attributes(path) then
        check.fail(74, ("%s: no such %s; expected %s. Elsewhere: data.root=DIR"):format(path, def.folder and "folder" or "file",
          def.hint or ("the %s images of the %s data"):format(split, spec.kind)), { file = path, id = "data" })
      end
    end
  end
end

-- Records of a list, i32[n] from 0, sorted: a line each with the record's name; lines that begin with # are for people.
local function read_list(path, set)
  local wanted, n = {}, 0
  local bytes = require "cab.folder".read(path)
  for line in (bytes .. "\n"):gmatch "([^\n]*)\n" do
    n = n + 1
    if line ~= "" and line:sub(1, 1) ~= "#" then
      if wanted[line] then
        check.fail(65, ("%s: line %d: '%s' stands in line %d too"):format(path, n, core.escape(line), wanted[line]), { file = path, id = "list" })
      end
      wanted[line] = n
    end
  end
  local picked = {}
  for i = 1, set:count() do
    local name = set:name(i)
    if wanted[name] then picked[#picked + 1], wanted[name] = i - 1, nil end
  end
  local name, line = next(wanted)
  for other, at in pairs(wanted) do if at < line then name, line = other, at end end
  if name then
    check.fail(65, ("%s: line %d: '%s' is none of the %d training images"):format(path, line, core.escape(name), set:count()),
      { file = path, id = "list" })
  end
  if #picked == 0 then check.fail(65, path .. ": no images in it", { file = path, id = "list" }) end
  return core.tensor(picked, "i32")
end

-- Which images to train on: those of a list, of a fraction, or all (nil); and of them those that are held out (nil: none).
local function choose(self)
  local spec, set = self.spec, self.sets.train
  local listed = spec.list ~= "" and read_list(spec.list, set)
  if listed and spec.fraction < 1 then check.usage("data.list and data.fraction exclude each other: make a list of that fraction") end
  if spec.validation == 0 and (listed or spec.fraction == 1) then return listed or nil end
  local labels = set:labels()
  if listed then
    local all, some = labels:totable(), {}
    for i, record in ipairs(listed:totable()) do some[i] = all[record + 1] end
    labels = core.tensor(some, "i32")
  end
  local kept, held = core.data.subset(labels, spec.fraction, spec.seed, spec.validation)
  if spec.validation == 0 then return kept end
  if held:count() == 0 then
    check.fail(2, ("data.validation: a share of %g of %d training images in %d classes is none of any class: give a larger share, or more images"):format(
      spec.validation, kept:count(), self.classes), { id = "validation" })
  end
  local function records(indices)
    if not listed then return indices end
    local all, out = listed:totable(), {}
    for i, at in ipairs(indices:totable()) do out[i] = all[at + 1] end
    return core.tensor(out, "i32")
  end
  return records(kept), records(held)
end

-- What a run should say about its data.
local function notes(self)
  local spec, out = self.spec, {}
  if spec.jitter ~= 0 and M.parse_augment(spec.augment).layers then
    out[1] = "data.jitter is not used beside RandAugment, as in the published pipeline"
  end
  for _, split in ipairs { "train", "test" } do
    local set = self.sets[split]
    if set:note() then out[#out + 1] = "warning: " .. set:note() end
  end
  return out
end

--- Opens the data of a spec.
---@param spec table from a constructor above, after overrides
---@param device? string where batches go, default "cpu"
---@return Data
function M.build(spec, device)
  local def = M.kinds[spec.kind]
  if not def then check.usage("data: " .. check.unknown("kind", spec.kind, M.kinds)) end
  if def.build then return def.build(spec, device) end
  local self = setmetatable({ spec = spec, files = { train = def.files(spec, "train"), test = def.files(spec, "test") } }, Data)
  check_there(spec, def, self.files)
  self.sets = { train = def.open(self.files.train, nil, spec) }
  self.sets.test = def.open(self.files.test, self.sets.train:names(), spec) -- the same classes in the same order
  self.folder = def.folder
  self.classes, self.channels = self.sets.train:classes(), self.sets.train:channels()
  self.size = spec.size or self.sets.train:size() or 224
  self.mean = check.per_channel(spec.mean or def.mean, self.channels, "data.mean")
  self.std = check.per_channel(spec.std or def.std, self.channels, "data.std")
  self.device = core.device(device or "cpu")
  if self.device ~= "cpu" then affine(self) end
  self.indices = {}
  self.indices.train, self.indices.validation = choose(self)
  self.notes = notes(self)
  self.count = {
    train = self.indices.train and self.indices.train:count() or self.sets.train:count(),
    validation = self.indices.validation and self.indices.validation:count(),
    test = self.sets.test:count(),
  }
  return self
end

return M
