--- Tables of text.
local M = {}

--- Lines of a table: header and rows of strings, numbers right-aligned.
---@param header string[]
---@param rows string[][]
---@return string
function M.table(header, rows)
  local width, lines = {}, {}
  for _, row in ipairs { header, table.unpack(rows) } do
    for i, text in ipairs(row) do width[i] = math.max(width[i] or 0, utf8.len(text) or #text) end
  end
  for _, row in ipairs { header, table.unpack(rows) } do
    local cells = {}
    for i, text in ipairs(row) do
      local pad = (" "):rep(width[i] - (utf8.len(text) or #text))
      cells[i] = i == 1 and text .. pad or pad .. text
    end
    lines[#lines + 1] = table.concat(cells, "   "):gsub("%s+$", "")
  end
  return table.concat(lines, "\n")
end

return M
