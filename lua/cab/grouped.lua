--- Finished runs in groups that differ only in their seed: what `cab compare` prints.
local lfs = require "lfs"
local core = require "cab.core"
local check = require "cab.check"
local folders = require "cab.folder"
local report = require "cab.report"
local runs = require "cab.runs"
local statistics = require "cab.statistics"
local M = {}

local metrics = { top1 = true, top5 = true, loss = true, perplexity = true }

-- What may differ between the runs of a group.
local same = { seed = true, name = true, export = true, device = true, threads = true, checkpoint = true, log = true }

-- One finished run: {name, recipe, result}.
local function read(run)
  local at = run.path .. "/result.json"
  if not lfs.attributes(at, "mode") then
    check.fail(2, ("%s has no result.json: the run has not ended; cab resume %s"):format(run.path, run.path), { id = "usage" })
  end
  local saved = check.decode(folders.read(run.path .. "/recipe.json"))
  if type(saved) ~= "table" or type(saved.recipe) ~= "table" then check.fail(65, run.path .. "/recipe.json: no recipe in it", { id = "recipe" }) end
  local recipe = {}
  for k, v in pairs(saved.recipe) do if not same[k] then recipe[k] = v end end
  return { name = run.name, recipe = recipe, result = check.decode(folders.read(at)) }
end

-- "fraction=0.1 align.weight=10": where a recipe differs from the others of the table.
local function label(recipe, keys)
  local parts = {}
  for _, path in ipairs(keys) do
    local at = runs.at(recipe, path)
    if type(at) == "table" then at = at.strategy or core.json_encode(at) end
    if at ~= nil then parts[#parts + 1] = ("%s=%s"):format(path:gsub("^stages%.%d+%.", ""), tostring(at)) end
  end
  return table.concat(parts, " ")
end

--- Rows {label, n, mean, sd, low, high, seconds} of run folders, and their table.
---@param paths string[] run folders, or folders of runs
---@param metric? string top1, top5, loss or perplexity; default: top1, of text perplexity
---@return table[] rows
---@return string text
function M.compare(paths, metric)
  if metric and not metrics[metric] then check.fail(2, "--metric: " .. check.unknown("value", metric, metrics), { id = "usage" }) end
  local groups, order, recipes = {}, {}, {}
  for _, run in ipairs(require "cab.charts".runs(paths)) do
    local r = read(run)
    local key = core.json_encode(r.recipe)
    if not groups[key] then
      groups[key], order[#order + 1], recipes[#recipes + 1] = { names = {}, values = {}, seconds = {} }, key, r.recipe
    end
    metric = metric or (r.result.perplexity and "perplexity" or "top1")
    local g, value = groups[key], tonumber(r.result[metric])
    if not value then check.fail(2, ("%s has no %s"):format(run.path, metric), { id = "usage" }) end
    table.insert(g.values, value)
    table.insert(g.seconds, tonumber(r.result.seconds))
    table.insert(g.names, r.name)
  end
  local keys, rows, lines = runs.varied(recipes), {}, {}
  for i, key in ipairs(order) do
    local g = groups[key]
    local row, seconds = statistics.summary(g.values), statistics.summary(g.seconds)
    row.label, row.runs, row.seconds = label(recipes[i], keys), g.names, seconds and seconds.mean
    rows[i] = row
    lines[i] = { row.label, statistics.shown(row), statistics.interval(row), tostring(row.n), row.seconds and ("%.0f"):format(row.seconds) or "",
      g.names[1] .. (row.n > 1 and " .." or "") }
  end
  return rows, report.table({ "what differs", metric .. " ± sd", "95 % interval", "runs", "seconds", "" }, lines)
end

return M
