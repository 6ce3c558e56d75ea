-- memory_faults.lua PROGRAM: PROGRAM is built with fault points (CAB_FAULTS). Each of the first allocations from the driver
-- fails once, which a retry must hide, and then all from that one on, which must be an error with code 71 that leaves the device usable.
local core = require "cab.core"
local program = assert(arg[1], "usage: memory_faults.lua PROGRAM")
local script, output = os.tmpname(), os.tmpname()

local file = assert(io.open(script, "wb"))
file:write [[
package.path = "./tests/?.lua;" .. package.path
local core = require "cab.core"
local synthetic = require "synthetic"
local op = core.ops
core.trim "cuda"
local ok, e = pcall(function()
  local t = synthetic.tiny("vim", { device = "cuda" })
  local big = core.zeros({ 40 << 20 }, "u8", "cuda") -- a segment of its own
  local loss
  for n = 1, 4 do loss = t:step(n, true).loss end
  t:close()
  print(("loss %a"):format(loss))
  return big
end)
if not ok then
  assert(e.code == 71 and tostring(e):find "out of memory on cuda:0", tostring(e))
  print("refused " .. tostring(e))
  collectgarbage()
  assert(op.sum(core.ones { 5 }):item() == 5)
  local again, x = pcall(core.ones, { 5 }, "f32", "cuda") -- from the cache, if there is one
  assert(again and op.sum(x):item() == 5 or x.code == 71)
end
]]
file:close()

-- Exit code and the first line.
local function run(fault)
  local _, _, code = os.execute(("CAB_FAULT_COUNTS=1 %s timeout 60 %s run %s >%s 2>&1"):format(fault and "CAB_FAULT=" .. fault or "", program, script, output))
  local text <close> = assert(io.open(output, "rb"))
  local all = text:read "a"
  return code, all:match "loss %S+" or all:match "refused [^\n]*", all
end

local code, clean, all = run()
assert(code == 0 and clean, all)
local calls = tonumber(all:match "fault cuda_malloc (%d+)")
assert(calls, "no fault point cuda_malloc: " .. all)
local failures, refused = 0, 0
local function check(name, good, text)
  if not good then
    failures = failures + 1
    print("FAILED " .. name .. ": " .. text)
  end
end
for n = 1, calls do
  local c, says, text = run(("cuda_malloc:%d"):format(n))
  check(("allocation %d fails once"):format(n), c == 0 and says == clean, text)
  c, says, text = run(("cuda_malloc:%d:sticky"):format(n))
  refused = refused + (says and says:find "refused" and 1 or 0)
  check(("allocations from %d on fail"):format(n), c == 0 and says ~= nil, text)
end
os.remove(script)
os.remove(output)
print(("%d allocations: %d failures, %d refused"):format(calls, failures, refused))
os.exit(failures == 0 and refused > 0, true)
