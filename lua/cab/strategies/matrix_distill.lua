local cab = require "cab"
local distill = cab.strategy {
  about = "Attention transfer by distillation, of Mamba students: the implicit attention against the teacher's maps, in tiles. "
    .. "cross_entropy: of rows of |M| that sum to 1; cosine: of rows; mse: of all entries.",
  source = "arXiv:2411.09702, arXiv:2403.01590", needs = { student = { "mixing" }, teacher = { "q", "k" } },
  options = { distance = { "string", default = "cosine", one_of = cab.mixing.distances }, leave = { "integer", default = 0, min = 0 } },
}

function distill:loss(pairs)
  return pairs:layer_mean(function(i, s, t)
    if i > pairs.layers - self.leave then return nil end
    return cab.mixing.distance(s:mixing(), t:mixing(), self.distance)
  end)
end
return distill
