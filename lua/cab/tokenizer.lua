--- Tokenizers: byte-level BPE of GPT-2, Phi and GPT-NeoX, from the files their models come with; exact with Hugging Face's
--- tokenizers (Radford et al. 2019 for the method).
local core = require "cab.core"
local check = require "cab.check"
local M = {}

local END = "<|endoftext|>"

-- Files of a model folder, in the order in which they are looked for.
local whole = { "tokenizer.cab", "tokenizer.json" }
local lists = { { "merges.txt", "vocab.json" }, { "vocab.bpe", "encoder.json" } }

local function exists(path)
  local f = io.open(path, "rb")
  if f then f:close() end
  return f ~= nil
end

local function find_in(path)
  for _, name in ipairs(whole) do
    if exists(path .. "/" .. name) then return { file = path .. "/" .. name } end
  end
  for _, pair in ipairs(lists) do
    local merges, vocab, added = path .. "/" .. pair[1], path .. "/" .. pair[2], path .. "/added_tokens.json"
    if exists(merges) then
      return { file = merges, vocab = exists(vocab) and vocab or nil, added = exists(added) and added or nil }
    end
  end
end

local function in_folder(path)
  return find_in(path) or check.fail(74, ("%s: no tokenizer here: expected tokenizer.json, or merges.txt or vocab.bpe"):format(path),
    { file = path, id = "tokenizer" })
end

--- Opens a tokenizer.
---@param from string|table "gpt2" (comes with the program), "gpt2:N" (its first N merges: 257 + N ids), "phi", a file (tokenizer.json,
---  vocab.bpe, merges.txt, what tokenizer:save wrote), a model folder, or { file=, vocab=, added=, merges= }
---@return userdata tokenizer with encode, decode, token, id, count, hash, save, close
function M.open(from)
  if type(from) == "table" then return core.tokenizer(from) end
  if type(from) ~= "string" then check.usage(("tokenizer is a %s, expected a name, a path or a table"):format(type(from))) end
  local find = require "cab.data".find
  local merges = from:match("^gpt2:(%d+)$")
  if from == "gpt2" or merges then return core.tokenizer { file = find "data/gpt2/vocab.bpe.gz", merges = math.tointeger(tonumber(merges)) } end
  if from == "phi" then return core.tokenizer { file = find "data/gpt2/vocab.bpe.gz", added = find "data/gpt2/phi_added_tokens.json" } end
  local lfs = require "lfs"
  if lfs.attributes(from, "mode") == "directory" then return core.tokenizer(in_folder(from)) end
  return core.tokenizer { file = from }
end

--- The id that ends a document: of <|endoftext|>; nil if there is none.
---@param tokenizer userdata
---@return integer?
function M.ending(tokenizer) return tokenizer:id(END) end

-- The first id whose bytes differ.
local function difference(a, b)
  for id = 0, math.min(a:count(), b:count()) - 1 do
    local x, y = a:token(id), b:token(id)
    if x ~= y then return id, x, y end
  end
end

local function shown(bytes) return bytes and '"' .. core.escape(bytes) .. '"' or "nothing" end

--- Why two tokenizers do not give the same ids; nil if they do.
---@param a userdata
---@param b userdata
---@param names? string[] what to call them, default { "teacher", "student" }
---@return string?
function M.mismatch(a, b, names)
  if a:hash() == b:hash() then return nil end
  local first, second = table.unpack(names or { "teacher", "student" })
  local id, x, y = difference(a, b)
  if id then return ("id %d is %s for the %s, %s for the %s"):format(id, shown(x), first, shown(y), second) end
  if a:count() ~= b:count() then return ("the %s has %d ids, the %s %d"):format(first, a:count(), second, b:count()) end
  return ("the %s and the %s have the same tokens, but other merges or rules"):format(first, second)
end

--- The tokenizer that a model came with: in the folder of its weights; nil if there is none.
---@param weights string file or folder
---@return userdata? tokenizer
---@return string? folder
function M.beside(weights)
  local folder = require "lfs".attributes(weights, "mode") == "directory" and weights or weights:match "^(.*)/[^/]*$" or "."
  local files = find_in(folder)
  if files then return core.tokenizer(files), folder end
end

return M
