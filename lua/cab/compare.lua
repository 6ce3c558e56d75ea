--- Several runs that differ in their stages: same data, seed and steps, one table at the end, two pictures.
local core = require "cab.core"
local check = require "cab.check"
local recipes = require "cab.recipe"
local report = require "cab.report"
local pictures = require "cab.pictures"
local M = {}

---@class Comparison
local Comparison = {}
Comparison.__index = Comparison

local schema = { name = { "string", default = "" }, base = { "table", required = true }, runs = { "table", required = true },
  pictures = { "integer", default = 8, min = 0, max = 64 }, -- test images in attention.png
  sample = { "string", default = "" } }                     -- of text: a prompt that each run's best weights continue; "": none

M.schema = schema -- for cab.reference

--- cab.compare { base = {recipe}, runs = { { name = "vanilla", stages = {...} }, ... } }: each run is the base with the
--- run's fields in place of its own.
---@param given table
---@return Comparison
function M.compare(given)
  local o = check.options(schema, given, "compare")
  local self = setmetatable({ name = o.name, runs = {}, pictures = o.pictures, sample = o.sample }, Comparison)
  local seen = {}
  for i, run in ipairs(o.runs) do
    if type(run.name) ~= "string" or seen[run.name] then
      check.usage(("compare: runs.%d needs a name of its own"):format(i))
    end
    local all = check.copy(o.base)
    for k, v in pairs(run) do all[k] = v end
    seen[run.name] = true
    self.runs[i] = { name = run.name, recipe = recipes.recipe(all) }
  end
  if #self.runs == 0 then check.usage("compare: runs is empty") end
  return self
end

--- Whether a value is a comparison.
---@param value any
---@return boolean
function M.is(value) return getmetatable(value) == Comparison end

-- Whether a run has the stage and the loss term that an override speaks of, as "stages.1.loss.align.weight=3"; nil of another override.
local function has_part(run, text)
  local stage = text:match "^stages%.(%d+)%."
  local term = text:match "^stages%.%d+%.loss%.([%w_]+)"
  local s = stage and run.recipe.resolved.stages[math.tointeger(tonumber(stage))]
  if not stage or (s and not term) then return stage and true end
  return s ~= nil and s.loss[term] ~= nil
end

--- Overrides for all runs; one that fits none of them is a fault, one on a stage or a loss term goes to the runs that have it.
---@param runs table[] {recipe}
---@param texts string[]
function M.override(runs, texts)
  for _, text in ipairs(texts) do
    local taken, fault
    for _, run in ipairs(runs) do
      local ok, e = pcall(run.recipe.override, run.recipe, { text })
      if ok then taken = true
      elseif check.code(e) ~= 2 or has_part(run, text) == nil then error(e, 0)
      elseif not fault or has_part(run, text) then fault = e end -- of a run that has the term: it says what of it is wrong
    end
    if not taken then error(fault, 0) end
  end
end

--- Overrides for all runs, as M.override.
---@param texts string[] "key=value"
---@return Comparison itself
function Comparison:override(texts)
  M.override(self.runs, texts)
  return self
end

local function exists(path)
  local f = io.open(path, "rb")
  if f then f:close() end
  return f ~= nil
end

local function load_student(run)
  local r = run.recipe.resolved
  local job = require "cab.job".build(r)
  job.student:load((core.load(run.result.path .. "/best.safetensors")))
  return job
end

-- One column of maps for the teacher and one a run, of the last layer and the teacher layer it learned from.
local function attention(self, path)
  local scope <close> = core.scope()
  local columns, images = {}, nil
  for _, run in ipairs(self.runs) do
    local job = load_student(run)
    local depth = job.student.depth
    if job.student.kind ~= "vim" or not job.teacher or job.teacher.kind ~= "vit" then
      return nil, "no attention maps: they need a vit teacher and a vim student"
    end
    if not images then
      local loader = job.data:loader("test", { batch = self.pictures })
      images = loader:next()
      loader:close()
      columns[1] = pictures.teacher_maps(job.teacher, images, job.pairs.map[depth])
    end
    columns[#columns + 1] = pictures.student_maps(job.student, images, depth)
  end
  return pictures.mosaic(images, columns, path)
end

--- Trains all runs in OUT/NAME, prints the table, writes accuracy.png (of text, perplexity.png) and attention.png.
---@param o? table as for train.run
---@return table[] results
function Comparison:run(o)
  o = o or {}
  local name = self.name ~= "" and self.name or o.name or "compare"
  local dist = require "cab.dist"
  dist.open(self.runs[1].recipe.resolved.dist)
  local _, root = dist.first("folder", function()
    local path = o.out or require "cab.folder".choose(name, o.resume)
    return path, path
  end)
  local results = {}
  for i, run in ipairs(self.runs) do
    local path = root .. "/" .. run.name
    local _, old = dist.first("folder", function() return nil, o.resume and exists(path .. "/recipe.json") or false end)
    local ok, result = pcall(run.recipe.run, run.recipe,
      { out = path, name = run.name, quiet = o.quiet, chart = o.chart, resume = old and o.resume or nil, stop_after = o.stop_after,
        source = o.source and { file = o.source.file, text = o.source.text, overrides = o.source.overrides, run = run.name } })
    if not ok then
      if check.code(result) == 75 then
        check.fail(75, ("%s of %s stopped; go on with --resume --out %s"):format(run.name, name, root), { id = "stopped" })
      end
      error(result, 0)
    end
    run.result, results[i] = result, result
  end
  if dist.rank == 0 then self:report(root, o) end
  return results
end

-- The table of finished runs: accuracy, or perplexity of text.
local function results_table(runs)
  local text, rows = runs[1].result.perplexity ~= nil, {}
  local function number(form, x) return x and form:format(x) or "" end
  for i, run in ipairs(runs) do
    local r = run.result
    local first = text and { number("%.2f", r.perplexity) } or { number("%.2f", r.top1), number("%.2f", r.top5) }
    rows[i] = { run.name, first[1], first[2] or ("%d"):format(r.parameters), number("%.4f", r.loss),
      number("%.3f", r.r2 and next(r.r2) and select(2, next(r.r2))), ("%d"):format(r.steps), ("%.0f"):format(r.seconds) }
  end
  return report.table({ "run", text and "perplexity" or "top-1 %", text and "parameters" or "top-5 %", "loss", "bridge R2", "steps", "seconds" }, rows)
end

-- What each run makes of the prompt.
local function samples(self, say)
  for _, run in ipairs(self.runs) do
    local scope <close> = core.scope() -- luacheck: ignore scope
    local generate = require "cab.generate"
    local model, tokenizer = generate.open(run.result.path)
    say(("\n%s: %s"):format(run.name, (generate.text(model, tokenizer, self.sample, { count = 80 }):gsub("%c", " "))))
    tokenizer:close()
  end
end

--- The table of finished runs, and their pictures or, of text, what they write.
---@param root string folder of the pictures
---@param o table quiet
function Comparison:report(root, o)
  local text = results_table(self.runs)
  local function say(line) if not o.quiet then print(line) end end
  say("\n" .. text)
  core.write_file(root .. "/table.txt", text .. "\n")
  local list, of_text = {}, self.runs[1].result.perplexity ~= nil
  for i, run in ipairs(self.runs) do list[i] = { name = run.name, path = run.result.path } end
  local metric, what = of_text and "perplexity" or "accuracy", of_text and "perplexity of the test text" or "top-1 on the test images"
  local curve, why = require "cab.charts".evaluations(list, ("%s/%s.png"):format(root, metric), what)
  say(curve and ("%s over steps: %s"):format(metric, curve) or "skipped: " .. why)
  if self.pictures > 0 and not of_text then
    local picture, reason = attention(self, root .. "/attention.png")
    say(picture and ("image, teacher's attention, %s: %s"):format(self:names(), picture) or "skipped: " .. reason)
  end
  if self.sample ~= "" and of_text and not o.quiet then samples(self, say) end
end

--- The names of the runs, in order, as one text.
---@return string
function Comparison:names()
  local list = {}
  for i, run in ipairs(self.runs) do list[i] = run.name end
  return table.concat(list, ", ")
end

return setmetatable(M, { __call = function(_, given) return M.compare(given) end })
