--- What models share: descriptions (recipe side), sizes, weights, position embeddings of another grid.
local core = require "cab.core"
local options = require "cab.options"
local check = require "cab.check"

local build = {}

-- What the data and the run decide where the recipe does not.
local FALLBACK = { image = 224, channels = 3, classes = 1000, seed = 0, dtype = "f32" }

--- The options that every image model has; `more` are the model's own. In the schema language of cab.check.
function build.schema(sizes, more)
  local schema = {
    size = { "string", default = "tiny", one_of = options.names(sizes) },
    patch = { "integer", default = 16, min = 1 }, image = { "integer", min = 1 }, channels = { "integer", min = 1 },
    classes = { "integer", min = 1 }, dim = { "integer", min = 1 }, depth = { "integer", min = 1 },
    mean = { "number|table" }, std = { "number|table" }, -- of its own pixels, in 0..1; default: as the data gives them
    seed = { "integer", min = 0 }, dtype = { "string", one_of = { "f32", "f64" } }, weights = { "string" },
    key = { "string" },   -- the state dict of a PyTorch file that holds several
    refit = { "string" }, -- what of the weights may be changed to fit: "head", "channels"
    resize = { "string", default = "bicubic", one_of = { "bicubic", "antialias" } }, -- of position embeddings
  }
  for k, v in pairs(more) do schema[k] = v end
  return schema
end

--- Makes M callable: vim{ size = "small" } checks the names and returns a description, a flat table ({kind = "vim", size =
--- "small"}) whose fields a recipe may still override; description:build{classes=, ...} makes the model.
---@param M table has kind, options (schema), sizes, new(resolved) -> model, and fallback where it takes no images
function build.described(M)
  local Description = { __name = "cab.model" }
  Description.__index = Description
  function Description:build(extra) return build.model(M, self, extra) end
  return setmetatable(M, {
    __call = function(_, given)
      check.options(M.options, given, M.kind)
      local d = setmetatable({ kind = M.kind }, Description)
      for k, v in pairs(given or {}) do d[k] = v end
      return d
    end,
  })
end

--- The options as M.new sees them: given > size > extra > fallback.
function build.resolve(M, given, extra)
  local plain, o = {}, {}
  for k, v in pairs(given) do
    if k ~= "kind" then plain[k] = v end
  end
  plain = check.options(M.options, plain, M.kind)
  for _, t in ipairs { M.fallback or FALLBACK, check.options(M.options, extra, M.kind), M.sizes[plain.size], plain } do
    for k, v in pairs(t) do o[k] = v end
  end
  if o.patch and o.patch > o.image then
    options.fail(2, "model-grid", ("%s: patch %d is larger than the image, %d"):format(M.kind, o.patch, o.image))
  end
  return o
end

-- What makes pixels normalised as the data does into pixels normalised as the model wants: [C,1,1] each, scale x + shift; nil
-- where both are the same or the data's way is not known.
local function view(o, data, device)
  if not data.mean then return nil end
  local scale, shift, changes = {}, {}, false
  local function list(t, key) return check.per_channel(t[key], o.channels, key) end
  local mean, std, from_mean, from_std = list(o, "mean"), list(o, "std"), list(data, "mean"), list(data, "std")
  for c = 1, o.channels do
    local a, b = from_std[c] / std[c], (from_mean[c] - mean[c]) / std[c]
    scale[c], shift[c], changes = { { a } }, { { b } }, changes or a ~= 1 or b ~= 0
  end
  return changes and { scale = core.tensor(scale, o.dtype, device), shift = core.tensor(shift, o.dtype, device) } or nil
end

--- @param M table @param given table a description or its plain fields
--- @param extra? table classes, channels, image, seed, dtype; mean, std: of the images that it will be given; device (default
--- "cpu"); precision: "bf16" makes activations bf16; hollow: a text, without weights: whoever asks for one gets it as the fault
function build.model(M, given, extra)
  local sized, device, precision = {}, (core.device(extra and extra.device or "cpu")), extra and extra.precision
  for k, v in pairs(extra or {}) do
    if k ~= "device" and k ~= "precision" and k ~= "hollow" then sized[k] = v end
  end
  if precision == "bf16" and device == "cpu" then options.fail(2, "precision", M.kind .. ": the CPU has no bf16 arithmetic") end
  local o = build.resolve(M, given, sized)
  local file, tensors = require "cab.weights", nil
  if o.weights and o.weights ~= "" and not extra.hollow then
    tensors = file.of(M.kind, o)
    file.fit(M, o, given, sized, tensors)
  end
  local model = M.new(o)
  model.kind, model.options, model.dtype, model.activations = M.kind, o, o.dtype, precision == "bf16" and "bf16" or o.dtype
  if extra and extra.hollow then return model:hollow(extra.hollow) end
  model:init { seed = o.seed, dtype = o.dtype }
  if tensors then build.load(model, file.refit(model, tensors)) end
  model.view = view(o, extra or {}, device)
  return model:to(device)
end

--- t in another real dtype; t itself if it has it. Parameters meet activations in plain sums and joins in theirs.
function build.cast(t, dtype)
  return t:dtype() == dtype and t or core.ops.cast(t, { to = dtype })
end

--- images must be [b, channels, image, image] of the model's dtype; they go on in that of its activations.
---@return integer b
---@return cab.Tensor images
function build.enter(model, images)
  local o, s = model.options, images:shape()
  if #s ~= 4 or s[2] ~= o.channels or s[3] ~= o.image or s[4] ~= o.image or images:dtype() ~= o.dtype then
    options.fail(1, "model-images", ("%s: images are %s[%s], expected %s[b,%d,%d,%d]"):format(
      model.kind, images:dtype(), table.concat(s, ","), o.dtype, o.channels, o.image, o.image))
  end
  if model.view then images = images * model.view.scale + model.view.shift end
  return s[1], build.cast(images, model.activations)
end

--- At the end of a layer, whose tensors live in a scope of its own: keeps what it passes on and its taps. The rest goes with
--- the scope at once, and what it was passed goes too: backward has saved what it needs.
---@param scope any of the layer
---@param out table taps by name, from taps.collector
---@param layer integer
---@param passed cab.Tensor[] what this layer alone read; none of them a tap
---@param ... cab.Tensor what the next layer reads
function build.keep(scope, out, layer, passed, ...)
  scope:keep(...)
  for _, list in pairs(out) do
    if type(list) == "table" then -- hidden of the layer before is known only in this one
      for i = layer - 1, layer do
        local tap = list[i]
        if tap then scope:keep(table.unpack(type(tap) == "table" and tap.tensors or { tap })) end -- a matrix in tiles
      end
    end
  end
  for _, t in ipairs(passed) do t:close() end
end

--- Patches on one side.
function build.side(o) return (o.image - o.patch) // (o.stride or o.patch) + 1 end

-- Cubic convolution kernel (Keys 1981): a = -0.75 in PyTorch's bicubic resize, -0.5 in its antialiased one.
local function cubic(x, a)
  x = math.abs(x)
  if x <= 1 then return ((a + 2) * x - (a + 3)) * x * x + 1 end
  if x < 2 then return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a end
  return 0
end

-- Weights [to, from] of a one-dimensional bicubic resize, half-pixel centres. Plain: four neighbours, clamped at the border.
-- Antialiased: the kernel is as wide as a step where the grid shrinks, cut at the border, with a sum of 1.
local function resize_weights(from, to, dtype, antialias)
  local rows, scale = {}, antialias and math.max(from / to, 1) or 1
  for i = 1, to do
    local row, centre, sum = {}, (i - 0.5) * from / to - 0.5, 0
    for j = 1, from do row[j] = 0.0 end
    for j = math.floor(centre - 2 * scale), math.ceil(centre + 2 * scale) do
      local at, w = math.min(math.max(j, 0), from - 1), cubic((centre - j) / scale, antialias and -0.5 or -0.75)
      if not antialias or at == j then row[at + 1], sum = row[at + 1] + w, sum + w end
    end
    for j = 1, from do row[j] = row[j] / (antialias and sum or 1) end
    rows[i] = row
  end
  return core.tensor(rows, dtype)
end

--- pos [1, s*s + n, D] of an s x s grid -> [1, side*side + n, D]: grid rows resized, the n class rows kept and moved from
--- their old to their new places. place_class(patches) -> list of places, 1-based.
function build.resize_positions(pos, side, place_class, antialias)
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
  local w = resize_weights(old, side, pos:dtype(), antialias)
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

--- Loads tensors into a model; position embeddings of another grid are resized bicubically. A model may leave out what is
--- only said twice: model:adapt(tensors, prefix). model.notes: what was changed to fit.
function build.load(model, tensors, prefix)
  if model.adapt then return model:load(model:adapt(tensors, prefix or ""), prefix) end
  local name = (prefix or "") .. "pos_embed"
  local pos = tensors[name]
  if pos and pos:rank() == 3 and pos:size(2) ~= model.tokens then
    local copy = {}
    for k, v in pairs(tensors) do copy[k] = v end
    copy[name] = core.no_grad(build.resize_positions, pos, model.side, model.place_class, model.options.resize == "antialias")
    model.notes = model.notes or {}
    table.insert(model.notes, ("position embeddings of %d tokens became those of %d"):format(pos:size(2), model.tokens))
    tensors = copy
  end
  return model:load(tensors, prefix)
end

return build
