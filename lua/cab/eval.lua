--- Accuracy, loss and bridge fit on the test images; perplexity on the test text; the same on what is held out of training, where
--- something is: then that decides, and the test data only tell.
local core = require "cab.core"
local check = require "cab.check"
local dist = require "cab.dist"
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
  local loader = data:loader(options.split or "test", { batch = batch, part = dist.rank, parts = dist.size > 1 and dist.size or nil })
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
  local complaints = loader:complaints()
  loader:close()
  images, hits1, hits5, loss = table.unpack(dist.sum("evaluation", { images, hits1, hits5, loss }))
  images = math.tointeger(images)
  return { top1 = 100 * hits1 / images, top5 = 100 * hits5 / images, loss = loss / images, images = images, seconds = core.now() - begun,
    complaints = complaints }
end

-- Images or rows of the batch on which fits are measured: targets of all layers are held at once, so few.
local function fit_batch(job)
  if job.text then return math.max(1, 5000 // job.data.length) end
  local batch = job.recipe.eval.batch
  return batch == 0 and 100 or math.min(batch, 100)
end

--- The split that a run's decisions are made on: "validation" where the data have one, otherwise "test".
---@param job Job
---@return string
function M.deciding(job) return job.data.count.validation and "validation" or "test" end

--- Calls f(images, labels) with the first batch of a split that is not trained on, and its targets at hand.
---@param job Job
---@param split string "validation" or "test"
---@param f fun(images: any, labels: any)
function M.held_out(job, split, f)
  local loader <close> = job.data:loader(split, { batch = fit_batch(job) })
  local scope <close> = core.scope() -- luacheck: ignore scope
  local images, labels = loader:next()
  if job.cache then job.cache:with(split, images:size(1), function() f(images, labels) end) else f(images, labels) end
end

--- R2 of each strategy that fits targets, on the first test batch.
---@param job Job
---@param stage table
---@return table name -> R2
---@return table name -> R2 by student layer, as text
function M.fits(job, stage)
  local out, layers = {}, {}
  M.held_out(job, "test", function(images, labels)
    core.no_grad(function()
      for _, term in ipairs(job:losses(stage, images, labels)) do
        local m = term.strategy:metrics()
        if m.r2 then
          out[term.name], layers[term.name] = m.r2, {}
          for layer, r2 in pairs(m.layers) do layers[term.name][tostring(layer)] = r2 end
        end
      end
    end)
  end)
  return out, layers
end

--- Perplexity of the test text by the student as it is, or another model, by the recipe's eval.window and eval.stride.
---@param job Job
---@param model? table
---@param split? string "test"
---@return table as text.perplexity
function M.perplexity(job, model, split)
  local o, data = job.recipe.eval, job.data
  local ids = data:ids(split or "test", o.tokens)
  local window = o.window > 0 and o.window or data.length
  return require "cab.text".perplexity(model or job.student, ids:to(job.device),
    { window = window, stride = o.stride > 0 and o.stride or window, batch = o.batch > 0 and o.batch or nil, together = true })
end

--- Length generalisation of the student as it is and, where it can, its teacher, on the test text: see cab.text.lengths.
---@param job Job
---@param times integer the longest window, in training lengths: a power of 2
---@return table[] rows {length, student = row, teacher? = row}
function M.lengths(job, times)
  if times < 1 or times & (times - 1) ~= 0 then check.fail(2, ("--lengths %d: expected a power of 2"):format(times), { id = "usage" }) end
  local ids = job.data:ids("test", job.recipe.eval.tokens):to(job.device)
  local rows = {}
  for role, model in pairs { student = job.student, teacher = job.teacher } do
    for i, row in ipairs(require "cab.text".lengths(model, ids, { length = job.data.length, times = times })) do
      rows[i] = rows[i] or { length = row.length }
      rows[i][role] = row
    end
  end
  return rows
end

--- The student's perplexity at the end of a run, by length: {length, perplexity} up to eval.lengths training lengths; nil where that is 0.
---@param job Job
---@return table[]?
function M.generalisation(job)
  local o = job.recipe.eval
  if o.lengths == 0 then return nil end
  return require "cab.text".lengths(job.student, job.data:ids("test", o.tokens):to(job.device), { length = job.data.length, times = o.lengths })
end

--- The rows of M.lengths as a table to print.
---@param rows table[]
---@return string
function M.lengths_table(rows)
  local lines = {}
  local function cell(row) return row and (row.perplexity and ("%.2f"):format(row.perplexity) or row.why) or "" end
  for i, row in ipairs(rows) do lines[i] = { tostring(row.length), cell(row.student), cell(row.teacher), tostring(row.student.tokens or "") } end
  return require "cab.report".table({ "tokens of a window", "student's perplexity", "teacher's", "tokens counted" }, lines)
end

-- What the recipe's eval.metrics name, of the student as it is on a split.
local function measured_on(job, wanted, split)
  if job.text then
    local row = M.perplexity(job, nil, split)
    row.score = -row.loss
    return row
  end
  local all = M.classify(job.student, job.data, { batch = job.recipe.eval.batch, split = split })
  return { top1 = all.top1, top5 = wanted.top5 and all.top5 or nil, loss = wanted.loss and all.loss or nil, images = all.images,
    seconds = all.seconds, score = all.top1, complaints = all.complaints }
end

-- The same of the test data, and of what is held out, whose score it then has.
local function measured(job, wanted)
  local row = measured_on(job, wanted, "test")
  if M.deciding(job) == "validation" then
    local held = measured_on(job, wanted, "validation")
    row.score, row.seconds, row.complaints = held.score, row.seconds + held.seconds, row.complaints or held.complaints
    row.validation = { top1 = held.top1, loss = held.loss, perplexity = held.perplexity, images = held.images, tokens = held.tokens }
  end
  return row
end

--- The evaluation of a training job. `score` is what the best weights have most of, on the validation images where there are some.
---@param job Job
---@param stage table
---@return table row {top1, top5, loss, images, seconds, score, validation?, average?, r2?}; of text {perplexity, loss, tokens, window, stride, ...}
function M.job(job, stage)
  local r, wanted = job.recipe, {}
  for _, name in ipairs(r.eval.metrics) do wanted[name] = true end
  local row = measured(job, wanted)
  if r.optim.ema > 0 then
    local average = job:averaged(function() return measured(job, wanted) end)
    row.average = { top1 = average.top1, top5 = average.top5, loss = average.loss, perplexity = average.perplexity, validation = average.validation }
    row.score = average.score
  end
  if wanted.align and job.pairs then
    local fits, layers = M.fits(job, stage)
    if next(fits) then row.r2, row.r2_layers = fits, layers end
  end
  row.layer_map = job.pairs and job.pairs:mixture() -- of a learned one
  return row
end

--- What a row says, in words.
---@param row table
---@return string[]
function M.words(row)
  local parts = { row.perplexity and ("perplexity %.2f"):format(row.perplexity) or ("top1 %.2f"):format(row.top1) }
  if row.top5 then parts[#parts + 1] = ("top5 %.2f"):format(row.top5) end
  if row.loss then parts[#parts + 1] = ("loss %.4f"):format(row.loss) end
  local held = row.validation
  if held then parts[#parts + 1] = held.perplexity and ("held out %.2f"):format(held.perplexity) or ("held out top1 %.2f"):format(held.top1) end
  if row.average then parts[#parts + 1] = "average " .. M.words(row.average)[1] end
  if row.layer_map then -- each student layer's largest share
    local chosen = {}
    for i, shares in ipairs(row.layer_map) do
      local best = 1
      for t, share in ipairs(shares) do if share > shares[best] then best = t end end
      chosen[i] = ("%d>%d %.2f"):format(i, best, shares[best])
    end
    parts[#parts + 1] = "layer map " .. table.concat(chosen, ", ")
  end
  for name, r2 in pairs(row.r2 or {}) do parts[#parts + 1] = ("%s R2 %.3f"):format(name, r2) end
  return parts
end

--- A score as people know it: name and number.
---@param job Job
---@return string
---@return number
function M.known(job, score)
  local prefix = M.deciding(job) == "validation" and "validation_" or ""
  if job.text then return prefix .. "perplexity", math.exp(-score) end
  return prefix .. "top1", score
end

return M
