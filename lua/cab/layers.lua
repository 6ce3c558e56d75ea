--- Layer maps: which teacher layer each student layer learns from. A map is a name or {name, options}.
local check = require "cab.check"
local options = require "cab.options"
local M = {}

--- The options of each map; "manual" takes a list instead.
M.schema = {
  proportional = {}, one_to_one = {}, manual = {},
  last = { k = { "integer" } },
  stride = { k = { "integer", min = 1 } },
  learned = { near = { "integer", default = 0, min = 0 }, temperature = { "number", default = 1, min = 1e-3 },
    final = { "number", default = 0.1, min = 1e-3 } },
  search = { by = { "string", default = "cka", one_of = { "cka", "ridge" } }, monotone = { "boolean", default = true },
    images = { "integer", default = 200, min = 2 } },
}

local function wrong(text, ...) options.fail(2, "pairs-map", ("pairs " .. text):format(...)) end

-- Each returns teacher layer (1-based) by student layer, false where a student layer has none. L student, T teacher.
local maps = {}
function maps.proportional(L, T)
  local list = {}
  for i = 1, L do list[i] = (i - 1) * T // L + 1 end
  return list
end
function maps.one_to_one(L, T)
  if L ~= T then wrong("'one_to_one': the student has %d layers, the teacher %d", L, T) end
  return maps.proportional(L, T)
end
function maps.last(L, T, o)
  local k = o.k or math.min(L, T)
  if k < 1 or k > math.min(L, T) then wrong("'last': k is %s, expected 1 to %d", k, math.min(L, T)) end
  local list = {}
  for i = 1, L do list[i] = i > L - k and T - L + i end
  return list
end
-- Every k-th layer of the deeper model, counted so that the last layers meet; k fills the shallower one unless given.
function maps.stride(L, T, o)
  local k = o.k or math.max(L, T) // math.min(L, T)
  if k > math.max(L, T) then wrong("'stride': k is %d, the models have %d and %d layers", k, L, T) end
  local list, deeper = {}, L >= T
  for i = 1, L do
    local back = deeper and (L - i) / k or (L - i) * k
    local t = T - (math.tointeger(back) or math.huge)
    list[i] = t >= 1 and t
  end
  return list
end
function maps.manual(L, T, o)
  if #o ~= L then wrong("'manual': %d entries for %d student layers", #o, L) end
  for i, t in ipairs(o) do
    if t and (math.type(t) ~= "integer" or t < 1 or t > T) then
      wrong("'manual': entry %d is %s, expected false or 1 to %d", i, tostring(t), T)
    end
  end
  return table.move(o, 1, L, 1, {})
end
maps.learned, maps.search = maps.proportional, maps.proportional -- where they begin

--- The name of a map and its options, checked.
---@param map string|table|nil
---@return string name
---@return table options of "manual", the list
function M.parse(map)
  local o, list, named = type(map) == "table" and map or { map or "proportional" }, {}, {}
  local name = options.choice(o[1], options.names(M.schema), "layer map")
  for key, value in pairs(o) do
    if type(key) == "string" then named[key] = value elseif key > 1 then list[key - 1] = value end
  end
  named = check.options(M.schema[name], named, ("layer map '%s'"):format(name))
  return name, name == "manual" and list or named
end

--- Teacher layers by student layer. Maps: "proportional" (floor(l T / L)), "one_to_one", {"last", k=4} (the last k of each),
--- {"stride", k=2} (every k-th layer of the deeper model, from the last one back), {"manual", 1, 1, false, 2}, {"learned",
--- near=0, temperature=1, final=0.1} (a softmax over the teacher layers at most `near` from the proportional one, 0: all,
--- sharpened over the run), {"search", by="cka"|"ridge", monotone=true, images=200} (the most similar ones before training).
---@param map string|table|nil
---@param L integer student layers
---@param T integer teacher layers
---@return (integer|false)[]
function M.list(map, L, T)
  local name, o = M.parse(map)
  return maps[name](L, T, o)
end

--- The choice of one column for each row that has the largest sum, columns never falling where `monotone`.
---@param score number[][] [L][T]
---@param monotone boolean
---@return integer[]
function M.best(score, monotone)
  local L, T, sum, from, list = #score, #score[1], {}, {}, {}
  for i = 1, L do -- sum[i][t]: the best of rows 1..i that ends in column t
    sum[i], from[i] = {}, {}
    for t = 1, T do
      local best = monotone and t or T
      for u = 1, i > 1 and best or 0 do
        if not from[i][t] or sum[i - 1][u] > sum[i - 1][from[i][t]] then from[i][t] = u end
      end
      sum[i][t] = score[i][t] + (from[i][t] and sum[i - 1][from[i][t]] or 0)
    end
  end
  for i = L, 1, -1 do
    local best = list[i + 1] and from[i + 1][list[i + 1]]
    for t = 1, best and 0 or T do
      if not best or sum[L][t] > sum[L][best] then best = t end
    end
    list[i] = best
  end
  return list
end

return M
