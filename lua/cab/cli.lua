--- The program's command line. Faults are raised; the program prints them and exits with their code.
local core = require "cab.core"
local check = require "cab.check"
local M = {}

local examples = [[
examples:
  cab run recipes/quickstart.lua                 train; results in runs/quickstart-1
  cab run my.lua optim.lr=1e-3 data.fraction=0.05 --out /tmp/a
  cab run my.lua --resume                        go on where the newest run of my.lua stopped
  cab run my.lua --resume=latest-good --out DIR  the same, taking an older checkpoint if the newest is damaged
  cab run script.lua a b                         any Lua file that returns no recipe is just run, with `arg`
  cab eval runs/quickstart-1                     top-1, top-5, loss or perplexity, R2 of the bridge of each run
  cab generate runs/shakespeare-1/bridge --prompt "She was"
  cab inspect checkpoint.pth --key model_ema     names, shapes, ranges, NaN of any weight file
  cab convert deit.pth deit.safetensors --to hf  names and layouts of timm, Hugging Face, Vim, Mamba, GPT-2, Phi
  cab diff best.safetensors other.pth            which tensors differ, and by how much
  cab data show my.lua --sample 17 --epoch 3     the picture that the network saw, as show.png
  cab data subset my.lua --fraction 0.1 --out ten.txt   a list for data.list: 10 % of each class
  cab eval runs/phi_mamba-1 --task piqa=piqa.jsonl --task lambada=lambada.jsonl   acc, acc_norm, perplexity
  cab eval runs/shakespeare-1 --lengths 32       perplexity of the same tokens in windows of up to 32 times the training length
  cab tokenize books.jsonl -o books.bin          a token file for data.train; --tokenizer phi, a file or a model folder
exit codes: 0 done, 1 Lua error, 2 usage or recipe, 65 input file refused, 69 device, 70 internal error, 71 memory,
  74 I/O, 75 stopped and resumable, 76 not-finite numbers, 130 interrupted twice]]

-- cab data show, cab data subset.
local function add_data(p)
  local data = p:command("data", "Look at the data of a recipe, or list a part of it."):require_command(true):command_target("action")
  local show = data:command("show", "Write the picture of a training record that the network sees in an epoch.")
  show:argument("recipe", "Recipe file.")
  show:argument("overrides", "key=value: fields of the recipe."):args("*")
  show:option("--sample", "Number of the record, from 1."):argname("N"):convert(math.tointeger):default("1")
  show:option("--epoch", "The epoch, from 0."):argname("N"):convert(math.tointeger):default("0")
  show:option("--out", "The PNG to write."):argname("FILE"):default("show.png")
  local subset = data:command("subset", "Write a list of a seeded share of each class; 1 % lies in 5 % lies in 10 %.")
  subset:argument("recipe", "Recipe file.")
  subset:argument("overrides", "key=value: fields of the recipe."):args("*")
  subset:option("--fraction", "Share of each class, above 0, at most 1."):argname("X"):convert(tonumber):count(1)
  subset:option("--seed", "Default: data.seed of the recipe."):argname("N"):convert(math.tointeger)
  subset:option("--out", "The list to write."):argname("FILE"):count(1)
  data.error, show.error, subset.error = p.error, p.error, p.error
end

local function parser()
  local argparse = require "argparse"
  local p = argparse("cab", "Distils transformers into state space models."):epilog(examples)
  p:help_max_width(110):add_help_command { description = "Show help for the program or a command." }
  p:command_target("command"):require_command(true)
  local run = p:command("run", "Train a recipe, or run a Lua file."):epilog(examples)
  run:argument("file", "Recipe or Lua file.")
  run:argument("overrides", "key=value: fields of the recipe, as optim.lr=1e-3."):args("*")
  run:option("--out", "Run folder; default runs/RECIPE-N."):argname("DIR")
  run:flag("--quiet", "Print nothing but warnings of the system.")
  run:option("--resume", "Go on with a run: --resume, or --resume=latest-good to fall back on older checkpoints."):args("?"):argname("HOW")
  local eval = p:command("eval", "Evaluate the best weights of a run, or of each run of a comparison, again.")
  eval:argument("run", "Run folder, or the folder of a comparison.")
  eval:argument("overrides", "key=value: fields of the recipe."):args("*")
  eval:option("--task", "Of language models, also a task: lambada, piqa, arc_easy, arc_challenge, hellaswag, winogrande; may be given again.")
    :argname("NAME=FILE.jsonl"):count("*")
  eval:option("--lengths", "Of language models, also perplexity in windows of 1, 2, 4, .. N times the training length."):argname("N")
    :convert(math.tointeger)
  p:command("repl", "Lua prompt with `cab` in it.")
  p:command("doctor", "What a report of a problem needs: versions, processor, threads.")
  function p.error(_, message) check.fail(2, message, { id = "usage" }) end
  run.error, eval.error = p.error, p.error
  add_data(p)
  require "cab.weight_tools".add(p)
  require "cab.tokenize".arguments(p).error = p.error
  require "cab.generate".arguments(p).error = p.error
  return p
end

-- --resume takes no separate word, so that overrides may follow it.
local function split_resume(args)
  local rest, how = {}, nil
  for _, a in ipairs(args) do
    if a == "--resume" then
      how = true
    elseif a:find("^%-%-resume=") then
      how = a:sub(10)
      if how ~= "latest-good" then check.fail(2, ("--resume=%s: %s"):format(how, check.unknown("choice", how, { "latest-good" })), { id = "usage" }) end
    else
      rest[#rest + 1] = a
    end
  end
  return rest, how
end

-- Where FILE stands in `run` arguments, so that a plain script may have arguments of any form after it.
local function file_at(args)
  local i = 2
  while args[i] do
    if args[i] == "--out" then i = i + 2
    elseif args[i]:sub(1, 1) == "-" then i = i + 1
    else return i end
  end
end

local function run_script(path, args)
  local chunk = core.loadfile(path)
  _G.arg = table.move(args, 1, #args, 1, { [0] = path })
  return chunk(table.unpack(args))
end

local commands = {}

function commands.run(args)
  local at = file_at(args)
  if not at then
    parser():parse(args) -- faults: the file is missing, or prints help
    return 0
  end
  local path = args[at]
  local value = run_script(path, table.move(args, at + 1, #args, 1, {}))
  local recipes, compare = require "cab.recipe", require "cab.compare"
  if not recipes.is(value) and not compare.is(value) then
    if type(value) == "table" then check.fail(2, path .. ": returns a plain table, expected cab.recipe{...} or cab.compare{...}", { id = "recipe" }) end
    return math.type(value) == "integer" and value or value == false and 1 or 0
  end
  local rest, how = split_resume(args)
  local parsed = parser():parse(rest)
  value:override(parsed.overrides)
  value:run { out = parsed.out, resume = how, quiet = parsed.quiet, name = path:match("([^/]+)%.lua$") or path:match("[^/]+$") }
  return 0
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

-- One run folder: the best weights on the test images; the bridge as the newest checkpoint has it.
local function evaluate_run(path, o)
  local folders, evaluate = require "cab.folder", require "cab.eval"
  local saved = core.json_decode(folders.read(path .. "/recipe.json"), path .. "/recipe.json")
  if type(saved) ~= "table" or type(saved.recipe) ~= "table" then
    check.fail(65, path .. "/recipe.json: no recipe in it", { file = path .. "/recipe.json", id = "recipe" })
  end
  local recipe = require "cab.recipe".recipe(decoded(saved.recipe)):override(o.overrides)
  local scope <close> = core.scope()
  local job = require "cab.job".build(recipe.resolved)
  local tensors, manifest = folders.view(path):load(false)
  local fits = {}
  if tensors and job.pairs then
    job:restore(tensors, ("%s/checkpoints/%s"):format(path, manifest.file))
    for name, r2 in pairs(evaluate.fits(job, (job:stage(manifest.step)))) do
      fits[#fits + 1] = ("  %s R2 %.3f at step %d"):format(name, r2, manifest.step)
    end
    table.sort(fits)
  end
  local best, meta = core.load(path .. "/best.safetensors")
  job.student:load(best)
  if job.text then
    local e = evaluate.perplexity(job)
    print(("%s of step %s: perplexity %.2f  (%d ids, window %d, stride %d, %.0f a second on %s)%s"):format(path .. "/best.safetensors",
      meta and meta.step or "?", e.perplexity, e.tokens, e.window, e.stride, e.tokens / e.seconds, job.device, table.concat(fits)))
    if o.lengths then print(evaluate.lengths_table(evaluate.lengths(job, o.lengths))) end
    return require "cab.harness".report(job, o.task)
  end
  if #o.task > 0 or o.lengths then
    check.fail(2, path .. ": tasks and lengths are for language models, its data are images", { id = "usage" })
  end
  local e = evaluate.classify(job.student, job.data, { batch = recipe.resolved.eval.batch })
  print(("%s of step %s: top1 %.2f  top5 %.2f  loss %.4f  (%d images, %.0f a second on %s)%s"):format(path .. "/best.safetensors",
    meta and meta.step or "?", e.top1, e.top5, e.loss, e.images, e.images / e.seconds, job.device, table.concat(fits)))
end

function commands.eval(args)
  local parsed = parser():parse(args)
  local paths = require "cab.folder".runs(parsed.run)
  if #paths == 0 then check.fail(2, ("%s: neither a run folder nor a folder of runs"):format(parsed.run), { id = "usage" }) end
  for _, path in ipairs(paths) do evaluate_run(path, parsed) end
  return 0
end

function commands.repl() return require "cab.repl".run() end

for _, name in ipairs { "inspect", "convert", "diff" } do
  commands[name] = function(args) return require "cab.weight_tools"[name](parser():parse(args)) end
end

-- What a recipe file says, after overrides; of a comparison its first run.
local function resolved(path, overrides)
  local value = core.loadfile(path)(path)
  if require "cab.compare".is(value) then value = value.runs[1].recipe end
  if not require "cab.recipe".is(value) then check.fail(2, path .. ": returns no recipe", { id = "recipe" }) end
  return value:override(overrides).resolved
end

function commands.data(args)
  local o = parser():parse(args)
  print(require "cab.data_tools"[o.action](resolved(o.recipe, o.overrides), o))
  return 0
end

function commands.generate(args) return require "cab.generate".main(parser():parse(args)) end

function commands.tokenize(args)
  require "cab.tokenize".run(parser():parse(args))
  return 0
end

function commands.doctor(args)
  parser():parse(args)
  local facts = core.doctor()
  for _, name in ipairs(require "cab.options".names(facts)) do print(("%-16s %s"):format(name, tostring(facts[name]))) end
  local devices, why = core.devices()
  for _, d in ipairs(devices) do print(("%-16s %s"):format(d.name, d.chip)) end
  if #devices == 1 then print(("%-16s %s"):format("cuda", "no: " .. why)) end
  print(("%-16s %s"):format("gnuplot", require "cab.report".gnuplot() and "yes" or "no: curves are skipped"))
  print(("%-16s %s"):format("line editing", core.editline and core.editline.available() and "libedit" or "no: plain input"))
  return 0
end

--- Runs the program. Returns the exit code; faults are raised.
---@param args string[]
---@return integer
function M.main(args)
  local name = args[1]
  if commands[name] then return commands[name](table.move(args, 1, #args, 1, {})) or 0 end
  if not name then
    if core.isatty(0) then return commands.repl() end
    print(parser():get_help())
    return 2
  end
  if name == "help" and args[2] and rawget(core.ops, args[2]) then
    print(core.help(args[2]))
    return 0
  end
  parser():parse(table.move(args, 1, #args, 1, {})) -- help, or a fault with the nearest command
  return 0
end

return M
