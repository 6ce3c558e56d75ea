--- The commands of the program. One file each, lua/cab/commands/NAME.lua, returns a Command: from it come the parser, --help,
--- completion in three shells, the man page and docs/cli.md. A new command is its file and its name in the list below.
local core = require "cab.core"
local check = require "cab.check"
local options = require "cab.options"
local M = {}

---@class Command
---@field about string one line
---@field examples string[][] {line, what it does}; the first one heads the help
---@field arguments? table[] {name, about, many=true (any number), least=1, of= what completes it: "recipe" "run" "file" "override" or a list}
---@field options? table[] {"-o --out", about, value="DIR" (nil: a flag), kind="integer"|"number", default=, required=, repeated=, bare= (value of a
--- bare --NAME), of=}; `common` names more of those below
---@field common? string[] "quiet", "json"
---@field notes? string after the options
---@field actions? table<string, Command> commands of its own, as `cab data show`
---@field run? fun(o: table): integer? exit code

M.names = { "run", "resume", "eval", "repl", "check", "sweep", "compare", "plot", "report", "inspect", "convert", "diff", "data", "tokenize",
  "generate", "bench", "doctor", "new", "completion" }
M.exit_codes = "exit codes: 0 done, 1 Lua error, 2 usage or recipe, 65 input file refused, 69 device, 70 internal error, 71 memory, "
  .. "74 I/O, 75 stopped and resumable, 76 not-finite numbers, 130 interrupted twice"
M.common = {
  quiet = { "--quiet", "Print nothing but warnings and errors." },
  json = { "--json", "Print one JSON value and nothing else on standard output." },
}
M.overrides = { "overrides", "key=value: fields of the recipe, as optim.lr=1e-3.", many = true, of = "override" }

local function there(name) return package.loaded["cab.commands." .. name] or package.searchpath("cab.commands." .. name, package.path) end

--- Those that are there, in the order of the list.
---@return string[]
function M.list()
  local out = {}
  for _, name in ipairs(M.names) do if there(name) then out[#out + 1] = name end end
  return out
end

---@param name string
---@return Command? nil: there is none of that name
function M.get(name)
  for _, known in ipairs(M.names) do
    if known == name and there(name) then return require("cab.commands." .. name) end
  end
end

--- All options of a command, the common ones last.
---@param c Command
---@return table[]
function M.options(c)
  local out = table.move(c.options or {}, 1, #(c.options or {}), 1, {})
  for _, name in ipairs(c.common or {}) do out[#out + 1] = M.common[name] end
  return out
end

--- "run", or "data show" with its action: the command that words mean, and how many of them said so.
---@param words string[]
---@return Command?
---@return string name
---@return integer used
function M.find(words)
  local c = M.get(words[1] or "")
  if not c then return nil, "", 0 end
  local action = c.actions and c.actions[words[2]]
  if action then return action, words[1] .. " " .. words[2], 2 end
  return c, words[1], 1
end

-- What stands on a usage line for an option and an argument.
local function usage_of(c)
  local parts = {}
  for _, o in ipairs(M.options(c)) do
    local text = o[1]:match "%-%-%S+" .. (o.value and (o.bare and "[=%s]" or " %s"):format(o.value) or "")
    parts[#parts + 1] = (o.required and "%s" or o.repeated and "[%s]..." or "[%s]"):format(text)
  end
  if c.actions then parts[#parts + 1] = table.concat(options.names(c.actions), "|") end
  for _, a in ipairs(c.arguments or {}) do
    local name = a[1]:upper()
    parts[#parts + 1] = a.many and ((a.least or 0) > 0 and "%s..." or "[%s...]"):format(name) or a.optional and ("[%s]"):format(name) or name
  end
  return table.concat(parts, " ")
end

-- The text behind `indent`, broken at words to at most `width` columns.
local function wrap(text, indent, width)
  local lines, line = {}, ""
  for paragraph in (text .. "\n"):gmatch "(.-)\n" do
    for word in paragraph:gmatch "%S+" do
      if #line > 0 and indent + #line + 1 + #word > width then lines[#lines + 1], line = line, "" end
      line = #line > 0 and line .. " " .. word or word
    end
    lines[#lines + 1], line = line, ""
  end
  return table.concat(lines, "\n" .. (" "):rep(indent))
end

local function listed(out, title, rows)
  if #rows == 0 then return end
  out[#out + 1] = "\n" .. title .. ":"
  for _, row in ipairs(rows) do
    local left = "  " .. row[1]
    left = #left < 29 and left .. (" "):rep(30 - #left) or left .. "\n" .. (" "):rep(30)
    out[#out + 1] = left .. wrap(row[2], 30, 110)
  end
end

--- An option as help shows it: words, value, and what is said about it with its default.
function M.describe(o)
  local left = o[1]:gsub(" ", ", ") .. (o.value and ((o.bare and "[=%s]" or " %s"):format(o.value)) or "")
  local extra = {}
  if o.default ~= nil then extra[#extra + 1] = "default " .. tostring(o.default) end
  if o.required then extra[#extra + 1] = "must be given" end
  if o.repeated then extra[#extra + 1] = "may be given again" end
  return left, #extra > 0 and ("%s (%s)"):format(o[2]:gsub("%.$", ""), table.concat(extra, "; ")) or o[2]
end

--- The help of a command: an example first.
---@param name string "run", "data show"
---@param c Command
---@return string
function M.help(name, c)
  local out = {}
  for i, e in ipairs(c.examples) do
    local left = (i == 1 and "Example: " or "         ") .. e[1]
    out[i] = (e[2] or "") == "" and left or left .. (#left < 60 and (" "):rep(62 - #left) or "  ") .. "# " .. e[2]
  end
  out[#out + 1] = "\n" .. wrap(c.about, 0, 110)
  out[#out + 1] = "\n" .. wrap(("Usage: cab %s %s"):format(name, usage_of(c)), 7, 110)
  local rows = {}
  for i, a in ipairs(c.arguments or {}) do rows[i] = { a[1]:upper(), a[2] } end
  listed(out, "arguments", rows)
  rows = {}
  for _, action in ipairs(options.names(c.actions or {})) do rows[#rows + 1] = { action, c.actions[action].about } end
  listed(out, "actions", rows)
  rows = {}
  for i, o in ipairs(M.options(c)) do rows[i] = { M.describe(o) } end
  rows[#rows + 1] = { "-h, --help", "This text." }
  listed(out, "options", rows)
  if c.notes then out[#out + 1] = "\n" .. (c.notes:find "\n" and c.notes or wrap(c.notes, 2, 110)) end
  return table.concat(out, "\n")
end

--- The help of the program.
---@return string
function M.overview()
  local out, rows = { "Example: cab run recipes/quickstart.lua", "\nDistils transformers into state space models.", "\nUsage: cab COMMAND ..." }, {}
  for _, name in ipairs(M.list()) do rows[#rows + 1] = { name, M.get(name).about } end
  rows[#rows + 1] = { "help NAME", "Help for a command or an op." }
  listed(out, "commands", rows)
  out[#out + 1] = "\n" .. "NO_COLOR in the environment: no colours. Without a command on a terminal: the prompt.\n" .. wrap(M.exit_codes, 2, 110)
  return table.concat(out, "\n")
end

-- ---- parsing -------------------------------------------------------------------------------------------------------------

local function fail(text) check.fail(2, text, { id = "usage" }) end

-- text -> number of an option or argument; faults with code 2.
local function converter(kind, name)
  return function(text)
    local x = tonumber(text)
    x = x and (kind == "integer" and math.tointeger(x) or kind == "number" and x) or nil
    if x == nil then fail(("%s: '%s' is no %s"):format(name, core.escape(text), kind)) end
    return x
  end
end

-- Bare --NAME of options with a `bare` value takes no separate word, so that arguments may follow it.
local function filled(c, words)
  local bare = {}
  for _, o in ipairs(M.options(c)) do if o.bare then bare[o[1]] = o.bare end end
  local out = {}
  for i, word in ipairs(words) do out[i] = bare[word] and ("%s=%s"):format(word, bare[word]) or word end
  return out
end

--- Words after the command's name as a table of its options and arguments; faults with code 2 and the nearest name.
---@param name string
---@param c Command
---@param words string[]
---@return table
function M.parse(name, c, words)
  if c.actions then
    fail(words[1] and ("cab %s: %s"):format(name, check.unknown("action", words[1], c.actions))
      or ("cab %s: one of %s is expected"):format(name, table.concat(options.names(c.actions), ", ")))
  end
  local p = require "argparse"("cab " .. name):add_help(false)
  function p.error(_, message) fail(("cab %s: %s"):format(name, (message:gsub("\nDid", "; did"):gsub("\n", " ")))) end
  for _, a in ipairs(c.arguments or {}) do
    local argument = p:argument(a[1], a[2]):args(a.many and ((a.least or 0) > 0 and "+" or "*") or a.optional and "?" or 1)
    if a.kind then argument:convert(converter(a.kind, a[1])) end
  end
  for _, o in ipairs(M.options(c)) do
    if not o.value then p:flag(o[1], o[2])
    else
      local option = p:option(o[1], o[2]):count(o.repeated and "*" or o.required and 1 or "?")
      if o.kind then option:convert(converter(o.kind, o[1])) end
    end
  end
  local parsed = p:parse(filled(c, words))
  for _, o in ipairs(M.options(c)) do
    local key = o[1]:match "%-%-(%S+)":gsub("%-", "_")
    if parsed[key] == nil then parsed[key] = o.default end
  end
  return parsed
end

return M
