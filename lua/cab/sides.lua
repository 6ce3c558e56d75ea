--- Both sides of an entry of pairs: t, the teacher's taps in the student's token order, mapped and controlled; s, the student's of one layer
--- and direction. Token order: all taps are in natural order, both directions, so alignment is only the place of the class token.
local core = require "cab.core"
local options = require "cab.options"
local maps = require "cab.maps"
local mixing = require "cab.mixing"

local M = {}

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
local TOKEN_DIMS = { q = { 2 }, k = { 2 }, v = { 2 }, hidden = { 2 }, input = { 2 }, attention = { 3, 4 }, logits = {} }

local function missing(side, name, have)
  options.unknown(("tap of the %s's that this strategy needs:"):format(side), name, options.names(have), 1)
end

--- x, the teacher's tap `name`, in the student's token order.
local function placed(owner, name, x)
  for _, dim in ipairs(TOKEN_DIMS[name]) do x = place(x, dim, owner.class_positions, owner.tokens, owner.distilled) end
  return x
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
  return t.owner:memo(name .. t.layer, function() return placed(t.owner, name, list[t.layer]) end)
end

local NONE = {}

-- The statistics that a map needs of tap `name`: {mean=, deviation=}, empty for maps that need none.
local function statistics(t, name, map)
  if map ~= "standard" then return NONE end
  return t.owner.stats[name .. "." .. t.layer] or options.fail(1, "pairs-statistics",
    "pairs: the map 'standard' needs statistics: call pairs:measure(teacher, batches)")
end

--- What stands in the place of the teacher's tap where a study asks whether the tap matters.
M.controls = { "none", "other_image", "random" }

-- The raw tap under a control: of the next image of the batch, or fixed random numbers by layer, token and feature.
local function controlled(t, name, control)
  local x = tap(t, name)[t.layer]:detach()
  local owner, key = t.owner, name .. "." .. t.layer
  if control == "random" then
    local fixed = owner.random[key] or options.fail(1, "pairs-control", "pairs: call pairs:randomise(name) in build for the control 'random'")
    return owner:memo(key .. "~random", function() return fixed:expand(x:shape()):clone() end)
  elseif control == "other_image" then
    local b = x:size(1)
    if b < 2 then options.fail(2, "pairs-control", "the control 'other_image' needs batches of two images at least") end
    return owner:memo(key .. "~other", function() return core.concat({ x:slice(1, 2, b), x:slice(1, 1, 1) }, 1) end)
  end
  return x
end

--- The teacher's tap [b,l,D] under a kernel map of cab.maps and a control of M.controls, in the student's token order; computed
--- once a step, without gradient. "learned": the features of pairs:features.
---@param name "k"|"q"|"v"|"hidden"
---@param map string
---@param control? string
---@return cab.Tensor
function Teacher:mapped(name, map, control)
  control = control or "none"
  return self.owner:memo(("%s%d/%s/%s"):format(name, self.layer, map, control), function()
    local x = controlled(self, name, control)
    if control == "random" then return placed(self.owner, name, x) end
    if map == "learned" and self.owner.feature_maps then x = self.owner.feature_maps:of(self.layer, name, x:to(self.owner.dtype))
    else x = maps.apply(map, x, name, statistics(self, name, map)) end
    return placed(self.owner, name, x)
  end)
end

--- The teacher's keys [b,l,D], kernel-mapped, in the student's token order.
---@param map string
---@return cab.Tensor
function Teacher:keys(map) return self:mapped("k", map) end
--- The same for queries.
---@param map string
---@return cab.Tensor
function Teacher:queries(map) return self:mapped("q", map) end

--- The same targets as strategy:bridge takes them. Where op.bridge can, it maps and reorders them as it reads: `tap` is
--- the teacher's own, `first` and `second` say where the student has its class tokens. `mapped()` is the tensor of above.
---@param name "k"|"q"|"v"|"hidden"
---@param map string
---@param control? string
---@return {tap: cab.Tensor, map: string, mean?: cab.Tensor, deviation?: cab.Tensor, first: integer, second: integer, mapped: fun(): cab.Tensor}
function Teacher:target(name, map, control)
  control = control or "none"
  local function whole() return self:mapped(name, map, control) end
  local at = self.owner.class_positions
  if not maps.fused[map] or #at > 2 then return { tap = whole(), map = "none", first = 1, second = 0, mapped = whole } end
  if control == "random" then map = "none" end
  local s = statistics(self, name, map)
  return {
    tap = controlled(self, name, control), map = map, mean = s.mean, deviation = s.deviation,
    first = at[1] or 0, second = at[2] or 0, mapped = whole,
  }
end

--- The teacher's attention of this layer in tiles (cab.mixing), in the student's token order, from its q and k, without gradient.
---@return table matrix in tiles
function Teacher:mixing()
  local owner = self.owner
  return owner:memo("mixing" .. self.layer, function()
    local function flat(name) return tap(self, name)[self.layer]:to(owner.dtype) end
    local function order(x, dim) return place(x, dim, owner.class_positions, owner.tokens, owner.distilled) end
    return mixing.attention { q = flat "q", k = flat "k", heads = owner.heads, causal = owner.tokens == nil,
      segment = owner.now.about and owner.now.about.segment, place = order }
  end)
end

-- s: the student's side of one entry: this layer's taps, in this direction.
local Student = {}
function Student.__index(s, name)
  if Student[name] then return Student[name] end
  local now = s.owner.now or options.fail(1, "pairs-step", "pairs: no step is open; call pairs:step(student_taps, teacher_taps)")
  local list = now.student[s.owner.directional[name] and name .. s.suffix or name] or missing("student", name, now.student)
  if name == "logits" then return list end
  return list[s.layer]
end

--- True if this entry has the tap: those without a scan direction stand in the first of a layer's entries alone.
---@param name string
---@return boolean
function Student:has(name) return self.suffix == "" or self.owner.directional[name] == true end

--- This layer alone on an input of its own [b,l,D], as a teacher's: the hidden states after it, and its taps for s:mixing(taps).
---@param input cab.Tensor
---@param ... string names of taps
---@return cab.Tensor
---@return table
function Student:forward(input, ...)
  local student = self.owner.student
  if not student.layer then
    options.fail(2, "pairs-layer", ("this strategy runs a student's layers one by one, which a %s does not offer"):format(student.kind))
  end
  if input:size(3) ~= student.width then
    options.fail(2, "pairs-width", ("the teacher's hidden states have %d numbers a token, the student's layers take %d: this strategy needs equal widths")
      :format(input:size(3), student.width))
  end
  return student:layer(self.layer, input, require "cab.taps".set({ ... }, student.taps, student.kind), self.owner.now.about)
end

--- The mixing matrix of this layer in tiles, both directions together. taps: those of s:forward; default: those of the step.
---@param taps? table
---@return table matrix in tiles
function Student:mixing(taps)
  local student, list = self.owner.student, {}
  for i, suffix in ipairs(student.directions or { "" }) do
    list[i] = (taps or self.owner.now.student)["mixing" .. suffix][self.layer]
  end
  return #list > 1 and mixing.sum(list, student.mix_scale) or list[1]
end

M.placed = placed
--- The teacher's side of a layer.
---@param owner table pairs
---@param layer integer
---@return table t
function M.teacher(owner, layer) return setmetatable({ owner = owner, layer = layer }, Teacher) end
--- The student's side of a layer and direction.
---@param owner table pairs
---@param layer integer
---@param suffix string "" or "_b"
---@return table s
function M.student(owner, layer, suffix) return setmetatable({ owner = owner, layer = layer, suffix = suffix }, Student) end

return M
