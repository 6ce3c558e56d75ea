--- Soft distillation: KL(teacher || student) on logits, T^2 included; `hard` weighs the cross-entropy beside it. Text has other
--- divergences too. Source: arXiv:1503.02531, arXiv:2306.13649.
local cab = require "cab"
local op = cab.op
local kinds = { "forward", "reverse", "jsd" }
local soft = cab.strategy {
  needs = {}, options = { temperature = 1.0, hard = 0.0, divergence = { "string", default = "forward", one_of = kinds } },
}

function soft:loss(_, batch)
  if batch.head then
    return batch.head { ce = self.hard, kl = 1, temperature = self.temperature, divergence = self.divergence }
  end
  if self.divergence ~= "forward" then cab.options.fail(2, "divergence", "soft: of images, divergence is 'forward'") end
  local loss = op.kl(batch.logits, batch.teacher, { temperature = self.temperature })
  if self.hard == 0 then return loss end
  return loss + self.hard * op.cross_entropy(batch.logits, batch.labels, batch.target)
end
return soft
