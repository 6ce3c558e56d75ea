--- The program's command line. Faults are raised; the program prints them and exits with their code.
local core = require "cab.core"
local check = require "cab.check"
local commands = require "cab.commands"
local M = {}

-- Help is asked for before anything that belongs to a script: `cab run x.lua --help` is the script's.
local function wants_help(name, words)
  local last = #words
  if name == "run" then last = (require "cab.commands.run".file_at(words) or #words + 1) - 1 end
  for i = 1, last do
    if words[i] == "--" then return false end
    if words[i] == "--help" or words[i] == "-h" then return true end
  end
  return false
end

-- cab help [COMMAND | OP | STRATEGY]
local function help(words)
  if #words == 0 then
    print(commands.overview())
    return 0
  end
  local c, name = commands.find(words)
  if c then print(commands.help(name, c))
  elseif rawget(core.ops, words[1]) then print(core.help(words[1]))
  else
    local strategy, known = require "cab.strategy", commands.list()
    for _, s in ipairs(strategy.names) do
      if s == words[1] then
        print(strategy.help(s))
        return 0
      end
      known[#known + 1] = s
    end
    check.fail(2, "cab help: " .. check.unknown("command, op or strategy", words[1], known), { id = "usage" })
  end
  return 0
end

--- Runs the program. Returns the exit code; faults are raised.
---@param args string[]
---@return integer
function M.main(args)
  local first = args[1]
  if not first then
    if core.isatty(0) then return require "cab.repl".run() end
    print(commands.overview())
    return 2
  end
  if first == "--help" or first == "-h" then return help {} end
  if first == "help" then return help(table.move(args, 2, #args, 1, {})) end
  local c, name, used = commands.find(args)
  if not c then check.fail(2, check.unknown(first:sub(1, 1) == "-" and "option" or "command", first, commands.list()), { id = "usage" }) end
  local words = table.move(args, used + 1, #args, 1, {})
  if wants_help(name, words) then
    print(commands.help(name, c))
    return 0
  end
  if c.main then return c.main(words) or 0 end
  return c.run(commands.parse(name, c, words)) or 0
end

return M
