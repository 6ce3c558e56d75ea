local cab = require "cab"
local reuse = cab.strategy {
  about = "The student begins with its teacher's weights (x <- V, B <- K, C <- Q, out_proj <- the attention's output, MLP, norms, "
    .. "embedding, head), then soft distillation. What does not fit is told, or an error with `strict`.",
  source = "arXiv:2408.15237", needs = cab.reuse.needs, options = cab.strategy.options(cab.reuse.options, cab.strategies.soft.options),
}

function reuse:begin(pairs) return cab.reuse.words(cab.reuse.copy(pairs, self)) end
reuse.loss = cab.strategies.soft.loss
return reuse
