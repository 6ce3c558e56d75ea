--- Types for editors, made from the op table and the schemas of recipes: lua/types/op.lua, lua/types/recipe.lua.
local core = require "cab.core"
local M = {}

local function names(t) return require "cab.options".names(t) end

-- "a[*,E] ids:i32[B]? | scale=1" -> arguments {name, shape, optional}, options {name, value}, results {name, shape}.
local function parsed(signature)
  local left, right = signature:match "^(.-)%s*%->%s*(.*)$"
  local arguments, options = left:match "^(.-)%s*|%s*(.*)$"
  local function list(text)
    local out = {}
    for word in text:gmatch "%S+" do
      local mark, name, rest = word:match "^(~?)([%w_]+)(.*)$"
      if mark == "" then
        local dtype, shape = rest:match "^:?(%w*)[~^&]*(%b[])"
        out[#out + 1] = { name = name, shape = ((dtype or "") .. (shape or "")), optional = rest:find "%?$" ~= nil }
      end
    end
    return out
  end
  local set = {}
  for name, value in (options or ""):gmatch "([%w_]+)=(%S+)" do set[#set + 1] = { name = name, value = value } end
  return list(arguments or left), set, list(right)
end

local function option_type(value)
  if value == "true" or value == "false" then return "boolean" end
  if tonumber(value) then return "number" end
  local words = {}
  for word in value:gmatch "[^|]+" do words[#words + 1] = ('"%s"'):format(word) end
  return table.concat(words, "|")
end

local HEAD = "---@meta\n--- Made by `build/cab run tests/docs_tables.lua %s`. Types for editors; not loaded by the program.\n"
  .. "-- Over 500 lines because it has a line for each key and argument.\n-- luacheck: ignore\n\n"
local RESERVED = { ["end"] = true, ["repeat"] = true, ["until"] = true, ["in"] = true, ["local"] = true, ["not"] = true, ["or"] = true, ["and"] = true }

--- lua/types/op.lua: a function for each row.
---@return string
function M.ops()
  local out = { HEAD:format "types > lua/types/op.lua", "---@class cab.op\nlocal op = {}\n" }
  for _, name in ipairs(names(core.ops)) do
    local signature, about = core.help(name):match "^%S+%s+([^\n]*)\n?%s*(.*)$"
    local arguments, set, results = parsed(signature)
    local shown, fields = {}, {}
    out[#out + 1] = ("\n--- %s\n--- `%s`\n"):format(about:gsub("\n%s*", " "), signature)
    for _, a in ipairs(arguments) do
      local word = RESERVED[a.name] and a.name .. "_" or a.name
      shown[#shown + 1] = word
      fields[#fields + 1] = ("%s%s: cab.Tensor"):format(a.name, a.optional and "?" or "")
      out[#out + 1] = ("---@param %s%s cab.Tensor %s\n"):format(word, a.optional and "?" or "", a.shape)
    end
    local options = {}
    for _, o in ipairs(set) do options[#options + 1] = ("%s?: %s"):format(o.name, option_type(o.value)) end
    if #set > 0 then
      shown[#shown + 1] = "options"
      out[#out + 1] = ("---@param options? {%s}\n"):format(table.concat(options, ", "))
    end
    for _, r in ipairs(results) do out[#out + 1] = ("---@return cab.Tensor %s %s\n"):format(r.name, r.shape) end
    out[#out + 1] = ("---@overload fun(named: {%s}): cab.Tensor\n"):format(table.concat(fields, ", ") .. (#options > 0 and ", " or "")
      .. table.concat(options, ", "))
    out[#out + 1] = ("function op.%s(%s) end\n"):format(name, table.concat(shown, ", "))
  end
  return table.concat(out)
end

-- The type of a rule as LuaCATS has it.
local function rule_type(rule)
  if rule.one_of then
    local list = {}
    for i, v in ipairs(rule.one_of) do list[i] = ('"%s"'):format(v) end
    return table.concat(list, "|")
  end
  return rule[1]
end

-- A section's class; `more` are fields of other types than the schema has: { stages = "cab.given.stage[]" }.
local function class(out, reference, section, name, more)
  out[#out + 1] = ("---@class %s\n"):format(name)
  for _, key in ipairs(names(section.rules)) do
    local rule = require "cab.check".entry(section.rules[key])
    local meaning = (reference.meaning(section, key) or ""):gsub("`", "")
    local _, default = reference.words(rule)
    default = default:gsub("`", ""):gsub("%*%*", "")
    out[#out + 1] = ("---@field %s%s %s %s%s\n"):format(key, rule.required and "" or "?", more and more[key] or rule_type(rule), meaning,
      default ~= "" and default ~= "required" and " (" .. default .. ")" or "")
  end
  out[#out + 1] = "\n"
end

--- lua/types/recipe.lua: what cab.recipe, cab.compare, cab.data.* and cab.models.* take.
---@return string
function M.recipes()
  local reference, out = require "cab.reference", { HEAD:format "recipe_types > lua/types/recipe.lua" }
  local data, models, strategies = {}, {}, {}
  local parts = { stages = "cab.given.stage[]", data = "table", teacher = "table", student = "table" }
  for _, name in ipairs(names(require "cab.recipe".parts)) do parts[name] = "cab.given." .. name end
  for _, s in ipairs(reference.sections()) do
    local kind, name = s.title:match "^(%a+)[. ](.*)$"
    if s.title == "recipe" then class(out, reference, s, "cab.given.recipe", parts)
    elseif s.title == "stages.N" then class(out, reference, s, "cab.given.stage", { loss = "table<string, number|string|cab.given.term>" })
    elseif s.title == "compare" then class(out, reference, s, "cab.given.compare", { base = "cab.given.recipe", runs = "cab.given.recipe[]" })
    elseif s.title == "study" then class(out, reference, s, "cab.given.study", { base = "string|cab.given.recipe" })
    elseif kind == "data" then class(out, reference, s, "cab.given.data." .. name) data[#data + 1] = name
    elseif kind == "models" then class(out, reference, s, "cab.given.models." .. name) models[#models + 1] = name
    elseif kind == "strategy" then class(out, reference, s, "cab.given.strategy." .. name) strategies[#strategies + 1] = "cab.given.strategy." .. name
    elseif not kind then class(out, reference, s, "cab.given." .. s.title) end
  end
  out[#out + 1] = ("---@class cab.given.term : %s\n---@field [1]? string|table a strategy's name, or one of your own\n---@field weight? number\n\n"):format(
    table.concat(strategies, ", "))
  for _, group in ipairs { { "data", data }, { "models", models } } do
    out[#out + 1] = ("---@class cab.%s\n"):format(group[1])
    for _, name in ipairs(group[2]) do
      out[#out + 1] = ("---@field %s fun(options?: cab.given.%s.%s): table\n"):format(name, group[1], name)
    end
    out[#out + 1] = "\n"
  end
  out[#out + 1] = "---@class cab\n---@field op cab.op\n---@field data cab.data\n---@field models cab.models\n---@field recipe fun(given: cab.given.recipe): table\n"
    .. "---@field compare fun(given: cab.given.compare): table\n---@field study fun(given: cab.given.study): table\nlocal cab = {}\n"
  local shown = { op = true, data = true, models = true, recipe = true, compare = true, study = true }
  local init = core.read_file(core.library .. "/cab/init.lua", 1 << 20)
  local modules = {}
  for name in init:match("local modules = (%b{})"):gmatch '([%w_]+) = "cab' do modules[name] = true end
  for _, name in ipairs(names(modules)) do
    if not shown[name] then out[#out + 1] = ("cab.%s = require \"cab.%s\"\n"):format(name, name) end
  end
  return table.concat(out)
end

return M
