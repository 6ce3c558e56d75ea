--- Faults with an exit code, and option tables checked against a schema with types, ranges and choices.
local core = require "cab.core"
local options = require "cab.options"
local M = {}

--- Raises a fault: a table with code, id, message, file, offset that prints as one line.
---@param code integer exit code of the program (2 usage, 65 input, 74 I/O, 75 stopped, 76 numerics)
---@param message string
---@param fields? table id, file, offset
function M.fail(code, message, fields)
  local e = { code = code, id = "", message = message, where = "" }
  for k, v in pairs(fields or {}) do e[k] = v end
  error(core.error(e), 0)
end

--- Code 2 with the recipe's line in front.
---@param text string
function M.usage(text) options.fail(2, "recipe", text) end

---@param e any an error value
---@return integer exit code
function M.code(e)
  if e == "not enough memory" then return 71 end -- what Lua raises
  return (type(e) == "table" or type(e) == "userdata") and math.tointeger(e.code) or 1
end

--- core.json_decode where what is no JSON has another message of the caller's own; other faults, as of memory, pass.
---@param text string
---@return any value nil: not JSON
function M.decode(text)
  local ok, value = pcall(core.json_decode, text)
  if not ok and M.code(value) ~= 65 then error(value, 0) end
  return ok and value or nil
end

local MOST = 40 -- names of a message: as many as any table of keys has, not all parameters of a model

--- "unknown option 'x'; did you mean 'y'?" or the list of what there is, cut where it is long.
---@param what string
---@param name any
---@param names table list, or a table whose keys are the names
---@return string
function M.unknown(what, name, names)
  local list = #names > 0 and names or options.names(names)
  local near = options.nearest(name, list)
  local shown = core.escape(tostring(name))
  return near and ("unknown %s '%s'; did you mean '%s'?"):format(what, shown, near)
    or ("unknown %s '%s' (known: %s%s)"):format(what, shown, table.concat(list, ", ", 1, math.min(#list, MOST)),
      #list > MOST and (" and %d more"):format(#list - MOST) or "")
end

local function kind_of(value) return math.type(value) == "integer" and "integer" or type(value) end

-- A schema entry is {type, default=, min=, max=, one_of=, check=}; a bare value stands for its own type and default.
local function entry(rule)
  if type(rule) == "table" and type(rule[1]) == "string" then return rule end
  local kind = kind_of(rule)
  return { kind == "integer" and "number" or kind, default = rule }
end
M.entry = entry

local function fits(rule, value)
  if rule[1] == type(value) then return true end
  for kind in rule[1]:gmatch("%w+") do
    if kind == "any" or kind == type(value) or (kind == "integer" and math.tointeger(value)) then return true end
  end
  return false
end

--- One value against its schema entry; integers given as floats (1e3) become integers.
---@return any value
function M.value(rule, value, path)
  rule = entry(rule)
  if not fits(rule, value) then
    M.usage(("%s is %s, expected %s"):format(path, type(value) == "table" and "a table"
      or ("%s (%s)"):format(core.escape(tostring(value)), kind_of(value)), (rule[1]:gsub("|", " or "))))
  end
  if rule[1]:find("integer") and type(value) == "number" then value = math.tointeger(value) or value end
  if type(value) == "number" and (value ~= value or (rule.min and value < rule.min) or (rule.max and value > rule.max)) then
    M.usage(("%s is %s, expected %s .. %s"):format(path, tostring(value), tostring(rule.min or "-inf"), tostring(rule.max or "inf")))
  end
  if rule.one_of and type(value) == "string" then
    for _, name in ipairs(rule.one_of) do if name == value then return value end end
    M.usage(path .. ": " .. M.unknown("value", value, rule.one_of))
  end
  return value
end

--- A number, or a list of one number or of one a channel, as a list of one a channel; faults with code 2.
---@param value number|number[]
---@param channels integer
---@param path string for messages
---@return number[]
function M.per_channel(value, channels, path)
  local list, out = type(value) == "table" and value or { value }, {}
  for c = 1, channels do out[c] = #list == 1 and list[1] or list[c] end
  if #list ~= 1 and #list ~= channels then M.usage(("%s has %d values, the images have %d channels"):format(path, #list, channels)) end
  return out
end

--- Faults with code 2 on what recipe.json could not hold: text that is not UTF-8, numbers that are not finite, functions.
---@param value any
---@param path string for messages
function M.storable(value, path)
  local kind = type(value)
  if kind == "string" and not utf8.len(value) then
    M.usage(("%s: '%s' is not UTF-8"):format(path, core.escape(value)))
  elseif kind == "number" and (value ~= value or value == math.huge or value == -math.huge) then
    M.usage(("%s is %s, expected a finite number"):format(path, value))
  elseif kind == "table" and not value.is_strategy then
    for k, v in pairs(value) do
      M.storable(k, path .. ": a key")
      M.storable(v, path .. "." .. k)
    end
  elseif kind ~= "table" and kind ~= "string" and kind ~= "number" and kind ~= "boolean" then
    M.usage(("%s is a %s, expected a number, text, boolean or table"):format(path, kind))
  end
end

--- A table of options against a schema: unknown keys, wrong types and ranges are faults with code 2; defaults are filled in.
---@param schema table name -> entry
---@param given table?
---@param path string for messages: "data"
---@return table filled copy
function M.options(schema, given, path)
  local out = {}
  for key in pairs(given or {}) do
    if schema[key] == nil then M.usage(path .. ": " .. M.unknown("option", key, schema)) end
  end
  for key, rule in pairs(schema) do
    rule = entry(rule)
    local value = given and given[key]
    if value == nil then value = rule.default end
    if value == nil then
      if rule.required then M.usage(("%s.%s is missing (%s)"):format(path, key, rule[1])) end
    else
      out[key] = M.value(rule, value, path .. "." .. key)
    end
  end
  return out
end

---@param t any
---@return any deep copy of plain tables; strategy classes stay themselves
function M.copy(t)
  if type(t) ~= "table" or t.is_strategy then return t end
  local out = {}
  for k, v in pairs(t) do out[k] = M.copy(v) end
  return out
end

return M
