--- recompute(f, ...): f(...) without keeping what its backward needs: f runs a second time when its gradients are asked for. Time for
--- memory ("gradient checkpointing", arXiv 1604.06174).
local core = require "cab.core"

-- The gradients of f's tensor arguments `saved` (nil where none arrives), given those of its results.
local function gradients(f, saved, ...)
  local inputs, roots, seeds, found = {}, {}, {}, {}
  for i, t in ipairs(saved) do
    inputs[i] = t:detach()
    inputs[i].requires_grad = true
  end
  local before = core.grad_enabled(true)
  local results = table.pack(pcall(f, table.unpack(inputs)))
  if results[1] then
    for i = 2, results.n do
      if results[i].requires_grad then
        roots[#roots + 1], seeds[#seeds + 1] = results[i], (select(i - 1, ...))
      end
    end
    results = table.pack(pcall(core.backward, roots, seeds))
  end
  core.grad_enabled(before)
  if not results[1] then error(results[2], 0) end
  for i, t in ipairs(inputs) do
    local g = t.grad
    found[i] = g and g:detach()
    if g then g:close() end -- or its memory would wait for the collector
  end
  return table.unpack(found, 1, #inputs)
end

--- Values and gradients are those of f(...), which must give the same results each time. Arguments and results are tensors, at most
--- 16; one argument must want a gradient if f's parameters do. Parameters are found by f itself.
---@param f fun(...: cab.Tensor): ...: cab.Tensor
---@param ... cab.Tensor
---@return cab.Tensor ...
return function(f, ...)
  return core.custom {
    name = "recompute",
    forward = function(ctx, ...)
      ctx:save(...)
      return f(...)
    end,
    backward = function(ctx, ...) return gradients(f, ctx.saved, ...) end,
  }(...)
end
