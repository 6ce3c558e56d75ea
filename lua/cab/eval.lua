--- Accuracy, loss and bridge fit on the test images.
local core = require "cab.core"
local M = {}

--- A model over a split: top1 and top5 in percent, loss as the mean cross-entropy.
---@param model table
---@param data Data
---@param options? table split ("test"), batch (0 or none: 250 on the CPU, 512 on a GPU)
---@return table {top1, top5, loss, images, seconds}
function M.classify(model, data, options)
  options = options or {}
  local batch = options.batch or 0
  if batch == 0 then batch = data.device == "cpu" and 250 or 512 end
  local loader = data:loader(options.split or "test", { batch = batch })
  local begun, images, hits1, hits5, loss = core.now(), 0, 0, 0, 0
  local k = math.min(5, data.classes)
  while true do
    local scope <close> = core.scope()
    local x, labels = loader:next()
    if not x then break end
    core.no_grad(function()
      local logits = model:forward(x)
      local b = labels:count()
      images = images + b
      hits1 = hits1 + core.top_k(logits, labels, 1)
      hits5 = hits5 + core.top_k(logits, labels, k)
      loss = loss + b * core.ops.cross_entropy(logits, labels):item()
    end)
  end
  loader:close()
  return { top1 = 100 * hits1 / images, top5 = 100 * hits5 / images, loss = loss / images, images = images, seconds = core.now() - begun }
end

-- Targets of all layers are held at once, so few images.
local function fit_batch(job)
  local batch = job.recipe.eval.batch
  return batch == 0 and 100 or math.min(batch, 100)
end

--- R2 of each strategy that fits targets, on the first test batch.
---@param job Job
---@param stage table
---@return table name -> R2
function M.fits(job, stage)
  local out = {}
  local loader = job.data:loader("test", { batch = fit_batch(job) })
  do
    local scope <close> = core.scope()
    core.no_grad(function()
      local images, labels = loader:next()
      for _, term in ipairs(job:losses(stage, images, labels)) do
        local m = term.strategy:metrics()
        if m.r2 then out[term.name] = m.r2 end
      end
    end)
  end
  loader:close()
  return out
end

--- The evaluation of a training job: what the recipe's eval.metrics name.
---@param job Job
---@param stage table
---@return table row {top1, top5, loss, r2}
function M.job(job, stage)
  local wanted, r = {}, job.recipe
  for _, name in ipairs(r.eval.metrics) do wanted[name] = true end
  local function classify() return M.classify(job.student, job.data, { batch = r.eval.batch }) end
  local all = classify()
  local row = { top1 = all.top1, seconds = all.seconds, images = all.images }
  if wanted.top5 then row.top5 = all.top5 end
  if wanted.loss then row.loss = all.loss end
  if r.optim.ema > 0 then
    local average = job:averaged(classify)
    row.average = { top1 = average.top1, top5 = average.top5, loss = average.loss }
  end
  if wanted.align and job.pairs then
    local fits = M.fits(job, stage)
    if next(fits) then row.r2 = fits end
  end
  return row
end

return M
