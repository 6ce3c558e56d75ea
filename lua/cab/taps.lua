--- Taps: named activations. A model announces them, strategies name those they need, nobody else pays for them.
local options = require "cab.options"

local taps = {}

--- What a model announces. `each` is the list of names; `directional` those that exist once a scan direction, the
--- backward one under NAME_b.
---@param each string[]
---@param directional? string[]
---@return table
function taps.declare(each, directional)
  local d = { names = each, directional = {} }
  for _, name in ipairs(directional or {}) do d.directional[name] = true end
  return d
end

--- A set for model:forward, checked against what the model announces.
---@param names string[]
---@param declared table from taps.declare
---@param who string for the message: "the student (vim)"
---@return table<string, true>
function taps.set(names, declared, who)
  local set = {}
  for _, name in ipairs(names) do
    options.choice(name, declared.names, "tap of " .. who)
    set[name] = true
  end
  return set
end

--- The union of what `instances` (of cab.strategy) need of the student or teacher; nil if nothing.
---@param instances table[]
---@param side "student"|"teacher"
---@param model table
---@return table<string, true>|nil
function taps.wanted(instances, side, model)
  local names = {}
  for _, s in ipairs(instances) do
    for _, name in ipairs(s.needs[side] or {}) do names[#names + 1] = name end
  end
  if #names == 0 then return nil end
  return taps.set(names, model.taps, ("the %s (%s)"):format(side, model.kind))
end

--- Where a forward pass puts its taps: put(name, layer, tensor [, suffix]) does nothing for a tap nobody asked for;
--- `out` is name -> list by layer (logits: the tensor itself).
---@param wanted table<string, true>|nil
function taps.collector(wanted)
  local out = {}
  local function put(name, layer, tensor, suffix)
    if not (wanted and wanted[name]) then return end
    local key = name .. (suffix or "")
    if layer == nil then
      out[key] = tensor
    else
      out[key] = out[key] or {}
      out[key][layer] = tensor
    end
  end
  return put, out
end

return taps
