--- Layers. A module registers parameters and child modules in the order they are assigned; names are dotted paths as in
--- published checkpoints. Values are drawn from (seed, full name), so neither order nor other parameters matter.
local core = require "cab.core"
local options = require "cab.options"
local op = core.ops

local nn = {}

---@class cab.Module
local Module = {}
local Param = {}

local function is(value, class)
  return type(value) == "table" and rawget(value, "__class") == class
end

-- True if the module has this very part already: what is assigned twice is registered once.
local function has(m, part)
  for _, item in ipairs(rawget(m, "__items")) do
    if item.value == part then return true end
  end
  return false
end

function Module.__newindex(m, key, value)
  if (is(value, Param) or is(value, Module)) and not has(m, value) then
    table.insert(rawget(m, "__items"), { name = tostring(key), value = value })
    if is(value, Param) then return end -- its tensor is set by init
  end
  rawset(m, key, value)
end

function Module.__index(m, key)
  local method = Module[key] or (rawget(m, "__methods") or {})[key]
  if method ~= nil then return method end
  for _, item in ipairs(rawget(m, "__items")) do
    if item.name == key and is(item.value, Param) then -- used before init: seed 0
      m:init {}
      return rawget(m, key)
    end
  end
end

function Module.__call(m, ...) return m:forward(...) end
function Module.__tostring(m) return ("nn.%s"):format(rawget(m, "__kind")) end
function Module.__len(m) return rawget(m, "count") or 0 end

--- A new module. `methods` are found on it: forward, and others.
---@param kind string for messages
---@param methods table
---@return cab.Module
function nn.module(kind, methods)
  return setmetatable({ __class = Module, __kind = kind, __items = {}, __methods = methods }, Module)
end
--- Whether a value is a module.
---@param value any
---@return boolean
function nn.is_module(value) return is(value, Module) end

--- A parameter to be registered by assignment: `self.weight = nn.param({O, I}, nn.kaiming(I))`.
---@param shape integer[]
---@param init fun(shape: integer[], seed: integer, name: string, dtype: string): cab.Tensor
---@param decay? boolean weight decay applies, default true
---@return table to be assigned to a module
function nn.param(shape, init, decay)
  return { __class = Param, shape = shape, init = init, decay = decay ~= false }
end

-- Calls visit(owner, item, full name) for every parameter, in order of registration. A suffix goes onto the list's name:
-- "proj_B." .. "_b" .. "0" is "proj_B_b.0".
local function walk(m, prefix, visit)
  for _, item in ipairs(rawget(m, "__items")) do
    local before = item.suffix and item.suffix ~= "" and prefix:gsub("%.$", "") .. item.suffix .. "." or prefix
    if is(item.value, Param) then
      visit(m, item, before .. item.name)
    else
      walk(item.value, before .. item.name .. ".", visit)
    end
  end
end

--- Draws every parameter on the CPU, the same bits for every device, and moves it to its own.
---@param o {seed?: integer, dtype?: string, prefix?: string, device?: string}
---@return cab.Module itself
function Module:init(o)
  local dtype, device = o.dtype or "f32", core.device(o.device or "cpu")
  walk(self, o.prefix or "", function(owner, item, name)
    local tensor = item.value.init(item.value.shape, o.seed or 0, name, dtype)
    if device ~= "cpu" then tensor = tensor:to(device) end
    tensor.requires_grad = true
    rawset(owner, item.name, tensor)
  end)
  return self
end

local function initialised(m)
  local missing = false
  walk(m, "", function(owner, item) missing = missing or rawget(owner, item.name) == nil end)
  if missing then m:init {} end
end

--- Ordered list of {name=, tensor=, decay=}.
---@param prefix? string put before each name
---@return { name: string, tensor: cab.Tensor, decay: boolean }[]
function Module:parameters(prefix)
  initialised(self)
  local list = {}
  walk(self, prefix or "", function(owner, item, name)
    list[#list + 1] = { name = name, tensor = rawget(owner, item.name), decay = item.value.decay }
  end)
  return list
end

--- name -> tensor (the parameters themselves, not copies).
---@param prefix? string put before each name
---@return table<string, cab.Tensor>
function Module:state(prefix)
  local state = {}
  for _, p in ipairs(self:parameters(prefix)) do state[p.name] = p.tensor end
  return state
end

local function shape_text(t) return "[" .. table.concat(t:shape(), ",") .. "]" end

--- Compares names and shapes: three lists (names; names; "name: file [2,3], model [3,2]").
---@param tensors table<string, cab.Tensor>
---@param prefix? string put before the names of the module
---@return { missing: string[], unexpected: string[], mismatched: string[] }
function Module:compare(tensors, prefix)
  prefix = prefix or ""
  local d, state = { missing = {}, unexpected = {}, mismatched = {} }, self:state(prefix)
  for _, p in ipairs(self:parameters(prefix)) do
    local t = tensors[p.name]
    if not t then
      table.insert(d.missing, p.name)
    elseif shape_text(t) ~= shape_text(p.tensor) then
      table.insert(d.mismatched, ("%s: file %s, model %s"):format(p.name, shape_text(t), shape_text(p.tensor)))
    end
  end
  for name in pairs(tensors) do
    if name:sub(1, #prefix) == prefix and not state[name] then table.insert(d.unexpected, name) end
  end
  table.sort(d.unexpected)
  return d
end

--- Copies `tensors` (those whose names start with `prefix`) in; all or nothing. The error has the lists
--- missing, unexpected and mismatched.
---@param tensors table<string, cab.Tensor>
---@param prefix? string
---@return cab.Module itself
function Module:load(tensors, prefix)
  local d = self:compare(tensors, prefix)
  if #d.missing + #d.unexpected + #d.mismatched > 0 then require "cab.weights".refuse(d) end
  core.no_grad(function()
    for _, p in ipairs(self:parameters(prefix)) do p.tensor:copy(tensors[p.name]) end
  end)
  return self
end

--- No parameter wants a gradient any more.
---@return cab.Module itself
function Module:freeze()
  for _, p in ipairs(self:parameters()) do p.tensor.requires_grad = false end
  return self
end

--- Frees the parameters, or never makes them; who asks for one gets the fault `why`, code 2. `absent` is true then.
---@param why string
---@return cab.Module self
function Module:hollow(why)
  walk(self, "", function(owner, item)
    local tensor = rawget(owner, item.name)
    if tensor then tensor:close() end
    rawset(owner, item.name, nil)
    item.value.init = function() options.fail(2, "hollow", why) end
  end)
  self.absent = true
  return self
end

--- Moves the parameters; those that are there already stay the same tensors. Gradients do not come along.
---@param device string "cpu", "cuda", "cuda:1", "auto"
---@return cab.Module itself
function Module:to(device)
  initialised(self)
  device = core.device(device)
  walk(self, "", function(owner, item)
    local old = rawget(owner, item.name)
    if old:device() == device then return end
    local moved = old:to(device)
    moved.requires_grad = old.requires_grad
    rawset(owner, item.name, moved)
  end)
  return self
end

--- Number of elements of all parameters.
---@return integer
function Module:size()
  local n = 0
  for _, p in ipairs(self:parameters()) do n = n + p.tensor:count() end
  return n
end

-- Initial values: each returns function(shape, seed, name, dtype) -> tensor.
--- All elements alike.
---@param value number
---@return function init
function nn.constant(value)
  return function(shape, _, _, dtype) return core.full(shape, value, dtype) end
end
--- U(-bound, bound).
---@param bound number
---@return function init
function nn.uniform(bound)
  return function(shape, seed, name, dtype) return core.uniform(shape, -bound, bound, seed, name, dtype) end
end
--- Kaiming-uniform with a = sqrt 5: U(+-fan_in^-0.5) * scale, the default of published linears and convolutions.
---@param fan_in integer
---@param scale? number
---@return function init
function nn.kaiming(fan_in, scale) return nn.uniform((scale or 1) * fan_in ^ -0.5) end
--- Normal cut at two absolute units, as published position and class tokens and heads.
---@param deviation number
---@return function init
function nn.trunc_normal(deviation)
  return function(shape, seed, name, dtype) return core.trunc_normal(shape, 0, deviation, -2, 2, seed, name, dtype) end
end
--- LeCun normal cut at two deviations; 0.8796 restores the deviation that the cut takes.
---@param fan_in integer
---@return function init
function nn.lecun(fan_in)
  local dev = fan_in ^ -0.5 / .87962566103423978
  return function(shape, seed, name, dtype)
    return core.trunc_normal(shape, 0, dev, -2 * dev, 2 * dev, seed, name, dtype)
  end
end

--- y[*,O] = x[*,I] w[O,I]^T + b.
---@param inputs integer
---@param outputs integer
---@param o? {bias?: boolean, init?: function, bias_init?: function}
---@return cab.Module
function nn.linear(inputs, outputs, o)
  o = o or {}
  local m = nn.module("linear", {
    forward = function(self, x) return op.linear(x, self.weight, self.biased and self.bias or nil) end,
  })
  m.weight = nn.param({ outputs, inputs }, o.init or nn.kaiming(inputs))
  m.biased = o.bias ~= false
  if m.biased then m.bias = nn.param({ outputs }, o.bias_init or nn.kaiming(inputs), false) end
  return m
end

--- forward(x, residual) -> normalised sum, sum; eps 1e-6.
---@param width integer
---@param eps? number
---@return cab.Module
function nn.layer_norm(width, eps)
  local m = nn.module("layer_norm", {
    forward = function(self, x, residual) return op.layer_norm(x, self.weight, self.bias, residual, { eps = self.eps }) end,
  })
  m.eps = eps or 1e-6
  m.weight, m.bias = nn.param({ width }, nn.constant(1), false), nn.param({ width }, nn.constant(0), false)
  return m
end

--- forward(x, residual) -> normalised sum, sum; eps 1e-5.
---@param width integer
---@param eps? number
---@return cab.Module
function nn.rms_norm(width, eps)
  local m = nn.module("rms_norm", {
    forward = function(self, x, residual) return op.rms_norm(x, self.weight, nil, residual, { eps = self.eps }) end,
  })
  m.eps = eps or 1e-5
  m.weight = nn.param({ width }, nn.constant(1), false)
  return m
end

--- Causal depthwise convolution over tokens: forward(x [b,l,E], options of op.conv1d).
---@param channels integer
---@param width integer tokens that one sees, itself included
---@return cab.Module
function nn.conv1d(channels, width)
  local m = nn.module("conv1d", { forward = function(self, x, o) return op.conv1d(x, self.weight, self.bias, o) end })
  m.weight = nn.param({ channels, 1, width }, nn.kaiming(width))
  m.bias = nn.param({ channels }, nn.kaiming(width), false)
  return m
end

--- A table [rows,width], normal with deviation 0.02; read by op.embedding.
---@param rows integer
---@param width integer
---@param decay? boolean default true
---@return cab.Module
function nn.embedding(rows, width, decay)
  local m = nn.module("embedding", {})
  m.weight = nn.param({ rows, width }, nn.trunc_normal(0.02), decay)
  return m
end

--- A module of parts alone: nn.group("mlp", { fc1 = ..., fc2 = ... }, "fc1", "fc2"), registered in the order of the names.
---@param kind string for messages
---@param parts table<string, any> modules and parameters
---@param ... string their names
---@return cab.Module
function nn.group(kind, parts, ...)
  local m = nn.module(kind, {})
  for _, name in ipairs { ... } do m[name] = parts[name] end
  return m
end

--- `depth` linears with an activation (an op, "silu") between: names 0, 2, 4, ... (the odd places are the activations). depth 1:
--- one linear.
---@param inputs integer
---@param hidden integer
---@param outputs integer
---@param depth? integer default 2
---@param activation? string default "silu"
---@return cab.Module
function nn.mlp(inputs, hidden, outputs, depth, activation)
  depth, activation = depth or 2, activation or "silu"
  if math.type(depth) ~= "integer" or depth < 1 then options.fail(2, "mlp-depth", "nn.mlp: depth is at least 1") end
  local m = nn.module("mlp", {
    forward = function(self, x)
      for i, layer in ipairs(self.layers) do
        x = layer(i > 1 and op[self.activation](x) or x)
      end
      return x
    end,
  })
  m.layers, m.activation = {}, activation
  for i = 1, depth do
    local layer = nn.linear(i == 1 and inputs or hidden, i == depth and outputs or hidden)
    m[tostring(2 * (i - 1))] = layer
    m.layers[i] = layer
  end
  return m
end

--- `count` modules made by make(i), list[1] .. list[count], named 0 .. count-1. With `count` a `pairs`: one for each
--- (layer, direction), named LIST.LAYER forward and LIST_b.LAYER backward, as in published bridges. make may return a module again:
--- it is registered once.
---@param count integer|table
---@param make fun(i: integer): cab.Module
---@return cab.Module
function nn.list(count, make)
  local m = nn.module("list", {})
  local names = type(count) == "table" and count or nil
  rawset(m, "count", names and #names or count)
  for i = 1, m.count do
    local child = make(i)
    rawset(m, i, child)
    local entry = names and names[i]
    if not has(m, child) then
      table.insert(rawget(m, "__items"), {
        name = entry and tostring(entry.layer - 1) or tostring(i - 1), value = child, suffix = entry and entry.suffix,
      })
    end
  end
  return m
end

return nn
