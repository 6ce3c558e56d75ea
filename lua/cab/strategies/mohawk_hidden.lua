local cab = require "cab"
local op = cab.op
local hidden = cab.strategy {
  about = "MOHAWK, stage 2: the teacher's layer input into the student's block; L2 distance of the outputs, mean over tokens and layers.",
  source = "arXiv:2408.10189, section 3.2", needs = { teacher = { "input", "hidden" } }, apart = true, options = {},
}

function hidden:loss(pairs)
  return pairs:layer_mean(function(_, s, t)
    local off = op.square(s:forward(t.input) - t.hidden)
    return op.mean(op.sqrt(op.sum(off, { dim = 3 }) + 1e-30))
  end)
end
return hidden
