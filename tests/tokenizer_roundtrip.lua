-- cab run tests/tokenizer_roundtrip.lua [MILLIONS=10] [SEED=1]: random Unicode strings through encode and decode of GPT-2's and Phi's
-- tokenizer; every string must come back. Strings are 0 to 24 characters of scripts, marks, spaces and all planes.
local cab = require "cab"
local core = cab.core
local millions, seed = tonumber(arg[1]) or 10, math.tointeger(tonumber(arg[2])) or 1
math.randomseed(seed)
local ranges = { { 0x20, 0x7e }, { 0x20, 0x7e }, { 0x20, 0x20 }, { 1, 0x24f }, { 0x300, 0x36f }, { 0x370, 0x33ff }, { 0x4e00, 0x9fff },
  { 0xac00, 0xd7a3 }, { 0x2000, 0x206f }, { 0x1f300, 0x1faff }, { 1, 0xd7ff }, { 0xe000, 0x10ffff } }
local random, char = math.random, utf8.char
local function text()
  local c, n = {}, random(0, 24)
  for i = 1, n do
    local range = ranges[random(#ranges)]
    c[i] = random(range[1], range[2])
  end
  return char(table.unpack(c))
end
local tokenizers = { cab.tokenizer.open "gpt2", cab.tokenizer.open "phi" }
local count, bytes, tokens, begun = 0, 0, 0, core.now()
for _ = 1, math.floor(millions * 1e6) do
  local s, t = text(), tokenizers[count % 2 + 1]
  local ids <close> = t:encode(s)
  count, bytes, tokens = count + 1, bytes + #s, tokens + ids:count()
  if t:decode(ids) ~= s then
    print(("string %d of seed %d does not come back: %s"):format(count, seed, core.json_encode(s)))
    os.exit(1)
  end
  if count % 1000000 == 0 then print(("%d strings, %d bytes, %d tokens, %.0f s"):format(count, bytes, tokens, core.now() - begun)) end
end
print(("%d strings came back"):format(count))
