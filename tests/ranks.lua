--- Trainings of small recipes on several ranks from a test: on the CPU, or with CAB_TEST_DEVICE=cuda on as many GPUs.
local core = require "cab.core"
local process = require "process"
local folder = require "cab.folder"
local M = {}

M.device = os.getenv "CAB_TEST_DEVICE" or "cpu"
--- Seconds after which a rank is given up in what follows: on GPUs ranks begin at times that differ more.
M.timeout = M.device == "cpu" and 3 or 8

local dir = process.folder()
--- Whether there is an mpirun.
M.found = process.sh "command -v mpirun" == 0
M.launch = "OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 ASAN_OPTIONS=detect_leaks=0 timeout 120 mpirun --oversubscribe -np "

M.recipe = process.put(dir .. "/recipe.lua", ([[
local cab = require "cab"
return cab.recipe {
  data = cab.data.fashion { fraction = 0.05, flip = true, mixup = MIX },
  teacher = cab.models.vit { image = 28, patch = 7, dim = 16, depth = 2, heads = 2 },
  student = cab.models.vim { image = 28, patch = 7, dim = 16, depth = 2, state = 4 },
  stages = { { loss = { soft = 1, align = { "attention_bridge", hidden = 8, weight = 2 } }, steps = 50 } },
  optim = { "adamw", lr = 1e-3, warmup = 0.2, clip = 1, ema = 0.9 },
  device = "%s", batch = 48, log = 1, eval = { every = 1, batch = 500 }, checkpoint = { every = 10 }, threads = 1,
  dist = { timeout = 20, check = 10 },
}
]]):format(M.device))

-- Text of documents of all lengths, so that ranks and parts have other numbers of targets.
local lines = {}
for i = 1, 900 do lines[i] = ('{"text": "%s"}'):format(("the river ran over stones "):rep(i % 7 == 0 and 12 or 1) .. ("and so on "):rep(i % 3)) end
process.put(dir .. "/corpus.jsonl", table.concat(lines, "\n") .. "\n")
M.language = process.put(dir .. "/text.lua", ([[
local cab = require "cab"
return cab.recipe {
  data = cab.data.text { train = "%s/corpus.jsonl", length = 32, holdout = 0.1 },
  teacher = cab.models.gpt2 { dim = 16, depth = 2, heads = 2, positions = 32 },
  student = cab.models.phi_mamba { dim = 16, depth = 2, heads = 2, state = 4 },
  stages = { { loss = { soft = { hard = 1 }, align = { "attention_bridge", hidden = 8 } }, steps = 50 } },
  optim = { "adamw", lr = 1e-3, clip = 1, ema = 0.9 }, device = "%s", batch = 13, log = 1, checkpoint = { every = 10 }, threads = 1,
  dist = { timeout = 20, check = 10 },
}
]]):format(dir, M.device))

local count = 0
--- Trains the recipe in a folder on so many ranks. o: recipe, out, resume, stop_after, overrides. @return code, output, folder
function M.train(ranks, o)
  count = count + 1
  local out = o.out or ("%s/run%d"):format(dir, count)
  local script = process.put(("%s/train%d.lua"):format(dir, count), ([[
MIX = %s
local recipe = dofile %q:override { %s }
recipe:run { out = %q, resume = %s, stop_after = %s, quiet = true }
]]):format(o.mixup or 0, o.recipe or M.recipe, o.overrides or "", out, o.resume or false, o.stop_after or "nil"))
  local prefix = ranks > 1 and M.launch .. ranks or "OMP_NUM_THREADS=1"
  local code, output = process.sh(("%s '%s' run '%s'"):format(prefix, process.program, script))
  return code, output, out
end

local function losses(path)
  local out = {}
  for _, row in ipairs((folder.metrics(path .. "/metrics.jsonl"))) do if row.loss then out[row.step] = row end end
  return out
end

--- The largest relative difference of 50 steps: losses and gradient norms each to itself; terms to the loss, since that of the
--- logits here is a thousandth of the logarithms that it is the difference of.
function M.difference(a, b)
  local x, y, most = losses(a), losses(b), 0
  for step = 1, 50 do
    for key, to in pairs { loss = "loss", grad_norm = "grad_norm", ["loss.soft"] = "loss", ["loss.align"] = "loss" } do
      most = math.max(most, math.abs(x[step][key] - y[step][key]) / math.abs(x[step][to]))
    end
  end
  return most
end

--- What the last evaluation found.
function M.last_row(path)
  local rows = folder.metrics(path .. "/metrics.jsonl")
  return rows[#rows].eval
end

--- A Lua script on so many ranks, with rank and size, core and dist at hand. @return code, output, seconds
function M.script(ranks, text)
  count = count + 1
  local script = process.put(("%s/script%d.lua"):format(dir, count),
    ("local core, dist = require 'cab.core', require 'cab.dist'\ndist.open { timeout = %d }\nlocal rank = dist.rank\ncore.catch_signals(true)\n"):format(
      M.timeout - 1) .. text)
  local begun = core.now()
  local code, output = process.sh(M.launch .. ranks .. (" '%s' run '%s'"):format(process.program, script))
  return code, output, core.now() - begun
end

--- Programs of this build that still run a file of this test, 5 s after mpirun ended: it does not wait for the last of them.
function M.orphans()
  local begun = core.now()
  local list
  repeat
    list = select(2, process.sh(("for p in /proc/[0-9]*; do { tr '\\0' ' ' <$p/cmdline; } 2>/dev/null | grep -q '^%s run %s/' "
      .. "&& echo $p; done; true"):format(process.program, dir)))
  until list == "" or core.now() - begun > 5
  return list
end

--- Begins a long training of 2 ranks, does that to one of them and gives it time. @return output, path, seconds
function M.hurt(signal)
  count = count + 1
  local out, log = ("%s/hurt%d"):format(dir, count), ("%s/hurt%d.log"):format(dir, count)
  local script = process.put(("%s/hurt%d.lua"):format(dir, count), "MIX = 0 return dofile '" .. M.recipe .. "'")
  local code, output = process.sh(([[
(%s2 '%s' run '%s' stages.1.steps=200000 eval.every=1000000 dist.timeout=%d --quiet --out '%s'; echo "ends with $?") >%s 2>&1 &
for i in $(seq 400); do [ -e '%s/checkpoints/step-20.json' ] && break; sleep 0.1; done
victim=
for p in /proc/[0-9]*; do tr '\0' ' ' <$p/cmdline 2>/dev/null | grep -q "^%s run %s" && victim=${p#/proc/}; done
kill -%s $victim
begun=$(date +%%s%%N)
wait
echo "took $(( ($(date +%%s%%N) - begun) / 1000000 )) ms"
cat %s]]):format(M.launch, process.program, script, M.timeout, out, log, out, process.program, script, signal, log))
  assert(code == 0, output)
  return output, out, tonumber(output:match "took (%d+) ms") / 1000, script
end

--- Resumes what was hurt, and stops it once it goes on. @return true, or what it said
function M.goes_on(path, script)
  local code, output = process.sh(M.launch .. ("2 '%s' run '%s' stages.1.steps=200000 eval.every=1000000 "
    .. "--quiet --resume --out '%s' & p=$!\nfor i in $(seq 600); do grep -q 'resumed at' '%s/log.txt' && break; sleep 0.1; done\n"
    .. "sleep 1; kill $p; wait $p"):format(process.program, script, path, path))
  return folder.read(path .. "/log.txt"):find "resumed at step %d+" ~= nil or output .. code
end

return M
