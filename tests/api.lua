--- The API reference and types for editors, read off the comments in lua/: docs/api.md, lua/types/op.lua, lua/types/recipe.lua.
local core = require "cab.core"
local lfs = require "lfs"
local M = {}

local INTERNAL = { cli = true, repl = true, core = true } -- the program's own ends: docs/cli.md

-- Title -> modules by their name in `cab`, in the order of the page; at its end those that stand in no list.
local PARTS = {
  { "Building blocks", { "nn", "models", "taps", "pairs", "sides", "layers", "maps", "bridges", "strategy", "recompute" } },
  { "Recipes and runs", { "recipe", "compare", "study", "schedule", "job", "train", "eval", "runs", "session" } },
  { "Data and text", { "data", "corpus", "tokenizer", "harness", "tasks", "recall" } },
  { "Weights", { "weights", "names" } },
  { "Checks", { "audit", "gradcheck", "similarity", "statistics" } },
  { "Looking at runs", { "report", "pictures", "charts", "plot" } },
  { "Help", { "reference", "options" } },
}
do
  local listed, further = {}, {}
  for _, part in ipairs(PARTS) do for _, name in ipairs(part[2]) do listed[name] = true end end
  local init = core.read_file(core.library .. "/cab/init.lua", 1 << 20)
  for name in init:match("local modules = (%b{})"):gmatch '([%w_]+) = "cab' do
    if not listed[name] and not INTERNAL[name] then further[#further + 1] = name end
  end
  table.sort(further)
  if #further > 0 then PARTS[#PARTS + 1] = { "Further modules", further } end
end

-- Classes whose methods are for users; those of others are a module's own affair.
local CLASSES = { Module = "module", Pairs = "pairs", Teacher = "t", Student = "s", Instance = "strategy", Recipe = "recipe",
  Comparison = "comparison", Study = "study", methods = "session",
  Job = "job", Data = "data", Feed = "feed", Moments = "moments", Tensor = "tensor", Scope = "scope", Description = "description" }

local function path_of(name)
  local path = core.library .. "/cab/" .. name .. ".lua"
  return lfs.attributes(path) and path or core.library .. "/cab/" .. name .. "/init.lua"
end

-- Comment lines as {text, params, returns}.
local function understood(comment)
  local out, last = { text = {}, params = {}, returns = {} }, nil
  for _, line in ipairs(comment) do
    local tag, rest = line:match "^%-%-%-@(%a+) ?(.*)$"
    local more = line:match "^%-%-%-  (%S.*)$"
    if tag == "param" then
      last = { name = rest:match "^[%w_.]+", rest = rest:match "^[%w_.]+(.*)$" }
      table.insert(out.params, last)
    elseif tag == "return" then
      last = { rest = rest }
      table.insert(out.returns, last)
    elseif not tag and more and last then last.rest = last.rest .. " " .. more
    elseif not tag then
      table.insert(out.text, (line:gsub("^%-%-%- ?", "")))
    end
  end
  out.text = table.concat(out.text, "\n")
  return out
end

--- A file's comment at its head and its public functions: {owner, mark, name, args, body, text, params, returns}.
---@param path string
---@return string about
---@return table[]
function M.parse(path)
  local about, list, comment, body, ended = {}, {}, {}, nil, false
  for line in io.lines(path) do
    if body then body[#body + 1] = line end
    if line:find "^end" then body = nil end
    if line:find "^%-%-%-" then comment[#comment + 1] = line
    else
      local left, args = line:match "^function ([%w_.:]+)%((.-)%)"
      if not left and line:find "^return function%(" then left, args = "return", line:match "%((.-)%)" end
      if left then
        local item = understood(comment)
        item.owner, item.mark, item.name = left:match "^(.-)([.:]?)([%w_]+)$"
        item.args, item.body = args, { line }
        body = not line:find "%f[%w]end$" and item.body or nil
        list[#list + 1] = item
      elseif #list == 0 and not ended and #comment > 0 and (line == "" or not line:find "^%-%-") then
        about = understood(comment).text
        ended = true
      end
      if line ~= "" or #comment > 0 then comment = {} end
    end
  end
  return type(about) == "string" and about or "", list
end

-- The public functions of a module of `cab`, with the name under which a user finds them.
local function functions(name)
  local about, list = M.parse(path_of(name))
  local text, out = core.read_file(path_of(name), 1 << 20), {}
  for _, f in ipairs(list) do
    local end_of_word = "%f[^%w_]"
    if text:find("\nreturn " .. f.owner .. end_of_word) or text:find("\nreturn setmetatable%(" .. f.owner .. end_of_word) then
      f.shown = ("cab.%s%s%s"):format(name, f.mark, f.name)
    elseif f.name == "return" then f.shown = "cab." .. name
    elseif CLASSES[f.owner] then f.shown = CLASSES[f.owner] .. f.mark .. f.name end
    if f.shown and not f.name:find "^__" then out[#out + 1] = f end
  end
  return about, out
end

local function described(out, f)
  out[#out + 1] = ("#### %s(%s)\n"):format(f.shown, f.args)
  if f.text ~= "" then out[#out + 1] = f.text .. "\n" end
  for _, p in ipairs(f.params) do out[#out + 1] = ("- `%s`%s"):format(p.name, p.rest:gsub("^%? ", " optional ")) end
  for _, r in ipairs(f.returns) do out[#out + 1] = "- returns " .. r.rest end
  out[#out + 1] = ""
end

local TYPES = "lua/types/cab.lua"

--- docs/api.md.
---@return string
function M.markdown()
  local out = { "# API reference", "",
    "Read off the comments in `lua/` by `build/cab run tests/docs_tables.lua api > docs/api.md`. `local cab = require \"cab\"`; parts are",
    "loaded when first used. Faults are error objects with `code` (the program's exit code), `id` and `message`: 1 misuse, 2 recipe, 65 a",
    "file's content, 69 device, 71 memory, 74 files, 76 numerics. Shapes stand in brackets, dimensions count from 1, sizes are integers.",
    "Ops: [ops.md](ops.md); keys of recipes: [recipe.md](recipe.md).", "" }
  local _, made_in_c = M.parse(TYPES)
  out[#out + 1] = "## Tensors\n"
  for _, f in ipairs(made_in_c) do
    f.shown = (CLASSES[f.owner] or f.owner) .. f.mark .. f.name
    described(out, f)
  end
  for _, part in ipairs(PARTS) do
    out[#out + 1] = "## " .. part[1] .. "\n"
    for _, name in ipairs(part[2]) do
      local about, list = functions(name)
      out[#out + 1] = ("### cab.%s\n\n`%s`%s\n"):format(name, path_of(name):match "lua/cab/.*$", about ~= "" and "\n\n" .. about or "")
      for _, f in ipairs(list) do described(out, f) end
    end
  end
  return table.concat(out, "\n")
end

-- Whether a function's own lines return a value.
local function returns(f)
  for i, line in ipairs(f.body) do
    local inner = i == 1 and line:match "%f[%w]return%s+(.-)%s+end$" or line:match "^  return%s+(.*)$"
    if inner and inner ~= "nil" then return true end
  end
end

local function says(f, word)
  for _, p in ipairs(f.params) do if p.name == word then return true end end
  return f.text:find("%f[%w_]" .. word .. "%f[^%w_]") ~= nil
end

--- What public functions do not say: a comment at all, a parameter, what comes back. One line each.
---@return string[]
function M.gaps()
  local list = {}
  local function look(path, f)
    local function gap(text) list[#list + 1] = ("%s: %s%s%s %s"):format(path, f.owner, f.mark, f.name, text) end
    if f.text == "" and #f.params == 0 and #f.returns == 0 then return gap "has no comment" end
    for word in f.args:gmatch "[%a][%w_]*" do
      if not says(f, word) then gap(("says nothing of '%s'"):format(word)) end
    end
    if returns(f) and #f.returns == 0 and not f.text:find "%->" then gap "does not say what it returns" end
  end
  for _, part in ipairs(PARTS) do
    for _, name in ipairs(part[2]) do
      local _, functions_of = functions(name)
      for _, f in ipairs(functions_of) do look("lua/cab/" .. name, f) end
    end
  end
  -- what C gives and its types must be the same names
  local _, made_in_c = M.parse(TYPES)
  local typed = {}
  for _, f in ipairs(made_in_c) do
    look(TYPES, f)
    typed[f.owner .. "." .. f.name] = true
  end
  local methods = select(2, debug.getupvalue(debug.getmetatable(core.zeros { 1 }).__index, 1))
  for name in pairs(methods) do
    if not typed["Tensor." .. name] then list[#list + 1] = ("a tensor's method '%s' is not in %s"):format(name, TYPES) end
  end
  for key in pairs(typed) do
    local owner, name = key:match "^(%a+)%.(.*)$"
    local there = owner == "Tensor" and methods[name] or owner == "cab" and rawget(require "cab", name) or owner == "Scope"
    if not there then list[#list + 1] = ("%s in %s is not there"):format(key, TYPES) end
  end
  table.sort(list)
  return list
end

return M
