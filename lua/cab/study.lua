--- Studies: a question asked of one recipe in several arms, over values of some keys and seeds. Each run has its own folder in the
--- study's; what is finished stays, whatever ends the sweep; the table has mean, spread and interval, also as CSV and picture.
local lfs = require "lfs"
local core = require "cab.core"
local check = require "cab.check"
local dist = require "cab.dist"
local folders = require "cab.folder"
local options = require "cab.options"
local recipes = require "cab.recipe"
local report = require "cab.report"
local runs = require "cab.runs"
local statistics = require "cab.statistics"
local M = {}

local schema = {
  about   = { "string", default = "" },                       -- the question
  base    = { "string|table", required = true },              -- a recipe file, or the fields of a recipe
  arms    = { "table", required = true },                     -- { name =, set = { "key=value" }, and fields in place of the base's }
  vary    = { "table", default = {} },                        -- key -> list of values: ["data.fraction"] = { 0.01, 0.1 }
  seeds   = { "table", default = { 0, 1, 2 } },
  metric  = { "string", default = "top1", one_of = { "top1", "top5", "loss", "perplexity", "lengths" } }, -- of the last evaluation;
  -- lengths: perplexity of windows of l, 2 l .. tokens, up to the recipe's eval.lengths training lengths l, a row each
  against = { "string", default = "" },                       -- an arm that the others are compared with, seed by seed
}
M.schema = schema -- for cab.reference

local FOREVER = 1e9 -- seconds: ranks end at very different times

---@class Study
local Study = {}
Study.__index = Study

-- All combinations of the values of `vary`: lists of "key=value".
local function combinations(vary)
  local out = { {} }
  for _, key in ipairs(options.names(vary)) do
    local values = vary[key]
    if type(key) ~= "string" or type(values) ~= "table" or #values == 0 then check.usage(("study: vary['%s'] needs a list of values"):format(tostring(key))) end
    local longer = {}
    for _, before in ipairs(out) do
      for _, v in ipairs(values) do
        local texts = table.move(before, 1, #before, 1, {})
        texts[#texts + 1] = ("%s=%s"):format(key, math.type(v) == "float" and ("%.10g"):format(v) or tostring(v))
        longer[#longer + 1] = texts
      end
    end
    out = longer
  end
  return out
end

-- "data.fraction=0.1" -> "fraction=0.1": how folders and columns name a value.
local function short(text) return (text:gsub("^[%w_.]*%.([%w_]+=)", "%1")) end

local function check_arms(o)
  local seen = {}
  for i, arm in ipairs(o.arms) do
    local name = type(arm) == "table" and arm.name
    if type(name) ~= "string" or not name:find "^[%w.+-]+$" then
      check.usage(("study: arms.%d needs a name of letters, digits, '.', '+' and '-'"):format(i))
    end
    if seen[name] then check.usage(("study: two arms are called '%s'"):format(name)) end
    seen[name] = true
  end
  if #o.arms == 0 then check.usage "study: arms is empty" end
  if o.against ~= "" and not seen[o.against] then check.usage("study.against: " .. check.unknown("arm", o.against, seen)) end
end

-- The recipe of an arm for some overrides.
local function recipe_of(base, arm, texts)
  local all = check.copy(base)
  for k, v in pairs(arm) do if k ~= "name" and k ~= "set" then all[k] = v end end
  local list = table.move(arm.set or {}, 1, #(arm.set or {}), 1, {})
  return recipes.recipe(all):override(table.move(texts, 1, #texts, #list + 1, list))
end

-- The fields of the recipe that a study starts from.
local function fields_of(base)
  if type(base) == "table" then return base end
  local value = core.loadfile((require "cab.data".find(base)))()
  if not recipes.is(value) then check.usage(("study.base: %s returns no cab.recipe{...}"):format(base)) end
  return value.given
end

-- The table's columns: a value of `vary` each or, where the metric is `lengths`, each length that a run's windows have at the end.
local function shown(self)
  if self.metric ~= "lengths" then return self.columns end
  local out, r = {}, self.runs[1].recipe.resolved
  if r.eval.lengths == 0 then check.usage "study.metric is 'lengths': the base needs eval.lengths" end
  for c, column in ipairs(self.columns) do
    local length = r.data.length
    while length <= r.data.length * r.eval.lengths do
      local text = "length=" .. length
      out[#out + 1] = { name = column.name == "" and text or column.name .. " " .. text, values = table.move(column.values, 1, #column.values, 2, { text }),
        of = c, length = length }
      length = 2 * length
    end
  end
  return out
end

--- cab.study { base = "recipes/vim_fashion.lua", arms = { { name = "soft", stages = {...} }, { name = "w10", set = { "stages.1.loss.align.weight=10" } } },
--- vary = { ["data.fraction"] = { 0.01, 0.1 } }, seeds = { 0, 1, 2 } }. Every run's recipe is checked here.
---@param given table
---@return Study
function M.study(given)
  local o = check.options(schema, given, "study")
  local base = fields_of(o.base)
  check_arms(o)
  local self = setmetatable({ about = o.about, arms = {}, columns = {}, metric = o.metric, against = o.against, runs = {}, name = "study" }, Study)
  for i, arm in ipairs(o.arms) do self.arms[i] = arm.name end
  for c, texts in ipairs(combinations(o.vary)) do
    local names = {}
    for i, text in ipairs(texts) do names[i] = short(text) end
    self.columns[c] = { name = table.concat(names, " "), values = texts }
    for _, arm in ipairs(o.arms) do
      for _, seed in ipairs(o.seeds) do
        if math.type(seed) ~= "integer" then check.usage(("study.seeds: %s is no integer"):format(tostring(seed))) end
        local name = table.concat(table.move(names, 1, #names, 2, { arm.name }), "_") .. "_seed=" .. seed
        local list = table.move(texts, 1, #texts, 2, { "seed=" .. seed })
        self.runs[#self.runs + 1] = { name = name, arm = arm.name, column = c, seed = seed, recipe = recipe_of(base, arm, list) }
      end
    end
  end
  if #self.runs == 0 then check.usage "study.seeds is empty" end
  self.shown = shown(self)
  return self
end

--- Whether a value is a study.
---@param value any
---@return boolean
function M.is(value) return getmetatable(value) == Study end

--- Overrides for all runs; one on a stage or a loss term goes to the runs that have it, one that fits none is a fault.
---@param texts string[]
---@return Study itself
function Study:override(texts)
  require "cab.compare".override(self.runs, texts)
  self.shown = shown(self)
  return self
end

-- ---- running ---------------------------------------------------------------------------------------------------------------

-- The result of a finished run; nil of another. Faults (2) where the folder holds another recipe's run.
local function finished(run, path)
  local at = path .. "/result.json"
  if not lfs.attributes(at, "mode") then return nil end
  local list = runs.unlike(path, run.recipe.resolved)
  if #list > 0 then
    check.fail(2, ("%s is a run of another recipe; give the sweep another --out:\n%s"):format(path, runs.say(list)), { id = "recipe" })
  end
  return check.decode(folders.read(at))
end

-- Stops the sweep rather than this run alone: asked to stop, a lost device, no memory, a locked folder.
local function ends_all(e)
  local code = check.code(e)
  return code == 75 or code == 69 or code == 71 or code == 130
end

--- One run, unless it is finished. @return table? result @return any? why
local function perform(self, run, root, o)
  local path = root .. "/" .. run.name
  local result = finished(run, path)
  if result then return result end
  local begun = lfs.attributes(path .. "/recipe.json", "mode") ~= nil
  local ok, got = pcall(run.recipe.run, run.recipe, { out = path, name = run.name, quiet = o.quiet, resume = begun,
    source = self.source and { file = self.source.file, text = self.source.text, overrides = self.source.overrides, run = run.name } })
  if ok then return runs.plain(got) end
  if check.code(got) == 75 then check.fail(75, ("%s stopped; go on with --out %s"):format(run.name, root), { id = "stopped" }) end
  if ends_all(got) then error(got, 0) end
  return nil, got
end

-- Part i of n takes every n-th run.
local function part_of(text, count)
  local i, n = (text or "1/1"):match "^(%d+)/(%d+)$"
  i, n = math.tointeger(tonumber(i)), math.tointeger(tonumber(n))
  if not i or i < 1 or n < i then check.fail(2, ("--part %s: expected I/N, as 1/4"):format(text), { id = "usage" }) end
  local list = {}
  for k = i, count, n do list[#list + 1] = k end
  return list
end

-- Runs n of this program side by side for each rank of a job, a part each, a GPU each where there are several; none of them is a rank.
-- Their lines are passed on as they come, and runs that they call failed are. @return integer the first code that is no success, 0: none
local function spread(self, root, o)
  local named = {}
  for _, run in ipairs(self.runs) do named[run.name] = run end
  local gpus, lines = #core.devices() - 1, {}
  local pipe <close> = io.popen "readlink /proc/$PPID/exe"
  local program = pipe:read "l"
  local function quote(text) return "'" .. text:gsub("'", "'\\''") .. "'" end
  local workers = o.workers or 1
  local each = math.max(1, core.threads() // workers)
  for i = 1, workers do
    local part, place = dist.rank * workers + i, dist.beside * workers + i - 1
    local words = { ("OMP_NUM_THREADS=%d"):format(each), dist.alone, quote(program), "sweep", quote(self.source.file) }
    for _, text in ipairs(self.source.overrides) do words[#words + 1] = quote(text) end
    if gpus > 1 then words[#words + 1] = ("device=cuda:%d"):format(place % gpus) end
    words[#words + 1] = ("--out %s --part %d/%d"):format(quote(root), part, workers * dist.size)
    lines[i] = ("(%s 2>&1 | sed -u 's/^/%d: /'; echo \"exit ${PIPESTATUS[0]}\") &"):format(table.concat(words, " "), part)
  end
  lines[#lines + 1] = "wait"
  local all, worst = io.popen("bash -c " .. quote(table.concat(lines, "\n"))), 0
  for line in all:lines() do
    local code = line:match "^exit (%d+)$"
    if not code then
      local name, why = line:match "^%d+: failed: ([^:]+): (.*)"
      if named[name] then named[name].why = why end
      if not o.quiet then print(line) io.stdout:flush() end
    elseif tonumber(code) > 1 then worst = worst == 0 and tonumber(code) or worst end
  end
  all:close()
  return math.tointeger(worst)
end

-- After all ranks did their part, or one was lost: the table of what is there; 75 if they were asked to stop, 69 if some ended otherwise.
local function together(self, root, o, worst)
  local flags = { worst == 75 and 1 or 0, (worst ~= 0 and worst ~= 75) and 1 or 0 }
  for i, run in ipairs(self.runs) do flags[2 + i] = run.why and 1 or 0 end
  local ok, codes = pcall(dist.sum, "end of the sweep", flags)
  for i, run in ipairs(self.runs) do run.why = run.why or ok and codes[2 + i] > 0 and "on another rank" or nil end
  local function tell()
    local result = self:report(root, { quiet = o.quiet or dist.rank > 0 })
    if ok and codes[2] == 0 and codes[1] > 0 then check.fail(75, "the sweep was stopped; go on with --out " .. root, { id = "stopped" }) end
    local names = {}
    for _, run in ipairs(self.runs) do if not run.result then names[#names + 1] = run.name end end
    if #names > 0 and not (ok and codes[2] == 0) then
      local more = #names > 8 and (" and %d more"):format(#names - 8) or ""
      check.fail(69, ("%d of %d runs are missing, since a rank or its worker died: %s%s; go on with --out %s"):format(#names, #self.runs,
        table.concat(names, ", ", 1, math.min(#names, 8)), more, root), { id = "sweep" })
    end
    return result, { failed = result.failed, missing = result.missing }
  end
  if not ok then return tell() end
  local result, told = dist.first("table", tell)
  return result or { path = root, rows = {}, failed = told.failed, missing = told.missing }
end

--- Runs what is not finished, in `out` (default runs/NAME-N), then reports. A run that fails is listed, and the rest goes on. Under mpirun
--- or srun each rank has its part of the runs, which are of one process each, and rank 0 reports in the end.
---@param o? table out, resume (the newest folder), workers (1), part ("I/N"), quiet, name, source
---@return table {path, rows, failed, missing}
function Study:run(o)
  o = o or {}
  self.source = o.source
  dist.open { timeout = FOREVER }
  local _, root = dist.first("folder", function()
    local at = o.out or folders.choose(o.name or self.name, o.resume)
    folders.make(at)
    return nil, at
  end)
  if dist.size > 1 then
    if o.part then check.fail(2, "--part: ranks divide the runs already", { id = "usage" }) end
    core.catch_signals(true) -- workers stop, and are waited for
    return together(self, root, o, spread(self, root, o))
  end
  local mine = part_of(o.part, #self.runs)
  if (o.workers or 1) > 1 then
    local worst = spread(self, root, o)
    if worst > 0 then check.fail(worst, ("a worker ended with code %d; go on with --out %s"):format(worst, root), { id = "worker" }) end
  else
    for count, k in ipairs(mine) do
      local run = self.runs[k]
      if not o.quiet then print(("-- run %d of %d: %s"):format(count, #mine, run.name)) end
      run.result, run.why = perform(self, run, root, o)
      if run.why and not o.quiet then print(("failed: %s: %s"):format(run.name, tostring(run.why))) end
    end
  end
  return self:report(root, { quiet = o.quiet or o.part })
end

-- ---- reporting -------------------------------------------------------------------------------------------------------------

local function label(self) return self.metric == "lengths" and "perplexity" or self.metric end

local function value_of(self, run, column)
  if not column.length or not run.result then return run.result and tonumber(run.result[self.metric]) end
  for _, row in ipairs(run.result.lengths or {}) do if row.length == column.length then return tonumber(row.perplexity) end end
end

-- arm -> column -> values by seed
local function collect(self)
  local by = {}
  for _, name in ipairs(self.arms) do
    by[name] = {}
    for c in ipairs(self.shown) do by[name][c] = {} end
  end
  for _, run in ipairs(self.runs) do
    for c, column in ipairs(self.shown) do
      if (column.of or c) == run.column then by[run.arm][c][run.seed] = value_of(self, run, column) end
    end
  end
  return by
end

local function listed(values)
  local out = {}
  for _, v in pairs(values) do out[#out + 1] = v end
  table.sort(out) -- the order of pairs is none: sums must not depend on it
  return out
end

-- Differences to the arm `against`, seed by seed.
local function paired(values, others)
  local out = {}
  for seed, v in pairs(values) do if others[seed] then out[#out + 1] = v - others[seed] end end
  table.sort(out)
  return out
end

--- Rows of the table: {arm, column, n, mean, sd, low, high, difference = Summary?}.
---@return table[]
function Study:rows()
  local by, rows = collect(self), {}
  for _, arm in ipairs(self.arms) do
    for c, column in ipairs(self.shown) do
      local row = statistics.summary(listed(by[arm][c])) or { n = 0 }
      row.arm, row.column = arm, column.name
      if self.against ~= "" and arm ~= self.against then row.difference = statistics.summary(paired(by[arm][c], by[self.against][c])) end
      rows[#rows + 1] = row
    end
  end
  return rows
end

local function table_of(self, rows)
  local lines = {}
  for i, r in ipairs(rows) do
    local s = r.n > 0 and r or nil
    lines[i] = { r.arm, r.column, statistics.shown(s), statistics.interval(s), tostring(r.n) }
    if self.against ~= "" then
      table.insert(lines[i], statistics.shown(r.difference))
      table.insert(lines[i], statistics.interval(r.difference))
    end
  end
  local header = { "arm", #self.shown > 1 and "with" or "", label(self) .. " ± sd", "95 % interval", "runs" }
  if self.against ~= "" then
    header[#header + 1] = "minus " .. self.against
    header[#header + 1] = "95 % interval"
  end
  return report.table(header, lines)
end

local function csv_of(self, rows)
  local out = { "arm,with,metric,runs,mean,sd,low,high,difference,difference_low,difference_high" }
  local function number(x) return x and ("%.6g"):format(x) or "" end
  for _, r in ipairs(rows) do
    local d = r.difference or {}
    out[#out + 1] = table.concat({ r.arm, r.column, label(self), r.n, number(r.mean), number(r.sd), number(r.low), number(r.high), number(d.mean),
      number(d.low), number(d.high) }, ",")
  end
  return table.concat(out, "\n") .. "\n"
end

-- The metric over the first varied key where that is a number with several values; else over the arms, a line a column.
local function chart_of(self, rows)
  local list, by, tics = {}, {}, {}
  local key = self.shown[1].values[1]
  key = key and tonumber(key:match "=(.*)$") and #self.shown > 1 and key:match "^(.-)="
  for _, r in ipairs(rows) do
    if r.n > 0 then
      local arm, x = 0, nil
      for i, name in ipairs(self.arms) do if name == r.arm then arm = i end end
      for _, c in ipairs(self.shown) do if c.name == r.column and key then x = tonumber(c.values[1]:match "=(.*)$") end end
      local name = key and (r.arm .. (r.column:match "^%S+(%s.*)$" or "")) or (r.column == "" and label(self) or r.column)
      local s = by[name]
      if not s then
        s = { name = name, points = {}, band = {}, style = key and "linespoints" or "points" }
        by[name], list[#list + 1] = s, s
      end
      x = x or arm
      tics[key and ("%.10g"):format(x) or r.arm] = x
      s.points[#s.points + 1] = { x, r.mean }
      if r.low then s.band[#s.band + 1] = { x, r.low, r.high } end
    end
  end
  local labels = {}
  for text, x in pairs(tics) do labels[#labels + 1] = ("'%s' %.10g"):format(text, x) end
  table.sort(labels)
  return #list > 0 and { title = self.about ~= "" and self.about or nil, x = key or "", y = label(self) .. ", mean and 95 % interval", series = list,
    logx = key ~= nil, xtics = labels }
end

--- The table of the finished runs of a folder, printed and in table.txt, table.csv and chart.png there.
---@param root string
---@param o? table quiet
---@return table {path, rows, failed: string[], missing: integer}
function Study:report(root, o)
  o = o or {}
  local failed, missing = {}, 0
  for _, run in ipairs(self.runs) do
    run.result = run.result or finished(run, root .. "/" .. run.name)
    if run.why then failed[#failed + 1] = run.name elseif not run.result then missing = missing + 1 end
  end
  local rows = self:rows()
  local text = table_of(self, rows)
  core.write_file(root .. "/table.txt", text .. "\n")
  core.write_file(root .. "/table.csv", csv_of(self, rows))
  local chart = chart_of(self, rows)
  local drawn = chart and require "cab.plot".chart(root .. "/chart.png", chart)
  if not o.quiet then
    print("\n" .. text)
    for _, name in ipairs(failed) do print("failed: " .. name) end
    if missing > 0 then print(("%d of %d runs are still to be done: --out %s"):format(missing, #self.runs, root)) end
    print(("%s/table.csv%s"):format(root, drawn and ", " .. drawn or ""))
  end
  return { path = root, rows = rows, failed = failed, missing = missing }
end

return setmetatable(M, { __call = function(_, given) return M.study(given) end })
