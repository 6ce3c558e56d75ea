--- The public table. Parts are loaded when first used, so that parts may require "cab" themselves.
local core = require "cab.core"

local modules = {
  tokenizer = "cab.tokenizer", corpus = "cab.corpus", harness = "cab.harness", tasks = "cab.tasks", recall = "cab.recall",
  nn = "cab.nn", models = "cab.models", data = "cab.data", recipe = "cab.recipe", strategy = "cab.strategy", schedule = "cab.schedule",
  train = "cab.train", eval = "cab.eval", report = "cab.report", cli = "cab.cli", repl = "cab.repl",
  reference = "cab.reference", bridges = "cab.bridges", divergence = "cab.divergence", features = "cab.features", reuse = "cab.reuse",
  mixing = "cab.mixing", similarity = "cab.similarity", layers = "cab.layers", maps = "cab.maps",
  taps = "cab.taps", pairs = "cab.pairs", options = "cab.options", gradcheck = "cab.gradcheck",
  plot = "cab.plot", charts = "cab.charts", pictures = "cab.pictures", runs = "cab.runs", session = "cab.session",
  audit = "cab.audit", plan = "cab.plan", recompute = "cab.recompute", weights = "cab.weights", names = "cab.names", job = "cab.job",
  compare = "cab.compare", study = "cab.study", statistics = "cab.statistics",
}

---@class cab
local cab = {
  op = core.ops, core = core, scope = core.scope, no_grad = core.no_grad, custom = core.custom,
  save = core.save, memory = core.memory, doctor = core.doctor,
  devices = core.devices, sync = core.sync,
}
for _, name in ipairs { "tensor", "zeros", "ones", "full", "empty", "arange", "uniform", "normal", "trunc_normal", "concat" } do
  cab[name] = core[name]
end

--- Tensors and metadata of a weight file of any format: cab.weights.read.
---@param path string
---@param key? string of a PyTorch file that holds several state dicts
---@return table<string, cab.Tensor>
---@return table<string, string>
function cab.load(path, key) return require "cab.weights".read(path, key) end
--- A recipe file as a run in memory, a step at a time: cab.session.
---@param path string
---@param o? table
---@return table
function cab.open(path, o) return require "cab.session".open(path, o) end
--- What is in a weight file, without its numbers: cab.weights.inspect.
---@param path string
---@param key? string
---@return table[]
function cab.inspect(path, key) return require "cab.weights".inspect(path, key) end

--- Adds the names of all fields, those not loaded yet as well. (`cab.names` is a module.)
---@param into table<string, boolean>
---@return table<string, boolean> into
function cab.fields(into)
  for k in next, modules do into[k] = true end
  return into
end

-- A table whose fields are files of lua/cab/FOLDER: cab.strategies.soft.
local function folder(what, prefix, names)
  return setmetatable({}, {
    __index = function(t, name)
      if type(name) ~= "string" then return nil end
      local path = prefix .. name
      if not package.loaded[path] and not require "cab.options".file(prefix, name) then
        require "cab.options".unknown(what, name, names())
      end
      local value = require(path)
      rawset(t, name, value)
      return value
    end,
  })
end
cab.strategies = folder("strategy", "cab.strategies.", function() return require "cab.strategy".names end)

return setmetatable(cab, {
  __index = function(t, name)
    local path = modules[name]
    if not path then
      local known = {}
      for k in next, t do known[#known + 1] = k end
      for k in next, modules do
        if not rawget(t, k) then known[#known + 1] = k end
      end
      table.sort(known)
      return require "cab.options".unknown("field of cab", name, known, 1)
    end
    local value = require(path)
    rawset(t, name, value)
    return value
  end,
})
