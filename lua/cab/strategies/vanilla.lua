local cab = require "cab"
local vanilla = cab.strategy {
  about = "Hard labels alone: cross-entropy, with soft targets where the batch was mixed; of text, with the next id.",
  source = "the student's own recipe", options = { smoothing = 0.0 },
}

function vanilla:loss(_, batch)
  if batch.head then return batch.head { smoothing = self.smoothing } end
  if batch.labels then return cab.op.cross_entropy(batch.logits, batch.labels, nil, { smoothing = self.smoothing }) end
  local target, s = batch.target, self.smoothing
  if s > 0 then target = cab.op.affine(target, 1 - s, s / target:size(2)) end -- as labels are smoothed, and then mixed
  return cab.op.cross_entropy(batch.logits, nil, target)
end
return vanilla
