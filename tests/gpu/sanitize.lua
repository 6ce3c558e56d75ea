-- sanitize.lua [DEVICE=cuda] [K/N]: the whole op table at tiny, odd sizes in f32, f64 and bf16, and three training steps of a tiny
-- Vision Mamba with the bridge, of a tiny ViT and of a tiny Phi-Mamba, eager and as a graph. To be run under compute-sanitizer; compares nothing.
package.path = "./tests/?.lua;" .. package.path
local core = require "cab.core"
local parity, fixture, shapes, synthetic = require "parity", require "fixture", require "gpu.shapes", require "synthetic"
local device = arg[1] or "cuda"
local part, parts = (arg[2] or "1/1"):match "^(%d+)/(%d+)$"
part, parts = tonumber(part), tonumber(parts)
local calls, number = 0, 0

-- Every N-th piece of work is this process's.
local function mine()
  number = number + 1
  return number % parts == part % parts
end

for _, set in ipairs { fixture.calls, shapes.tiny(), shapes.empty() } do
  for _, c in ipairs(set) do
    for _, dtype in ipairs(mine() and parity.dtypes(c, device, { "f32", "f64", "bf16" }) or {}) do
      local scope <close> = core.scope()
      parity.evaluate(c, c.make(), dtype, device)
      calls = calls + 1
    end
  end
end

local function updates(dtype)
  local scope <close> = core.scope()
  local function full(value) return core.full({ 37 }, value, dtype, device) end
  local p, m, v, average = full(1), full(0), full(0), full(1)
  p.requires_grad = true
  p.grad = full(0.5)
  core.adamw({ p }, 1, { m }, { v }, { lr = 0.1, step = 1 })
  core.ema({ average }, { p }, 0.9)
  return core.grad_norm { p }, average:range()
end
updates "f32"
updates "f64"

local steps = 0
for _, precision in ipairs(device == "cpu" and { "f32" } or { "f32", "bf16" }) do
  for _, kind in ipairs { "vim", "vit", "phi_mamba" } do
    for _, capture in ipairs(mine() and { false, true } or {}) do
      local t = synthetic.tiny(kind, { device = device, precision = precision, capture = capture })
      for n = 1, 3 do
        t:step(n, true)
        steps = steps + 1
      end
      t:close()
    end
  end
end
core.trim(device)
print(("%d calls, %d steps"):format(calls, steps))
