local cab = require "cab"
local linearised = cab.strategy {
  about = "Two-step linearisation, step 2: a Mamba-2 begins as the linear attention that an earlier stage learned (B <- phi(K), C <- "
    .. "phi(Q), identity convolution, open gate; the rest as weight_reuse), then soft distillation.",
  source = "arXiv:2604.14191", options = {
    parts = { "table", default = cab.reuse.parts }, strict = false, conv = "identity", gate = "open",
  },
}
for name, rule in pairs(cab.strategies.soft.options) do linearised.options[name] = rule end

function linearised:begin(pairs)
  local maps = pairs.feature_maps
  if not maps or maps.kind ~= "linear" then
    cab.options.fail(2, "linearised", "linearised needs an earlier stage with { \"linear_attention\", kind = \"linear\", count = STATE }")
  end
  return cab.reuse.words(cab.reuse.copy(pairs, { parts = self.parts, strict = self.strict, conv = self.conv, gate = self.gate, features = maps }))
end
linearised.loss = cab.strategies.soft.loss
return linearised
