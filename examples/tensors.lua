-- Tensors in ten lines: cab run examples/tensors.lua
local cab = require "cab"
local op = cab.op
local x = cab.normal({ 4, 3 }, 0, 1, 0, "x")     -- shape, mean, deviation, seed, stream
local w = cab.zeros { 2, 3 }
w.requires_grad = true
local y = op.linear(x, w)                        -- [4,3] [2,3] -> [4,2]
local loss = op.cross_entropy(y, cab.tensor({ 0, 1, 0, 1 }, "i32"))
loss:backward()
print(loss:item(), w.grad)                       -- log 2, and the gradient of w
