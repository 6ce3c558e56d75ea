-- A strategy of one's own: align the student's hidden states with the teacher's, token by token, instead of B and C with
-- K and Q. cab run examples/strategy.lua
local cab = require "cab"
local op, nn = cab.op, cab.nn

local hidden = cab.strategy { name = "hidden", needs = { teacher = { "hidden" }, student = { "hidden" } }, options = { cosine = false } }
function hidden:build(pairs)
  self.lift = nn.list(pairs.layers, function() return nn.linear(pairs.width, pairs.dim) end)
end
function hidden:loss(pairs)
  local sum, layer = 0, 0
  for _, s, t in pairs:each() do
    if s.suffix == "" then -- hidden states have no scan direction: once a layer
      layer = layer + 1
      local lifted = self.lift[layer](s.hidden)
      sum = sum + (self.cosine and op.cosine(lifted, t.hidden) or self:fit(lifted, t.hidden))
    end
  end
  return sum / pairs.layers
end

-- In a recipe: loss = { soft = 1, align = { hidden, weight = 3 } }. Here: ten steps by hand on one random batch.
local student = cab.models.vim { dim = 32, depth = 4, state = 8, patch = 4 }:build { image = 16, classes = 10 }
local teacher = cab.models.vit { dim = 48, depth = 2, heads = 3, patch = 4 }:build { image = 16, classes = 10 }:freeze()
local pairing = cab.pairs.new { student = student, teacher = teacher }
local strategy = cab.strategy.create(hidden):prepare(pairing)
local images = cab.normal({ 8, 3, 16, 16 }, 0, 1, 0, "images")

local parameters = {}
for _, list in ipairs { student:parameters(), strategy:parameters() } do
  for _, p in ipairs(list) do parameters[#parameters + 1] = p.tensor end
end
for step = 1, 10 do
  local scope <close> = cab.scope()
  local _, t = cab.no_grad(teacher.forward, teacher, images, cab.taps.wanted({ strategy }, "teacher", teacher))
  local _, s = student:forward(images, cab.taps.wanted({ strategy }, "student", student))
  pairing:step(s, t)
  local loss = strategy:run(pairing, {})
  loss:backward()
  print(("step %2d  loss %.4f  r2 %.3f"):format(step, loss:item(), strategy:metrics().r2))
  cab.no_grad(function()
    for _, p in ipairs(parameters) do
      if p.grad then p:add_(p.grad, -0.1) end -- plain gradient descent
      p.grad = nil
    end
  end)
end
