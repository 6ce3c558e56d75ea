--- The terminal: colours where they are wanted, its width, bars and small charts of letters.
local core = require "cab.core"
local M = {}

local codes = { bold = "1", dim = "2", red = "31", green = "32", yellow = "33", blue = "34", cyan = "36" }

--- True if standard output or, with 2, standard error shows colours: a terminal, and no NO_COLOR (no-color.org).
---@param fd? integer
function M.coloured(fd)
  local no = os.getenv "NO_COLOR"
  return core.isatty(fd or 1) and (no == nil or no == "") and os.getenv "TERM" ~= "dumb"
end

--- Text in a colour, where there are any. @param name "bold"|"dim"|"red"|"green"|"yellow"|"blue"|"cyan"
function M.paint(text, name, fd)
  return M.coloured(fd) and ("\27[%sm%s\27[0m"):format(codes[name], text) or text
end

--- Columns of the terminal: COLUMNS, or what it says itself, or 80.
function M.width()
  return math.tointeger(tonumber(os.getenv "COLUMNS")) or core.columns() or 80
end

--- "12.3 MiB". @param bytes number
function M.bytes(bytes)
  for _, unit in ipairs { { 1 << 30, "GiB" }, { 1 << 20, "MiB" }, { 1 << 10, "KiB" } } do
    if bytes >= unit[1] then return ("%.1f %s"):format(bytes / unit[1], unit[2]) end
  end
  return ("%d B"):format(bytes)
end

local dots = { { 0x40, 0x80 }, { 0x04, 0x20 }, { 0x02, 0x10 }, { 0x01, 0x08 } } -- of a braille cell, from below: left, right

-- Values as n of them: means of equal shares where there are more, on straight lines between them where there are fewer.
local function resampled(values, n)
  local out, m = {}, #values
  local function at(i)
    local v = values[i]
    return v and v == v and math.abs(v) < math.huge and v or nil
  end
  for x = 1, n do
    if m <= n then
      local p = m > 1 and 1 + (x - 1) * (m - 1) / (n - 1) or 1
      local low = math.min(math.floor(p), m)
      local a, b = at(low), at(math.min(low + 1, m))
      out[x] = p == low and (a or false) or a and b and a + (p - low) * (b - a) or false
    else
      local sum, count = 0, 0
      for i = (x - 1) * m // n + 1, x * m // n do
        if at(i) then sum, count = sum + values[i], count + 1 end
      end
      out[x] = count > 0 and sum / count or false
    end
  end
  return out
end

--- A curve in braille dots, two values a column, four rows a line, with the range at its side.
---@param values number[] finite ones are drawn
---@param columns integer
---@param lines integer
---@return string[] lines
function M.chart(values, columns, lines)
  if #values == 0 then return {} end
  local cells, low, high = {}, math.huge, -math.huge
  local means = resampled(values, 2 * columns)
  for _, v in ipairs(means) do if v then low, high = math.min(low, v), math.max(high, v) end end
  if low > high then return {} end
  local top = 4 * lines - 1
  for x, v in ipairs(means) do
    if v then
      local y = high > low and math.floor((v - low) / (high - low) * top + 0.5) or 0
      local line, column = lines - y // 4, (x + 1) // 2
      cells[line] = cells[line] or {}
      cells[line][column] = (cells[line][column] or 0) | dots[y % 4 + 1][(x - 1) % 2 + 1]
    end
  end
  local out = {}
  for l = 1, lines do
    local text = {}
    for c = 1, columns do text[c] = utf8.char(0x2800 + (cells[l] and cells[l][c] or 0)) end
    out[l] = table.concat(text) .. (l == 1 and (" %.4g"):format(high) or l == lines and (" %.4g"):format(low) or "")
  end
  return out
end

return M
