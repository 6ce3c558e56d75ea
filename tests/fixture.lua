--- The cases of tests/fixtures/ops.safetensors, bridge.safetensors and language.safetensors (float64 PyTorch, tests/reference/) as calls for
--- tests/parity.lua.
local core = require "cab.core"
local op = core.ops
local tensors, cases = {}, {}
local CPU_ONLY = {} -- rows without CUDA kernels
local M = { tensors = tensors, calls = {} }

for _, name in ipairs { "ops", "bridge", "language" } do
  local part, metadata = core.load("tests/fixtures/" .. name .. ".safetensors")
  for key, t in pairs(part) do tensors[key] = t end
  for _, case in ipairs(core.json_decode(metadata.cases)) do cases[#cases + 1] = case end
end

--- The names that a row's signature marks with ^: parameters, statistics, states, losses.
function M.wide(name)
  local names, signature = {}, core.help(name):match "^%S+%s+([^\n|]*)"
  for arg in signature:gsub("%->.*", ""):gmatch "([%w_]+)~?%^" do names[arg] = true end
  return names
end

local function inputs(case)
  local out, wide = { real = {}, wide = {}, plain = {} }, M.wide(case.op)
  for _, name in ipairs(case.inputs) do
    local value = tensors[case.key .. ".in." .. name]
    out[value:dtype() == "i32" and "plain" or wide[name] and "wide" or "real"][name] = value
  end
  return out
end

local function call(case)
  local wants = {}
  for _, name in ipairs(case.grads) do wants[name] = true end
  local c = { op = case.op, cpu_only = CPU_ONLY[case.op], label = case.key .. " " .. case.label, case = case, frozen = {} }
  function c.make() return inputs(case) end
  for _, name in ipairs(case.inputs) do
    if not wants[name] then table.insert(c.frozen, name) end
  end
  function c.call(t)
    local args = {}
    for name, value in pairs(case.options) do args[name] = value end
    for name, value in pairs(t) do args[name] = value end
    local outputs = { op[case.op](args) }
    for i, o in ipairs(outputs) do
      if o:dtype() == "i32" then outputs[i] = o:to "f64" end
    end
    return table.unpack(outputs, 1, case.outputs)
  end
  if #case.grads > 0 then
    function c.weight(i) return tensors[case.key .. ".weight." .. i] end
  end
  -- PyTorch's outputs and gradients.
  function c.reference()
    local outputs, gradients = {}, {}
    for i = 1, case.outputs do outputs[i] = tensors[case.key .. ".out." .. i] end
    for _, name in ipairs(case.grads) do gradients[name] = tensors[case.key .. ".grad." .. name] end
    return outputs, gradients
  end
  return c
end

for i, case in ipairs(cases) do M.calls[i] = call(case) end

return M
