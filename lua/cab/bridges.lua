--- Bridges: small modules that lift a student's tap onto a teacher's. Sources: arXiv 2510.19266 (MLP), 2408.10189 (per head).
local core = require "cab.core"
local linalg = require "cab.linalg"
local maps = require "cab.maps"
local nn = require "cab.nn"
local options = require "cab.options"
local op = core.ops
local M = {}

--- Options of strategies that build bridges.
M.options = {
  hidden = { "integer", default = 128, min = 1 },                                                    -- width of an MLP
  depth = { "integer", default = 2, min = 1, max = 8 },                                              -- its linears; 1: a linear bridge
  activation = { "string", default = "silu", one_of = { "gelu", "relu", "silu", "tanh" } },
  kind = { "string", default = "mlp", one_of = { "mlp", "ridge" } },                               -- ridge: solved each step, nothing to train
  lambda = { "number", default = 1e-3, min = 1e-12 },                                                -- ridge, as a share of the mean square
  heads = { "string", default = "together", one_of = { "together", "each" } },                       -- each: a bridge a head
  share = { "string", default = "none", one_of = { "none", "layers", "directions", "taps", "all" } }, -- who has one bridge together
  frozen = false,                                                                                    -- a fixed random bridge
  detach = false,                                                                                    -- no gradient to the student
  map = { "string", default = "standard", one_of = maps.names },                                     -- kernel map of the targets
}

-- ---- one bridge a head ----------------------------------------------------------------------------------------------------

-- x [b,l,G*N] -> [H, b*l, N], each group once for each of its H/G heads.
local function by_head(x, heads, groups)
  local b, l, N = x:size(1), x:size(2), x:size(3) // groups
  return x:reshape(b, l, groups, 1, N):expand { b, l, groups, heads // groups, N }:reshape(b * l, heads, N):permute(2, 1, 3)
end

-- A parameter in the dtype of the activations that it meets.
local function like(x, parameter)
  return x:dtype() == parameter:dtype() and parameter or op.cast(parameter, { to = x:dtype() })
end

-- An MLP for each of H heads, from the N numbers of the head's group to its P: weights [H,I,O], biases [H,1,O].
local function head_mlp(o)
  local m = nn.module("head_mlp", {
    forward = function(self, x)
      local b, l, y = x:size(1), x:size(2), by_head(x, o.heads, o.groups)
      for i = 1, o.depth do
        if i > 1 then y = op[o.activation](y) end
        y = op.matmul(y, like(y, self["weight" .. i])) + like(y, self["bias" .. i])
      end
      return y:permute(2, 1, 3):reshape(b, l, o.heads * o.outputs)
    end,
  })
  for i = 1, o.depth do
    local I, O = i == 1 and o.inputs or o.hidden, i == o.depth and o.outputs or o.hidden
    m["weight" .. i] = nn.param({ o.heads, I, O }, nn.kaiming(I))
    m["bias" .. i] = nn.param({ o.heads, 1, O }, nn.kaiming(I), false)
  end
  return m
end

-- ---- ridge ----------------------------------------------------------------------------------------------------------------

--- Weights [I+1,D] of the best linear map from x [n,I] (and a constant) onto y [n,D]: (X'X/n + lambda mean(X^2) I)^-1 X'Y/n, in f64;
--- the constant is not shrunk.
---@param x cab.Tensor
---@param y cab.Tensor
---@param lambda number
---@return cab.Tensor
function M.ridge(x, y, lambda)
  return core.no_grad(function()
    local n, I = x:size(1), x:size(2)
    local X = core.concat({ x:to("cpu"):to "f64", core.ones({ n, 1 }, "f64") }, 2)
    local gram = op.matmul(X:permute(2, 1), X) / n
    local diagonal, total = {}, 0
    local rows = gram:totable()
    for i = 1, I do total = total + rows[i][i] / I end
    for i = 1, I + 1 do
      diagonal[i] = {}
      for j = 1, I + 1 do diagonal[i][j] = i == j and i <= I and lambda * total + 1e-12 or 0.0 end
    end
    local inverse = linalg.inverse(gram + core.tensor(diagonal, "f64"))
    local w = op.matmul(inverse, op.matmul(X:permute(2, 1), y:to("cpu"):to "f64") / n)
    return w:to(x:dtype() == "bf16" and "f32" or x:dtype()):to(x:device())
  end)
end

local function ridge(o)
  return nn.module("ridge", {
    forward = function() options.fail(1, "bridge-ridge", "a ridge bridge is solved against its target: use strategy:bridge") end,
    -- The prediction of `target` [b,l,D] by the best linear map of x [b,l,I]; the map itself gets no gradient.
    solve = function(_, x, target)
      local b, l, I, D = x:size(1), x:size(2), x:size(3), target:size(3)
      local w = M.ridge(x:detach():reshape(b * l, I), target:reshape(b * l, D), o.lambda)
      return op.linear(x, w:slice(1, 1, I):permute(2, 1), w:slice(1, I + 1, I + 1):reshape(D))
    end,
  })
end

-- ---- lists of bridges -----------------------------------------------------------------------------------------------------

local function make(o, inputs, outputs, pairs, tap)
  if o.kind == "ridge" then return ridge(o) end
  if o.heads == "together" then return nn.mlp(inputs, o.hidden, outputs, o.depth, o.activation) end
  local H = pairs.heads or options.fail(2, "bridge-heads", "heads = 'each': the teacher has no heads")
  local groups = (tap == "B" or tap == "C") and pairs.student.groups or 1
  if H % groups ~= 0 or outputs % H ~= 0 then
    options.fail(2, "bridge-heads", ("heads = 'each': the teacher has %d heads, %s of the student has %d groups"):format(H, tap, groups))
  end
  return head_mlp { heads = H, groups = groups, inputs = inputs // groups, outputs = outputs // H, hidden = o.hidden, depth = o.depth,
    activation = o.activation }
end

--- The bridges of a student's tap onto the teacher's width: list[i] for entry i of pairs:each(), as far shared as o.share says.
--- o: the strategy, with M.options. Under share "taps" or "all", the list of another tap is the same one.
---@param pairs table
---@param tap string "B", "C", "x", "z", "hidden"
---@param o table
---@return cab.Module
function M.list(pairs, tap, o)
  local inputs, made = pairs:size(tap), {}
  local taps = o.share == "taps" or o.share == "all"
  if taps and o.shared_bridges then
    if o.shared_inputs ~= inputs then
      options.fail(2, "bridge-share", ("share = '%s': %s has %d numbers a token, the other tap %d"):format(o.share, tap, inputs, o.shared_inputs))
    end
    return o.shared_bridges
  end
  local list = nn.list(pairs, function(i)
    local entry = pairs[i]
    local layer = (o.share == "layers" or o.share == "all") and 0 or entry.layer
    local once = o.share == "directions" or o.share == "all" or not pairs.directional[tap]
    local direction = once and "" or entry.suffix
    local key = layer .. direction
    made[key] = made[key] or make(o, inputs, pairs.dim, pairs, tap)
    return made[key]
  end)
  if taps then
    rawset(o, "shared_bridges", list) -- not a part of its own: it is the first tap's list
    o.shared_inputs = inputs
  end
  return list
end

--- {lift, x, target} of strategy:bridge for each student tap that entry (s, t) has; o.onto says which tap is fitted to which
--- of the teacher's.
---@param o table the strategy: onto, map, control, detach, and a list of bridges "proj_TAP" for each tap
---@param i integer
---@param s table
---@param t table
---@return table[]
function M.edges(o, i, s, t)
  local list = {}
  for _, tap in ipairs(options.names(o.onto)) do
    if s:has(tap) then
      local x = s[tap]
      list[#list + 1] = { o["proj_" .. tap][i], o.detach and x:detach() or x, t:target(o.onto[tap], o.map, o.control) }
    end
  end
  return list
end

--- What a strategy with the option `onto` needs of both models: a set of student taps, each onto a tap of the teacher.
---@param o table
---@return {student: string[], teacher: string[]}
function M.needs(o)
  local teacher = {}
  for _, name in pairs(o.onto) do teacher[name] = true end
  if o.map == "learned" then teacher.q, teacher.k, teacher.v = true, true, true end
  if not next(o.onto) then options.fail(2, "bridge-onto", "onto is empty, expected as { B = \"k\", C = \"q\" }") end
  return { student = options.names(o.onto), teacher = options.names(teacher) }
end

return M
