local cab = require "cab"
local bridge = cab.strategy {
  about = "Attention Bridge: a small module lifts Mamba's B, C onto the teacher's K, Q. `detach`: the loss never reaches the "
    .. "student, as in the published code; `frozen`: a random bridge; both are ablations.",
  source = "arXiv:2510.19266", needs = cab.bridges.needs, options = cab.strategy.options(cab.bridges.options, {
    onto = { "table", default = { B = "k", C = "q" } }, control = { "string", default = "none", one_of = cab.pairs.controls },
  }),
}

function bridge:build(pairs)
  for _, tap in ipairs(self.needs.student) do
    self["proj_" .. tap] = cab.bridges.list(pairs, tap, self)
    if self.control == "random" then pairs:randomise(self.onto[tap]) end
  end
  if self.map == "learned" then pairs:features(self) end
end
function bridge:loss(pairs)
  local loss = pairs:mean(function(i, s, t) -- t in the token order of student entry i
    return self:bridge(table.unpack(cab.bridges.edges(self, i, s, t)))
  end)
  return self.map == "learned" and loss + self.features:loss(pairs) or loss
end
return bridge
