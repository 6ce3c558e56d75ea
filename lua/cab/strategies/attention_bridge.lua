--- Attention Bridge: a small MLP lifts Mamba's B, C onto the teacher's K, Q. Source: arXiv:2510.19266.
--- `detach` keeps the loss from the student, as the published code does: an ablation.
local cab = require "cab"
local nn = cab.nn
local bridge = cab.strategy {
  needs   = { teacher = { "q", "k" }, student = { "B", "C" } },
  options = { hidden = 128, map = "standard", depth = 2, detach = false },
}
function bridge:build(pairs)
  local function lift() return nn.mlp(pairs.state, self.hidden, pairs.dim, self.depth) end
  self.proj_B, self.proj_C = nn.list(pairs, lift), nn.list(pairs, lift)
end
function bridge:loss(pairs)
  local sum = 0
  for i, s, t in pairs:each() do
    local B, C = s.B, s.C
    if self.detach then B, C = B:detach(), C:detach() end
    sum = sum + self:bridge({ self.proj_B[i], B, t:target("k", self.map) }, { self.proj_C[i], C, t:target("q", self.map) })
  end
  return sum / pairs.layers
end
return bridge
