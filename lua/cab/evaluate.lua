--- `cab eval`: the best weights of a run, or of each run of a comparison, evaluated again.
local core = require "cab.core"
local check = require "cab.check"
local folders = require "cab.folder"
local evaluate = require "cab.eval"
local M = {}

--- The job of a run folder as its recipe.json has it, with its best weights and the newest checkpoint's bridge. Inside the caller's scope.
---@param path string run folder
---@param overrides? string[]
---@return Job
---@return table? manifest of the checkpoint
---@return table meta of best.safetensors
function M.open(path, overrides)
  local runs = require "cab.runs"
  local recipe = runs.recipe(path):override(overrides or {})
  local job = require "cab.job".build(recipe.resolved)
  local tensors, manifest = folders.view(path):load(false)
  if tensors and job.pairs then job:restore(tensors, ("%s/checkpoints/%s"):format(path, manifest.file)) end
  local best, meta = core.load(path .. "/best.safetensors")
  job.student:load(best)
  return job, tensors and job.pairs and manifest or nil, meta or {}
end

-- The row of a run, and its line.
local function one(path, o)
  local scope <close> = core.scope() -- luacheck: ignore scope
  local job, manifest, meta = M.open(path, o.overrides)
  local row = { run = path, step = math.tointeger(tonumber(meta.step)), device = job.device }
  local fits = {}
  if manifest then
    row.r2, row.r2_step = evaluate.fits(job, (job:stage(manifest.step))), manifest.step
    for name, r2 in pairs(row.r2) do fits[#fits + 1] = ("  %s R2 %.3f at step %d"):format(name, r2, manifest.step) end
    table.sort(fits)
  end
  local head = ("%s/best.safetensors of step %s: "):format(path, meta.step or "?")
  if not job.text then
    if #o.task > 0 or o.lengths then
      check.fail(2, path .. ": tasks and lengths are for language models, its data are images", { id = "usage" })
    end
    local e = evaluate.classify(job.student, job.data, { batch = job.recipe.eval.batch })
    row.top1, row.top5, row.loss, row.images = e.top1, e.top5, e.loss, e.images
    return row, ("%stop1 %.2f  top5 %.2f  loss %.4f  (%d images, %.0f a second on %s)%s"):format(head, e.top1, e.top5, e.loss, e.images,
      e.images / e.seconds, job.device, table.concat(fits))
  end
  local e = evaluate.perplexity(job)
  row.perplexity, row.loss, row.tokens = e.perplexity, e.loss, e.tokens
  local line = ("%sperplexity %.2f  (%d ids, window %d, stride %d, %.0f a second on %s)%s"):format(head, e.perplexity, e.tokens, e.window,
    e.stride, e.tokens / e.seconds, job.device, table.concat(fits))
  if o.lengths then
    row.lengths = evaluate.lengths(job, o.lengths)
    line = line .. "\n" .. evaluate.lengths_table(row.lengths)
  end
  if not o.json then print(line) end
  require "cab.harness".report(job, o.task)
  return row
end

--- @param o table run, overrides, task, lengths, json
---@return integer exit code
function M.main(o)
  local paths, rows = folders.runs(o.run), {}
  if #paths == 0 then check.fail(2, ("%s: neither a run folder nor a folder of runs"):format(o.run), { id = "usage" }) end
  if o.json and #o.task > 0 then check.fail(2, "cab eval: --json and --task do not go together", { id = "usage" }) end
  for i, path in ipairs(paths) do
    local line
    rows[i], line = one(path, o)
    if line and not o.json then print(line) end
  end
  if o.json then print(core.json_encode(require "cab.runs".plain(rows))) end
  return 0
end

return M
