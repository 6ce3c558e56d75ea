--- A small GPT-2 reads the embedded novel eight times; Phi-Mamba students read it once, by hard labels, by soft labels, and with the
--- attention bridge. Perplexity of the novel's end, which none has read. data.train=FILE takes another text. arXiv:2510.19266,
--- arXiv:2408.10189.
local cab = require "cab"
local vocabulary, length = "gpt2:767", 128 -- the 1024 ids of the first merges
local weights = "runs/shakespeare-teacher.safetensors"
local function gpt2(from) return cab.models.gpt2 { dim = 128, depth = 4, heads = 4, positions = length, weights = from } end
local taught = gpt2(weights)
return cab.compare {
  sample = "She had been",
  base = {
    data    = cab.data.text { tokenizer = vocabulary, length = length },
    student = cab.models.phi_mamba { dim = 128, depth = 4, heads = 4, state = 16 },
    optim   = { "adamw", lr = 2e-3, weight_decay = 0.1, schedule = "cosine", warmup = "5 %", clip = 1 },
    batch   = 8, seed = 0,
  },
  runs = {
    { name = "teacher", student = gpt2(), stages = { { loss = { vanilla = 1 }, epochs = 8 } }, export = weights },
    { name = "vanilla", stages = { { loss = { vanilla = 1 }, epochs = 1 } } },
    { name = "soft",    teacher = taught, stages = { { loss = { soft = { weight = 1, hard = 1 } }, epochs = 1 } } },
    { name = "bridge",  teacher = taught, stages = { { loss = { soft = { weight = 1, hard = 1 }, align = { "attention_bridge", weight = 1 } }, epochs = 1 } } },
  },
}
