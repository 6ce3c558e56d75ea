--- What a run was made of and ran on: seeds, versions, hashes of data, weights, program and library, hardware.
local core = require "cab.core"
local check = require "cab.check"
local folders = require "cab.folder"
local lfs = require "lfs"
local M = {}

-- One hash of all Lua files of the library, by name.
local function library()
  local files, parts = {}, {}
  local function walk(dir)
    for name in lfs.dir(dir) do
      local path = dir .. "/" .. name
      if name:sub(1, 1) ~= "." then
        if lfs.attributes(path, "mode") == "directory" then walk(path)
        elseif name:find "%.lua$" then files[#files + 1] = path end
      end
    end
  end
  walk(core.library .. "/cab")
  table.sort(files)
  for i, path in ipairs(files) do parts[i] = path:sub(#core.library + 2) .. core.hash(path) end
  return core.hash(nil, table.concat(parts, "\n"))
end

-- "AMD EPYC 9R14", as Linux says it.
local function processor()
  local f <close> = io.open "/proc/cpuinfo"
  return f and f:read("a"):match "model name%s*:%s*([^\n]+)" or "unknown"
end

-- File and hash of the weights that a recipe's model starts from; a folder of shards by its index.
local function weights_of(spec)
  local path = spec and spec.weights
  if not path or path == "" then return nil end
  path = require "cab.data".find(path)
  return { file = path, xxh64 = lfs.attributes(path, "mode") == "file" and core.hash(path) or nil }
end

--- The manifest of a run that begins.
---@param job Job
---@param device string "cpu, x86-64-v4, f32"
---@param o table as of train.run: source, fork
---@return table
function M.new(job, device, o)
  local facts = core.doctor()
  local host <close> = io.open "/proc/sys/kernel/hostname"
  return {
    device = device, chip = job.chip, seed = job.recipe.seed, versions = facts, data = job.data:hashes(),
    hardware = { processor = processor(), processors = facts.processors, memory = facts.memory, threads = core.threads() },
    program = { xxh64 = core.hash "/proc/self/exe", library = library() },
    weights = { student = weights_of(job.recipe.student), teacher = weights_of(job.recipe.teacher) },
    source = o.source and { file = o.source.file, overrides = o.source.overrides, run = o.source.run } or nil,
    fork = o.fork, host = host and host:read "l" or nil, started = os.date "!%Y-%m-%dT%H:%M:%SZ",
  }
end

--- "runs/a-1@400" -> the run, the step and its checkpoint's file; faults with code 2 that name the steps there are.
---@param text string
---@return {run: string, step: integer, file: string}
function M.checkpoint(text)
  local run, step = text:match "^(.*)@(%d+)$"
  if not run then check.fail(2, ("--fork %s: expected RUN@STEP"):format(core.escape(text)), { id = "usage" }) end
  run, step = run:gsub("(.)/+$", "%1"), math.tointeger(tonumber(step))
  if lfs.attributes(run .. "/checkpoints", "mode") ~= "directory" then check.fail(2, run .. ": no run folder", { id = "usage" }) end
  local steps = folders.view(run):checkpoints()
  for _, s in ipairs(steps) do
    if s == step then return { run = run, step = step, file = ("%s/checkpoints/step-%d.safetensors"):format(run, step) } end
  end
  check.fail(2, ("--fork %s: no checkpoint of step %d; there are those of %s"):format(text, step,
    #steps > 0 and table.concat(steps, ", ") or "none"), { id = "usage" })
end

return M
