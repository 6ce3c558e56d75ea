-- kill.lua N [SEED]: kills a training run N times with SIGKILL and resumes it each time; every second kill inside a write, fsync, rename or
-- unlink (inside.c), the others at random moments, an eighth of those soon after a resume began. Passes if each run that gets to its end has,
-- bit for bit, the weights and the logged losses of a run that was never interrupted, and no resume lost more than one interval.
local core = require "cab.core"
local lfs = require "lfs"
local wanted, seed = tonumber(arg[1]) or 1000, math.tointeger(tonumber(arg[2])) or 1
local root = os.tmpname()
os.remove(root)
lfs.mkdir(root)
local shim = root .. "/inside.so"
local inside = os.execute(("cc -shared -fPIC -O1 -o %s tests/crash/inside.c -ldl 2>%s/cc.txt"):format(shim, root))
if not inside then print "skipped: kills inside a write: no C compiler" end
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

-- The step of the last checkpoint that the log tells of, that of the last resume, and how many resumes there were. A line that a
-- kill cut tells of none.
local function told(dir)
  local saved, resumed, count = 0, nil, 0
  for line in (read(dir .. "/log.txt")):gmatch "[^\n]+\n" do
    saved = math.tointeger(tonumber(line:match "checkpoint of step (%d+),")) or saved
    local step = math.tointeger(tonumber(line:match "resumed at step (%d+)"))
    if step then resumed, count = step, count + 1 end
  end
  return saved, resumed, count
end

local draws = 0
local function dice()
  draws = draws + 1
  return core.uniform({ 1 }, 0, 1, seed, draws):item()
end

local calm = root .. "/calm"
local begun = core.now()
local counted = inside and ("CAB_KILL_COUNT=%s/count LD_PRELOAD=%s "):format(root, shim) or ""
assert(os.execute(counted .. start:format(calm, "", root)), read(root .. "/out.txt"))
local whole, want = core.now() - begun, outcome(calm)
local calls = tonumber(read(root .. "/count")) or 0
local kills, within, runs, different, stuck, lost = 0, 0, 0, 0, 0, 0
local clock = core.now()
while kills < wanted do
  runs = runs + 1
  local dir, tries = ("%s/run%d"):format(root, runs), 0
  while true do
    local resume = lfs.attributes(dir .. "/recipe.json", "mode") and "--resume" or "" -- else it was killed before it began
    local saved, _, before = told(dir)
    local how, in_write
    if inside and kills % 2 == 1 then
      in_write = true
      how = ("CAB_KILL_AT=%d LD_PRELOAD=%s "):format(1 + math.floor(dice() * 0.5 * calls), shim)
    else
      local early = resume ~= "" and dice() < 0.25 -- of half the kills: an eighth of all
      how = ("timeout -s KILL %.3f "):format(0.01 + dice() * (early and 0.05 or 0.6) * whole)
    end
    local _, kind, code = os.execute(("{ %s%s; }"):format(how, start:format(dir, resume, root)))
    local killed = code == 137 or (kind == "signal" and code == 9)
    if resume ~= "" then
      local _, from, now = told(dir)
      if now > before and from < saved then
        lost = lost + 1
        print(("run %d: resumed at step %d, the checkpoint of step %d was saved"):format(runs, from, saved))
      end
    end
    if code == 0 and not killed then
      if outcome(dir) ~= want then different = different + 1 end
      break
    end
    -- timeout(1) may end before the kernel has torn the killed process down, which then still holds the lock
    local locked = code == 74 and read(root .. "/out.txt"):find("locked", 1, true)
    if locked then os.execute "sleep 0.1" end
    if not killed and not locked then
      print(("kill %d: a resumed run ended with code %d: %s"):format(kills, code, read(root .. "/out.txt")))
      stuck = stuck + 1
      break
    end
    if not locked then kills, tries, within = kills + 1, tries + 1, within + (in_write and 1 or 0) end
    if tries > 400 then stuck = stuck + 1 break end
  end
  local left = io.popen(("find %s -name '*.tmp*' | wc -l"):format(dir)):read "n"
  if left > 0 then print(("run %d: %d temporary files left"):format(runs, left)) different = different + 1 end
  os.execute("rm -rf " .. dir)
end
os.execute("rm -rf " .. root)
print(("%d kills, %d of them inside a write, over %d runs in %.0f s: %d different from the undisturbed run, %d did not resume, %d lost more than an interval")
  :format(kills, within, runs, core.now() - clock, different, stuck, lost))
os.exit(different + stuck + lost == 0)
