local cab = require "cab"
local hidden = cab.strategy {
  about = "The student's hidden states after each layer, lifted onto the teacher's: by mean square under `map`, or by cosine.",
  source = "arXiv:1412.6550", needs = { student = { "hidden" }, teacher = { "hidden" } },
  options = cab.strategy.options(cab.bridges.options, { distance = { "string", default = "mse", one_of = { "mse", "cosine" } }, depth = 1 }),
}

function hidden:build(pairs) self.projector = cab.bridges.list(pairs, "hidden", self) end
function hidden:loss(pairs)
  return pairs:mean(function(i, s, t)
    if not s:has "hidden" then return nil end
    local lift, x = self.projector[i], self.detach and s.hidden:detach() or s.hidden
    if self.distance == "cosine" then return cab.op.cosine(lift(x), t:mapped("hidden", self.map)) end
    return self:bridge { lift, x, t:target("hidden", self.map) }
  end)
end
return hidden
