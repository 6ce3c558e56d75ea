local cab = require "cab"
local transfer = cab.strategy {
  about = "MOHAWK, stage 3: what is not the mixer (embedding, norms, MLP, head) becomes the teacher's, then KL + `hard` CE end to end. "
    .. "Layers are one to one in the paper.",
  source = "arXiv:2408.10189, section 3.3", options = {
    parts = { "table", default = { "mlp", "norms", "embedding", "head" } }, strict = false, conv = "keep", gate = "keep",
  },
}
for name, rule in pairs(cab.strategies.soft.options) do transfer.options[name] = rule end
transfer.options.hard = 1.0

function transfer:begin(pairs) return cab.reuse.words(cab.reuse.copy(pairs, self)) end
transfer.loss = cab.strategies.soft.loss
return transfer
