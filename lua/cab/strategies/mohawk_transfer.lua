local cab = require "cab"
local transfer = cab.strategy {
  about = "MOHAWK, stage 3: what is not the mixer (embedding, norms, MLP, head, kept attention) becomes the teacher's, then KL + `hard` CE end to end. "
    .. "Layers are one to one in the paper.",
  source = "arXiv:2408.10189, section 3.3", needs = cab.reuse.needs,
  options = cab.strategy.options(cab.reuse.options, cab.strategies.soft.options, { parts = { "attention", "mlp", "norms", "embedding", "head" }, hard = 1.0 }),
}

function transfer:begin(pairs) return cab.reuse.words(cab.reuse.copy(pairs, self)) end
transfer.loss = cab.strategies.soft.loss
return transfer
