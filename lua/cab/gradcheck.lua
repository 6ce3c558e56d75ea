--- Gradients against central differences in f64: for any function of tensors.
local core = require "cab.core"
local options = require "cab.options"
local check = require "cab.check"

local function position(t, index) -- flat 1-based index -> "[2,3]"
  local shape, at = t:shape(), {}
  index = index - 1
  for d = #shape, 1, -1 do
    at[d] = index % shape[d] + 1
    index = index // shape[d]
  end
  return "[" .. table.concat(at, ",") .. "]"
end

-- fn's outputs weighed by fixed numbers and summed, so that every output element counts: a scalar tensor.
local function weighed(fn, inputs)
  local outputs, total = table.pack(fn(table.unpack(inputs))), nil
  for i = 1, outputs.n do
    local y = outputs[i]
    local w = core.uniform(y:shape(), 0.5, 1.5, 7, "gradcheck." .. i, "f64")
    local term = core.ops.sum(y * w)
    total = total and total + term or term
  end
  return total
end

--- Raises where a gradient of fn is not what differences predict: |analytic - numeric| <= atol + rtol |numeric|.
---@param fn fun(...: cab.Tensor): cab.Tensor, ... any number of f64 outputs
---@param inputs cab.Tensor[] f64 leaves; all are checked
---@param o? {eps?: number, atol?: number, rtol?: number, samples?: integer} `samples`: elements checked per input (all)
---@return {worst: number, checked: integer} worst: largest error over its allowance, at most 1
return function(fn, inputs, o)
  o = check.options({ eps = 1e-6, atol = 1e-5, rtol = 1e-3, samples = math.huge }, o, "gradcheck")
  for i, t in ipairs(inputs) do
    if t:dtype() ~= "f64" then options.fail(1, "gradcheck", ("gradcheck: input %d is %s, expected f64"):format(i, t:dtype())) end
    t.requires_grad, t.grad = true, nil
  end
  weighed(fn, inputs):backward()
  local worst, checked = 0, 0
  for i, t in ipairs(inputs) do
    local n, shape = t:count(), t:shape()
    local values = t:detach():reshape(n):totable()
    local grads = t.grad and t.grad:reshape(n):totable()
    local function at(index, value)
      local old = values[index]
      values[index] = value
      local loss = core.no_grad(function()
        t:copy(core.tensor(values, "f64"):reshape(shape))
        return weighed(fn, inputs):item()
      end)
      values[index] = old
      return loss
    end
    local step = math.max(1, math.ceil(n / o.samples))
    for index = 1, n, step do
      local x = values[index]
      local numeric = (at(index, x + o.eps) - at(index, x - o.eps)) / (2 * o.eps)
      local analytic = grads and grads[index] or 0
      local share = math.abs(analytic - numeric) / (o.atol + o.rtol * math.abs(numeric))
      worst, checked = math.max(worst, share), checked + 1
      if share > 1 or share ~= share then
        core.no_grad(function() t:copy(core.tensor(values, "f64"):reshape(shape)) end)
        options.fail(1, "gradcheck", ("gradcheck: input %d at %s: gradient %.9g, differences predict %.9g"):format(
          i, position(t, index), analytic, numeric))
      end
    end
    if n > 0 then core.no_grad(function() t:copy(core.tensor(values, "f64"):reshape(shape)) end) end
  end
  return { worst = worst, checked = checked }
end
