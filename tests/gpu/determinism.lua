-- determinism.lua [TIMES]: every op forward and backward again and again on the GPU, 50 times (scan, convolution, norms, sums
-- and attention 200; TIMES multiplies), between other work, and each result equal to the first in every element. Ends with
-- "N of M calls equal"; exit code 1 if they are not all.
package.path = "./tests/?.lua;" .. package.path
local core = require "cab.core"
local parity, fixture, shapes = require "parity", require "fixture", require "gpu.shapes"
local op = core.ops
local times = tonumber(arg[1]) or 1
local device = arg[2] or "cuda"
local often = { selective_scan = true, scan_pair = true, conv1d = true, layer_norm = true, rms_norm = true, sum = true, mean = true, attention = true }

-- sum |a - b|, on the device; NaN where either has one.
local function difference(a, b)
  if a:count() == 0 then return nil end
  if a:dtype() == "bf16" then a, b = op.cast(a, { to = "f32" }), op.cast(b, { to = "f32" }) end
  return op.cast(op.sum(op.abs(a - b)), { to = "f64" })
end

local function results(prepared)
  local outputs, gradients = parity.run(prepared)
  local list, names = {}, {}
  for i, o in ipairs(outputs) do list[#list + 1], names[#names + 1] = o, "output " .. i end
  for name, g in pairs(gradients) do
    assert(g, "no gradient for " .. name)
    list[#list + 1], names[#names + 1] = g, "gradient of " .. name
  end
  return list, names
end

-- nil, or the name of the first tensor that changed.
local function rerun(c, dtype, count)
  local scope <close> = core.scope()
  local prepared = parity.prepare(c, c.make(), dtype, device)
  local first, names = results(prepared)
  local by_name, total = {}, {}
  for i, name in ipairs(names) do by_name[name] = first[i] end
  for _ = 2, count do
    local inner <close> = core.scope()
    local list, again = results(prepared)
    for i, t in ipairs(list) do
      local d = core.no_grad(difference, t, by_name[again[i]])
      local sum = total[again[i]]
      if d and sum then sum:add_(d)
      elseif d then total[again[i]] = inner:keep(d) end
    end
  end
  for _, name in ipairs(names) do
    if total[name] and total[name]:item() ~= 0 then return name end
  end
end

local good, all, begun = 0, 0, core.now()
for _, set in ipairs { fixture.calls, shapes.tiny(), shapes.real() } do
  for _, c in ipairs(set) do
    for _, dtype in ipairs(parity.dtypes(c, device, { "f32", "bf16" })) do
      local changed = rerun(c, dtype, times * (often[c.op] and 200 or 50))
      if changed then print(("DIFFERENT op.%s %s in %s: %s"):format(c.op, c.label, dtype, changed)) end
      good, all = good + (changed and 0 or 1), all + 1
    end
  end
end
print(("%d of %d calls equal, %.1f s"):format(good, all, core.now() - begun))
os.exit(good == all, true)
