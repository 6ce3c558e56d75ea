--- Hard labels alone: cross-entropy, with soft targets where the batch was mixed. Source: the student's own recipe.
local cab = require "cab"
local vanilla = cab.strategy { needs = {}, options = { smoothing = 0.0 } }

function vanilla:loss(_, batch)
  return cab.op.cross_entropy(batch.logits, batch.labels, batch.target, { smoothing = self.smoothing })
end
return vanilla
