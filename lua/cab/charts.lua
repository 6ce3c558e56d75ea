--- Charts of run folders, by name: what `cab plot` draws, what a report holds, what recipes and the prompt may ask for.
local check = require "cab.check"
local folders = require "cab.folder"
local options = require "cab.options"
local plot = require "cab.plot"
local M = {}

---@class NamedRun
---@field name string
---@field path string run folder

--- The runs at some paths, named so that they can be told apart.
---@param paths string[] run folders, or folders of runs
---@return NamedRun[]
function M.runs(paths)
  local list = {}
  for _, path in ipairs(paths) do
    local found = folders.runs((path:gsub("(.)/+$", "%1")))
    if #found == 0 then check.fail(2, ("%s: neither a run folder nor a folder of runs"):format(path), { id = "usage" }) end
    for _, p in ipairs(found) do list[#list + 1] = { path = p, name = p:match "[^/]+$" } end
  end
  local count = {}
  for _, r in ipairs(list) do count[r.name] = (count[r.name] or 0) + 1 end
  for _, r in ipairs(list) do if count[r.name] > 1 then r.name = r.path:match "[^/]+/[^/]+$" or r.path end end
  return list
end

local function rows_of(run, file)
  run.rows = run.rows or {}
  run.rows[file] = run.rows[file] or folders.metrics(("%s/%s.jsonl"):format(run.path, file))
  return run.rows[file]
end

-- A series a run of what `pick` finds in its rows; runs without any are left out.
local function series(runs, file, pick)
  local out = {}
  for _, run in ipairs(runs) do
    local points = {}
    for _, row in ipairs(rows_of(run, file)) do
      local y = pick(row)
      if type(y) == "number" then points[#points + 1] = { row.step, y } end
    end
    if #points > 0 then out[#out + 1] = { name = run.name, points = points } end
  end
  return out
end

-- A series for each key of a run's rows under a prefix, or of a table in its evaluations.
local function keyed(runs, find)
  local out = {}
  for _, run in ipairs(runs) do
    local by = {}
    for _, row in ipairs(rows_of(run, "metrics")) do
      for name, value in pairs(find(row) or {}) do
        if type(value) == "number" then
          by[name] = by[name] or {}
          table.insert(by[name], { row.step, value })
        end
      end
    end
    for _, name in ipairs(options.names(by)) do
      out[#out + 1] = { name = #runs > 1 and ("%s: %s"):format(run.name, name) or name, points = by[name] }
    end
  end
  return out
end

local function prefixed(prefix)
  return function(row)
    local out = {}
    for key, value in pairs(row) do
      local name = type(key) == "string" and key:sub(1, #prefix) == prefix and key:sub(#prefix + 1)
      if name then out[name] = value end
    end
    return out
  end
end

-- True where all values are above 0 and spread over more than a decade.
local function spread(list)
  local low, high = math.huge, 0
  for _, s in ipairs(list) do
    for _, p in ipairs(s.points) do low, high = math.min(low, p[2]), math.max(high, p[2]) end
  end
  return low > 0 and high > 10 * low
end

local function curve(title, y, list, more)
  if #list == 0 then return nil end
  local c = { title = title, x = "step", y = y, series = list, logy = spread(list) }
  for k, v in pairs(more or {}) do c[k] = v end
  return c
end

-- name -> function(runs) -> Chart, or nil where the runs have nothing of it
local kinds = {}
M.kinds = kinds
function kinds.loss(runs) return curve("training loss", "loss", series(runs, "metrics", function(r) return not r.eval and r.loss end)) end
function kinds.terms(runs) return curve("loss terms, before their weights", "loss", keyed(runs, prefixed "loss.")) end
function kinds.weighted(runs) return curve("loss terms times their weights", "loss", keyed(runs, prefixed "weighted.")) end
function kinds.weights(runs) return curve("weights of loss terms", "weight", keyed(runs, prefixed "weight."), { logy = false }) end
function kinds.cosine(runs)
  return curve("gradient of a term against the others', mean over layers", "cosine", keyed(runs, function(r) return r.eval and r.eval.mean_cosine end),
    { logy = false })
end
function kinds.gradient(runs) return curve("norm of the gradient", "L2 norm", series(runs, "metrics", function(r) return r.grad_norm end)) end
function kinds.rate(runs) return curve("learning rate", "lr", series(runs, "metrics", function(r) return r.lr end), { logy = false }) end
function kinds.accuracy(runs)
  return curve("top-1 on the test images", "top-1 (%)", series(runs, "metrics", function(r) return r.eval and r.eval.top1 end), { logy = false })
end
function kinds.perplexity(runs)
  return curve("perplexity of the test text", "perplexity", series(runs, "metrics", function(r) return r.eval and r.eval.perplexity end))
end
function kinds.fit(runs)
  return curve("variance of the teacher's targets that the student explains", "R2", keyed(runs, function(r) return r.eval and r.eval.r2 end), { logy = false })
end
function kinds.shares(runs)
  return curve("share of each loss term in the student's gradient", "share", keyed(runs, function(r) return r.eval and r.eval.share end),
    { logy = false, low = 0, high = 1 })
end
function kinds.conflict(runs)
  return curve("cosine between the gradients of two loss terms", "cosine (below 0: conflict)",
    keyed(runs, function(r) return r.eval and r.eval.conflict end), { logy = false, low = -1, high = 1 })
end
function kinds.speed(runs) return curve("speed", "images or tokens a second", series(runs, "speed", function(r) return r.rate end), { logy = false, low = 0 }) end
function kinds.wait(runs)
  return curve("time spent waiting for data", "share (%)", series(runs, "speed", function(r) return r.wait and 100 * r.wait end), { logy = false, low = 0 })
end
function kinds.memory(runs)
  return curve("memory in tensors, at most", "MiB", series(runs, "speed", function(r) return r.peak and r.peak / (1 << 20) end), { logy = false, low = 0 })
end

--- The last evaluation of a run.
---@param run table
---@return table?
function M.last(run)
  local last
  for _, row in ipairs(rows_of(run, "metrics")) do last = row.eval or last end
  return last
end

-- "soft+align" of the terms of a recipe's stages.
local function method(recipe)
  local names = {}
  for _, stage in ipairs(recipe.stages or {}) do
    for name, term in pairs(stage.loss or {}) do names[name == "align" and term.strategy or name] = true end
  end
  return table.concat(options.names(names), "+")
end

--- Accuracy against the share of the training data, a line a method, the mean over seeds with their range.
function kinds.fraction(runs)
  local by, order = {}, {}
  for _, run in ipairs(runs) do
    local saved = check.decode(folders.read(run.path .. "/recipe.json")) or {}
    local recipe, last = saved.recipe or {}, M.last(run)
    local x = recipe.data and recipe.data.fraction
    if x and last and last.top1 then
      local name = method(recipe)
      if not by[name] then
        by[name] = {}
        order[#order + 1] = name
      end
      by[name][x] = by[name][x] or {}
      table.insert(by[name][x], last.top1)
    end
  end
  local list, shares = {}, {}
  for _, name in ipairs(order) do
    local s = { name = name, points = {}, band = {}, style = "linespoints" }
    for x, values in pairs(by[name]) do
      local sum, low, high = 0, math.huge, -math.huge
      for _, v in ipairs(values) do sum, low, high = sum + v, math.min(low, v), math.max(high, v) end
      s.points[#s.points + 1], s.band[#s.band + 1] = { 100 * x, sum / #values }, { 100 * x, low, high }
      shares[x] = true
    end
    local function earlier(a, b) return a[1] < b[1] end
    table.sort(s.points, earlier)
    table.sort(s.band, earlier)
    list[#list + 1] = s
  end
  local tics = {}
  for x in pairs(shares) do tics[#tics + 1] = ("'%g %%%%' %g"):format(100 * x, 100 * x) end
  if #tics < 2 then return nil, "it needs runs with at least two values of data.fraction" end
  return { title = "accuracy against the share of the training data", x = "share of the training data", y = "top-1 (%)", series = list, logx = true, xtics = tics }
end

local insights = { similarity = true, map = true, lengths = true } -- need models and data

---@return string[]
function M.names()
  local out = options.names(kinds, insights)
  out[#out + 1] = "attention"
  table.sort(out)
  return out
end

--- The chart of some runs; nil and the reason where they have nothing of it.
---@param what string
---@param runs NamedRun[]
---@param o? table of insight: images, layer
---@return Chart?
---@return string? why
function M.chart(what, runs, o)
  local f = kinds[what] or insights[what] and require "cab.insight"[what]
  if not f then check.fail(2, check.unknown("chart", what, M.names()), { id = "usage" }) end
  local c, why = f(runs, o)
  return c, c == nil and (why or "these runs have logged nothing of it") or nil
end

--- Accuracy or perplexity over steps into a file: the picture at the end of a comparison.
---@param runs table[]
---@param path string
---@param title string
---@return string? path
---@return string? why
function M.evaluations(runs, path, title)
  local c = kinds.accuracy(runs) or kinds.perplexity(runs)
  if not c then return nil, "no evaluation" end
  c.title = title
  return plot.chart(path, c)
end

--- Draws a chart, or attention maps, of runs into a file: what `cab plot`, the prompt and recipes that draw have in common.
---@param what string a name of M.names()
---@param paths string[]|string run folders, or folders of runs
---@param out? string .png or .svg; default: WHAT.png
---@param o? table images, layer
---@return string path
function M.draw(what, paths, out, o)
  local runs = M.runs(type(paths) == "table" and paths or { paths })
  out = out or ("%s.png"):format(what)
  local drawn, why
  if what == "attention" then drawn, why = require "cab.insight".attention(runs, out, o)
  else
    local c
    c, why = M.chart(what, runs, o)
    if c then drawn, why = plot.chart(out, c) end
  end
  if not drawn then check.fail(2, ("%s is not drawn: %s"):format(what, why), { id = "plot" }) end
  return out
end

--- `cab plot`.
---@param o table runs, what, out, quiet, images, layer
---@return integer exit code
function M.main(o)
  local out = M.draw(o.what, o.runs, o.out, o)
  if not o.quiet then print(out) end
  return 0
end

return M
