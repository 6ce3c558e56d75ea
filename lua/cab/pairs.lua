--- Pairs: which student layer looks at which teacher layer, in which scan direction, and in which token order.
--- Strategies see aligned taps only. Token order: all taps are in natural order, both directions, so alignment is only the
--- place of the class token: teacher first, student anywhere. Sequences of ids have none, which is as if it were first in both.
local core = require "cab.core"
local options = require "cab.options"
local op = core.ops

local M = {}
local Pairs = { __name = "cab.pairs" }
Pairs.__index = Pairs
local EPSILON = 1e-6 -- added to deviations: a feature that never moves stays finite

-- Each returns teacher layer (1-based) by student layer, false where a student layer has none. L student, T teacher.
local maps = {}
function maps.proportional(L, T)
  local list = {}
  for i = 1, L do list[i] = (i - 1) * T // L + 1 end
  return list
end
function maps.one_to_one(L, T)
  if L ~= T then
    options.fail(2, "pairs-depth", ("pairs 'one_to_one': the student has %d layers, the teacher %d"):format(L, T))
  end
  return maps.proportional(L, T)
end
function maps.last(L, T, o)
  local k = o.k or math.min(L, T)
  if math.type(k) ~= "integer" or k < 1 or k > math.min(L, T) then
    options.fail(2, "pairs-last", ("pairs 'last': k is %s, expected 1 to %d"):format(tostring(k), math.min(L, T)))
  end
  local list = {}
  for i = 1, L do list[i] = i > L - k and T - L + i end
  return list
end
function maps.manual(L, T, o)
  local list = table.move(o, 2, #o, 1, {})
  if #list ~= L then
    options.fail(2, "pairs-manual", ("pairs 'manual': %d entries for %d student layers"):format(#list, L))
  end
  for i, t in ipairs(list) do
    if t and (math.type(t) ~= "integer" or t < 1 or t > T) then
      options.fail(2, "pairs-manual", ("pairs 'manual': entry %d is %s, expected false or 1 to %d"):format(i, tostring(t), T))
    end
  end
  return list
end

--- Teacher layers by student layer. `map` is a name or {name, ...}: "proportional" (floor(l T / L)), "one_to_one",
--- {"last", k=4} (the last k of each), {"manual", 1, 1, false, 2}.
---@param map string|table
---@param L integer student layers
---@param T integer teacher layers
function M.layers(map, L, T)
  local o = type(map) == "table" and map or { map or "proportional" }
  local name = options.choice(o[1], { "last", "manual", "one_to_one", "proportional" }, "layer map")
  for key in pairs(o) do
    if type(key) == "string" and not (name == "last" and key == "k") then
      options.unknown(("option of layer map '%s'"):format(name), key, name == "last" and { "k" } or {})
    end
  end
  return maps[name](L, T, o)
end

-- x with the class token of position 1 along `dim` moved to `position` (a list for several class tokens). The token after it
-- of a distilled teacher has no counterpart in a student: it is left out.
local function place(x, dim, positions, tokens, distilled)
  if distilled then x = core.concat({ x:slice(dim, 1, 1), x:slice(dim, 3, x:size(dim)) }, dim) end
  local n = x:size(dim)
  if tokens and n + #positions - 1 ~= tokens then
    options.fail(1, "pairs-tokens", ("pairs: the teacher has %d tokens, the student %d: use the same grid"):format(n, tokens))
  end
  if #positions == 1 and positions[1] == 1 then return x end
  local class, parts, next_patch = x:slice(dim, 1, 1), {}, 2
  for i, p in ipairs(positions) do
    local last = p - i + 1 -- patches before this class token, +1 for the teacher's own class token
    if last >= next_patch then parts[#parts + 1] = x:slice(dim, next_patch, last) end
    parts[#parts + 1], next_patch = class, math.max(next_patch, last + 1)
  end
  if next_patch <= n then parts[#parts + 1] = x:slice(dim, next_patch, n) end
  return core.concat(parts, dim)
end

-- dims that count tokens
local TOKEN_DIMS = { q = { 2 }, k = { 2 }, v = { 2 }, hidden = { 2 }, attention = { 3, 4 }, logits = {} }

local function missing(side, name, have)
  options.unknown(("tap of the %s's that this strategy needs:"):format(side), name, options.names(have), 1)
end

-- The teacher's taps of that name in the open step.
local function tap(t, name)
  local now = t.owner.now or options.fail(1, "pairs-step", "pairs: no step is open; call pairs:step(student_taps, teacher_taps)")
  return now.teacher[name] or missing("teacher", name, now.teacher)
end

-- t: the teacher's side of one entry.
local Teacher = {}
function Teacher.__index(t, name)
  if Teacher[name] then return Teacher[name] end
  local list = tap(t, name)
  if name == "logits" then return list end
  return t.owner:memo(name .. t.layer, function()
    local x = list[t.layer]
    for _, dim in ipairs(TOKEN_DIMS[name]) do x = place(x, dim, t.owner.class_positions, t.owner.tokens, t.owner.distilled) end
    return x
  end)
end

local NONE = {}

-- The statistics that a map needs of tap `name`: {mean=, deviation=}, empty for maps that need none.
local function statistics(t, name, map)
  if map ~= "standard" then return NONE end
  return t.owner.stats[name .. "." .. t.layer] or options.fail(1, "pairs-statistics",
    "pairs: the map 'standard' needs statistics: call pairs:measure(teacher, batches)")
end

local function mapped(t, name, fn, map)
  return t.owner:memo(name .. t.layer .. "/" .. map, function()
    local s = statistics(t, name, map)
    return fn(t[name], s.mean, s.deviation, { map = map })
  end)
end

--- The teacher's keys [b,l,D], kernel-mapped, in the student's token order; computed once per step, without gradient.
---@param map "none"|"softmax"|"relu"|"exp"|"standard"
function Teacher:keys(map) return mapped(self, "k", op.map_keys, map) end
--- The same for queries.
function Teacher:queries(map) return mapped(self, "q", op.map_queries, map) end

--- The same targets as strategy:bridge takes them. Where op.bridge can, it maps and reorders them as it reads: `tap` is
--- the teacher's own, `first` and `second` say where the student has its class tokens. `mapped()` is the tensor of above.
---@param name "k"|"q"
---@return {tap: cab.Tensor, map: string, mean?: cab.Tensor, deviation?: cab.Tensor, first: integer, second: integer, mapped: fun(): cab.Tensor}
function Teacher:target(name, map)
  local function whole() return name == "k" and self:keys(map) or self:queries(map) end
  local at = self.owner.class_positions
  if map == "softmax" or #at > 2 then return { tap = whole(), map = "none", first = 1, second = 0, mapped = whole } end
  local s = statistics(self, name, map)
  return {
    tap = tap(self, name)[self.layer]:detach(), map = map, mean = s.mean, deviation = s.deviation,
    first = at[1] or 0, second = at[2] or 0, mapped = whole,
  }
end

-- s: the student's side of one entry: this layer's taps, in this direction.
local Student = {}
function Student.__index(s, name)
  local now = s.owner.now or options.fail(1, "pairs-step", "pairs: no step is open; call pairs:step(student_taps, teacher_taps)")
  local list = now.student[s.owner.directional[name] and name .. s.suffix or name] or missing("student", name, now.student)
  if name == "logits" then return list end
  return list[s.layer]
end

--- @param o {student: table, teacher: table, map?: string|table}
function M.new(o)
  local student, teacher = o.student, o.teacher
  local p = setmetatable({
    directional = student.taps.directional, class_positions = student.class_positions or { 1 }, tokens = student.tokens, distilled = teacher.distilled,
    state = student.state_size, width = student.width, dim = teacher.width, heads = teacher.heads, stats = {}, layers = 0,
    map = M.layers(o.map, student.depth, teacher.depth), now = nil,
  }, Pairs)
  for layer = 1, student.depth do
    if p.map[layer] and not (student.attention and student.attention[layer]) then -- a hybrid's own attention has no B, C
      p.layers = p.layers + 1
      for _, suffix in ipairs(student.directions or { "" }) do
        table.insert(p, {
          layer = layer, teacher = p.map[layer], suffix = suffix,
          s = setmetatable({ owner = p, layer = layer, suffix = suffix }, Student),
          t = setmetatable({ owner = p, layer = p.map[layer] }, Teacher),
        })
      end
    end
  end
  return p
end

--- Opens a step: the taps of both models for one batch. Forgets the targets of the last one.
function Pairs:step(student_taps, teacher_taps)
  self.now = { student = student_taps or {}, teacher = teacher_taps or {}, cache = {} }
end

-- fn() once a step, without gradient.
function Pairs:memo(key, fn)
  local cache = self.now.cache
  if cache[key] == nil then cache[key] = core.no_grad(fn) end
  return cache[key]
end

--- for i, s, t in pairs:each(): every (student layer, direction), i counting from 1; s.B, s.C, ... and t.k, t.q, t:keys(map).
function Pairs:each()
  local function step(_, i)
    local entry = self[i + 1]
    if entry then return i + 1, entry.s, entry.t end
  end
  return step, nil, 0
end

-- Sum over all but the last dim in f64: [b,l,D] -> [D].
local function feature_sum(x) return op.sum(op.sum(x, { dim = 1 }), { dim = 1 }) end

--- Mean and deviation of the teacher's q and k, for each layer in use and feature, over all tokens of all images: give
--- images of every class.
---@param teacher table
---@param batches table|function list of images [b,C,H,W] or ids i32[b,l] (from a function, with segment i32[b,l]), or a function returning the next batch or nil
function Pairs:measure(teacher, batches)
  local i = 0
  local next_batch = type(batches) == "function" and batches or function() i = i + 1 return batches[i] end
  local count, sums, used = 0, {}, {}
  for _, entry in ipairs(self) do used[entry.teacher] = true end
  core.no_grad(function()
    for images, segment in next_batch do
      local scope <close> = core.scope()
      local _, t = (teacher.body or teacher.forward)(teacher, images, { q = true, k = true }, { segment = segment })
      count = count + images:size(1) * t.q[1]:size(2)
      for layer in pairs(used) do
        for _, name in ipairs { "q", "k" } do
          local x, key = t[name][layer]:to("f64"), name .. "." .. layer
          local sum, square = feature_sum(x), feature_sum(op.square(x))
          local s = sums[key]
          if s then
            s.sum:add_(sum)
            s.square:add_(square)
          else
            sums[key] = { sum = sum, square = square }
            scope:keep(sum, square)
          end
        end
      end
    end
    if count == 0 then options.fail(1, "pairs-statistics", "pairs:measure: no batch given") end
    for key, s in pairs(sums) do
      local mean = s.sum / count
      local variance = op.relu(s.square / count - op.square(mean)) -- rounding may leave it just below 0
      local dtype = teacher.dtype
      self.stats[key] = { mean = mean:to(dtype), deviation = (op.sqrt(variance) + EPSILON):to(dtype) }
    end
  end)
  return self
end

--- What a checkpoint must hold: "pairs.k.1.mean" -> tensor.
function Pairs:statistics()
  local out = {}
  for key, s in pairs(self.stats) do
    out["pairs." .. key .. ".mean"], out["pairs." .. key .. ".deviation"] = s.mean, s.deviation
  end
  return out
end

--- Takes the statistics back from a table of tensors (other names are left alone).
function Pairs:restore(tensors)
  for name, t in pairs(tensors) do
    local key, field = name:match("^pairs%.([qk]%.%d+)%.(%a+)$")
    if key then
      self.stats[key] = self.stats[key] or {}
      self.stats[key][field] = t
    end
  end
  return self
end

return M
