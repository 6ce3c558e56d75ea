local cab = require "cab"
local soft = cab.strategy {
  about = "Soft distillation: a divergence of the student's logits from the teacher's at `temperature`, T^2 included, over the `top` "
    .. "largest of the teacher's logits (0: all); `hard` weighs the cross-entropy with the labels beside it.",
  source = "arXiv:1503.02531, arXiv:2306.13649", options = {
    temperature = 1.0, hard = 0.0, top = { "integer", default = 0, min = 0 },
    divergence = { "string", default = "forward", one_of = cab.divergence.kinds },
  },
}

function soft:loss(_, batch)
  if batch.head then
    return batch.head { ce = self.hard, kl = 1, temperature = self.temperature, divergence = self.divergence, largest = self.top }
  end
  local loss = cab.divergence.of(batch.logits, cab.divergence.largest(batch.teacher, self.top), self)
  if self.hard == 0 then return loss end
  return loss + self.hard * cab.op.cross_entropy(batch.logits, batch.labels, batch.target)
end
return soft
