--- Packed documents: rows of tokens that hold several, told apart by their segment numbers. What knows nothing of segments
--- runs over each document by itself, so nothing of one reaches another.
local core = require "cab.core"
local M = {}

--- The documents of segment i32 [b,l], row by row: lists of {first, last}. nil if each row is one. Reads the numbers back.
---@return table[]|nil
function M.find(segment)
  local rows, packed = {}, false
  for b, numbers in ipairs(segment:to("cpu"):totable()) do
    local list, first = {}, 1
    for t = 2, #numbers + 1 do
      if numbers[t] ~= numbers[t - 1] then
        list[#list + 1] = { first, t - 1 }
        first = t
      end
    end
    rows[b], packed = list, packed or #list > 1
  end
  return packed and rows or nil
end

--- fn(...) over tensors [b,l,*], giving [b,l,*]; document by document where o.documents says that rows hold several.
---@param o? table of model:body
function M.each(o, fn, ...)
  local found = o and o.documents
  if not found then return (fn(...)) end
  local rows, all = {}, { ... }
  for b, list in ipairs(found) do
    local parts = {}
    for i, d in ipairs(list) do
      local piece = {}
      for k, t in ipairs(all) do piece[k] = t:slice(1, b, b):slice(2, d[1], d[2]) end
      parts[i] = fn(table.unpack(piece))
    end
    rows[b] = #parts > 1 and core.concat(parts, 2) or parts[1]
  end
  return #rows > 1 and core.concat(rows, 1) or rows[1]
end

--- Places of tokens in their documents, from 0, behind `past` tokens: i32 [l], or [b,l] where rows hold several documents.
function M.positions(o, l, past, device)
  local found = o and o.documents
  if not found then return (core.arange(l):to("f64") + past):to("i32"):to(device) end
  local rows = {}
  for b, list in ipairs(found) do
    rows[b] = {}
    for _, d in ipairs(list) do
      for t = d[1], d[2] do rows[b][t] = t - d[1] end
    end
  end
  return core.tensor(rows, "i32", device)
end

return M
