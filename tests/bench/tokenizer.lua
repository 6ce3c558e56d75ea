-- Speed of the tokenizer on one core, cold (an empty cache of words) and warm, and of two others in the same run where python3 (or
-- $CAB_PYTHON) has them. Seconds of processor time, so that other work on the machine counts little.
-- cab run tests/bench/tokenizer.lua [FILE.txt]: default are the test texts, ten times.
local cab = require "cab"
local core = cab.core

local function best(f)
  local least = math.huge
  for _ = 1, 5 do
    local begun = os.clock()
    f()
    least = math.min(least, os.clock() - begun)
  end
  return least
end

local function read(path)
  local f <close> = assert(io.open(path, "rb"))
  return f:read "a"
end

local function row(name, seconds, bytes, what) print(("%-34s %9.2f ms %8.1f MB/s  %s"):format(name, 1e3 * seconds, bytes / seconds / 1e6, what or "")) end

local function test_texts()
  local list = {}
  for line in io.lines "tests/fixtures/tokenizer/gpt2.jsonl" do list[#list + 1] = core.json_decode(line).text end
  return table.concat(list, "\n"):rep(10)
end

local text = arg[1] and read(arg[1]) or test_texts()
local hash
print(("\n-- tokenizer: GPT-2, %d bytes of text"):format(#text))
for _, name in ipairs { "gpt2", "phi" } do
  local begun = os.clock()
  local t = cab.tokenizer.open(name)
  local opened = os.clock() - begun
  begun = os.clock()
  local ids <close> = t:encode(text)
  row(name .. " encode, cold", os.clock() - begun, #text, ("%d ids; opened in %.0f ms"):format(ids:count(), 1e3 * opened))
  row(name .. " encode, warm", best(function() local again <close> = t:encode(text) end), #text)
  row(name .. " decode", best(function() t:decode(ids) end), #text)
  hash = hash or core.hash(nil, table.concat(ids:totable(), ","))
end

local python = os.getenv "CAB_PYTHON" or "python3"
local path = os.tmpname()
core.write_file(path, text)
local pipe = io.popen(("RAYON_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false %s tests/bench/tokenizer_peer.py '%s' 2>&1"):format(python, path))
local any = false
for line in pipe:lines() do
  local name, seconds, ids, theirs = line:match "^(%S+) (%S+) (%d+) (%x+)$"
  if name then
    row(name .. " encode", tonumber(seconds), #text, ids .. " ids, " .. (theirs == hash and "the same" or "OTHER IDS"))
    any = true
  else
    print(line)
  end
end
pipe:close()
os.remove(path)
if not any then print "no peer: CAB_PYTHON has neither tokenizers nor tiktoken" end
