--- A strategy of one's own, whole: the student's tokens should be as like each other as the teacher's are. For each layer, cosine
--- similarities of all pairs of tokens, compared by mean square. A recipe takes it from here and needs to know nothing else:
---   loss = { soft = 1, relation = { dofile "examples/relation.lua", weight = 10 } }
local cab = require "cab"
local op = cab.op

local relation = cab.strategy { name = "relation", needs = { student = { "hidden" }, teacher = { "hidden" } }, options = { center = true } }

local function likeness(x, center) -- [b,l,D] -> [b,l,l]
  if center then x = x - op.mean(x, { dim = 2 }):reshape(x:size(1), 1, x:size(3)) end
  local length = op.sqrt(op.sum(op.square(x), { dim = 3 }) + 1e-6):reshape(x:size(1), x:size(2), 1)
  local unit = x / length
  return op.matmul(unit, unit:permute(1, 3, 2))
end

function relation:loss(pairs)
  return pairs:layer_mean(function(_, s, t) -- t in the student's token order
    return op.mse(likeness(s.hidden, self.center), likeness(t.hidden, self.center))
  end)
end

return relation
