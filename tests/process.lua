--- The program run again from a test: as a process of its own, with its exit code and all that it printed.
local lfs = require "lfs"
local M = {}

local pipe <close> = io.popen "readlink /proc/$PPID/exe"
M.program = pipe:read "l"

--- A new empty folder.
function M.folder()
  local dir = os.tmpname()
  os.remove(dir)
  assert(lfs.mkdir(dir))
  return dir
end

--- Writes a file and returns its path.
function M.put(path, bytes)
  local f <close> = assert(io.open(path, "wb"))
  f:write(bytes)
  return path
end

--- Runs a line of sh. @return integer code, string output
function M.sh(line)
  local out = io.popen(("(%s\n) 2>&1; echo :$?"):format(line))
  local output, code = out:read("a"):match "^(.*):(%d+)\n$"
  out:close()
  return math.tointeger(tonumber(code)), output
end

--- Runs a Lua script in the program, behind a prefix for sh. @return integer code, string output
function M.script(dir, text, prefix)
  return M.sh(("%s '%s' run '%s'"):format(prefix or "", M.program, M.put(dir .. "/script.lua", text)))
end

return M
