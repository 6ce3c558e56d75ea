--- Recipes: a checked table of specs. Nothing is built here, so overrides such as `data.fraction=0.05` come before construction.
local core = require "cab.core"
local check = require "cab.check"
local schedule = require "cab.schedule"
local weighting = require "cab.weighting"
local M = {}

local numbers = "number"
local schema = {
  name      = { "string", default = "" },                       -- "": the file's name
  data      = { "table", required = true },                     -- cab.data.*{...}
  teacher   = { "table" },                                      -- cab.models.*{...}, frozen
  student   = { "table", required = true },
  pairs     = { "string|table", default = "proportional" },     -- which student layer learns from which teacher layer
  stages    = { "table", required = true },
  optim     = { "table", default = {} },
  eval      = { "table", default = {} },
  checkpoint = { "table", default = {} },
  guard     = { "table", default = {} },
  cache     = { "table", default = {} },                        -- of the teacher's taps and logits
  batch     = { "integer", default = 64, min = 1 },             -- of all ranks and parts together
  accumulate = { "integer", default = 1, min = 1 },             -- parts of a rank's batch, one after the other in memory
  seed      = { "integer", default = 0, min = 0 },
  device    = { "string", default = "auto" },                   -- cpu, cuda, cuda:N; auto: a GPU if there is one
  precision = { "string", default = "f32", one_of = { "f32", "tf32", "bf16" } }, -- tf32: of matrix products; bf16: of activations
  capture   = { "boolean", default = true },                    -- GPU: steps replayed as one graph
  threads   = { "integer", default = 0, min = 0, max = 256 },   -- 0: as many as cores
  dist      = { "table", default = {} },                        -- of several ranks
  log       = { "integer", default = 10, min = 1 },             -- steps between lines of metrics.jsonl
  export    = { "string", default = "" },                       -- where to copy the best weights at the end
  draw      = { "table", default = {} },                        -- charts of the run at its end, as of cab plot --what: RUN/NAME.png
  presets   = { "table" },                                      -- name -> function(recipe) that changes it: preset=NAME
  missing   = { "table", default = {} },                        -- data, teacher, student -> what to do where their files are not there
}
local parts = {
  optim = {
    name         = { "string", default = "adamw", one_of = { "adamw" } },
    lr           = { numbers, default = 5e-4, min = 0 },
    low          = { numbers, default = 1e-5, min = 0 },        -- the cosine's end
    start        = { numbers, default = 1e-6, min = 0 },        -- the warm-up's start
    weight_decay = { numbers, default = 0.05, min = 0 },
    beta1        = { numbers, default = 0.9, min = 0, max = 1 },
    beta2        = { numbers, default = 0.999, min = 0, max = 1 },
    eps          = { numbers, default = 1e-8, min = 0 },
    schedule     = { "string", default = "cosine", one_of = schedule.names },
    warmup       = { "number|string", default = 0, min = 0 },   -- epochs, may be a fraction; "500 steps", "20M tokens", "10 %" of all steps
    decay        = { "number|string", default = "20 %", min = 0 }, -- the same, the fall of a wsd before that
    cooldown     = { "number|string", default = 0, min = 0 },   -- the same, at `low`
    clip         = { numbers, default = 0, min = 0 },           -- largest global L2 norm of the gradient, 0: off
    ema          = { numbers, default = 0, min = 0, max = 1 },  -- share of the average kept each step, 0: off
  },
  eval = {
    every   = { "number|string", default = 0, min = 0 },        -- between evaluations, as optim.warmup; 0: only at the end
    batch   = { "integer", default = 0, min = 0 },              -- 0: 250 on the CPU, 512 on a GPU; of text, 8 windows
    window  = { "integer", default = 0, min = 0 },              -- perplexity: ids a model sees at once, 0: a window of the data
    stride  = { "integer", default = 0, min = 0 },              -- ids from one window to the next, 0: a window
    tokens  = { "integer", default = 0, min = 0 },              -- of the test text, 0: all
    lengths = { "integer", default = 0, min = 0 },              -- perplexity at the end, of windows up to so many training lengths, 0: none
    metrics = { "table", default = { "top1", "top5", "loss", "align" } },
    shares  = { "boolean", default = true },                    -- share of the gradient of each loss term
  },
  checkpoint = { every = { "integer", default = 500, min = 0 }, keep = { "integer", default = 2, min = 1 } },
  dist = {
    timeout    = { numbers, default = 300, min = 1 },           -- seconds until a rank that does not come is given up
    shard      = { "boolean", default = false },                -- each rank has the optimizer's state of its part of the parameters
    bucket     = { "integer", default = 32, min = 1, max = 1024 }, -- MiB of gradients that travel together
    check      = { "integer", default = 100, min = 0 },         -- steps between comparisons of all ranks' weights, 0: never
  },
  guard = {
    nonfinite = { "string", default = "stop", one_of = { "stop", "skip", "rewind" } }, -- rewind: to the checkpoint, once a step
    skips     = { "integer", default = 3, min = 1 },            -- in a row
    spike     = { numbers, default = 0, min = 0 },              -- stop or rewind at this many times the median gradient norm, 0: off
  },
  cache = require "cab.cache".options,
}
M.metrics = { "top1", "top5", "loss", "align" }
local stage = {
  name   = { "string" },
  loss   = { "table", required = true },                        -- vanilla=, soft=, align={ "strategy", weight=, options }
  epochs = { numbers, min = 0 },
  steps  = { "integer", min = 1 },
  tokens = { "number|string", min = 1 },                        -- of text, as 2e8 or "200M"
  lr     = { numbers, min = 0 },                                -- given: the stage has its own schedule
  stop   = { "table" },                                         -- a condition that ends the stage before its length
  train  = { "table" },                                         -- patterns of parameter names, as "aligner.*"; all without it
}
local stop = {
  of      = { "string" },                                       -- the term; default: the stage's only one
  below   = { numbers },                                        -- its loss on the held-out batch
  r2      = { numbers, max = 1 },
  plateau = { "integer", min = 1 },                             -- evaluations in a row without a fall by delta
  delta   = { numbers, default = 0.05, min = 0, max = 1 },
  top1    = { numbers, min = 0, max = 100 },                    -- of the student
}
M.stop = stop
M.schema, M.parts, M.stage = schema, parts, stage -- for cab.reference

-- name -> rule of a spec's options.
local function spec_schema(key, spec)
  if key == "data" then
    local kinds = require "cab.data".kinds
    if not kinds[spec.kind] then check.usage("data: " .. check.unknown("kind", spec.kind, kinds)) end
    return kinds[spec.kind].options
  end
  return require "cab".models[spec.kind].options -- faults on unknown kinds
end

-- soft = 1, soft = { weight = 1, temperature = 2 }, align = { "attention_bridge", weight = 3 }: the strategy is the first
-- entry, or else has the term's name.
local function term(name, given, path)
  if type(given) == "number" then given = { weight = given } end
  if type(given) == "string" or (type(given) == "table" and given.is_strategy) then given = { given } end
  if type(given) ~= "table" then check.usage(("%s is a %s, expected a weight or a table"):format(path, type(given))) end
  local class = given.strategy or given[1] or name
  local set = { }
  for k, v in pairs(given) do if k ~= "strategy" and k ~= "weight" and k ~= 1 then set[k] = v end end
  local weight = weighting.resolve(given.weight == nil and 1 or given.weight, path .. ".weight")
  local made = require "cab.strategy".create(class, set) -- faults on unknown names and options
  local out = check.copy(made.given)
  out.strategy, out.weight = class, weight
  return out
end

-- The condition that ends a stage, checked.
local function stop_of(s, path)
  local c = check.options(stop, s.stop, path .. ".stop")
  local names = require "cab.options".names(s.loss)
  if not c.of and #names == 1 then c.of = names[1] end
  if c.of and not s.loss[c.of] then check.usage(("%s.stop.of: %s"):format(path, check.unknown("loss term", c.of, names))) end
  if not (c.below or c.r2 or c.plateau or c.top1) then check.usage(path .. ".stop needs one of below, r2, plateau and top1") end
  if not c.of and not c.top1 then check.usage(("%s.stop.of is missing: the term that is looked at (known: %s)"):format(path, table.concat(names, ", "))) end
  return c
end

local function stages(list)
  local out = {}
  if #list == 0 then check.usage("stages is empty, expected at least one { loss = {...}, epochs = n }") end
  for key in pairs(list) do
    if not (math.tointeger(key) and key >= 1 and key <= #list) then check.usage(("stages: unknown key '%s', expected a list"):format(key)) end
  end
  for i, given in ipairs(list) do
    local path = "stages." .. i
    local s = check.options(stage, check.value({ "table" }, given, path), path)
    local lengths = (s.epochs and 1 or 0) + (s.steps and 1 or 0) + (s.tokens and 1 or 0)
    if lengths ~= 1 then check.usage(path .. " needs one of epochs, steps and tokens") end
    for k, text in pairs(s.train or {}) do check.value({ "string" }, text, ("%s.train.%s"):format(path, k)) end
    if s.train and #s.train == 0 then check.usage(path .. ".train is empty: the stage would train nothing") end
    if s.tokens then schedule.count(s.tokens, path .. ".tokens") end
    local loss, count = {}, 0
    for name, value in pairs(s.loss) do
      if type(name) ~= "string" then check.usage(path .. ".loss: every term needs a name, as align = { \"attention_bridge\" }") end
      loss[name] = term(name, value, path .. ".loss." .. name)
      count = count + 1
    end
    if count == 0 then check.usage(path .. ".loss has no term") end
    s.loss, out[i] = loss, s
    if s.stop then s.stop = stop_of(s, path) end
  end
  return out
end

-- The name only: whether it is there is seen when the run begins.
local function check_device(name)
  if name:find("^cuda:%d+$") then return end
  local known = { "auto", "cpu", "cuda", "cuda:0" }
  for _, k in ipairs(known) do if name == k then return end end
  check.usage("device: " .. check.unknown("value", name, known))
end

-- Presets are of the recipe file, not of the run.
local function check_presets(r)
  for name, f in pairs(r.presets or {}) do
    if type(name) ~= "string" or type(f) ~= "function" then check.usage(("presets.%s is a %s, expected a function"):format(name, type(f))) end
  end
  for key, text in pairs(r.missing) do
    if not (key == "data" or key == "teacher" or key == "student") then
      check.usage("missing: " .. check.unknown("key", key, { "data", "teacher", "student" }))
    end
    check.value({ "string" }, text, "missing." .. key)
  end
  r.presets = nil
end

--- Checks a recipe's table and fills in the defaults. Pure: the result holds plain values only.
---@param given table
---@return table
function M.resolve(given)
  local r = check.options(schema, given, "recipe")
  check_presets(r)
  for key, value in pairs(r) do check.storable(value, key) end
  check_device(r.device)
  for key, rules in pairs(parts) do
    local part = check.copy(r[key])
    if key == "optim" and part[1] then part.name, part[1] = part[1], nil end
    r[key] = check.options(rules, part, key)
  end
  for _, key in ipairs { "warmup", "decay", "cooldown" } do schedule.span(r.optim[key], "optim." .. key) end
  schedule.span(r.eval.every, "eval.every")
  for _, metric in ipairs(r.eval.metrics) do
    local ok = false
    for _, name in ipairs(M.metrics) do ok = ok or name == metric end
    if not ok then check.usage("eval.metrics: " .. check.unknown("metric", metric, M.metrics)) end
  end
  for _, name in ipairs(r.draw) do
    local names, ok = require "cab.charts".names(), false
    for _, known in ipairs(names) do ok = ok or known == name end
    if not ok then check.usage("draw: " .. check.unknown("chart", name, names)) end
  end
  local times = r.eval.lengths
  if times & (times - 1) ~= 0 then check.usage(("eval.lengths: %d is no power of 2"):format(times)) end
  if times > 0 and r.data.kind ~= "text" then check.usage "eval.lengths is of text, the data are images" end
  for _, key in ipairs { "data", "teacher", "student" } do
    local spec = r[key]
    if spec then
      spec = check.copy(spec)
      if type(spec.kind) ~= "string" then
        check.usage(("%s is a plain table, expected what cab.%s.NAME{...} returns"):format(key, key == "data" and "data" or "models"))
      end
      local kind, rules = spec.kind, spec_schema(key, spec)
      spec.kind = nil
      spec = check.options(rules, spec, key)
      spec.kind = kind
      r[key] = spec
    end
  end
  r.stages = stages(r.stages)
  for i, s in ipairs(r.stages) do
    for name, t in pairs(s.loss) do
      if t.strategy ~= "vanilla" and not r.teacher then
        check.usage(("stages.%d.loss.%s needs a teacher"):format(i, name))
      end
    end
  end
  return r
end

local Recipe = {}
Recipe.__index = Recipe
Recipe.__name = "cab.recipe"

--- A recipe: the paper's method section as a table. Checked here, so a fault names the recipe's line.
---@param given table see `help "recipe"`
---@return table recipe with :override{...} and :run{...}
function M.recipe(given)
  if type(given) ~= "table" then check.usage("cab.recipe expects a table") end
  local self = setmetatable({ given = given }, Recipe)
  self.resolved = M.resolve(given)
  return self
end

--- Whether a value is a recipe.
---@param value any
---@return boolean
function M.is(value) return getmetatable(value) == Recipe end

-- The value of "a=TEXT" for an expected type.
local function parse(text, rule, path)
  local kinds = rule and rule[1] or "any"
  local allows = function(kind) return kinds:find(kind, 1, true) or kinds == "any" end
  if (allows "boolean") and (text == "true" or text == "false") then return text == "true" end
  if allows "number" or allows "integer" then
    local n = tonumber(text)
    if n then return n end
  end
  if allows "table" and text:find("^[%[{]") then
    local value = check.decode(text)
    if value ~= nil then return value end
  end
  if allows "string" then return text end
  check.fail(2, ("%s: '%s' is no %s"):format(path, core.escape(text), (kinds:gsub("|", " or "))))
end

-- What may be set inside `value` at `path`: rules by key, or nil where any present key may.
local function rules_at(path, value)
  local first, rest = path:match("^([^.]*)%.?(.*)$")
  if path == "" then return schema end
  if parts[first] and rest == "" then return parts[first] end
  if (first == "data" or first == "teacher" or first == "student") and rest == "" then return spec_schema(first, value) end
  if first == "stages" and rest:find("^%d+$") then return stage end
end

local lengths = { steps = true, epochs = true, tokens = true } -- of a stage: one of them

local function set(r, text)
  local path, value = text:match("^([%w_.]+)=(.*)$")
  local shown = core.escape(text)
  if not path then check.fail(2, ("override '%s': expected key=value"):format(shown)) end
  local at, done, keys = r, "", {}
  for key in path:gmatch("[^.]+") do keys[#keys + 1] = math.tointeger(tonumber(key)) or key end
  for i, key in ipairs(keys) do
    local rules = rules_at(done, at)
    local known = {}
    for k in pairs(rules or {}) do known[tostring(k)] = true end
    for k in pairs(at) do known[tostring(k)] = true end
    if not known[tostring(key)] then
      check.fail(2, ("override '%s': %s"):format(shown, check.unknown("key", tostring(key), known)))
    end
    local here = done == "" and tostring(key) or done .. "." .. key
    if i < #keys then
      if type(at[key]) ~= "table" then
        check.fail(2, ("override '%s': %s is %s"):format(shown, here, at[key] == nil and "not given in this recipe" or "not a table"))
      end
      at, done = at[key], here
    elseif type(at[key]) == "table" and at[key].weight and tonumber(value) then
      at[key].weight = tonumber(value) -- stages.1.loss.soft=2
    else
      local rule = rules and rules[key] and check.entry(rules[key]) or at[key] ~= nil and check.entry(at[key]) or nil
      if rule and rule[1] == "table" and not value:find("^[%[{]") then
        check.fail(2, ("override '%s': %s is a table, set one of its keys"):format(shown, here))
      end
      at[key] = check.value(rule or { "any" }, parse(value, rule, here), here)
      if done:find("^stages%.%d+$") and lengths[key] then
        for other in pairs(lengths) do if other ~= key then at[other] = nil end end
      end
    end
  end
end

-- The recipe as one of its presets has it.
local function preset(self, name)
  local f = (self.given.presets or {})[name]
  if not f then
    local known = next(self.given.presets or {}) and check.unknown("preset", name, self.given.presets) or ("unknown preset '%s': this recipe has none"):format(name)
    check.fail(2, ("override 'preset=%s': %s"):format(name, known))
  end
  local given = check.copy(self.given)
  f(given)
  self.given = given
end

--- Applies presets ("preset=NAME", first of all) and "a.b=v" texts; unknown keys and wrong types are faults with code 2.
---@param texts string[]
---@return table self
function Recipe:override(texts)
  local rest, given = {}, self.given
  for _, text in ipairs(texts) do
    local name = text:match "^preset=(.*)$"
    if name then preset(self, name) else rest[#rest + 1] = text end
  end
  local r = self.given == given and check.copy(self.resolved) or M.resolve(self.given)
  for _, text in ipairs(rest) do set(r, text) end
  self.resolved = M.resolve(r)
  return self
end

--- Trains. See train.run for the options.
---@param options? table out, resume, quiet, name
---@return table result
function Recipe:run(options)
  return require "cab.train".run(self.resolved, options)
end

return setmetatable(M, { __call = function(_, given) return M.recipe(given) end })
