--- Soft distillation: KL(teacher || student) on logits, T^2 included; `hard` weighs the cross-entropy beside it.
--- Source: arXiv:1503.02531.
local cab = require "cab"
local op = cab.op
local soft = cab.strategy { needs = {}, options = { temperature = 1.0, hard = 0.0 } }

function soft:loss(_, batch)
  local loss = op.kl(batch.logits, batch.teacher, { temperature = self.temperature })
  if self.hard == 0 then return loss end
  return loss + self.hard * op.cross_entropy(batch.logits, batch.labels, batch.target)
end
return soft
