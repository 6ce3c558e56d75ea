-- training.lua [TIMES=1000] [DEVICE=cuda]: a training step from the same state again and again, as it comes and replayed as a
-- graph: loss, gradient norm, weights, moments and averages must be the same each time. Exit code 1 if they are not.
package.path = "./tests/?.lua;" .. package.path
local core = require "cab.core"
local synthetic = require "synthetic"
local op = core.ops
local times, device = tonumber(arg[1]) or 1000, arg[2] or "cuda"

-- All tensors of a state as one row.
local function row(state)
  local names, parts = {}, {}
  for name in pairs(state) do names[#names + 1] = name end
  table.sort(names)
  for i, name in ipairs(names) do
    local t = state[name]:detach()
    parts[i] = t:reshape(t:count())
  end
  return core.concat(parts, 1)
end

local function copies(state)
  local out = {}
  for name, t in pairs(state) do out[name] = t:detach():clone() end
  return out
end

local function write(state, from) core.no_grad(function() for name, t in pairs(state) do t:copy(from[name]) end end) end

-- nil, or what changed.
local function repeated(o)
  local t = synthetic.tiny(o.kind, { device = device, precision = o.precision, capture = o.capture })
  local state, first, after = t.job:state(), nil, nil
  for n = 1, 4 do t:step(n) end -- from the third on it is a graph
  local start = copies(state)
  for i = 1, times do
    local scope <close> = core.scope()
    write(state, start)
    local v = t:step(5, i == 1 or i % 50 == 0)
    if i == 1 then
      first, after = v, scope:keep(row(state))
    elseif op.sum(op.abs(row(state) - after)):item() ~= 0 then
      return ("the weights after run %d"):format(i)
    elseif v and (v.loss ~= first.loss or v.norm ~= first.norm) then
      return ("loss or gradient norm of run %d: %a %a, first %a %a"):format(i, v.loss, v.norm, first.loss, first.norm)
    end
  end
  local captured = t:captured()
  t:close()
  print(("%-9s %-5s %-9s loss %a  %s"):format(o.kind, o.precision, captured and "graph" or "eager", first.loss, table.concat(t.messages, "; ")))
  return o.capture and device ~= "cpu" and not captured and "nothing: the step was not captured" or nil
end

local good, all, begun = 0, 0, core.now()
for _, o in ipairs { { kind = "vim", precision = "f32", capture = true }, { kind = "vim", precision = "f32", capture = false },
  { kind = "vim", precision = "bf16", capture = true }, { kind = "vit", precision = "f32", capture = true },
  { kind = "phi_mamba", precision = "f32", capture = true }, { kind = "phi_mamba", precision = "bf16", capture = true } } do
  if device ~= "cpu" or o.precision == "f32" then
    local changed = repeated(o)
    if changed then print(("DIFFERENT %s %s: %s"):format(o.kind, o.precision, changed)) end
    good, all = good + (changed and 0 or 1), all + 1
  end
end
print(("%d of %d kinds of step equal %d times, %.1f s"):format(good, all, times, core.now() - begun))
os.exit(good == all, true)
