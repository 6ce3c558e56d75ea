--- cab inspect, cab convert, cab diff: weight files looked at, renamed and compared.
local core = require "cab.core"
local lfs = require "lfs"
local check = require "cab.check"
local names = require "cab.names"
local options = require "cab.options"
local report = require "cab.report"
local weights = require "cab.weights"
local M = {}

M.formats = "safetensors, an index of shards (.index.json), PyTorch .pth or .pt, NumPy .npy or .npz"
M.codes = "exit codes: 0 done, 2 usage, 65 file refused (the message names file, byte and reason), 71 memory, 74 I/O"
M.key = { "--key", "State dict of a PyTorch checkpoint that holds several, as model_ema.", value = "KEY" }

--- The names of layouts, with those of no layout that `cab convert` takes.
---@return string[]
function M.layouts()
  local out = { "hf", "same" }
  for _, l in ipairs(names.layouts) do out[#out + 1] = l.name end
  return out
end

--- A line for each layout.
---@return string
function M.layout_lines()
  local lines = {}
  for i, l in ipairs(names.layouts) do lines[i] = ("  %-16s %s"):format(l.name, l.about) end
  return table.concat(lines, "\n")
end

-- What detect asks of a tensor, from a row of inspect.
local Shape = {}
Shape.__index = Shape
function Shape:rank() return #self end
function Shape:size(dim) return self[dim] end

local function layout_text(tensors)
  local layout, near, unexpected = names.detect(tensors)
  if layout then return ("layout: %s (%s)"):format(layout.name, layout.about) end
  if not near or #unexpected > 8 then return "layout: none that is known" end
  return ("layout: none that is known; nearest is %s, without %s"):format(near.name, core.escape(table.concat(unexpected, ", ")))
end

local function noted(metadata)
  local lines = {}
  for _, key in ipairs(options.names(metadata)) do
    lines[#lines + 1] = metadata[key] ~= "" and ("%s: %s"):format(core.escape(key), core.escape(metadata[key])) or nil
  end
  return lines
end

--- @param o table file, key, json
---@return integer exit code
function M.inspect(o)
  local list, metadata = weights.inspect(o.file, o.key)
  local rows, total, bad, shapes = {}, 0, 0, {}
  for i, t in ipairs(list) do
    local count = 1
    for _, n in ipairs(t.shape) do count = count * n end
    total, bad = total + count, bad + t.nan
    shapes[t.name] = setmetatable(t.shape, Shape)
    rows[i] = { core.escape(t.name), t.stored, "[" .. table.concat(t.shape, ",") .. "]", ("%.4g"):format(t.min), ("%.4g"):format(t.max),
      t.nan > 0 and tostring(t.nan) or "", t.infinite > 0 and tostring(t.infinite) or "" }
  end
  if o.json then
    local plain = {}
    for i, t in ipairs(list) do
      plain[i] = { name = t.name, stored = t.stored, shape = table.move(t.shape, 1, #t.shape, 1, {}), min = t.min, max = t.max, nan = t.nan, infinite = t.infinite }
    end
    print(core.json_encode(require "cab.runs".plain { tensors = plain, values = total, nan = bad, metadata = metadata }))
    return 0
  end
  print(report.table({ "name", "stored as", "shape", "min", "max", "NaN", "infinite" }, rows))
  print(("%d tensors, %d values, %d NaN"):format(#rows, total, bad))
  print(layout_text(shapes))
  for _, line in ipairs(noted(metadata)) do print(line) end
  return 0
end

-- The layout of the input: the one that was given, or the one its names tell.
local function source(tensors, o)
  if o.from then return names.layout(o.from) end
  local layout, near, unexpected = names.detect(tensors)
  if layout then return layout end
  check.fail(65, ("%s: its names are of no known layout; nearest is %s, which has no %s%s"):format(o.input, near.name,
    core.escape(table.concat(unexpected, ", ", 1, math.min(#unexpected, 4))), #unexpected > 4 and (" and %d more"):format(#unexpected - 4) or ""),
    { file = o.input, id = "weights-layout" })
end

local function renamed(tensors, o)
  if o.to == "same" then return tensors, "names stay", {} end
  local from = source(tensors, o)
  local normal, dropped = names.normal(tensors, from)
  local to = o.to == "hf" and names.hugging_face(from.family, normal) or names.layout(o.to)
  if to.family ~= from.family then
    check.fail(2, ("%s: %s is a layout of %s, %s one of %s"):format(o.input, from.name, from.family, to.name, to.family), { id = "usage" })
  end
  return names.published(normal, to), ("%s -> %s"):format(from.name, to.name), dropped
end

--- @param o table input, output, to, from, key, dtype, force
---@return integer exit code
function M.convert(o)
  if not o.output:find "%.safetensors$" then
    check.fail(2, ("%s: only safetensors is written; name it OUT.safetensors"):format(o.output), { id = "usage" })
  end
  if lfs.attributes(o.output) and not o.force then check.fail(2, ("%s exists; --force replaces it"):format(o.output), { id = "usage" }) end
  if o.dtype then options.choice(o.dtype, { "f32", "f64", "bf16" }, "dtype") end
  local read, metadata = weights.read(o.input, o.key)
  local tensors, what, dropped = renamed(read, o)
  local total, n = 0, 0
  for name, t in pairs(tensors) do
    local real = t:dtype() ~= "i32" and t:dtype() ~= "u8"
    if o.dtype and real then tensors[name] = t:to(o.dtype) end
    total, n = total + t:count(), n + 1
  end
  core.save(o.output, tensors, { format = "pt" })
  if o.quiet then return 0 end
  print(("%s: %s, %d tensors, %d values"):format(o.output, what, n, total))
  if #dropped > 0 then print("left out: " .. core.escape(table.concat(dropped, ", "))) end
  for _, line in ipairs(noted(metadata)) do print(line) end
  return 0
end

-- Both under the names of their family, where those differ.
local function aligned(a, b, say)
  local of_a, of_b = names.detect(a), names.detect(b)
  if not of_a or not of_b or of_a == of_b or of_a.family ~= of_b.family then return a, b end
  say(("names: %s and %s, compared as %s"):format(of_a.name, of_b.name, names.home(of_a.family).name))
  return names.normal(a, of_a), (names.normal(b, of_b))
end

-- A row for a tensor that differs, nil for an equal one.
local function row(name, a, b, tolerance)
  local shown = core.escape(name)
  if not a or not b then return { shown, a and weights.shape_text(a) or "", b and weights.shape_text(b) or "", a and "only in A" or "only in B", "" } end
  local of_a, of_b = weights.shape_text(a), weights.shape_text(b)
  if of_a ~= of_b then return { shown, of_a, of_b, "another shape", "" } end
  if a:count() == 0 then return nil end
  local scope <close> = core.scope()
  local d, size = (a:to "f64" - b:to "f64"):range(), b:to("f64"):range()
  local most = math.max(d.max, -d.min)
  if d.bad > 0 then return { shown, of_a, of_b, ("%d not finite"):format(d.bad), "" } end
  if most <= tolerance then return nil end
  return { shown, of_a, of_b, ("%.4g"):format(most), ("%.3g"):format(most / math.max(size.max, -size.min)) }
end

--- @param o table a, b, key, tolerance, json
---@return integer exit code 0 equal, 1 different
function M.diff(o)
  if o.tolerance < 0 then check.fail(2, "--tolerance is a number from 0 on", { id = "usage" }) end
  local function read(path) return (weights.read(path, path:find "%.pth?$" and o.key or nil)) end
  local a, b = aligned(read(o.a), read(o.b), function(text) if not o.json then print(text) end end)
  local rows, equal, all = {}, 0, {}
  for name in pairs(a) do all[name] = true end
  for name in pairs(b) do all[name] = true end
  for _, name in ipairs(options.names(all)) do
    local r = row(name, a[name], b[name], o.tolerance)
    rows[#rows + 1] = r
    if not r then equal = equal + 1 end
  end
  if o.json then
    local list = {}
    for i, r in ipairs(rows) do list[i] = { name = r[1], a = r[2], b = r[3], difference = r[4], relative = r[5] } end
    print(core.json_encode { equal = equal, different = list })
    return #rows == 0 and 0 or 1
  end
  if #rows > 0 then print(report.table({ "name", "A", "B", "difference", "relative" }, rows)) end
  print(("%d tensors equal, %d different"):format(equal, #rows))
  return #rows == 0 and 0 or 1
end

return M
