--- Packed documents: rows of tokens that hold several, told apart by their segment numbers. Ops that know of documents take their
--- tokens' places (op.places); what does not runs over each document by itself, so nothing of one reaches another.
local core = require "cab.core"
local op = core.ops
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

local Run = { __index = function(run, key)
  local segment = rawget(run, "segment")
  if key ~= "documents" or not segment then return nil end
  run.documents = M.find(segment) or false
  return run.documents
end }

--- What language.enter prepares, with `documents` (of M.find, or false) found when it is first asked for: a step that never asks reads
--- nothing back and can be captured as a graph.
---@param run table segment?
function M.run(run) return setmetatable(run, Run) end

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

--- Places of tokens in their documents, from 0, behind `past` tokens: i32 [b,l], or [l] without segments.
---@param ids cab.Tensor i32[b,l]
function M.positions(run, ids)
  if run.place then return run.place end
  local l, device = ids:size(2), ids:device()
  if run.past == 0 then return op.places(core.zeros({ 1, l }, "i32", device)):reshape(l) end
  return (core.arange(l):to("f64") + run.past):to("i32"):to(device)
end

return M
