--- Where each op stands: its row in core/ops, the header of its kernel, its case in the PyTorch reference.
--- build/cab run tests/ops_table.lua > docs/ops.md
local core = require "cab.core"
local lfs = require "lfs"
local M = {}

-- Files of a folder by name, and what is in them.
local function contents(dir, pattern)
  local list = {}
  for name in lfs.dir(dir) do
    if name:match(pattern) then
      local f <close> = assert(io.open(dir .. "/" .. name))
      list[#list + 1] = { path = dir .. "/" .. name, text = f:read "a" }
    end
  end
  table.sort(list, function(a, b) return a.path < b.path end)
  return list
end

-- The first file in which one of the words stands.
local function find(files, ...)
  for _, word in ipairs { ... } do
    for _, file in ipairs(files) do
      if file.text:find("%f[%w_]" .. word .. "%f[^%w_]") then return file.path end
    end
  end
end

-- The file with the row of that name; of ops made by a macro, where the name stands.
local function row_of(files, name)
  for _, file in ipairs(files) do
    if file.text:find('{%s*"' .. name .. '",') then return file.path end
  end
  return find(files, name)
end

-- Ops without a kernel of their own name.
local elsewhere = {
  sum = "kernels/elementwise.h", mean = "kernels/elementwise.h", -- sum_middle
  cast = "core/tensor/tensor.c", -- cab_tensor_to
  head_loss = "kernels/head.h", -- between two products
}

--- name -> {row, kernel, reference: paths, help: text}; what is not found is nil.
function M.places()
  local rows, headers = contents("core/ops", "%.c$"), contents("kernels", "%.h$")
  local cases = {}
  for _, name in ipairs { "language", "bridge", "ops" } do
    local tensors, metadata = core.load("tests/fixtures/" .. name .. ".safetensors")
    for _, case in ipairs(core.json_decode(metadata.cases)) do cases[case.op] = tensors and ("tests/reference/%s.py"):format(name) end
  end
  local other, list = contents("tests/reference", "%.py$"), {}
  for name in pairs(core.ops) do
    local upper = name:upper()
    list[name] = { row = row_of(rows, name), kernel = elsewhere[name] or find(headers, name .. "_forward",
      "UNARY_" .. upper, "BINARY_" .. upper, name), reference = cases[name] or find(other, name), help = core.help(name) }
  end
  return list
end

--- docs/ops.md.
function M.text()
  local out = { "# Ops", "", "One row each in `core/ops`; `cab help NAME` prints the same. Dimensions of one letter are one size, `*` stands for leading",
    "ones, `?` for optional, `|` for options with defaults, `~` for what backward keeps. Written by `build/cab run tests/ops_table.lua > docs/ops.md`.", "" }
  local places, names = M.places(), {}
  for name in pairs(places) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do
    local p = places[name]
    out[#out + 1] = ("## %s\n```\n%s\n```\nrow `%s`, kernel `%s`, reference `%s`\n"):format(name, p.help, p.row, p.kernel, p.reference)
  end
  return table.concat(out, "\n")
end

if arg and arg[0] and arg[0]:find "ops_table%.lua$" then
  io.write(M.text())
  return 0
end
return M
