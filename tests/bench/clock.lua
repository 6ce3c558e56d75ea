--- Times and memory of this process, for the benchmarks of the CPU.
local core = require "cab.core"
local M = {}

--- Median seconds of f(), after one run that does not count.
function M.median(f, repeats)
  f()
  local times = {}
  for i = 1, repeats or 15 do
    local start = core.now()
    f()
    times[i] = core.now() - start
  end
  table.sort(times)
  return times[(#times + 1) // 2]
end

function M.row(name, seconds, what) print(("%-46s %10.3f ms   %s"):format(name, 1e3 * seconds, what or "")) end

--- VmHWM, the most memory that this process had so far, in MiB.
function M.resident()
  for line in io.lines "/proc/self/status" do
    local kib = line:match "^VmHWM:%s*(%d+)"
    if kib then return tonumber(kib) / 1024 end
  end
end

return M
