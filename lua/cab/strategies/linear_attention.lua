local cab = require "cab"
local linear = cab.strategy {
  about = "Two-step linearisation, step 1: feature maps of the teacher's q and k, a head each, under which linear attention gives what "
    .. "softmax attention gives. Trains the maps alone; `linearised` (kind linear) and the map `learned` of bridges use them.",
  source = "arXiv:2604.14191, arXiv:2402.04347", needs = { teacher = { "q", "k", "v" } }, apart = true, options = {
    kind = { "string", default = "hedgehog", one_of = cab.features.kinds }, count = { "integer", default = 0, min = 0 }, -- of features a head; 0: as it is wide
    distance = { "string", default = "cosine", one_of = cab.features.distances },
  },
}

function linear:build(pairs)
  local count = self.count == 0 and pairs.dim // pairs.heads or self.count
  pairs:features(self, { kind = self.kind, features = count, distance = self.distance })
end
function linear:loss(pairs) return pairs.feature_maps:loss(pairs) end
return linear
