--- Malformed files, each with the id of its refusal. For specs.
local busted = require "busted"
local assert = require "luassert"
local core = require "cab.core"
local lfs = require "lfs"
local M = {}

M.dir = os.tmpname()
os.remove(M.dir)
lfs.mkdir(M.dir)
M.path = M.dir .. "/a.pth"

--- Writes the file that all cases share; returns its path.
function M.put(bytes)
  local f <close> = assert(io.open(M.path, "wb"))
  f:write(bytes)
  return M.path
end

function M.refused(f, ...) return require "refused"(nil, f, ...) end

--- Specs for cases { what, file, id [, text of the message [, byte]] }: core.load and core.inspect refuse each with code 65.
function M.refuses(what, cases)
  busted.describe(what, function()
    for _, case in ipairs(cases) do
      busted.it("refuses " .. case[1], function()
        M.put(case[2])
        local start = core.now()
        for _, f in ipairs { core.load, core.inspect } do
          local e = M.refused(f, M.path)
          assert.same({ 65, case[3], M.path }, { e.code, e.id, e.file }, tostring(e))
          if case[4] then assert.truthy(e.message:find(case[4], 1, true), e.message) end
          if case[5] then assert.equal(case[5], e.offset, tostring(e)) end
        end
        assert.is_true(core.now() - start < 5)
      end)
    end
    busted.it("has at least 20 of them", function() assert.is_true(#cases >= 20, #cases) end)
  end)
end

--- kB that f(...) took at most beyond what was there before.
function M.peak(f, ...)
  local function status(field)
    local file <close> = io.open "/proc/self/status"
    return tonumber(file:read("a"):match(field .. ":%s+(%d+)"))
  end
  collectgarbage()
  local reset <close> = io.open("/proc/self/clear_refs", "w")
  reset:write "5\n"
  reset:flush()
  local before = status "VmRSS"
  f(...)
  return status "VmHWM" - before
end

return M
