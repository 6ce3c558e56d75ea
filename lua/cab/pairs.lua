--- Pairs: which student layer looks at which teacher layer, in which scan direction, and in which token order.
--- Strategies see aligned taps only. Token order: all taps are in natural order, both directions, so alignment is only the
--- place of the class token: teacher first, student anywhere. Sequences of ids have none, which is as if it were first in both.
local core = require "cab.core"
local options = require "cab.options"
local layers = require "cab.layers"
local nn = require "cab.nn"
local sides = require "cab.sides"
local op = core.ops

local M = {}
local Pairs = { __name = "cab.pairs" }
Pairs.__index = Pairs
local EPSILON = 1e-6 -- added to deviations: a feature that never moves stays finite

--- Teacher layers by student layer: cab.layers.list.
M.layers = layers.list

--- What stands in the place of the teacher's tap where a study asks whether the tap matters.
M.controls = sides.controls

-- The softmax over teacher layers of {"learned", ...}: a parameter [L,T], the layers that each student layer may choose, and
-- the temperature, which falls over the run.
local function mixture(p, o, L, T)
  local m = nn.module("layer_map", {})
  m.weight = nn.param({ L, T }, nn.constant(0), false)
  local mask = {}
  for i = 1, L do
    mask[i] = {}
    for t = 1, T do mask[i][t] = o.near > 0 and math.abs(t - p.map[i]) > o.near and -1e30 or 0.0 end
  end
  m:init { dtype = p.dtype, device = p.device }
  return { module = m, mask = core.tensor(mask, p.dtype, p.device), temperature = core.full({ 1 }, o.temperature, p.dtype, p.device), options = o,
    from = function(i) return o.near > 0 and math.max(1, p.map[i] - o.near) or 1 end,
    to = function(i) return o.near > 0 and math.min(T, p.map[i] + o.near) or T end }
end

---@param o {student: table, teacher: table, map?: string|table, device?: string (where the teacher is)}
---@return table pairs: #pairs entries, and layers, state, width, dim, heads
function M.new(o)
  local student, teacher = o.student, o.teacher
  local p = setmetatable({
    directional = student.taps.directional, class_positions = student.class_positions or { 1 }, tokens = student.tokens, distilled = teacher.distilled,
    state = student.state_size, width = student.width, dim = teacher.width, heads = teacher.heads, stats = {}, layers = 0, random = {},
    student = student, teacher = teacher, dtype = teacher.dtype, device = o.device or teacher:parameters()[1].tensor:device(),
    map = layers.list(o.map, student.depth, teacher.depth), now = nil,
  }, Pairs)
  p.map_name, p.map_options = layers.parse(o.map)
  if p.map_name == "learned" then p.mix = mixture(p, p.map_options, student.depth, teacher.depth) end
  for layer = 1, student.depth do
    if p.map[layer] and not (student.attention and student.attention[layer]) then -- a hybrid's own attention has no B, C
      p.layers = p.layers + 1
      for _, suffix in ipairs(student.directions or { "" }) do
        table.insert(p, {
          layer = layer, teacher = p.map[layer], suffix = suffix,
          s = sides.student(p, layer, suffix),
          t = sides.teacher(p, p.map[layer]),
        })
      end
    end
  end
  return p
end

--- Width of a student's tap.
---@param name "B"|"C"|"x"|"z"|"hidden"
---@return integer
function Pairs:size(name)
  local sizes = self.student.tap_size
  return sizes[name] or options.unknown(("tap of the student (%s) with a width:"):format(self.student.kind), name, options.names(sizes))
end

--- Opens a step: the taps of both models for one batch. Forgets the targets of the last one. about: what else the models were
--- told of the batch (segment i32[b,l] of packed rows).
---@param student_taps? table
---@param teacher_taps? table
---@param about? table
function Pairs:step(student_taps, teacher_taps, about)
  self.now = { student = student_taps or {}, teacher = teacher_taps or {}, cache = {}, about = about }
end

-- fn() once a step, without gradient.
--- fn() once a step, without gradient; later calls of the step get the same.
---@param key string
---@param fn fun(): any
---@return any
function Pairs:memo(key, fn)
  local cache = self.now.cache
  if cache[key] == nil then cache[key] = core.no_grad(fn) end
  return cache[key]
end

--- for i, s, t in pairs:each(): every (student layer, direction), i counting from 1; s.B, s.C, ... and t.k, t.q, t:keys(map).
---@return function iterator
function Pairs:each()
  if self.mix then options.fail(2, "pairs-learned", "the layer map 'learned' is for strategies that sum by pairs:mean") end
  local function step(_, i)
    local entry = self[i + 1]
    if entry then return i + 1, entry.s, entry.t end
  end
  return step, nil, 0
end

--- Mean over student layers of the sum over their directions of fn(i, s, t), a scalar tensor or nil; i, s, t as of pairs:each.
--- Under the layer map "learned", fn sees every teacher layer that the student layer may choose, and the softmax mixes.
---@param fn fun(i: integer, s: table, t: table): cab.Tensor|nil
---@return cab.Tensor
function Pairs:mean(fn)
  local sum, mix = nil, self.mix
  local weights = mix and op.softmax((mix.module.weight + mix.mask) / mix.temperature)
  for i, entry in ipairs(self) do
    self.entry = entry -- whose turn it is, for the R2 of each layer
    local value
    if not mix then
      value = fn(i, entry.s, entry.t)
    else
      local from, to, parts = mix.from(entry.layer), mix.to(entry.layer), {}
      for t = from, to do
        local part = fn(i, entry.s, sides.teacher(self, t))
        if part then parts[#parts + 1] = part:reshape(1) end
      end
      local w = weights:slice(1, entry.layer, entry.layer):slice(2, from, to):reshape(to - from + 1)
      if #parts > 0 then value = op.sum(w * core.concat(parts, 1)) end
    end
    if value then sum = sum and sum + value or value end
  end
  self.entry = nil
  return (sum or options.fail(2, "pairs-empty", "no student layer has a teacher layer to learn from")) / self.layers
end

--- The same with fn called once a layer, for what has no scan direction; i counts layers.
---@param fn fun(i: integer, s: table, t: table): cab.Tensor|nil
---@return cab.Tensor
function Pairs:layer_mean(fn)
  local number, last = 0, nil
  return self:mean(function(_, s, t)
    if s.suffix ~= "" then return nil end
    if s.layer ~= last then number, last = number + 1, s.layer end
    return fn(number, s, t)
  end)
end

--- Parameters of the layer map, of none but "learned".
---@return {name: string, tensor: cab.Tensor, decay: boolean}[]
function Pairs:parameters() return self.mix and self.mix.module:parameters("layer_map.") or {} end

--- Sharpens a learned layer map: `share` of the run is over, 0 .. 1.
function Pairs:anneal(share)
  if not self.mix then return end
  local o = self.mix.options
  self.mix.temperature:fill(o.temperature * (o.final / o.temperature) ^ share)
end

--- The softmax of a learned layer map, [L][T] numbers; of others, nil.
---@return number[][]|nil
function Pairs:mixture()
  local mix = self.mix
  return mix and core.no_grad(function() return op.softmax((mix.module.weight + mix.mask) / mix.temperature):to("cpu"):totable() end)
end

--- From now on the student's layers use the teacher's attention map, q, k or v in place of their own, in training and evaluation
--- alike: of ViT students, as many heads and tokens.
---@param what "attention"|"q"|"k"|"v"
function Pairs:lend(what)
  local student, teacher = self.student, self.teacher
  if student.kind ~= "vit" then options.fail(2, "pairs-lend", ("attention is copied into a vit, the student is a %s"):format(student.kind)) end
  if student.heads ~= teacher.heads or student.tokens ~= teacher.tokens or (what ~= "attention" and student.width ~= teacher.width) then
    options.fail(2, "pairs-lend", ("to copy '%s', the student (%d heads, %d tokens, width %d) must be as the teacher (%d, %d, %d)"):format(what,
      student.heads, student.tokens, student.width, teacher.heads, teacher.tokens, teacher.width))
  end
  function student.borrow(images)
    local _, taps = core.no_grad(teacher.forward, teacher, images, { [what] = true })
    local out = {}
    for i, t in ipairs(self.map) do out[i] = t and { [what] = taps[what][t] } or {} end
    return out
  end
end

--- The feature maps of a learned linear attention (cab.features), made by the strategy that asks first and trained with it as
--- its `features`; a second one shares them.
---@param strategy table
---@param o? {kind: string, features: integer, distance: string} default: hedgehog, as many as a head has, cosine
---@return cab.Module
function Pairs:features(strategy, o)
  if self.mix or self.map_name == "search" then options.fail(2, "features", "a learned linear attention needs a fixed layer map") end
  o = o or { kind = "hedgehog", features = self.dim // self.heads, distance = "cosine" }
  local made = self.feature_maps
  if not made then
    self.feature_maps = require "cab.features".new(self, o)
    strategy.features = self.feature_maps
  else
    for key, value in pairs(o) do
      local has = key == "features" and made.width // made.heads or made[key]
      if has ~= value then options.fail(2, "features", ("two strategies share feature maps, one with %s = %s, one with %s"):format(key, has, value)) end
    end
    rawset(strategy, "features", made)
  end
  return self.feature_maps
end

--- Draws the fixed targets of the control "random" for a tap of the teacher, N(0, 1) by layer, token and feature.
---@param name string
function Pairs:randomise(name)
  if not self.tokens then options.fail(2, "pairs-control", "the control 'random' is for images: rows of text differ in length") end
  local count = self.teacher.tokens
  for t = 1, self.teacher.depth do
    local key = name .. "." .. t
    self.random[key] = core.normal({ 1, count, self.dim }, 0, 1, 0, "random." .. key, self.dtype):to(self.device)
  end
end

-- Sum over all but the last dim in f64: [b,l,D] -> [D].
local function feature_sum(x) return op.sum(op.sum(x, { dim = 1 }), { dim = 1 }) end

--- Mean and deviation of the teacher's taps, for each layer in use and feature, over all tokens of all images: give images of
--- every class.
---@param teacher table
---@param batches table|function list of images [b,C,H,W] or ids i32[b,l] (from a function, with segment i32[b,l]), or a function returning the next batch or nil
---@param names? table<string, true> default: q and k
---@return table itself
function Pairs:measure(teacher, batches, names)
  names = names or { q = true, k = true }
  local i = 0
  local next_batch = type(batches) == "function" and batches or function() i = i + 1 return batches[i] end
  local count, sums, used = 0, {}, {}
  for _, entry in ipairs(self) do
    for t = self.mix and self.mix.from(entry.layer) or entry.teacher, self.mix and self.mix.to(entry.layer) or entry.teacher do used[t] = true end
  end
  core.no_grad(function()
    for images, segment in next_batch do
      local scope <close> = core.scope()
      local _, t = (teacher.body or teacher.forward)(teacher, images, names, { segment = segment })
      for layer in pairs(used) do
        for name in pairs(names) do
          local x, key = t[name][layer]:to("f64"), name .. "." .. layer
          local sum, square = feature_sum(x), feature_sum(op.square(x))
          local s = sums[key]
          if s then
            s.sum:add_(sum)
            s.square:add_(square)
            s.count = s.count + x:size(1) * x:size(2)
          else
            sums[key] = { sum = sum, square = square, count = x:size(1) * x:size(2) }
            scope:keep(sum, square)
          end
        end
      end
      count = count + 1
    end
    if count == 0 then options.fail(1, "pairs-statistics", "pairs:measure: no batch given") end
    for key, s in pairs(sums) do
      local mean = s.sum / s.count
      local variance = op.relu(s.square / s.count - op.square(mean)) -- rounding may leave it just below 0
      local dtype = teacher.dtype
      self.stats[key] = { mean = mean:to(dtype), deviation = (op.sqrt(variance) + EPSILON):to(dtype) }
    end
  end)
  return self
end

--- What a checkpoint must hold: "pairs.k.1.mean" -> tensor; of a searched layer map, "pairs.map".
---@return table<string, cab.Tensor>
function Pairs:statistics()
  local out = {}
  for key, s in pairs(self.stats) do
    out["pairs." .. key .. ".mean"], out["pairs." .. key .. ".deviation"] = s.mean, s.deviation
  end
  if self.map_name == "search" then out["pairs.map"] = core.tensor(self.map, "i32") end
  return out
end

--- Another layer map than the one begun with.
---@param list integer[] teacher layer by student layer
function Pairs:remap(list)
  self.map = list
  for _, entry in ipairs(self) do entry.teacher, entry.t.layer = list[entry.layer], list[entry.layer] end
end

-- What is compared of a layer: hidden states for "cka"; for "ridge", a student's B and C of all directions with the teacher's k and q.
local COMPARED = { cka = { student = { "hidden" }, teacher = { "hidden" } }, ridge = { student = { "B", "C" }, teacher = { "k", "q" } } }

-- By layer, the taps `names` side by side, all directions of them.
local function joined(p, taps, names, depth, suffixes, place_tokens)
  local list = {}
  for layer = 1, depth do
    local parts = {}
    for _, name in ipairs(names) do
      for _, suffix in ipairs(p.directional[name] and suffixes or { "" }) do
        local x = taps[name .. suffix][layer]
        parts[#parts + 1] = place_tokens and sides.placed(p, name, x) or x
      end
    end
    list[layer] = #parts > 1 and core.concat(parts, 3) or parts[1]
  end
  return list
end

--- How similar each student layer is to each teacher layer on these batches: [L][T] numbers, 0 .. 1. by: "cka" of hidden states, or
--- "ridge", the R2 of the best linear bridge from B, C onto k, q (the probe: what no trained linear bridge exceeds there).
---@param batches function returning the next batch (of text, with its segments) or nil
---@param by "cka"|"ridge"
---@return number[][]
function Pairs:similarity(batches, by)
  local names, moments = COMPARED[options.choice(by, options.names(COMPARED), "similarity")], require "cab.similarity".moments()
  local function taps(model, wanted, batch, segment)
    local set = require "cab.taps".set(wanted, model.taps, model.kind)
    return (select(2, (model.body or model.forward)(model, batch, set, { segment = segment })))
  end
  local directions = self.student.directions or { "" }
  core.no_grad(function()
    for batch, segment in batches do
      local scope <close> = core.scope()
      local kept = { moments.n }
      moments:add(joined(self, taps(self.student, names.student, batch, segment), names.student, self.student.depth, directions),
        joined(self, taps(self.teacher, names.teacher, batch, segment), names.teacher, self.teacher.depth, { "" }, true))
      for _, list in ipairs { moments.x, moments.y, moments.xx, moments.yy, moments.xy } do
        for _, t in pairs(list) do kept[#kept + 1] = t end
      end
      scope:keep(table.unpack(kept, 2))
    end
  end)
  if moments.n == 0 then options.fail(1, "pairs-statistics", "pairs:similarity: no batch given") end
  local score = {}
  for i = 1, self.student.depth do
    score[i] = {}
    for t = 1, self.teacher.depth do score[i][t] = moments[by](moments, i, t) end
  end
  return score
end

--- Replaces the map by the most similar layers: {"search", by=, monotone=}.
---@param batches function as of similarity
---@return number[][] the similarities
function Pairs:search(batches)
  local score = self:similarity(batches, self.map_options.by)
  self:remap(layers.best(score, self.map_options.monotone))
  return score
end

--- Takes the statistics back from a table of tensors (other names are left alone).
---@param tensors table<string, cab.Tensor>
---@return table itself
function Pairs:restore(tensors)
  if self.map_name == "search" and tensors["pairs.map"] then self:remap(tensors["pairs.map"]:to("cpu"):totable()) end
  for name, t in pairs(tensors) do
    local key, field = name:match("^pairs%.(%a+%.%d+)%.(%a+)$")
    if key then
      self.stats[key] = self.stats[key] or {}
      self.stats[key][field] = t
    end
  end
  return self
end

return M
