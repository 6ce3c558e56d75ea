local cab = require "cab"
local op = cab.op
local distill = cab.strategy {
  about = "Attention transfer by distillation, of ViT students: cross-entropy of each row of their attention maps from the teacher's, "
    .. "all layers but the last `leave` of the student. Published with weight 3.",
  source = "arXiv:2411.09702", needs = { student = { "attention" }, teacher = { "attention" } },
  options = { leave = { "integer", default = 0, min = 0 } },
}

function distill:loss(pairs)
  return pairs:layer_mean(function(i, s, t)
    if i > pairs.layers - self.leave then return nil end
    local mine, its = cab.mixing.same_heads(s.attention, t.attention)
    local l = mine:size(4)
    local target = its:dtype() == "bf16" and its:to "f32" or its
    return op.cross_entropy(op.log(mine + 1e-30):reshape(mine:count() // l, l), nil, target:reshape(its:count() // l, l))
  end)
end
return distill
