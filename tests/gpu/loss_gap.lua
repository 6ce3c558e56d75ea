-- loss_gap.lua [STEPS=200] [DEVICE=cuda]: the same small distillation on the CPU and on a GPU in f32: prints both losses and
-- their gap, which must stay below 1e-3 of the loss on average over the steps. Then 1000 steps in bf16, whose losses must stay finite.
local cab = require "cab"
local core = require "cab.core"
local steps, device = tonumber(arg[1]) or 200, arg[2] or "cuda"
local LIMIT = 1e-3

local function train(name, o)
  local out = os.tmpname()
  os.remove(out)
  local recipe = {
    data = cab.data.fashion { fraction = 0.05 },
    teacher = cab.models.vit { image = 28, patch = 4, dim = 64, depth = 6, heads = 4, weights = "data/teacher_fashion.safetensors" },
    student = cab.models.vim { image = 28, patch = 4, dim = 64, depth = 4, state = 16, decay = "identity" },
    stages = { { loss = { soft = 1, align = { "attention_bridge", weight = 3 } }, steps = o.steps } },
    optim = { "adamw", lr = 1e-3, weight_decay = 0.05, schedule = "cosine", clip = 1 },
    batch = 64, seed = 0, log = 1, device = o.device, precision = o.precision, checkpoint = { every = 0 }, eval = { shares = false },
  }
  local begun = core.now()
  cab.recipe(recipe):run { out = out, quiet = true }
  local losses = {}
  for line in io.lines(out .. "/metrics.jsonl") do
    local row = core.json_decode(line)
    if row.loss then losses[row.step] = assert(tonumber(row.loss)) end
  end
  print(("%-12s %d steps, %.1f s, last loss %.6f, %s"):format(name, #losses, core.now() - begun, losses[#losses], out))
  return losses
end

local cpu = train("cpu", { device = "cpu", steps = steps })
local gpu = train(device, { device = device, steps = steps })
local mean, worst, at = 0, 0, 0
for i, a in ipairs(cpu) do
  local gap = math.abs(gpu[i] - a) / math.abs(a)
  mean = mean + gap / #cpu
  if gap > worst then worst, at = gap, i end
  if i == 1 or i % math.max(1, steps // 10) == 0 then print(("step %4d  cpu %.6f  %s %.6f  gap %.2g"):format(i, a, device, gpu[i], gap)) end
end
local good = #cpu == steps and #gpu == steps and mean < LIMIT
print(("gap: mean %.3g, largest %.3g at step %d; limit of the mean %g"):format(mean, worst, at, LIMIT))

if core.device(device) ~= "cpu" then
  local rough = train("bf16", { device = device, precision = "bf16", steps = 5 * steps })
  local bad = 0
  for _, x in ipairs(rough) do if x ~= x or x == math.huge then bad = bad + 1 end end
  print(("bf16: %d steps, %d not finite, loss %.4f -> %.4f"):format(#rough, bad, rough[1], rough[#rough]))
  good = good and bad == 0 and #rough == 5 * steps
end
os.exit(good, true)
