--- A strategy says how the student learns from the teacher: needs, options, build(pairs), loss(pairs, batch).
--- Modules assigned in build are trained and saved with the student under "aligner.".
local core = require "cab.core"
local options = require "cab.options"
local check = require "cab.check"
local nn = require "cab.nn"
local op = core.ops

local Strategy = {}

-- What every instance has; a strategy's own file adds build and loss to its class.
local Instance = {}

--- Makes the strategy's modules: assigned to fields of self, they are its parameters. To be written by a strategy; default: none.
function Instance.build() end

--- Called before the first step of a stage that has the strategy, when a run begins it anew: the place to write weights. Returns
--- what the run should say, if anything.
---@return string|nil
function Instance.begin() end

--- Builds and initialises the parameters.
---@param pairs table
---@param o? {seed?: integer, dtype?: string, prefix?: string, device?: string}
---@return table itself
function Instance:prepare(pairs, o)
  o = o or {}
  rawset(self, "prefix", o.prefix or "aligner.")
  self:build(pairs)
  self.module:init { seed = o.seed, dtype = o.dtype, prefix = self.prefix, device = o.device }
  if self.given.frozen == true then self.module:freeze() end -- the option `frozen`: parameters stay as drawn
  return self
end

--- Its parameters, names with its prefix ("aligner.").
---@return {name: string, tensor: cab.Tensor, decay: boolean}[]
function Instance:parameters() return self.module:parameters(self.prefix) end
--- name -> tensor, names with its prefix.
---@return table<string, cab.Tensor>
function Instance:state_dict() return self.module:state(self.prefix) end
--- Takes the tensors with its prefix; all or nothing.
---@param tensors table<string, cab.Tensor>
---@return cab.Module
function Instance:load(tensors) return self.module:load(tensors, self.prefix) end

--- True if an option is the map "standard", so that pairs:measure must run first.
---@return boolean
function Instance:measures()
  for _, value in pairs(self.given) do
    if value == "standard" then return true end
  end
  return false
end

--- The loss of one step (scalar tensor).
---@param pairs table
---@param batch table
---@return cab.Tensor
function Instance:run(pairs, batch)
  rawset(self, "fits", {})
  rawset(self, "pairing", pairs)
  return self:loss(pairs, batch)
end

-- The target in the dtype of what is compared with it: beside bf16 activations the residual stream, `hidden`, is f32.
local function like(x, target)
  return x:dtype() == target:dtype() and target or op.cast(target, { to = x:dtype() })
end

-- mse() and target() are called when metrics() wants them.
local function remember(self, mse, target)
  local entry = self.pairing and self.pairing.entry
  if self.fits then table.insert(self.fits, { mse = mse, target = target, layer = entry and entry.layer }) end
end

--- mse(prediction, target), remembered for the R2 of metrics().
---@return cab.Tensor
function Instance:fit(prediction, target)
  local mse = op.mse(prediction, like(prediction, target))
  remember(self, function() return mse:item() end, function() return target end)
  return mse
end

-- What op.bridge can lift: an nn.mlp of two layers with SiLU between.
local function two_layers(lift) return tostring(lift) == "nn.mlp" and #lift.layers == 2 and lift.activation == "silu" end

-- True where one call of op.bridge can take both {lift, x, target}.
local function alike(a, b)
  local s, t = a[3], b[3]
  return two_layers(a[1]) and two_layers(b[1]) and a[2]:size(3) == b[2]:size(3) and s.map == t.map and s.first == t.first and s.second == t.second
    and s.tap:size(3) == t.tap:size(3) and a[1].layers[1].weight:size(1) == b[1].layers[1].weight:size(1)
end

-- Adds the tap of one {lift, x, target} to the arguments of op.bridge, as B onto k or C onto q.
local function bridge_tap(args, name, onto, lift, x, target)
  local inner, outer = lift.layers[1], lift.layers[2]
  args[name], args[name .. "_w1"], args[name .. "_b1"] = x, inner.weight, inner.bias
  args[name .. "_w2"], args[name .. "_b2"] = outer.weight, outer.bias
  args[onto], args[onto .. "_mean"], args[onto .. "_deviation"] = like(x, target.tap), target.mean, target.deviation
end

--- fit(lift(x), target) of one {lift, x, target} or the sum over several, with targets from t:target(name, map); nil of none. One
--- op that stores neither predictions nor targets where the lifts of two are an nn.mlp of depth 2.
---@param a? {[1]: cab.Module, [2]: cab.Tensor, [3]: table}
---@param b? {[1]: cab.Module, [2]: cab.Tensor, [3]: table}
---@return cab.Tensor|nil
function Instance:bridge(a, b, ...)
  if not a then return nil end
  if b and (... or not alike(a, b)) then return self:bridge(a) + self:bridge(b, ...) end
  local lift, x, target = table.unpack(a)
  if not two_layers(lift) then
    local whole = target.mapped()
    return self:fit(tostring(lift) == "nn.ridge" and lift:solve(x, whole) or lift(x), whole)
  end
  local args = { map = target.map, first = target.first, second = target.second }
  bridge_tap(args, "B", "k", table.unpack(a))
  if b then bridge_tap(args, "C", "q", table.unpack(b)) end
  local sum, mse = op.bridge(args)
  for i, tap in ipairs { a, b } do
    remember(self, function() return mse:slice(1, i, i):item() end, tap[3].mapped)
  end
  return sum
end

-- Mean over elements of (target - mean of its feature)^2, a number; target [b,l,D].
local function variance(target)
  local x = target:detach():to("f64")
  local features = op.sum(op.sum(x, { dim = 1 }), { dim = 1 }) * (x:size(-1) / x:count())
  return op.mse(x, features:expand(x:shape())):item()
end

--- Of the last run: r2 = mean over fits of 1 - mse / var(target): 0 for the best constant, 1 for a perfect bridge; each: of every
--- fit, in the order of the loss; layers: the mean of each student layer, where the strategy sums by pairs:mean. Reads values back: not for
--- every step.
---@return {r2?: number, each?: number[], layers?: table<integer, number>}
function Instance:metrics()
  local fits, sum, seen, each, by = self.fits or {}, 0, {}, {}, {}
  if #fits == 0 then return {} end
  core.no_grad(function()
    for i, f in ipairs(fits) do
      local target = f.target()
      seen[target] = seen[target] or variance(target)
      each[i] = 1 - f.mse() / math.max(seen[target], 1e-30)
      sum = sum + each[i]
      local layer = by[f.layer or 0] or { sum = 0, count = 0 }
      layer.sum, layer.count = layer.sum + each[i], layer.count + 1
      by[f.layer or 0] = layer
    end
  end)
  local layers = {}
  for number, layer in pairs(by) do
    if number > 0 then layers[number] = layer.sum / layer.count end
  end
  return { r2 = sum / #fits, each = each, layers = layers }
end

local function instance(class, given)
  local checked = check.options(class.options, given, ("strategy '%s'"):format(class.name or "?"))
  for key in pairs(checked) do
    if Instance[key] or key == "class" or key == "module" or key == "given" or key == "needs" then
      options.fail(1, "strategy-option", ("strategy '%s': an option cannot have the name '%s', which every strategy has"):format(class.name or "?", key))
    end
  end
  local needs = class.needs
  if type(needs) == "function" then needs = needs(checked) end
  local self = { class = class, needs = needs, given = checked, module = nn.module("strategy", {}) }
  for k, v in pairs(checked) do self[k] = v end
  return setmetatable(self, {
    __name = "cab.strategy",
    __index = function(t, k)
      local own = rawget(t, "class")[k]
      if own ~= nil then return own end
      return Instance[k]
    end,
    __newindex = function(t, k, v)
      if nn.is_module(v) then t.module[k] = v end
      rawset(t, k, v)
    end,
  })
end

--- Goes on with another class in this instance's place: its file as it is now. Parameters stay, so build must make the same ones.
---@param class table
---@param pairing table the run's pairs
---@param o table as for prepare
function Instance:become(class, pairing, o)
  local given = {}
  for k, v in pairs(self.given) do if class.options[k] ~= nil then given[k] = v end end
  local new = instance(class, given):prepare(pairing, o)
  local function shapes(s)
    local list = {}
    for i, p in ipairs(s:parameters()) do list[i] = ("%s [%s]"):format(p.name, table.concat(p.tensor:shape(), ",")) end
    table.sort(list)
    return table.concat(list, ", ")
  end
  if shapes(new) ~= shapes(self) then
    options.fail(2, "reload", ("strategy '%s' has other parameters now (%s) than the run (%s): begin a new run"):format(
      class.name or "?", shapes(new), shapes(self)))
  end
  for k in pairs(self.given) do rawset(self, k, nil) end
  for k, v in pairs(new.given) do rawset(self, k, v) end
  rawset(self, "class", class)
  rawset(self, "given", new.given)
  rawset(self, "needs", new.needs)
end

--- A new strategy: a table to which build(pairs) and loss(pairs, batch) are added, and begin(pairs). Options are defaults, or
--- schema entries of cab.check; needs may be a function of the options given. about, source: for `help` and docs.
--- apart: the loss needs no pass of the student over the batch, as one that runs its layers on the teacher's.
---@param o {needs?: {student?: string[], teacher?: string[]}|function, options?: table, name?: string, about?: string, source?: string, apart?: boolean}
---@return table the class
function Strategy.define(o)
  local fields = { needs = { "table|function", default = {} }, options = { "table", default = {} }, name = { "string" }, about = { "string" },
    source = { "string" }, apart = { "boolean", default = false } }
  o = check.options(fields, o, "cab.strategy")
  if type(o.needs) == "table" then check.options({ student = { "table" }, teacher = { "table" } }, o.needs, "cab.strategy.needs") end
  o.is_strategy = true
  return o
end

--- One table of options from several; a plain value of a later one is a new default for a schema entry of an earlier one.
---@param ... table
---@return table
function Strategy.options(...)
  local out = {}
  for _, list in ipairs { ... } do
    for key, rule in pairs(list) do
      local known = out[key]
      if known and type(known) == "table" and not (type(rule) == "table" and type(rule[1]) == "string" and rule.default ~= nil) then
        out[key] = {}
        for k, v in pairs(known) do out[key][k] = v end
        out[key].default = rule
      else
        out[key] = rule
      end
    end
  end
  return out
end

--- The shipped strategies: files of lua/cab/strategies.
Strategy.names = { "attention_bridge", "attention_copy", "attention_distill", "hidden_state", "linear_attention", "linearised", "matrix_distill",
  "mohawk_hidden", "mohawk_orientation", "mohawk_transfer", "soft", "vanilla", "weight_reuse" }

-- "depth=2 (1 .. 8)", "map=standard|elu|..": the default first.
local function option_text(key, rule)
  rule = check.entry(rule)
  local default, choices = rule.default, {}
  for _, word in ipairs(rule.one_of or {}) do
    if word ~= default then choices[#choices + 1] = word end
  end
  if type(default) == "table" then
    local list = {}
    for _, k in ipairs(options.names(default)) do list[#list + 1] = k .. "=" .. tostring(default[k]) end
    default = "{" .. table.concat(#default > 0 and default or list, ", ") .. "}"
  end
  return key .. "=" .. tostring(default) .. (#choices > 0 and "|" .. table.concat(choices, "|") or "")
end

--- What a shipped strategy is: { about, source, options: texts as "depth=2", needs: of its defaults }.
---@param name string
---@return {about: string, source: string, options: string[], needs: table}
function Strategy.described(name)
  local class, list = require "cab".strategies[name], {}
  for _, key in ipairs(options.names(class.options)) do list[#list + 1] = option_text(key, class.options[key]) end
  return { about = class.about, source = class.source, options = list, needs = Strategy.create(name).needs }
end

--- The same as text, for `cab help NAME`.
---@param name string
---@return string
function Strategy.help(name)
  local d = Strategy.described(name)
  return ("strategy %s   loss = { %s = { weight = 1, ... } }\n  %s\n  source: %s\n  options: %s"):format(name, name, d.about, d.source,
    #d.options > 0 and table.concat(d.options, "  ") or "none")
end

--- An instance: create "soft", create {"attention_bridge", hidden = 64}, or create(class, options).
---@param what string|table
---@param given? table
---@return table instance
function Strategy.create(what, given)
  if type(what) == "table" and not what.is_strategy then
    given = {}
    for k, v in pairs(what) do
      if k ~= 1 then given[k] = v end
    end
    what = what[1]
  end
  local class = what
  if type(what) == "string" then
    class = require "cab".strategies[what]
    class.name = class.name or what
  end
  if type(class) ~= "table" or not class.is_strategy then
    options.fail(2, "not-a-strategy", "expected the name of a strategy or what cab.strategy returned")
  end
  return instance(class, given)
end

return setmetatable(Strategy, { __call = function(_, o) return Strategy.define(o) end })
