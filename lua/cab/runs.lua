--- Runs as a whole: the recipe of a run folder, going on with one, and running one again to compare every number.
local core = require "cab.core"
local check = require "cab.check"
local folders = require "cab.folder"
local options = require "cab.options"
local lfs = require "lfs"
local M = {}

--- Where a run's recipe came from: the file, its text and the overrides.
---@param path string recipe file
---@param overrides? string[]
---@return table
function M.source(path, overrides) return { file = path, text = folders.read(path), overrides = overrides or {} } end

--- What can stand in JSON of a result: numbers that are not finite as text, no userdata.
---@param value any
---@return any
function M.plain(value)
  if type(value) ~= "table" then
    if type(value) == "number" and (value ~= value or value == math.huge or value == -math.huge) then return tostring(value) end
    return (type(value) == "string" or type(value) == "number" or type(value) == "boolean") and value or nil
  end
  local out = {}
  for k, v in pairs(value) do out[k] = M.plain(v) end
  return out
end

--- What a recipe file says, after overrides; of a comparison its first run.
---@param path string
---@param overrides? string[]
---@return table resolved recipe
function M.resolved(path, overrides)
  local value = core.loadfile(path)(path)
  if require "cab.compare".is(value) or require "cab.study".is(value) then value = value.runs[1].recipe end
  if not require "cab.recipe".is(value) then check.fail(2, path .. ": returns no recipe", { id = "recipe" }) end
  return value:override(overrides or {}).resolved
end

-- JSON's { kind = "last", k = 4 } is { "last", k = 4 } in a recipe.
local function decoded(recipe)
  if type(recipe.pairs) == "table" and recipe.pairs.kind then
    local p = { recipe.pairs.kind }
    for k, v in pairs(recipe.pairs) do if k ~= "kind" then p[math.tointeger(tonumber(k)) or k] = v end end
    recipe.pairs = p
  end
  return recipe
end

-- The recipe of what a file returned: itself, or that of the run of a comparison.
local function of_source(value, source, path)
  if require "cab.recipe".is(value) then return value end
  for _, run in ipairs((require "cab.compare".is(value) or require "cab.study".is(value)) and value.runs or {}) do
    if run.name == source.run then return run.recipe end
  end
  check.fail(2, ("%s: %s has no run '%s' any more"):format(path, source.file, tostring(source.run)), { id = "recipe" })
end

-- What the recipe file of a run returns with the run's overrides: the file, or the run's own copy of it.
local function load_source(path, source, copy)
  local file = source.file
  if copy or lfs.attributes(file, "mode") ~= "file" then file = path .. "/source.lua" end
  local value = require "cab.commands.run".chunk(file, source.overrides)
  if type(value) ~= "table" or not value.override then check.fail(2, file .. ": returns no recipe", { id = "recipe" }) end
  return value:override(source.overrides)
end

--- The recipe of a run folder as it ran, from recipe.json; a strategy that stood in the recipe file comes from source.lua.
---@param path string
---@return table recipe
function M.recipe(path)
  local at = path .. "/recipe.json"
  local saved = check.decode(folders.read(at))
  if type(saved) ~= "table" or type(saved.recipe) ~= "table" then
    check.fail(65, at .. ": no recipe in it", { file = at, id = "recipe" })
  end
  for _, stage in ipairs(saved.recipe.stages or {}) do
    for _, term in pairs(stage.loss or {}) do
      if not options.file("cab.strategies.", tostring(term.strategy)) then
        local source = folders.manifest(path).source
        if not source then check.fail(2, ("%s: the strategy '%s' stood in a recipe that was not kept"):format(path, tostring(term.strategy)), { id = "recipe" }) end
        return of_source(load_source(path, source, true), source, path)
      end
    end
  end
  return require "cab.recipe".recipe(decoded(saved.recipe))
end

local function first_of(path)
  local list = folders.runs(path)
  if #list == 0 then check.fail(2, ("%s: neither a run folder nor a folder of runs"):format(path), { id = "usage" }) end
  return list[1], #list
end

--- Goes on with a run, or with all runs of a comparison's folder.
---@param path string
---@param o table latest_good, quiet, json, chart
---@return integer exit code
function M.resume(path, o)
  path = path:gsub("(.)/+$", "%1")
  local first = first_of(path)
  local source = folders.manifest(first).source
  local value
  if not source then value = M.recipe(first)
  else
    value = load_source(first, source)
    if first == path then value = of_source(value, source, path) end
  end
  local result = value:run { out = path, resume = o.latest_good and "latest-good" or true, quiet = o.quiet or o.json, chart = o.chart,
    source = source and { file = source.file, overrides = source.overrides, run = source.run, text = folders.read(first .. "/source.lua") },
    name = path:match "[^/]+$" }
  if o.json then print(core.json_encode(M.plain(result))) end
  return 0
end

-- ---- the same run again ----------------------------------------------------------------------------------------------------

--- Where two tables of plain values differ: {path, a, b} each, sorted by path. `skip`: keys of the top that may.
---@param a any
---@param b any
---@param skip? table<string, boolean>
---@return table[]
function M.differences(a, b, skip)
  local out = {}
  local function walk(x, y, path)
    if type(x) ~= "table" or type(y) ~= "table" then
      if x ~= y then out[#out + 1] = { path, x, y } end
      return
    end
    local keys = {}
    for k in pairs(x) do keys[k] = true end
    for k in pairs(y) do keys[k] = true end
    for k in pairs(keys) do
      if not (path == "" and skip and skip[k]) then walk(x[k], y[k], path == "" and tostring(k) or path .. "." .. tostring(k)) end
    end
  end
  walk(a, b, "")
  table.sort(out, function(p, q) return p[1] < q[1] end)
  return out
end

-- What two runs must share to be one: all of the recipe but these.
local loose = { threads = true, checkpoint = true, dist = true, accumulate = true, export = true, name = true, device = true, capture = true, missing = true }

--- A recipe, or options of a model, as JSON can hold it. A strategy becomes its name; a list keeps its order: { "last", k = 4 } becomes
--- { kind = "last", k = 4 }.
---@param value any
---@return any
function M.encodable(value)
  if type(value) ~= "table" then return value end
  if value.is_strategy then return value.name or "(in the recipe)" end
  local out, list, named = {}, #value > 0, false
  for k in pairs(value) do named = named or type(k) == "string" end
  for k, v in pairs(value) do
    out[list and named and type(k) == "number" and (k == 1 and "kind" or tostring(k)) or k] = M.encodable(v)
  end
  return out
end

local function stored(recipe) return core.json_decode(core.json_encode(M.encodable(recipe))) end

--- In what a run folder's recipe is unlike another, of what one run must have in common. Options that are new since the folder was made
--- have their defaults.
---@param path string run folder
---@param recipe table resolved
---@return table[] of M.differences
function M.unlike(path, recipe)
  local saved = check.decode(folders.read(path .. "/recipe.json"))
  if type(saved) ~= "table" or type(saved.recipe) ~= "table" then
    check.fail(65, ("%s/recipe.json: no JSON object with a recipe"):format(path), { file = path .. "/recipe.json", id = "recipe" })
  end
  local ok, whole = pcall(function() return stored(M.recipe(path).resolved) end)
  return M.differences(ok and whole or saved.recipe, stored(recipe), loose)
end

--- What stands at "a.b.1" in a table of plain values, nil where nothing does.
---@param value any
---@param path string
---@return any
function M.at(value, path)
  for key in path:gmatch "[^.]+" do
    if type(value) ~= "table" then return nil end
    local item = value[key]
    if item == nil then item = value[math.tointeger(tonumber(key))] end
    value = item
  end
  return value
end

--- Where some recipes differ from the first of them: paths, sorted.
---@param recipes table[]
---@return string[]
function M.varied(recipes)
  local set = {}
  for i = 2, #recipes do
    for _, d in ipairs(M.differences(recipes[1], recipes[i])) do set[d[1]] = true end
  end
  return options.names(set)
end

local function shown(x)
  if x == nil then return "nothing" end
  if type(x) == "table" then return core.json_encode(M.plain(x)) end
  return core.escape(tostring(x))
end

--- "optim.lr: 0.001, now 0.002", a line for each of at most `most` differences.
---@param list table[] of differences
---@param most? integer
---@return string
function M.say(list, most)
  local lines = {}
  for i, d in ipairs(list) do
    if i > (most or 20) then lines[i] = ("  and %d more"):format(#list - i + 1) break end
    lines[i] = ("  %s: %s, now %s"):format(d[1], shown(d[2]), shown(d[3]))
  end
  return table.concat(lines, "\n")
end

-- Largest relative difference of two logs, where it first is, and how many numbers were compared.
local function compare_metrics(a, b)
  local by, worst, first, count = {}, 0, nil, 0
  local function key(row) return row.step .. (row.eval and "e" or "") end
  for _, row in ipairs(b) do by[key(row)] = row end
  for _, row in ipairs(a) do
    local other = by[key(row)]
    local function walk(x, y, path)
      if type(x) == "table" then
        for _, k in ipairs(options.names(x)) do walk(x[k], type(y) == "table" and y[k] or nil, path == "" and k or path .. "." .. k) end
      elseif type(x) == "number" then
        count = count + 1
        local d = type(y) == "number" and (x == y and 0 or math.abs(x - y) / math.max(math.abs(x), math.abs(y))) or math.huge
        if d > 0 and not first then first = { row.step, path, x, y } end
        worst = math.max(worst, d)
      end
    end
    walk(row, other, "")
  end
  return { numbers = count, worst = worst, first = first }
end

-- The facts of two manifests that may explain different numbers.
local function changed(old, new)
  local skip = {}
  for _, k in ipairs { "started", "source", "command", "host", "fork", "folder" } do skip[k] = true end
  return M.differences(old, new, skip)
end

--- Runs a run's recipe again in a new folder and compares each logged number. 0: all equal, 1: some differ.
---@param path string
---@param o table out, quiet, json
---@return integer exit code
function M.reproduce(path, o)
  path = path:gsub("(.)/+$", "%1")
  if not lfs.attributes(path .. "/recipe.json") then check.fail(2, path .. ": no run folder; of a comparison, name one of its runs", { id = "usage" }) end
  local recipe, manifest = M.recipe(path), folders.manifest(path)
  local source = manifest.source and { file = manifest.source.file, overrides = manifest.source.overrides, run = manifest.source.run,
    text = folders.read(path .. "/source.lua") }
  local result = recipe:run { out = o.out, name = path:match "([^/]-)%-?%d*$" .. "-again", quiet = o.quiet or o.json, source = source }
  local old, new = folders.metrics(path .. "/metrics.jsonl"), folders.metrics(result.path .. "/metrics.jsonl")
  local r, around = compare_metrics(old, new), changed(manifest, folders.manifest(result.path))
  r.equal, r.run, r.again = r.worst == 0 and #old == #new, path, result.path
  if o.json then print(core.json_encode(M.plain(r)))
  elseif not o.quiet or not r.equal then
    if #around > 0 then print("what was not the same:\n" .. M.say(around)) end
    if r.equal then print(("reproduced: all %d numbers of %d lines are equal, bit for bit"):format(r.numbers, #old))
    elseif not r.first then print(("not reproduced: %d lines of metrics, now %d"):format(#old, #new))
    else
      print(("not reproduced: of %d numbers the first other one is %s at step %d: %s, now %s; largest relative difference %.3g"):format(
        r.numbers, r.first[2], r.first[1], shown(r.first[3]), shown(r.first[4]), r.worst))
    end
  end
  return r.equal and 0 or 1
end

return M
