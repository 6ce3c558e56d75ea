--- Do students keep reading beyond the length that they were trained on? Perplexity of the embedded novel's end in windows of 1 to 8
--- training lengths, by method. The teacher first: cab run recipes/shakespeare.lua. 12 runs of about three minutes on two cores.
local cab = require "cab"
local length = 128
local function steps(loss) return { { loss = loss, epochs = 2 } } end
local hard = { weight = 1, hard = 1 }
return cab.study {
  about = "Length generalisation: perplexity by the window's length",
  base = {
    data    = cab.data.text { tokenizer = "gpt2:767", length = length },
    teacher = cab.models.gpt2 { dim = 128, depth = 4, heads = 4, positions = length, weights = "runs/shakespeare-teacher.safetensors" },
    student = cab.models.phi_mamba { dim = 128, depth = 4, heads = 4, state = 16 },
    optim   = { "adamw", lr = 2e-3, weight_decay = 0.1, schedule = "cosine", warmup = "5 %", clip = 1 },
    stages  = steps { vanilla = 1 }, batch = 8, seed = 0,
    eval    = { lengths = 8 },
    missing = { teacher = "First: cab run recipes/shakespeare.lua" },
  },
  arms = {
    { name = "vanilla" },
    { name = "soft", stages = steps { soft = hard } },
    { name = "bridge", stages = steps { soft = hard, align = { "attention_bridge", weight = 1 } } },
    { name = "hidden", stages = steps { soft = hard, align = { "attention_bridge", weight = 1, onto = { B = "hidden", C = "hidden" } } } },
  },
  metric = "lengths", seeds = { 0, 1, 2 }, against = "soft",
}
