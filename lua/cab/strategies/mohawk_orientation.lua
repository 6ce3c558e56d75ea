local cab = require "cab"
local orientation = cab.strategy {
  about = "MOHAWK, stage 1: the teacher's layer input into the student's mixer; Frobenius distance of its mixing matrix from the "
    .. "attention, `heads` each or their mean (auto: each where both have as many), in tiles; mean over layers.",
  source = "arXiv:2408.10189, section 3.1", needs = { teacher = { "q", "k", "input" } }, apart = true,
  options = { heads = { "string", default = "auto", one_of = { "auto", "each", "mean" } } },
}

function orientation:loss(pairs)
  return pairs:layer_mean(function(_, s, t)
    local _, taps = s:forward(t.input, "mixing")
    return cab.mixing.frobenius(s:mixing(taps), t:mixing(), self.heads)
  end)
end
return orientation
