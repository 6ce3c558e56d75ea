--- Weight files of any format and layout: reading, shards, what of a model they tell, fitting them to a model.
local core = require "cab.core"
local check = require "cab.check"
local options = require "cab.options"
local names = require "cab.names"
local lfs = require "lfs"

local M = {}

local function shape_text(t) return "[" .. table.concat(t:shape(), ",") .. "]" end
M.shape_text = shape_text

local function refuse(path, id, text) check.fail(65, ("%s: %s"):format(path, text), { file = path, id = id }) end

-- ---- shards ------------------------------------------------------------------------------------

--- The shards of an index ("model.safetensors.index.json"): file names, and for each its tensors' names. Faults 65: shard-map,
--- shard-name.
---@param path string
---@return string[] files sorted
---@return table<string, string> map tensor -> file
function M.index(path)
  local index = core.json_decode(core.read_file(path, 100000000), path)
  local map = type(index) == "table" and index.weight_map
  if type(map) ~= "table" or not next(map) then refuse(path, "shard-map", "no weight_map: expected {\"weight_map\": {\"TENSOR\": \"FILE\"}}") end
  local files, seen = {}, {}
  for tensor, file in pairs(map) do
    if type(tensor) ~= "string" or type(file) ~= "string" then refuse(path, "shard-map", "weight_map must hold strings") end
    if file:find "[/\\%z]" or file:sub(1, 1) == "." or not (file:find "%.safetensors$" or file:find "%.bin$") then
      refuse(path, "shard-name", ("'%s' of tensor '%s' is no name of a .safetensors or .bin file in the same folder"):format(core.escape(file),
        core.escape(tensor)))
    end
    if not seen[file] then files[#files + 1] = file end
    seen[file] = true
  end
  table.sort(files)
  return files, map
end

-- Calls read(file) -> tensors by name, for each shard; every tensor must be where the index says.
local function each_shard(path, read)
  local files, map = M.index(path)
  local folder, out = path:match "^(.*/)" or "", {}
  for _, file in ipairs(files) do
    for name, value in pairs(read(folder .. file)) do
      if map[name] ~= file then
        refuse(folder .. file, "shard-extra", ("holds tensor '%s', which the index puts into %s"):format(core.escape(name), core.escape(map[name] or "no file")))
      end
      out[name] = value
    end
  end
  for name, file in pairs(map) do
    if out[name] == nil then refuse(folder .. file, "shard-missing", ("tensor '%s' is not in it, as the index says"):format(core.escape(name))) end
  end
  return out
end

-- What a folder of Hugging Face has, the best first.
local IN_FOLDER = { "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json" }

-- The file to read, and whether it is an index of shards, for which there is no key.
local function resolve(path, key)
  if type(path) ~= "string" or path == "" then options.fail(1, "weights-path", ("weights: a file name expected, got %s"):format(type(path))) end
  if lfs.attributes(path, "mode") == "directory" then
    local folder = path:gsub("/*$", "/")
    for _, name in ipairs(IN_FOLDER) do
      if lfs.attributes(folder .. name) then return resolve(folder .. name, key) end
    end
    refuse(path, "weights-folder", "a folder without " .. table.concat(IN_FOLDER, ", "))
  end
  local index = path:find "%.index%.json$" ~= nil
  if index and key then check.fail(2, ("%s: key '%s' is for PyTorch checkpoints"):format(path, key), { file = path, id = "key" }) end
  return path, index
end

-- ---- reading -------------------------------------------------------------------------------------

-- Prefixes that wrappers put before every name.
local WRAPPERS = { "module.", "_orig_mod." }

-- Tensors without the wrappers' prefixes, and those.
local function unwrap(tensors)
  local removed = ""
  for _ = 1, 4 do
    for _, prefix in ipairs(WRAPPERS) do
      local out, all = {}, next(tensors) ~= nil
      for name, t in pairs(tensors) do
        all = all and name:sub(1, #prefix) == prefix and #name > #prefix
        out[name:sub(#prefix + 1)] = t
      end
      if all then tensors, removed = out, removed .. prefix end
    end
  end
  return tensors, removed
end

--- All tensors of a file: safetensors, an index of shards or the folder of one, PyTorch .pth or .pt, .npy, .npz. "module." and "_orig_mod." are taken
--- off where every name has them.
---@param path string
---@param key? string which state dict of a PyTorch file, "model_ema"; without it by the rule in core/io/pth.c
---@return table<string, cab.Tensor>
---@return table<string, string> metadata key: the state dict read; "not read": what else was there; prefix: what was taken off
function M.read(path, key)
  local file, index = resolve(path, key)
  local tensors, metadata
  if index then tensors, metadata = each_shard(file, function(shard) return (core.load(shard)) end), {}
  else tensors, metadata = core.load(file, key) end
  local plain, removed = unwrap(tensors)
  if removed ~= "" then metadata.prefix = removed end
  return plain, metadata
end

--- Names, formats, shapes and ranges without keeping tensors: list by name of {name, stored, dtype, shape, min, max, nan, infinite}.
---@param path string
---@param key? string
---@return table[]
---@return table<string, string> metadata
function M.inspect(path, key)
  local file, index = resolve(path, key)
  if not index then return core.inspect(file, key) end
  local list = {}
  for _, row in pairs(each_shard(file, function(shard)
    local rows = {}
    for _, row in ipairs(core.inspect(shard)) do rows[row.name] = row end
    return rows
  end)) do list[#list + 1] = row end
  table.sort(list, function(a, b) return a.name < b.name end)
  return list, {}
end

-- ---- fitting ---------------------------------------------------------------------------------------

local COLUMNS = { { "missing", "missing in the file" }, { "unexpected", "unexpected in the file" }, { "mismatched", "of another shape" } }
local SHOWN = 20

-- The unexpected names with the missing name that each may stand for.
local function hinted(list, known)
  local out = {}
  for i, name in ipairs(list) do
    local near = i <= SHOWN and options.nearest(name, known)
    out[i] = near and ("%s (%s?)"):format(name, near) or name
  end
  return out
end

--- Raises 65 for lists missing, unexpected and mismatched; the error has them, and as `detail` a table of three columns.
---@param d { missing: string[], unexpected: string[], mismatched: string[] }
function M.refuse(d)
  local lists = { missing = d.missing, unexpected = hinted(d.unexpected, d.missing), mismatched = d.mismatched }
  local head, parts, rows = {}, {}, {}
  for i, column in ipairs(COLUMNS) do
    local list = lists[column[1]]
    head[i] = ("%s (%d)"):format(column[2], #list)
    if #list > 0 then
      parts[#parts + 1] = ("%d %s (%s%s)"):format(#list, column[1], table.concat(list, ", ", 1, math.min(#list, 4)), #list > 4 and ", ..." or "")
    end
    for r = 1, math.min(#list, SHOWN + 1) do
      rows[r] = rows[r] or { "", "", "" }
      rows[r][i] = r <= SHOWN and list[r] or ("and %d more"):format(#list - SHOWN)
    end
  end
  local ok, e = pcall(options.fail, 65, "weights-mismatch", "weights do not fit the model: " .. table.concat(parts, "; "))
  assert(not ok)
  for key, list in pairs(d) do e[key] = list end
  e.detail = require "cab.report".table(head, rows)
  error(e, 0)
end

local families = { vit = "vit", vim = "vim", gpt2 = "gpt2", phi = "phi", phi_mamba = "phi_mamba", mamba = "mamba", mamba2 = "mamba" }

--- Tensors of a file under the names that a model of this kind has. A file of no known layout keeps its names.
---@param kind string
---@param o table weights (path), key?, layout? (of gpt2: in_out or out_in)
---@return table<string, cab.Tensor>
function M.of(kind, o)
  local tensors = M.read(o.weights, o.key)
  local layout = names.detect(tensors)
  local family = families[kind]
  if not layout or not family then return tensors end
  if layout.family ~= family then
    refuse(o.weights, "weights-family", ("the names are those of %s (%s), the model is a %s"):format(layout.name, layout.about, kind))
  end
  local normal = names.normal(tensors, layout)
  return o.layout == "out_in" and names.published(normal, names.layout "mingpt") or normal
end

local function count(tensors, pattern)
  local most = -1
  for name in pairs(tensors) do most = math.max(most, math.tointeger(tonumber(name:match(pattern))) or -1) end
  return most + 1
end

local shapes = {}

-- The image of a grid of patches is square; a stride is not in the shapes.
local function of_images(t, o, class_tokens)
  local patch, pos = t["patch_embed.proj.weight"], t.pos_embed
  if not patch or patch:rank() ~= 4 then return end
  o.dim, o.channels, o.patch = patch:size(1), patch:size(2), patch:size(3)
  o.classes = t["head.weight"] and t["head.weight"]:size(1)
  local side = pos and pos:rank() == 3 and math.tointeger((pos:size(2) - class_tokens) ^ 0.5)
  o.image = side and side * o.patch
end

function shapes.vit(t)
  local o = {}
  of_images(t, o, t.dist_token and 2 or 1)
  o.depth = count(t, "^blocks%.(%d+)%.")
  local fc1 = t["blocks.0.mlp.fc1.weight"]
  if fc1 and o.dim then o.ratio = fc1:size(1) // o.dim end
  if t.dist_token then o.distilled = true end
  return o
end

function shapes.vim(t)
  local o, mixer = {}, "layers.0.mixer."
  of_images(t, o, t.cls_token_head and 2 or 1)
  o.depth = count(t, "^layers%.(%d+)%.")
  local A, low, conv = t[mixer .. "A_log"], t[mixer .. "dt_proj.weight"], t[mixer .. "conv1d.weight"]
  if A and o.dim then o.state, o.expand = A:size(2), A:size(1) // o.dim end
  o.rank, o.conv = low and low:size(2), conv and conv:size(3)
  if t.cls_token_head then o.class_token = "double" end
  return o
end

-- Language models: the table's rows, and the width of the MLP, told by its bias, whatever the layout of matrices.
local function of_text(t, table_name, layer, bias)
  local e, b = t[table_name], t[bias]
  if not e or e:rank() ~= 2 then return {} end
  return { vocab = e:size(1), dim = e:size(2), depth = count(t, layer), ratio = b and b:size(1) // e:size(2) }
end

function shapes.gpt2(t)
  local o, wpe = of_text(t, "transformer.wte.weight", "^transformer%.h%.(%d+)%.", "transformer.h.0.mlp.c_fc.bias"), t["transformer.wpe.weight"]
  o.positions = wpe and wpe:size(1)
  return o
end

function shapes.phi(t) return of_text(t, "model.embed_tokens.weight", "^model%.layers%.(%d+)%.", "model.layers.0.mlp.fc1.bias") end

-- in_proj makes x and z (E each), B and C (groups x state each) and a (heads). Groups are not in the shapes: as many as heads.
function shapes.phi_mamba(t)
  local o = of_text(t, "backbone.embedding.weight", "^backbone%.layers%.(%d+)%.", "backbone.layers.0.mlp.fc1.bias")
  for i = 0, (o.depth or 0) - 1 do
    local mixer = ("backbone.layers.%d.mixer."):format(i)
    local D, enter, leave, conv = t[mixer .. "D"], t[mixer .. "in_proj.weight"], t[mixer .. "out_proj.weight"], t[mixer .. "conv1d.weight"]
    if D and enter and leave and conv then
      o.heads, o.expand, o.conv = D:size(1), leave:size(2) // o.dim, conv:size(3)
      o.state = (enter:size(1) - 2 * leave:size(2) - o.heads) // 2 // o.heads
      return o
    end
  end
  return o
end

-- What Mamba and Mamba-2 share; E = expand * dim is what A_log has rows of, or out_proj columns.
local function of_mamba(t)
  local o, mixer = of_text(t, "backbone.embedding.weight", "^backbone%.layers%.(%d+)%.", ""), "backbone.layers.0.mixer."
  local A, leave, conv = t[mixer .. "A_log"], t[mixer .. "out_proj.weight"], t[mixer .. "conv1d.weight"]
  if not (o.dim and A and leave and conv) then return o end
  o.expand, o.conv = leave:size(2) // o.dim, conv:size(3)
  if o.vocab % 8 ~= 0 then o.pad = 1 end
  return o, A, leave:size(2), conv:size(1)
end

function shapes.mamba(t)
  local o, A = of_mamba(t)
  local low = t["backbone.layers.0.mixer.dt_proj.weight"]
  if A and A:rank() == 2 and low then o.state, o.rank = A:size(2), low:size(2) end
  return o
end

-- Groups are not in the shapes: one, unless the description says otherwise.
function shapes.mamba2(t, given)
  local o, A, E, channels = of_mamba(t)
  if A and A:rank() == 1 then o.head, o.state = E // A:size(1), (channels - E) // 2 // (given.groups or 1) end
  return o
end

--- Shapes win over what a size or a default says, not over what is written down: fields of `o` that `extra` does not name, nor
--- `given` with another value than the default, are set from the tensors. Heads are not in the shapes: 64 wide, if the width is
--- not that of the size.
---@param model table kind, options (schema)
---@param o table resolved options, changed
---@param given table the description
---@param extra table what the data decides
---@param tensors table<string, cab.Tensor>
function M.fit(model, o, given, extra, tensors)
  if not shapes[model.kind] then return end
  local function written(key)
    local rule = model.options[key]
    return given[key] ~= nil and not (rule and given[key] == check.entry(rule).default)
  end
  local width, found = o.dim, shapes[model.kind](tensors, given)
  for key, value in pairs(found) do
    if not written(key) and extra[key] == nil then o[key] = value end
  end
  if o.heads and not written "heads" and not found.heads and o.dim ~= width and o.dim % 64 == 0 then o.heads = o.dim // 64 end
end

-- Other input channels, as timm does: 3 -> 1 sums the colours, else they repeat, scaled to the same sum.
local function channels(weight, want)
  local have = weight:size(2)
  if want == 1 then
    local sum = weight:slice(2, 1, 1)
    for c = 2, have do sum = sum + weight:slice(2, c, c) end
    return sum
  end
  local parts = {}
  for c = 1, want do
    local at = (c - 1) % have + 1
    parts[c] = weight:slice(2, at, at)
  end
  return core.concat(parts, 2) * (have / want)
end

-- For the run's first lines.
local function note(model, text)
  model.notes = model.notes or {}
  table.insert(model.notes, text)
end

local refits = {}
-- Another number of classes: the model keeps its untrained head.
function refits.head(model, tensors)
  local state = model:state()
  for _, name in ipairs { "head.weight", "head.bias", "head_dist.weight", "head_dist.bias" } do
    local old, new = tensors[name], state[name]
    if new and (not old or shape_text(old) ~= shape_text(new)) then
      tensors[name] = new:to "cpu"
      note(model, ("%s %s is untrained, %s"):format(name, shape_text(new), old and "the file's is " .. shape_text(old) or "the file has none"))
    end
  end
end
function refits.channels(model, tensors)
  local name = "patch_embed.proj.weight"
  local old, new = tensors[name], model:state()[name]
  if old and new and old:rank() == 4 and old:size(2) ~= new:size(2) then
    tensors[name] = channels(old, new:size(2))
    note(model, ("%s: %d input channels became %d"):format(name, old:size(2), new:size(2)))
  end
end

--- Changes that the model's option `refit` allows, "head" and "channels" in any order; a patch of another size never fits.
---@param model cab.Module
---@param tensors table<string, cab.Tensor>
---@return table<string, cab.Tensor> a copy
function M.refit(model, tensors)
  local copy, o = {}, model.options
  for name, t in pairs(tensors) do copy[name] = t end
  for word in (o.refit or ""):gmatch "[^%s,]+" do
    local change = refits[word] or options.unknown("refit", word, options.names(refits))
    core.no_grad(change, model, copy)
  end
  local patch = copy["patch_embed.proj.weight"]
  if patch and o.patch and patch:rank() == 4 and (patch:size(3) ~= o.patch or patch:size(4) ~= o.patch) then
    check.fail(65, ("patch_embed.proj.weight has patches of %dx%d, the model of %dx%d: give patch=%d"):format(patch:size(3), patch:size(4), o.patch, o.patch,
      patch:size(3)), { id = "weights-patch" })
  end
  return copy
end

return M
