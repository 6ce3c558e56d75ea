local cab = require "cab"
local copy = cab.strategy {
  about = "Attention transfer by copy, of ViT students: their layers use the teacher's attention map, or its q, k or v, in training and "
    .. "evaluation; soft distillation beside it. The trained student needs its teacher.",
  source = "arXiv:2411.09702",
  options = cab.strategy.options(cab.strategies.soft.options, { what = { "string", default = "attention", one_of = { "attention", "q", "k", "v" } } }),
}

function copy:build(pairs) pairs:lend(self.what) end
copy.loss = cab.strategies.soft.loss
return copy
