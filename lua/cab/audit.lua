--- Which parameters does a loss reach?
local core = require "cab.core"

--- Runs a loss alone and lists the parameters it leaves without gradient (none, or all zero). Clears all gradients.
---@param parameters { name: string, tensor: cab.Tensor }[]
---@param loss fun(): cab.Tensor
---@return string[] names in the order given
return function(parameters, loss)
  local dead = {}
  local _ <close> = core.scope()
  for _, p in ipairs(parameters) do p.tensor.grad = nil end
  loss():backward()
  for _, p in ipairs(parameters) do
    local grad = p.tensor.grad
    local range = grad and grad:range()
    if not range or (range.min == 0 and range.max == 0) then dead[#dead + 1] = p.name end
    p.tensor.grad = nil
  end
  return dead
end
