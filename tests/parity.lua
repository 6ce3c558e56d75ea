--- Runs a call on a device and dtype and compares outputs and gradients with values in f64.
--- A call: { op, label, make, call }. make() gives its inputs as f64 tensors on the CPU in three tables: `real` (of the call's
--- dtype), `wide` (parameters, statistics: f32 in a bf16 call), `plain` (ids, labels: as they are, no gradient). call(t) gets all
--- of them by name and returns the op's outputs. frozen: names without a gradient. weight(i): of output i in the loss that is
--- differentiated, else random. arrange(t): other strides. forward, gradient: the f32 limits, if not the usual ones.
local core = require "cab.core"
local op = core.ops
local M = {}

-- Largest error over the largest value; relative L2 error of gradients (docs: trust, G12). 5e-5 for long sums in f32.
M.limits = {
  f64 = { forward = 1e-10, gradient = 1e-9 },
  f32 = { forward = 1e-5, gradient = 1e-4 },
  bf16 = { forward = 2e-2, gradient = 2e-2 },
}

--- What a tensor of `dtype` holds of x, in f64.
local function rounded(x, dtype) return dtype == "f64" and x or x:to(dtype):to "f64" end

--- x in another dtype, differentiable.
local function cast(x, dtype) return x:dtype() == dtype and x or op.cast(x, { to = dtype }) end

local function wide(dtype) return dtype == "f64" and "f64" or "f32" end

local function frozen(c, name)
  for _, n in ipairs(c.frozen or {}) do if n == name then return true end end
end

--- The leaves of a call on a device, f32 or f64: a bf16 argument is a cast of one.
---@param c table a call
---@param inputs table what its make() returned
---@param dtype string f32, f64, bf16
---@param device string
---@param keep? string the dtype to which inputs and weights are rounded first; default: dtype
---@return table prepared for M.run, any number of times
function M.prepare(c, inputs, dtype, device, keep)
  keep = keep or dtype
  local p = { call = c, device = device, keep = keep, leaf = {}, dtype = {}, plain = {}, weight = {} }
  local function leaf(name, value, to)
    local t = value:to(wide(to)):to(device)
    if c.arrange then t = c.arrange(t) end
    t.requires_grad = not frozen(c, name)
    p.leaf[name], p.dtype[name] = t, to
  end
  for name, value in pairs(inputs.real or {}) do leaf(name, rounded(value, keep), dtype) end
  for name, value in pairs(inputs.wide or {}) do leaf(name, rounded(value, wide(keep)), wide(dtype)) end
  for name, value in pairs(inputs.plain or {}) do p.plain[name] = value:to(device) end
  return p
end

-- The weight of output i, made once.
local function weight(p, i, y)
  if not p.weight[i] then
    local w = p.call.weight and p.call.weight(i) or core.normal(y:shape(), 0, 1, 7, "weight" .. i, "f64")
    p.weight[i] = rounded(w, p.keep):to(y:dtype()):to(p.device)
  end
  return p.weight[i]
end

--- One forward and backward of sum(output * weight), where weight is a fixed random tensor.
---@return table outputs list
---@return table gradients by name; false where a wanted one is missing
function M.run(p)
  local t, loss = {}, nil
  for name, leaf in pairs(p.leaf) do t[name] = cast(leaf, p.dtype[name]) end
  for name, value in pairs(p.plain) do t[name] = value end
  local outputs, gradients = { p.call.call(t) }, {}
  for i, o in ipairs(outputs) do
    local y = o:dtype() == "bf16" and cast(o, "f32") or o
    local term = cast(op.sum(y * weight(p, i, y)), "f64")
    loss = loss and loss + term or term
    outputs[i] = o:detach()
  end
  if loss.requires_grad then loss:backward() end
  for name, leaf in pairs(p.leaf) do
    if leaf.requires_grad then gradients[name] = leaf.grad or false end
    leaf.grad = nil
  end
  return outputs, gradients
end

--- Outputs and gradients as f64 on the CPU.
function M.evaluate(c, inputs, dtype, device, keep)
  local outputs, gradients = M.run(M.prepare(c, inputs, dtype, device, keep))
  for i, o in ipairs(outputs) do outputs[i] = o:to("cpu"):to "f64" end
  for name, g in pairs(gradients) do gradients[name] = g and g:to("cpu"):to "f64" end
  return outputs, gradients
end

local function same_shape(a, b)
  local x, y = a:shape(), b:shape()
  if table.concat(x, ",") ~= table.concat(y, ",") then
    error(("shape [%s], expected [%s]"):format(table.concat(x, ","), table.concat(y, ",")), 0)
  end
end

local function magnitude(x)
  local r = x:range()
  return math.max(-r.min, r.max), r.bad
end

--- max |a - b| / max |b| (absolute where b is 0), both f64 on the CPU. NaN and Inf count as infinitely far.
function M.worst(a, b)
  same_shape(a, b)
  if b:count() == 0 then return 0 end
  local scale, difference = magnitude(b), a - b
  local worst, bad = magnitude(difference)
  return bad > 0 and math.huge or worst / (scale > 1e-12 and scale or 1)
end

--- |a - b| / |b| in L2.
function M.l2(a, b)
  same_shape(a, b)
  if b:count() == 0 then return 0 end
  local d, n = op.sum(op.square(a - b)):item(), op.sum(op.square(b)):item()
  if d ~= d then return math.huge end
  return (n > 1e-24 and d / n or d) ^ 0.5
end

--- The largest errors of a call: forward (max), gradient (L2) and the names of the tensors they are in.
---@param got table outputs
---@param got_gradients table
---@param want table outputs
---@param want_gradients table
function M.errors(got, got_gradients, want, want_gradients)
  local e = { forward = 0, gradient = 0, output = "", name = "" }
  if #got ~= #want then error(("%d outputs, expected %d"):format(#got, #want), 0) end
  for i, b in ipairs(want) do
    local d = M.worst(got[i], b)
    if d >= e.forward then e.forward, e.output = d, "output " .. i end
  end
  for name, b in pairs(want_gradients) do
    local a = got_gradients[name]
    if (a == false or a == nil) ~= (b == false) then error(("gradient of %s: %s"):format(name, a and "not expected" or "missing"), 0) end
    local d = b and M.l2(a, b) or 0
    if d >= e.gradient then e.gradient, e.name = d, "gradient of " .. name end
  end
  return e
end

--- The limits of a call in a dtype.
function M.limit(c, dtype)
  local l = M.limits[dtype]
  if dtype ~= "f32" then return l end
  return { forward = c.forward or l.forward, gradient = c.gradient or l.gradient }
end

--- Those of `dtypes` in which call `c` has kernels on a device.
---@param c table
---@param device string
---@param dtypes string[]
---@return string[]
function M.dtypes(c, device, dtypes)
  local out = {}
  for _, dtype in ipairs(c.cpu_only and device ~= "cpu" and {} or dtypes) do
    local refused = dtype == "bf16" and (device == "cpu" or c.op == "embedding") -- its one real argument is a parameter, never bf16
    if not refused then out[#out + 1] = dtype end
  end
  return out
end

return M
