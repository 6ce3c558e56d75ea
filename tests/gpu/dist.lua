-- Two ranks on two GPUs: the training of one, the same bits twice, spread state, and faults. CAB_TEST_DEVICE=cpu runs it on the CPU.
package.path = "tests/?.lua;" .. package.path
os.setlocale "C"
local core = require "cab.core"
local folder = require "cab.folder"
local ranks = require "ranks"

local begun, failed = core.now(), 0
local function check(ok, form, ...)
  failed = failed + (ok and 0 or 1)
  print(("%-6s %6.1f s  %s"):format(ok and "ok" or "FAILED", core.now() - begun, form:format(...)))
  io.stdout:flush()
  return ok
end

local function trained(size, o)
  local code, output, path = ranks.train(size, o)
  if code ~= 0 then check(false, "%d ranks end with %d:\n%s", size, code, output) end
  return code == 0 and path or nil
end

local function same(a, b)
  for _, name in ipairs { "metrics.jsonl", "best.safetensors", "checkpoints/step-50.safetensors" } do
    if folder.read(a .. "/" .. name) ~= folder.read(b .. "/" .. name) then return false end
  end
  return true
end

local captured = { overrides = "'log=10', 'student.dim=64'" }
for _, row in ipairs { { "images, mixed", { mixup = 0.4 } }, { "text, packed", { recipe = ranks.language } } } do
  local one, two = trained(1, row[2]), trained(2, row[2])
  if one and two then
    local most = ranks.difference(one, two)
    check(most < 2e-5, "%s: 50 steps of 2 ranks are those of 1 to %.1e relative (bound 2e-5)", row[1], most)
    check(not folder.read(two .. "/log.txt"):find "step not captured", "%s: steps of 2 ranks are captured, or the device has no graphs", row[1])
  end
end
local a, b = trained(2, captured), trained(2, captured)
if a and b then check(same(a, b), "two runs of 2 ranks have the same bits: metrics, weights, checkpoint") end
local c = trained(2, { overrides = captured.overrides .. ", 'dist.shard=true'" })
if a and c then check(same(a, c), "with the optimizer's state spread, the same bits again") end
local d = trained(2, { overrides = captured.overrides .. ", 'accumulate=2'" })
if a and d then
  local x, y = ranks.last_row(a), ranks.last_row(d)
  check(math.abs(x.loss - y.loss) < 1e-3 * x.loss, "in 2 parts each: loss %.6f and %.6f", x.loss, y.loss)
end

local function one_line(output) -- of each rank that is left
  local count = select(2, output:gsub("cab: error%[E69%-dist%]: [^\n]*\n", ""))
  return count == 1 or count == 2, count
end

for _, row in ipairs { { "KILL", "has died" }, { "STOP", "is stopped" } } do
  local output, path, seconds, script = ranks.hurt(row[1])
  local line = output:match "cab: error%[E69[^\n]*" or output
  check(seconds < ranks.timeout + 5 and (output:find "ends with 69\n" or output:find "ends with 137\n") ~= nil,
    "SIG%s: over in %.1f s (timeout %d s and 5)", row[1], seconds, ranks.timeout)
  check(one_line(output) and output:find(row[2], 1, true), "SIG%s: %s", row[1], line)
  local left = ranks.orphans()
  check(left == "", "SIG%s: no process is left %s", row[1], left)
  local on = ranks.goes_on(path, script)
  check(on == true, "SIG%s: the next start resumes %s", row[1], on == true and "" or on)
end
local code, output, seconds = ranks.script(2, ([[
local w = core.zeros({ 4, rank == 0 and 3 or 5 }, "f32", dist.device %q)
w.requires_grad = true
local reducer = core.dist.reducer({ w }, 1024)
reducer:begin()
core.ops.sum(core.ops.sum(w, { dim = 1 }), { dim = 1 }):backward()
reducer:finish()]]):format(ranks.device))
check(code == 69 and seconds < ranks.timeout + 15, "shapes that differ: 69 after %.1f s: %s", seconds, output:match "cab: error%[E69[^\n]*" or output)
code, output, seconds = ranks.script(2, ([[
local w = core.zeros({ 4 }, "f32", dist.device %q)
w.requires_grad = true
if rank == 1 then os.execute "sleep 60" end
core.dist.reducer({ w }, 1024)
core.dist.meet "after"]]):format(ranks.device))
check(code == 69 and seconds < ranks.timeout + 15,
  "a rank that does not come to the start: 69 after %.1f s: %s", seconds, output:match "cab: error%[E69[^\n]*" or output)
check(ranks.orphans() == "", "no process is left")
print(failed == 0 and "dist: all as it should be" or ("dist: %d failed"):format(failed))
return failed == 0 and 0 or 1
