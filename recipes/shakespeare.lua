--- A small GPT-2 learns the embedded novel; Phi-Mamba students learn from it by soft labels, without and with the attention bridge.
--- Perplexity of the held-out end of the text. data.train=FILE takes another text. arXiv:2510.19266, arXiv:2408.10189.
local cab = require "cab"
local vocabulary, length = "gpt2:767", 128 -- the 1024 ids of the first merges
local teacher = { dim = 128, depth = 4, heads = 4, positions = length }
local weights = "runs/shakespeare-teacher.safetensors"
local taught = cab.models.gpt2 { dim = 128, depth = 4, heads = 4, positions = length, weights = weights }
return cab.compare {
  sample = "She had been",
  base = {
    data    = cab.data.text { tokenizer = vocabulary, length = length },
    student = cab.models.phi_mamba { dim = 128, depth = 4, heads = 4, state = 16 },
    optim   = { "adamw", lr = 2e-3, weight_decay = 0.1, schedule = "cosine", warmup = "5 %", clip = 1 },
    batch   = 8, seed = 0,
  },
  runs = {
    { name = "teacher", student = cab.models.gpt2(teacher), stages = { { loss = { vanilla = 1 }, epochs = 8 } }, export = weights },
    { name = "vanilla", stages = { { loss = { vanilla = 1 }, epochs = 4 } } },
    { name = "soft",    teacher = taught, stages = { { loss = { soft = { weight = 1, hard = 1 } }, epochs = 4 } } },
    { name = "bridge",  teacher = taught, stages = { { loss = { soft = { weight = 1, hard = 1 }, align = { "attention_bridge", weight = 1 } }, epochs = 4 } } },
  },
}
