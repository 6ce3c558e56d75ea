--- What models share: descriptions (recipe side), sizes, weights, position embeddings of another grid.
local core = require "cab.core"
local options = require "cab.options"

local build = {}

--- A constructor of descriptions: vim{ size = "tiny" } checks names and returns a flat table ({"vim", size = "tiny"}) whose
--- fields a recipe may still override; d:build{classes=, ...} resolves it and makes the model.
---@param kind string
---@param M table has defaults, optional, sizes and new(resolved) -> model
function build.described(kind, M)
  local what = "option of model '" .. kind .. "'"
  local Description = { __name = "cab.model" }
  Description.__index = Description

  --- The options as new() sees them: given > extra > size > defaults.
  function Description:resolve(extra)
    local given = options.check(self, {}, what, build.types(M))
    local o = options.check(nil, M.defaults, what)
    local size = given.size or o.size
    options.choice(size, options.names(M.sizes), "size of model '" .. kind .. "'")
    for k, v in pairs(M.sizes[size]) do o[k] = v end
    for k, v in pairs(options.check(extra, {}, what, build.types(M))) do o[k] = v end
    for k, v in pairs(given) do o[k] = v end
    return o
  end

  --- @param extra? table what the data and the run decide: classes, channels, image, seed, dtype
  function Description:build(extra)
    local o = self:resolve(extra)
    build.check_grid(kind, o)
    local model = M.new(o)
    rawset(model, "options", o)
    rawset(model, "dtype", o.dtype)
    model:init { seed = o.seed, dtype = o.dtype }
    if o.weights then build.load(model, core.load(o.weights)) end
    return model
  end

  return setmetatable(M, {
    __call = function(_, given)
      given = given or {}
      options.check(given, {}, what, build.types(M))
      local d = setmetatable({ kind }, Description)
      for k, v in pairs(given) do
        if type(k) == "string" then d[k] = v end
      end
      if d.size then options.choice(d.size, options.names(M.sizes), "size of model '" .. kind .. "'") end
      return d
    end,
  })
end

--- name -> type name of every option of a model.
function build.types(M)
  local types = {}
  for k, v in pairs(M.defaults) do types[k] = type(v) end
  for k, v in pairs(M.optional) do types[k] = v end
  return types
end

function build.check_grid(kind, o)
  local stride = o.stride or o.patch
  for _, key in ipairs { "image", "patch", "channels", "classes", "depth", "dim" } do
    if math.type(o[key]) ~= "integer" or o[key] < 1 then
      options.fail(2, "model-option", ("%s: %s is %s, expected a positive integer"):format(kind, key, tostring(o[key])))
    end
  end
  if o.patch > o.image or stride < 1 then
    options.fail(2, "model-grid", ("%s: patch %d does not fit image %d"):format(kind, o.patch, o.image))
  end
  if o.dtype ~= "f32" and o.dtype ~= "f64" then
    options.fail(2, "model-dtype", ("%s: dtype is '%s', expected f32 or f64"):format(kind, o.dtype))
  end
end

--- Patches on one side.
function build.side(o) return (o.image - o.patch) // (o.stride or o.patch) + 1 end

-- Cubic convolution kernel with a = -0.75, as the frameworks' bicubic resize.
local function cubic(x)
  local a = -0.75
  x = math.abs(x)
  if x <= 1 then return ((a + 2) * x - (a + 3)) * x * x + 1 end
  if x < 2 then return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a end
  return 0
end

-- Weights [to, from] of a one-dimensional bicubic resize, half-pixel centres, clamped at the border.
local function resize_weights(from, to, dtype)
  local rows = {}
  for i = 1, to do
    local row, centre = {}, (i - 0.5) * from / to - 0.5
    for j = 1, from do row[j] = 0.0 end
    local base = math.floor(centre)
    for j = base - 1, base + 2 do
      local at = math.min(math.max(j, 0), from - 1) + 1
      row[at] = row[at] + cubic(centre - j)
    end
    rows[i] = row
  end
  return core.tensor(rows, dtype)
end

--- pos [1, s*s + n, D] of an s x s grid -> [1, side*side + n, D]: grid rows resized, the n class rows kept and moved from
--- their old to their new places. place_class(patches) -> list of places, 1-based.
function build.resize_positions(pos, side, place_class)
  local total, D = pos:size(2), pos:size(3)
  local places = place_class(side * side)
  local old = math.tointeger((total - #places) ^ 0.5)
  if not old or old == side then return pos end
  local from = place_class(old * old)
  local function without(list)
    local parts, start = {}, 1
    for _, p in ipairs(list) do
      if p > start then parts[#parts + 1] = pos:slice(2, start, p - 1) end
      start = p + 1
    end
    if start <= total then parts[#parts + 1] = pos:slice(2, start, total) end
    return #parts == 1 and parts[1] or core.concat(parts, 2)
  end
  local w = resize_weights(old, side, pos:dtype())
  local op = core.ops
  local grid = op.matmul(w, without(from):reshape(old, old * D))                 -- [side, old*D]
  grid = grid:reshape(side, old, D):permute(2, 1, 3):reshape(old, side * D)
  grid = op.matmul(w, grid):reshape(side, side, D):permute(2, 1, 3):reshape(1, side * side, D)   -- rows, columns
  local parts, start = {}, 1
  for i, p in ipairs(places) do
    local before = p - i -- patches before this class token
    if before >= start then parts[#parts + 1] = grid:slice(2, start, before) end
    parts[#parts + 1] = pos:slice(2, from[i], from[i])
    start = math.max(start, before + 1)
  end
  if start <= side * side then parts[#parts + 1] = grid:slice(2, start, side * side) end
  return core.concat(parts, 2)
end

--- Loads tensors into a model; position embeddings of another grid are resized bicubically.
function build.load(model, tensors, prefix)
  local name = (prefix or "") .. "pos_embed"
  local pos = tensors[name]
  if pos and pos:rank() == 3 and pos:size(2) ~= model.tokens then
    local copy = {}
    for k, v in pairs(tensors) do copy[k] = v end
    copy[name] = core.no_grad(build.resize_positions, pos, model.side, model.place_class)
    tensors = copy
  end
  return model:load(tensors, prefix)
end

return build
