--- Data sets: constructors return plain specs, `build` opens the files. Batches are f32 [b, C, H, W], normalised as
--- (x/255 - mean) / std: by the loader on the CPU, elsewhere on the device, to which the bytes travel. A per-class fraction is a
--- list of indices, nested: 5 % is part of 10 %.
local core = require "cab.core"
local check = require "cab.check"
local M = {}

local shared = {
  fraction  = { "number", default = 1, min = 0, max = 1 },  -- of the training images of each class
  seed      = { "integer", default = 0, min = 0 },           -- of the fraction: the same images for every method
  flip      = { "boolean", default = false },                -- mirrored left-right with probability 1/2
  pad       = { "integer", default = 0, min = 0, max = 64 }, -- random crop after padding each side by so many pixels
  size      = { "integer", min = 1, max = 1024 },            -- side in pixels; default: as in the files
  mean      = { "number|table" },                            -- one number or one a channel
  std       = { "number|table" },
  threads   = { "integer", default = 1, min = 0, max = 64 }, -- loader threads
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
  folder = { -- ROOT/train/CLASS/IMAGE.png|jpg
    options = schema { root = { "string", required = true }, train = "train", test = "test",
      crop = { "string", default = "resized", one_of = { "resized", "random", "center", "none" } }, -- of training images
      resize = { "integer", min = 1, max = 4096 },                                                    -- shorter side in tests
      on_bad = { "string", default = "error", one_of = { "error", "skip" } } },
    mean = { 0.485, 0.456, 0.406 }, std = { 0.229, 0.224, 0.225 },
    files = function(spec, split) return { under(spec.root, spec[split]) } end,
    open = function(files, names) return core.data.open { kind = "folder", root = files[1], names = names } end,
  },
}

for kind, def in pairs(M.kinds) do
  --- A spec of this kind; unknown options are faults with code 2.
  M[kind] = function(options)
    local spec = check.options(def.options, options, "data." .. kind)
    spec.kind = kind
    return spec
  end
end

---@class Data
---@field device string where batches go: "cpu", "cuda:0"
---@field classes integer
---@field channels integer
---@field size integer side of an image in pixels
---@field count table train and test images in use
local Data = {}
Data.__index = Data

local function transform(self, split)
  local spec, train = self.spec, split == "train"
  local t = { size = self.size, channels = self.channels, mean = self.mean, std = self.std, dtype = self.scale and "u8" or "f32" }
  if train then t.flip, t.pad = spec.flip, spec.pad end
  if spec.kind == "folder" then
    t.crop = train and spec.crop or "center"
    t.resize = not train and (spec.resize or math.floor(self.size * 256 / 224 + 0.5)) or nil
  elseif train and spec.pad > 0 then
    t.crop = "random"
  end
  return t
end

--- One pass over a split.
---@class Feed
local Feed = {}
Feed.__index = Feed

--- The next batch as the loader has it, on the CPU: images f32 or u8 [b,C,H,W], labels i32[b]; nil at the end.
function Feed:raw() return self.loader:next() end

--- The next batch, as raw() gives it, written to tensors on any device. False, and nothing is taken, if there is none of their
--- shape.
---@param images any u8 or f32 [b,C,H,W]
---@param labels any i32[b]
---@return boolean
function Feed:into(images, labels) return self.loader:into(images, labels) end

--- Seconds that batches were waited for so far.
---@return number
function Feed:waited() return self.loader:wait() end

--- The next batch on the data's device: images f32[b,C,H,W], normalised, labels i32[b]; nil at the end.
function Feed:next()
  local images, labels = self:raw()
  if not images then return nil end
  local data = self.data
  if not data.scale then return images, labels end
  return data:normalise(images:to(data.device)), labels:to(data.device)
end

function Feed:close() self.loader:close() end
Feed.__close = Feed.close

--- Bytes as they travelled become f32, (x/255 - mean) / std; what is f32 already stays. Launches only.
---@param images any u8 or f32 [b,C,H,W]
---@return any f32[b,C,H,W]
function Data:normalise(images)
  if images:dtype() ~= "u8" then return images end
  return images:to("f32") * self.scale + self.shift
end

--- A pass over a split. Training batches all have `batch` images (the rest of an epoch is left out); test batches end short.
---@param split string "train" or "test"
---@param options table batch, seed, epoch (0-based), start (batches to leave out)
---@return Feed
function Data:loader(split, options)
  local train = split == "train"
  local loader = core.data.loader {
    dataset = self.sets[split], indices = self.indices[split], batch = options.batch, seed = options.seed or 0,
    epoch = options.epoch or 0, shuffle = train, start = options.start or 0, threads = self.spec.threads,
    transform = transform(self, split), drop_last = train, on_bad = self.spec.on_bad,
  }
  return setmetatable({ loader = loader, data = self }, Feed)
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
    if self.spec.kind == "folder" then
      out[self.files[split][1]] = ("%d images"):format(self.sets[split]:count())
    else
      for _, path in ipairs(self.files[split]) do out[path] = core.hash(path) end
    end
  end
  return out
end

function Data:close()
  for _, set in pairs(self.sets) do set:close() end
end

local function per_channel(value, channels, path)
  if type(value) == "number" then value = { value } end
  if #value == 1 then for c = 2, channels do value[c] = value[1] end end
  if #value ~= channels then check.usage(("%s has %d values, the images have %d channels"):format(path, #value, channels)) end
  return value
end

-- [C,1,1] on the device: scale x + shift = (x/255 - mean) / std.
local function affine(self)
  local scale, shift = {}, {}
  for c = 1, self.channels do
    scale[c], shift[c] = { { 1 / (255 * self.std[c]) } }, { { -self.mean[c] / self.std[c] } }
  end
  self.scale, self.shift = core.tensor(scale, "f32", self.device), core.tensor(shift, "f32", self.device)
end

--- Opens the data of a spec.
---@param spec table from a constructor above, after overrides
---@param device? string where batches go, default "cpu"
---@return Data
function M.build(spec, device)
  local def = M.kinds[spec.kind]
  if not def then check.usage("data: " .. check.unknown("kind", spec.kind, M.kinds)) end
  local self = setmetatable({ spec = spec, files = { train = def.files(spec, "train"), test = def.files(spec, "test") } }, Data)
  self.sets = { train = def.open(self.files.train) }
  self.sets.test = def.open(self.files.test, self.sets.train:names()) -- the same classes in the same order
  self.classes, self.channels = self.sets.train:classes(), self.sets.train:channels()
  self.size = spec.size or self.sets.train:size() or 224
  self.mean = per_channel(check.copy(spec.mean or def.mean), self.channels, "data.mean")
  self.std = per_channel(check.copy(spec.std or def.std), self.channels, "data.std")
  self.device = core.device(device or "cpu")
  if self.device ~= "cpu" then affine(self) end
  self.indices = {}
  if spec.fraction < 1 then
    self.indices.train = core.data.subset(self.sets.train:labels(), spec.fraction, spec.seed)
  end
  self.count = {
    train = self.indices.train and self.indices.train:count() or self.sets.train:count(),
    test = self.sets.test:count(),
  }
  return self
end

return M
