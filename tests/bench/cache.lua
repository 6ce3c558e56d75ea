-- cache.lua [RECIPE [OVERRIDES...]]: a training step whose teacher is read from the cache, next to the same step fed from constants (no
-- teacher at all) and to one with the live teacher; each in turn, median of rounds. Goal: at least 95 % of the speed without a teacher.
local core = require "cab.core"
local steps = require "cab.step"
local ROUNDS, COUNT = 7, 12

local words = #arg > 0 and table.move(arg, 1, #arg, 1, {}) or { "recipes/vim_fashion.lua" }
local root = os.tmpname()
os.remove(root)

local function train(coding)
  local recipe = require "cab.commands.run".chunk(words[1], {})
  if require "cab.compare".is(recipe) then recipe = recipe.runs[#recipe.runs].recipe end
  local overrides = table.move(words, 2, #words, 1, {})
  if coding then
    overrides[#overrides + 1] = "cache.path=" .. root
    overrides[#overrides + 1] = "cache.coding=" .. coding
  end
  local job = require "cab.job".build(recipe:override(overrides).resolved, { cached = true })
  if job.cache then job.cache:fill(job, function() end) end
  job:measure()
  return { job = job, stepper = steps.new(job, function() end), done = 0, times = {} }
end

-- COUNT steps as the trainer makes them, its loader included: not waited for one by one.
local function go(t)
  local job, start = t.job, t.done % 3
  local feed <close> = job.data:loader("train", { batch = job.recipe.batch, seed = job.recipe.seed, epoch = 0, start = start })
  core.sync(job.device)
  local begun = core.now()
  for at = start, start + COUNT - 1 do
    local scope <close> = core.scope() -- luacheck: ignore scope
    t.stepper:take(scope, feed, at)
    t.done = t.done + 1
    t.stepper:run(scope, job.stages[1], 1, { step = t.done, lr = 0, clip = job.recipe.optim.clip, keep = 0 })
    job:clear_gradients()
  end
  core.sync(job.device)
  t.times[#t.times + 1] = (core.now() - begun) / COUNT
end

local function median(list)
  table.sort(list)
  return list[(#list + 1) // 2]
end

local arms, names = {}, { "live", "constants", "f32", "bf16", "int8" }
for _, name in ipairs(names) do
  arms[name] = train(name == "constants" and "bf16" or name ~= "live" and name or nil)
end
local fed = arms.constants.job.cache
rawset(fed, "take", function(self, feed, at)
  if not self.now then getmetatable(self).take(self, feed, at) end -- the first batch's, ever after
end)
for round = 0, ROUNDS do
  for _, name in ipairs(names) do
    if round == 1 then arms[name].times = {} end -- the first does not count
    go(arms[name])
  end
end
local base = median(arms.constants.times)
print(("\n-- teacher cache: %s, a step of batch %d"):format(table.concat(words, " "), arms.live.job.recipe.batch))
for _, name in ipairs(names) do
  local t, cache = median(arms[name].times), arms[name].job.cache
  print(("%-10s %9.2f ms   %5.1f %% of the speed without a teacher%s"):format(name == "constants" and "none" or name, 1e3 * t, 100 * base / t,
    cache and name ~= "constants" and ("   %.1f MiB in files"):format(select(2, cache:lacks()) / (1 << 20)) or ""))
end
os.execute("rm -r " .. root)
