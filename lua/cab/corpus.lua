--- Text for language models: documents to streams of token ids, streams to batches ids i32[b,l] with the number of each id's
--- document in its window, i32[b,l]. Windows follow one another, documents are packed; the order of an epoch is a function of
--- (seed, epoch), so a place in it is a step number and nothing else is kept in a checkpoint.
local core = require "cab.core"
local check = require "cab.check"
local lfs = require "lfs"
local tokenizers = require "cab.tokenizer"
local M = {}

local IN_MEMORY = 256 << 20 -- bytes of text that are encoded at the start of a run; more belongs into a token file

M.options = {
  train     = { "string|table", default = "data/austen/persuasion.txt.gz" }, -- a file or a list: .txt, .jsonl, either .gz, or a token file
  test      = { "string|table", default = "" },                 -- "": the last `holdout` of the training windows
  holdout   = { "number", default = 0.05, min = 0, max = 0.9 }, -- share
  validation = { "number", default = 0, min = 0, max = 0.9 },   -- share of the training windows, their last, held out of training
  tokenizer = { "string|table", default = "gpt2" },             -- as cab.tokenizer.open takes it
  field     = { "string", default = "text" },                   -- of each line of a .jsonl file
  length    = { "integer", default = 1024, min = 2, max = 1 << 24 }, -- ids of a window
  raw       = { "string", default = "", one_of = { "", "u16", "u32" } }, -- token files without a header
  vocab     = { "integer", default = 0, min = 0 },              -- of token files that do not say; 0: the tokenizer's
  ending    = { "integer", default = -1, min = -1 },            -- id that ends documents in such files; -1: the tokenizer's
}

--- "txt", "jsonl" or "tokens" by a file's name.
---@param path string
---@return string
function M.kind_of(path)
  local name = path:gsub("%.gz$", "")
  return name:match "%.txt$" and "txt" or name:match "%.jsonl$" and "jsonl" or "tokens"
end

-- Encodes the files of text into one stream in memory.
local function encode(paths, spec, tokenizer)
  local writer <close> = core.token_writer { vocab = tokenizer:count(), ending = tokenizers.ending(tokenizer), hash = tokenizer:hash() }
  local bytes = 0
  for _, path in ipairs(paths) do
    local docs <close> = core.documents(path, M.kind_of(path) == "jsonl" and spec.field or nil)
    for n in function() return writer:take(docs, tokenizer) end do
      bytes = bytes + n
      if bytes > IN_MEMORY then
        check.fail(2, ("%s: more than %d MiB of text: make a token file of it first: cab tokenize %s -o FILE.bin"):format(path, IN_MEMORY >> 20, path),
          { file = path, id = "text" })
      end
    end
  end
  local _, _, tokens = writer:commit()
  return tokens
end

-- A token file, whose vocabulary must be the tokenizer's.
local function open_tokens(path, spec, tokenizer)
  local tokens = core.tokens { file = path, raw = spec.raw ~= "" and spec.raw or nil }
  local format = tokens:format()
  if format.hash and format.hash ~= tokenizer:hash() then
    check.fail(65, ("%s: its ids are of a tokenizer of %s ids with hash %s, this one has %d and hash %s"):format(path, format.vocab or "?", format.hash,
      tokenizer:count(), tokenizer:hash()), { file = path, id = "tok-hash" })
  end
  if format.vocab then return tokens end
  tokens:close()
  local ending = spec.ending >= 0 and spec.ending or tokenizers.ending(tokenizer)
  return core.tokens { file = path, raw = spec.raw ~= "" and spec.raw or nil, ending = ending, vocab = spec.vocab > 0 and spec.vocab or tokenizer:count() }
end

-- The stream of a split: one token file, or any number of text files.
local function open(what, given, spec, tokenizer)
  local paths, text = type(given) == "table" and given or { given }, 0
  if #paths == 0 then check.usage(("data.%s is an empty list"):format(what)) end
  for i, path in ipairs(paths) do
    paths[i] = require "cab.data".find(path)
    if not lfs.attributes(paths[i]) then check.fail(74, ("%s: no such file (data.%s)"):format(path, what), { file = path, id = "data" }) end
    if M.kind_of(path) ~= "tokens" then text = text + 1 end
  end
  if text == #paths then return encode(paths, spec, tokenizer), paths end
  if #paths > 1 then check.usage(("data.%s: a token file stands alone; join several with cab tokenize"):format(what)) end
  return open_tokens(paths[1], spec, tokenizer), paths
end

---@class TextData
---@field device string where batches go
---@field vocab integer ids are below
---@field ending integer? id that ends documents
---@field length integer ids of a window
---@field count table windows of train, validation (nil: none) and test
---@field tokens table ids of them
---@field tokenizer userdata
local Data = {}
Data.__index = Data

--- One pass over a split.
---@class TextFeed
local Feed = {}
Feed.__index = Feed

--- The next batch on the CPU: ids i32[b,l], segments i32[b,l]; nil at the end.
---@return cab.Tensor? ids
---@return cab.Tensor? segments
function Feed:raw() return self.windows:next() end

--- The next batch written to tensors on any device; false, and nothing is taken, if there is none of their shape.
---@param ids any i32[b,l]
---@param segments any i32[b,l]
---@return boolean
function Feed:into(ids, segments) return self.windows:into(ids, segments) end

--- The next batch on the data's device.
---@return cab.Tensor? ids i32[b,l]; nil at the end
---@return cab.Tensor? segments i32[b,l]
function Feed:next()
  local ids, segments = self:raw()
  if ids and self.device ~= "cpu" then return ids:to(self.device), segments:to(self.device) end
  return ids, segments
end

--- Windows of the split in the order of this pass: i32[n], from 0.
---@return cab.Tensor
function Feed:order() return self.windows:order() end

--- Nothing is ever left out: an id that is none is an error.
---@return nil
function Feed.complaints() return nil end

--- Seconds that batches were waited for so far.
---@return number
function Feed:waited() return self.windows:wait() end

--- Ends the pass and its threads.
function Feed:close() self.windows:close() end
Feed.__close = Feed.close

--- A pass over a split. Training batches all have `batch` windows, shuffled; test batches end short and follow the text.
---@param split string "train" or "test"
---@param options table batch, seed, epoch (0-based), start (batches to leave out), in_order (of training windows: not shuffled, all of them)
---@return TextFeed
function Data:loader(split, options)
  local train, part = split == "train" and not options.in_order, self.parts[split]
  local windows = part.tokens:windows { length = self.length, batch = options.batch, first = part.first, count = self.count[split],
    seed = options.seed or 0, epoch = options.epoch or 0, start = options.start or 0, shuffle = train, drop_last = train }
  return setmetatable({ windows = windows, device = self.device }, Feed)
end

--- Ids of a split in their order, for windows with a stride: i32[n] from `at` on, counted from 0 within the split.
---@param split string
---@param at integer
---@param n integer
---@return cab.Tensor
function Data:read(split, at, n)
  local part = self.parts[split]
  if at < 0 or n < 0 or at + n > self.tokens[split] then
    check.usage(("ids %d to %d of %d"):format(at, at + n, self.tokens[split]))
  end
  return part.tokens:read(part.first + at, n)
end

--- The first ids of a split, as one text: i32[n].
---@param split string
---@param most? integer 0 or none: all
---@return cab.Tensor
function Data:ids(split, most)
  local n = self.tokens[split]
  return self:read(split, 0, most and most > 0 and math.min(most, n) or n)
end

--- Whole training batches of an epoch.
---@param batch integer
---@return integer
function Data:batches(batch) return self.count.train // batch end

--- What images are on their way to a model: ids stay.
---@param ids cab.Tensor
---@return cab.Tensor
function Data:normalise(ids) return ids end

--- xxh64 of the files behind the data and of the tokenizer.
---@return table name -> hex
function Data:hashes()
  local out = { tokenizer = self.tokenizer:hash() }
  for _, path in ipairs(self.files) do out[path] = core.hash(path) end
  return out
end

--- Closes token files and tokenizer.
function Data:close()
  for _, part in pairs(self.parts) do part.tokens:close() end
  self.tokenizer:close()
end

local function too_short(what, tokens, length)
  check.fail(65, ("data.%s: %d ids, a window has %d (data.length)"):format(what, tokens, length), { id = "text-short" })
end

--- Opens the data of a spec.
---@param spec table from cab.data.text, after overrides
---@param device? string default "cpu"
---@return TextData
function M.build(spec, device)
  local self = setmetatable({ spec = spec, length = spec.length, device = core.device(device or "cpu"), notes = {} }, Data)
  self.tokenizer = tokenizers.open(spec.tokenizer)
  local train, files = open("train", spec.train, spec, self.tokenizer)
  local total, format = train:count(), train:format()
  self.files, self.vocab, self.ending = files, format.vocab, format.ending
  local windows = total // self.length
  if spec.test ~= "" then
    local test, more = open("test", spec.test, spec, self.tokenizer)
    table.move(more, 1, #more, #files + 1, files)
    self.parts = { train = { tokens = train, first = 0 }, test = { tokens = test, first = 0 } }
    self.count = { train = windows, test = test:count() // self.length }
    self.tokens = { train = total, test = test:count() }
  else
    local held = spec.holdout > 0 and math.max(1, math.floor(windows * spec.holdout + 0.5)) or 0
    self.count = { train = windows - held, test = held }
    local first = self.count.train * self.length
    self.parts = { train = { tokens = train, first = 0 }, test = { tokens = train, first = first } }
    self.tokens = { train = first, test = total - first }
  end
  if spec.validation > 0 then
    local held = math.floor(self.count.train * spec.validation + 1e-9)
    if held < 1 then
      check.fail(2, ("data.validation: a share of %g of %d training windows is none: give a larger share, or more text"):format(spec.validation,
        self.count.train), { id = "validation" })
    end
    self.count.train, self.count.validation = self.count.train - held, held
    self.tokens.train = self.count.train * self.length
    self.parts.validation, self.tokens.validation = { tokens = train, first = self.tokens.train }, held * self.length
  end
  if self.count.train < 1 then too_short("train", total, self.length) end
  if self.count.test < 1 and (spec.test ~= "" or spec.holdout > 0) then too_short("test", self.tokens.test, self.length) end
  return self
end

--- Converts files to a token file. The file appears whole under its name or not at all.
---@param paths string[] .txt or .jsonl, either may be .gz
---@param out string
---@param options? table tokenizer ("gpt2" or an open one), field ("text"), raw (no header), control (special tokens in the text become ids),
---  progress (fun(done, total, tokens): called now and then)
---@return table { tokens=, documents=, bytes=, seconds= }
function M.convert(paths, out, options)
  local o = options or {}
  local tokenizer = type(o.tokenizer) == "userdata" and o.tokenizer or tokenizers.open(o.tokenizer or "gpt2")
  local writer <close> = core.token_writer { path = out, vocab = tokenizer:count(), ending = tokenizers.ending(tokenizer),
    hash = tokenizer:hash(), raw = o.raw }
  local begun, bytes, done, total = core.now(), 0, 0, 0
  for _, path in ipairs(paths) do total = total + (lfs.attributes(path, "size") or 0) end
  for _, path in ipairs(paths) do
    local docs <close> = core.documents(path, M.kind_of(path) == "jsonl" and (o.field or "text") or nil)
    for n in function() return writer:take(docs, tokenizer, o.control) end do
      bytes = bytes + n
      if o.progress then o.progress(done + (docs:position()), total, (writer:written())) end
    end
    done = done + (docs:position())
  end
  local tokens, documents = writer:commit()
  return { tokens = tokens, documents = documents, bytes = bytes, seconds = core.now() - begun }
end

return M
