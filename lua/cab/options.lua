--- Error objects, and unknown names answered with the nearest one. Schemas are checked by cab.check.
local core = require "cab.core"
local options = {}

-- "recipes/x.lua:12: ": the innermost line outside this library, "" if there is none.
local function position()
  for level = 3, 40 do
    local info = debug.getinfo(level, "Sl")
    if not info then return "" end
    if info.currentline > 0 and not info.source:find("lua/cab/", 1, true) then
      return ("%s:%d: "):format(info.short_src, info.currentline)
    end
  end
  return ""
end

--- Raises an error object as the core does: `code` is the exit code (1 misuse, 2 recipe, 65 file, 76 numerics).
---@param code integer
---@param id string short name, may be ""
---@param message string one line
function options.fail(code, id, message)
  error(core.error { code = code, id = id, message = position() .. message, where = "" }, 0)
end

--- The closest of `names`, nil if none is close (more than a third of the letters differ) or `name` is no text.
---@param name any
---@param names string[]
---@return string|nil
function options.nearest(name, names)
  if type(name) ~= "string" or name == "" or name:find "%z" then return nil end
  return core.nearest(name, names)
end

--- Sorted string keys of the tables given.
---@return string[]
function options.names(...)
  local list = {}
  for _, t in ipairs { ... } do
    for k in pairs(t) do
      if type(k) == "string" then list[#list + 1] = k end
    end
  end
  table.sort(list)
  return list
end

--- "unknown X 'nme'; did you mean 'name'? (known: ...)"
---@param what string
---@param name any
---@param names string[]
---@param code? integer default 2
function options.unknown(what, name, names, code)
  local near = options.nearest(name, names)
  options.fail(code or 2, "unknown-name", ("unknown %s '%s'%s (known: %s)"):format(
    what, core.escape(tostring(name)), near and ("; did you mean '%s'?"):format(near) or "", table.concat(names, ", ")))
end

--- `value` if it is one of `choices`, else an error with the nearest one.
---@param value string
---@param choices string[]
---@param what string
---@return string
function options.choice(value, choices, what)
  for _, c in ipairs(choices) do
    if c == value then return value end
  end
  return options.unknown(what, value, choices)
end

--- The file of the module PREFIX..NAME, nil where there is none. A name that is no word has none: searchpath would take ';' and '?'
--- for its own.
---@param prefix string "cab.strategies."
---@param name string
---@return string?
function options.file(prefix, name)
  return name:find "^[%w_]+$" and package.searchpath(prefix .. name, package.path) or nil
end

return options
