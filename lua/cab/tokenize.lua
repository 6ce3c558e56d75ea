--- The command `cab tokenize`: files to a token file, one text to ids, ids of a token file to text.
local core = require "cab.core"
local check = require "cab.check"
local M = {}

-- "12 %  34.5 MB  8.1 M ids  61 MB/s  3 s left" on a terminal.
local function meter()
  if not core.isatty() then return nil end
  local begun, drawn = core.now(), 0
  return function(done, total, tokens)
    local now = core.now()
    if now - drawn < 0.2 then return end
    drawn = now
    local rate = done / (now - begun)
    io.stderr:write(("\r\27[K%3.0f %%  %.1f of %.1f MB  %.2f M ids  %.0f MB/s  %.0f s left"):format(100 * done / math.max(total, 1), done / 1e6,
      total / 1e6, tokens / 1e6, rate / 1e6, (total - done) / rate))
  end
end

local function convert(o, tokenizer)
  for _, path in ipairs(o.files) do
    if require "cab.corpus".kind_of(path) == "tokens" then
      check.fail(2, ("%s: expected .txt or .jsonl, either may be .gz"):format(path), { id = "usage", file = path })
    end
  end
  local show = not o.quiet and meter() or nil
  local r = require "cab.corpus".convert(o.files, o.out, { tokenizer = tokenizer, field = o.field, raw = o.raw, control = o.control, progress = show })
  if show then io.stderr:write "\r\27[K" end
  if o.quiet then return end
  print(("%s: %d ids of %d documents, %d bytes of text, %.2f s (%.1f MB/s)"):format(o.out, r.tokens, r.documents, r.bytes, r.seconds,
    r.bytes / r.seconds / 1e6))
end

local function decode(o, tokenizer)
  local raw = o.raw and (tokenizer:count() <= 65536 and "u16" or "u32") or nil
  for _, path in ipairs(o.files) do
    local tokens <close> = core.tokens { file = path, raw = raw, vocab = tokenizer:count() }
    local at = math.min(o.from, tokens:count())
    local ids <close> = tokens:read(at, math.min(o.count, tokens:count() - at))
    io.stdout:write(tokenizer:decode(ids), "\n")
  end
end

---@param o table parsed arguments
function M.run(o)
  local chosen = (o.out and 1 or 0) + (o.text and 1 or 0) + (o.decode and 1 or 0)
  if chosen ~= 1 then check.fail(2, "tokenize: expected one of --out FILE, --text TEXT and --decode", { id = "usage" }) end
  if not o.text and #o.files == 0 then check.fail(2, "tokenize: no files given", { id = "usage" }) end
  if o.text and #o.files > 0 then check.fail(2, "tokenize: --text takes no files", { id = "usage" }) end
  if o.from < 0 or o.count < 0 then check.fail(2, "tokenize: --from and --count are whole numbers from 0 on", { id = "usage" }) end
  local tokenizer <close> = require "cab.tokenizer".open(o.tokenizer)
  if o.text then
    local ids <close> = tokenizer:encode(o.text, o.control or false)
    print(ids:count() > 0 and table.concat(ids:totable(), " ") or "")
  elseif o.decode then
    decode(o, tokenizer)
  else
    convert(o, tokenizer)
  end
end

return M
