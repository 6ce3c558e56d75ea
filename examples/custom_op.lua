-- An op of one's own in Lua, with its gradient checked against differences. cab run examples/custom_op.lua
local cab = require "cab"
local op = cab.op

--- y = x^2 sigmoid(x), elementwise; dy/dx = 2 x s + x^2 s (1 - s), s = sigmoid(x).
local swish2 = cab.custom {
  name = "swish2",
  forward = function(ctx, x)
    local s = op.sigmoid(x)
    ctx:save(x, s)
    return op.square(x) * s
  end,
  backward = function(ctx, gy)
    local x, s = table.unpack(ctx.saved)
    return gy * (2 * x * s + op.square(x) * s * (1 - s))
  end,
}

local x = cab.normal({ 3, 4 }, 0, 1, 0, "x", "f64")
local r = cab.gradcheck(swish2, { x })
print(("%d elements checked, largest error %.2g of what is allowed"):format(r.checked, r.worst))

x.requires_grad = true
op.mean(swish2(x)):backward()
print(x.grad)
