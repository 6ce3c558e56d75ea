local cab = require "cab"
local linearised = cab.strategy {
  about = "Two-step linearisation, step 2: a Mamba-2 begins as the linear attention that an earlier stage learned (B <- phi(K), C <- "
    .. "phi(Q), identity convolution, open gate; the rest as weight_reuse), then soft distillation.",
  source = "arXiv:2604.14191", needs = cab.reuse.needs,
  options = cab.strategy.options(cab.reuse.options, cab.strategies.soft.options, { conv = "identity", gate = "open" }),
}

function linearised:build(pairs)
  if pairs.feature_maps and pairs.feature_maps.kind == "linear" then return end
  cab.options.fail(2, "linearised", "linearised needs an earlier stage with { \"linear_attention\", kind = \"linear\", count = STATE }")
end
function linearised:begin(pairs)
  return cab.reuse.words(cab.reuse.copy(pairs, { parts = self.parts, strict = self.strict, conv = self.conv, gate = self.gate,
    features = pairs.feature_maps }))
end
linearised.loss = cab.strategies.soft.loss
return linearised
