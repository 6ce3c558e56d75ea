local cab = require "cab"
local reuse = cab.strategy {
  about = "The student begins with its teacher's weights (x <- V, B <- K, C <- Q, out_proj <- the attention's output, MLP, norms, "
    .. "embedding, head), then soft distillation. What does not fit is told, or an error with `strict`.",
  source = "arXiv:2408.15237", options = {
    parts = { "table", default = cab.reuse.parts }, strict = false, conv = { "string", default = "keep", one_of = { "identity", "keep" } },
    gate = { "string", default = "keep", one_of = { "keep", "open" } },
  },
}
for name, rule in pairs(cab.strategies.soft.options) do reuse.options[name] = rule end

function reuse:begin(pairs) return cab.reuse.words(cab.reuse.copy(pairs, self)) end
reuse.loss = cab.strategies.soft.loss
return reuse
