local check = require "cab.check"
local commands = require "cab.commands"
return {
  about = "Run a study: every arm, value and seed that is not finished yet. Then its table with means and intervals, as text, CSV and picture.",
  examples = {
    { "cab sweep recipes/studies/methods.lua", "in runs/methods-1" },
    { "cab sweep my_study.lua --workers 2 --out runs/mine", "two runs at a time; the same line goes on after a stop" },
    { "mpirun -np 8 cab sweep my_study.lua --out /shared/mine", "the runs dealt to eight ranks, on one host or several that share a folder" },
    { "cab sweep my_study.lua --part 1/4 --out /shared/mine", "on the first of four machines that share a folder" },
  },
  arguments = { { "study", "Lua file that returns cab.study{...}.", of = "recipe" }, commands.overrides },
  options = {
    { "--out", "Folder of the study: finished runs in it stay. Default: runs/STUDY-N.", value = "DIR", of = "folder" },
    { "--resume", "Go on with the newest runs/STUDY-N." },
    { "--workers", "Runs at a time, each in a process of its own, on a GPU of its own where there are several.", value = "N", kind = "integer", default = 1 },
    { "--part", "Only every N-th run, from the I-th.", value = "I/N" },
    { "--table", "Run nothing: the table of what is finished." },
  },
  common = { "quiet", "json" },
  notes = "A run that fails is listed at the end, the others go on, and the exit code is 1. Under mpirun or srun, where a rank or its worker\n"
    .. "dies, the others go on, the missing runs are named, and the exit code is 69; the same line goes on from there.\n" .. commands.exit_codes,
  run = function(o)
    local path = o.study
    local value = require "cab.core".loadfile(path)(path)
    if not require "cab.study".is(value) then check.fail(2, path .. ": returns no cab.study{...}", { id = "study" }) end
    if o.workers < 1 then check.fail(2, ("--workers %d: expected 1 or more"):format(o.workers), { id = "usage" }) end
    if o.workers > 1 and o.part then check.fail(2, "cab sweep: --workers and --part are two ways to divide the runs: give one", { id = "usage" }) end
    value:override(o.overrides or {})
    local name = path:match "([^/]+)%.lua$" or path:match "[^/]+$"
    local quiet, result = o.quiet or o.json
    if o.table then
      local root = o.out or require "cab.folder".choose(name, true)
      if not require "lfs".attributes(root, "mode") then check.fail(74, root .. ": no such folder", { id = "usage" }) end
      result = value:report(root, { quiet = quiet })
    else
      result = value:run { out = o.out, resume = o.resume, workers = o.workers, part = o.part, quiet = quiet, name = name,
        source = require "cab.runs".source(path, o.overrides) }
    end
    if o.json then print(require "cab.core".json_encode(require "cab.runs".plain(result))) end
    return #result.failed > 0 and 1 or 0
  end,
}
