-- kill.lua N: kills a training run N times with SIGKILL at random moments and resumes it each time. Passes if each run that
-- gets to its end has, bit for bit, the weights and the logged losses of a run that was never interrupted.
local core = require "cab.core"
local lfs = require "lfs"
local wanted = tonumber(arg[1]) or 500
local root = os.tmpname()
os.remove(root)
lfs.mkdir(root)
local start = "build/cab run tests/crash/tiny.lua --out %s %s >%s/out.txt 2>&1"

local function read(path)
  local f <close> = io.open(path)
  return f and f:read "a" or ""
end

--- Hash of the final weights and the losses by step.
local function outcome(dir)
  local losses = {}
  for line in io.lines(dir .. "/metrics.jsonl") do
    local row = core.json_decode(line)
    if row.loss and not row.eval then losses[#losses + 1] = ("%d=%.17g"):format(row.step, row.loss) end
  end
  return core.hash(dir .. "/checkpoints/step-60.safetensors") .. " " .. table.concat(losses, " ")
end

local calm = root .. "/calm"
local begun = core.now()
assert(os.execute(start:format(calm, "", root)), read(root .. "/out.txt"))
local whole, want = core.now() - begun, outcome(calm)
local kills, runs, different, stuck = 0, 0, 0, 0
while kills < wanted do
  runs = runs + 1
  local dir, tries = ("%s/run%d"):format(root, runs), 0
  while true do
    local resume = lfs.attributes(dir .. "/recipe.json", "mode") and "--resume" or "" -- else it was killed before it began
    local moment = 0.03 + core.uniform({ 1 }, 0, 1, 1, kills):item() * 0.6 * whole
    local _, _, code = os.execute(("timeout -s KILL %.3f "):format(moment) .. start:format(dir, resume, root))
    if code == 0 then
      if outcome(dir) ~= want then different = different + 1 end
      break
    end
    -- timeout(1) may end before the kernel has torn the killed process down, which then still holds the lock
    local locked = code == 74 and read(root .. "/out.txt"):find("locked", 1, true)
    if locked then os.execute "sleep 0.1" end
    if code ~= 137 and not locked then
      print(("kill %d: a resumed run ended with code %d: %s"):format(kills, code, read(root .. "/out.txt")))
      stuck = stuck + 1
      break
    end
    if not locked then kills, tries = kills + 1, tries + 1 end
    if tries > 400 then stuck = stuck + 1 break end
  end
  local left = io.popen(("find %s -name '*.tmp*' | wc -l"):format(dir)):read "n"
  if left > 0 then print(("run %d: %d temporary files left"):format(runs, left)) different = different + 1 end
  os.execute("rm -rf " .. dir)
end
os.execute("rm -rf " .. root)
print(("%d kills over %d runs: %d different from the undisturbed run, %d did not resume"):format(kills, runs, different, stuck))
os.exit(different + stuck == 0)
