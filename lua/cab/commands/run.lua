local core = require "cab.core"
local check = require "cab.check"
local commands = require "cab.commands"
local M = {
  about = "Train a recipe or a comparison, or run a Lua file.",
  examples = {
    { "cab run recipes/quickstart.lua", "results in runs/quickstart-1" },
    { "cab run my.lua optim.lr=1e-3 data.fraction=0.05 --out /tmp/a", "" },
    { "cab run my.lua --resume", "go on where the newest run of my.lua stopped" },
    { "cab run my.lua optim.lr=1e-4 --fork runs/my-1@400", "a new run from another's checkpoint of step 400" },
    { "cab run --reproduce runs/my-1", "run it again and compare the numbers" },
    { "cab run mine.lua", "a file that returns a strategy or a model is tried for forty steps" },
    { "cab run script.lua a b", "any Lua file that returns no recipe is just run, with `arg`" },
  },
  arguments = { { "file", "Recipe or Lua file.", of = "recipe", optional = true }, commands.overrides },
  options = {
    { "--out", "Run folder. Default: runs/RECIPE-N.", value = "DIR", of = "folder" },
    { "--resume", "Go on with the run in --out, or the newest of the recipe; =latest-good takes an older checkpoint if the newest is damaged.",
      value = "HOW", bare = "newest", of = { "latest-good", "newest" } },
    { "--fork", "Begin with another run's state at a step. The recipe may differ: the differences are shown and kept.", value = "RUN@STEP", of = "run" },
    { "--reproduce", "Run a run's recipe again, in a new folder, and compare every logged number.", value = "RUN", of = "run" },
    { "--chart", "Below the bar of a terminal, a chart of the loss so far." },
  },
  common = { "quiet", "json" },
  notes = "strategies of a recipe's loss, as `cab help soft` tells: " .. table.concat(require "cab.strategy".names, ", ") .. "\n\n" .. commands.exit_codes,
}

--- Where FILE stands in the words after `run`, so that a plain script may have arguments of any form after it.
---@param words string[]
---@return integer? nil: there is none, or an option before it is unknown
function M.file_at(words)
  local takes = { ["--help"] = false, ["-h"] = false }
  for _, o in ipairs(commands.options(M)) do takes[o[1]] = o.value ~= nil and not o.bare end
  local i = 1
  while words[i] do
    if takes[words[i]] then i = i + 2
    elseif words[i]:sub(1, 1) == "-" then
      if takes[words[i]:match "^[^=]+"] == nil then return nil end
      i = i + 1
    else return i end
  end
end

--- Runs the chunk of a file with arguments. @return any what it returns
function M.chunk(path, words)
  local chunk = core.loadfile(path)
  _G.arg = table.move(words, 1, #words, 1, { [0] = path })
  return chunk(table.unpack(words))
end

--- "latest-good", true or nil. @param how string? of --resume
local function resume_of(how)
  if how == nil or how == "newest" then return how and true end
  if how ~= "latest-good" then check.fail(2, ("--resume=%s: %s"):format(how, check.unknown("choice", how, { "latest-good" })), { id = "usage" }) end
  return how
end

--- What a recipe file returned: a recipe, a comparison, or a study of another module with :override and :run.
local function runnable(value)
  return type(value) == "table" and type(value.run) == "function" and type(value.override) == "function"
end

--- Trains what a file returned. @param o table parsed options
---@return any result
function M.train(value, path, o)
  if o.fork and not require "cab.recipe".is(value) then check.fail(2, path .. ": --fork begins one run, and this file has several", { id = "usage" }) end
  if o.fork and o.resume then check.fail(2, "cab run: --fork begins a run, --resume goes on with one: give one of them", { id = "usage" }) end
  value:override(o.overrides or {})
  local runs = require "cab.runs"
  local name = path:match("([^/]+)%.lua$") or path:match("[^/]+$")
  local result = value:run { out = o.out, resume = o.resume, quiet = o.quiet or o.json, name = name, chart = o.chart, fork = o.fork,
    source = runs.source(path, o.overrides) }
  if o.json then print(core.json_encode(runs.plain(result))) end
  return result
end

--- @param words string[] after `run`
function M.main(words)
  local at = M.file_at(words)
  local reproduce = false
  for i = 1, at and at - 1 or #words do reproduce = reproduce or words[i]:find "^%-%-reproduce" ~= nil end
  if reproduce then
    local o = commands.parse("run", M, words)
    if o.file or #o.overrides > 0 then check.fail(2, "cab run --reproduce takes no recipe and no overrides: both are the run's", { id = "usage" }) end
    return require "cab.runs".reproduce(o.reproduce, o)
  end
  if not at then
    commands.parse("run", M, words)
    check.fail(2, "cab run: missing argument 'file'", { id = "usage" })
  end
  local path = words[at]
  local value = M.chunk(path, table.move(words, at + 1, #words, 1, {}))
  if require "cab.trial".is(value) then value = require "cab.trial".recipe(value, path) end
  if not runnable(value) then
    if type(value) == "table" then check.fail(2, path .. ": returns a plain table, expected cab.recipe{...} or cab.compare{...}", { id = "recipe" }) end
    return math.type(value) == "integer" and value or value == false and 1 or 0
  end
  local o = commands.parse("run", M, words)
  o.resume = resume_of(o.resume)
  M.train(value, path, o)
  return 0
end

return M
