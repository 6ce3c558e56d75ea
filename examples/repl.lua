-- A recipe driven step by step: what one types at the prompt of `cab`. cab run examples/repl.lua
local cab = require "cab"

local recipe = cab.recipe {
  data    = cab.data.fashion { fraction = 0.05 },
  teacher = cab.models.vit { dim = 48, depth = 2, heads = 3, patch = 7 },  -- untrained: give it weights = "FILE"
  student = cab.models.vim { dim = 32, depth = 4, state = 8, patch = 7 },
  stages  = { { loss = { soft = 1, align = { "attention_bridge", hidden = 32, weight = 3 } }, steps = 5 } },
  batch   = 32,
}
recipe:override { "optim.lr=2e-3" }

local job = cab.job.build(recipe.resolved)       -- data, models, bridge, parameters with their moments
job:measure()                                    -- mean and deviation of the teacher's q and k
print(job.student:size(), "parameters;", #job.pairs, "pairs;", job.per_epoch, "steps an epoch")

local stage, lr = job:stage(1), recipe.resolved.optim.lr
local loader = job.data:loader("train", { batch = 32, seed = 0, epoch = 0 })
for step = 1, 5 do
  local scope <close> = cab.scope()              -- frees what the step made
  local images, labels, target = loader:next()   -- [32,1,28,28], [32]
  local terms, logits, taps = job:losses(stage, images, labels, target)
  cab.job.total(terms):backward()
  print(step, logits, taps.B[1])                 -- shapes, ranges, corners
  for _, t in ipairs(terms) do print("", t.name, t.value:item(), t.strategy:metrics().r2) end
  for _, p in ipairs(job.params) do
    local decay = p.decay and 0.05 or 0
    if p.tensor.grad then
      cab.core.adamw({ p.tensor }, 1, { p.m }, { p.v },
        { lr = lr, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, decay = decay, step = step })
    end
  end
  job:clear_gradients()
end
loader:close()
print(job:shares(stage, job.data:loader("train", { batch = 32, seed = 0, epoch = 1 }):next()).align.share, "of the gradient")
