--- What something is: an op's row, a function's or a module's comment in its source, a command, a strategy, a heading in docs/.
local core = require "cab.core"
local commands = require "cab.commands"
local options = require "cab.options"
local M = {}

local function lines_of(file)
  local f = io.open(file)
  if not f then return nil end
  local list = {}
  for line in f:lines() do list[#list + 1] = line end
  f:close()
  return list
end

-- The --- comment right above a line, its annotations told as they are.
local function comment_above(list, at)
  local first = at
  while first > 1 and list[first - 1]:find "^%s*%-%-" do first = first - 1 end
  local out = {}
  for i = first, at - 1 do out[#out + 1] = (list[i]:gsub("^%s*%-%-%-?%s?", "")) end
  return #out > 0 and table.concat(out, "\n") or nil
end

-- The comment at the top of a file.
local function head(file)
  local list, out = lines_of(file), {}
  for _, line in ipairs(list or {}) do
    if not line:find "^%-%-" then break end
    out[#out + 1] = (line:gsub("^%-%-%-?%s?", ""))
  end
  return #out > 0 and table.concat(out, "\n") or nil
end

local function of_function(f)
  for name, op in pairs(core.ops) do if op == f then return core.help(name) end end
  local info = debug.getinfo(f, "Su")
  local file = info.source:match "^@(.*)"
  if not file then return "a function of the C core" end
  local list = lines_of(file)
  local declared = list and list[info.linedefined] and list[info.linedefined]:match "^%s*(.-)%s*$"
  local comment = list and comment_above(list, info.linedefined)
  return ("%s%s\n(%s:%d)"):format(declared and declared .. "\n" or "", comment or "", info.short_src, info.linedefined)
end

-- The section of docs/*.md whose heading has the word.
local function of_docs(word)
  local dir = core.library .. "/../docs"
  if not require "lfs".attributes(dir, "mode") then dir = core.library .. "/../../doc/cab" end
  if not require "lfs".attributes(dir, "mode") then return nil end
  for name in require "lfs".dir(dir) do
    local list = name:find "%.md$" and name ~= "cli.md" and lines_of(dir .. "/" .. name) or {}
    for i, line in ipairs(list) do
      local level, title = line:match "^(#+)%s+(.*)"
      if title and title:lower():find(word:lower(), 1, true) then
        local out = { title }
        for k = i + 1, math.min(#list, i + 14) do
          local other = list[k]:match "^(#+)%s"
          if other and #other <= #level then break end
          out[#out + 1] = list[k]
        end
        return table.concat(out, "\n") .. ("\n(docs/%s:%d)"):format(name, i)
      end
    end
  end
end

-- What a strategy says of itself, and its options with their defaults.
local function of_strategy(class, file)
  local out = { class.about or head(file) or "", class.source and "source: " .. class.source or nil }
  local list = {}
  for _, name in ipairs(options.names(class.options)) do
    local rule = require "cab.check".entry(class.options[name])
    list[#list + 1] = rule.default == nil and name or ("%s = %s"):format(name, tostring(rule.default))
  end
  if #list > 0 then out[#out + 1] = "options: " .. table.concat(list, ", ") end
  out[#out + 1] = ("(%s)"):format(file)
  return table.concat(out, "\n")
end

local function value_of(path, env)
  local value = env
  for part in path:gmatch "[^.:]+" do
    local ok, v = pcall(function() return value[part] end)
    if not ok or v == nil then return nil end
    value = v
  end
  return value
end

local function of_table(t)
  local names = {}
  for k in next, t do if type(k) == "string" then names[k] = true end end
  return table.concat(options.names(names), " ")
end

--- What `x` is: a name ("matmul", "cab.open", "attention_bridge", "run"), or a value. nil: what there is.
---@param x any
---@param env table where names are looked up
---@return string
function M.about(x, env)
  if x == nil then
    return ("ops, ?NAME explains one:\n%s\n\n?cab.open, ?cab.nn: functions, modules; ?run: a command; ?attention_bridge: a strategy\n"):format(core.help())
      .. "recipe = cab.open \"recipes/quickstart.lua\"; recipe:step(10); recipe.student.layers[3].B; recipe:plot()\n"
      .. "plot(x), show(x): curves, maps and images; plot(\"RUN\", \"FILE.png\", \"similarity\"): what cab plot draws; time(f, ...); _ and __: the last results"
  end
  if type(x) == "function" then return of_function(x) end
  if type(x) == "table" then return getmetatable(x) and getmetatable(x).__tostring and tostring(x) or of_table(x) end
  if type(x) ~= "string" then return tostring(x) end
  if rawget(core.ops, x) then return core.help(x) end
  local strategy = require "cab.options".file("cab.strategies.", x)
  if strategy then return of_strategy(require "cab".strategies[x], strategy) end
  local value = value_of(x, env)
  if type(value) == "function" then return of_function(value) end
  local module = x:match "^cab%.([%w_.]+)$"
  local file = module and package.searchpath("cab." .. module, package.path)
  if file then return ("%s\n%s\n(%s)"):format(head(file) or "", type(value) == "table" and of_table(value) or "", file) end
  if value ~= nil then return type(value) == "table" and M.about(value, env) or tostring(value) end
  local c, name = commands.find { x }
  if c then return commands.help(name, c) end
  local section = of_docs(x)
  if section then return section end
  local names = options.names(core.ops)
  local near = options.nearest(x, names)
  return ("nothing is known of '%s'%s"):format(core.escape(x), near and ("; did you mean '%s'?"):format(near) or "")
end

return M
