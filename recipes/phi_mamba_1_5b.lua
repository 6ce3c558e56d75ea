--- Phi-Mamba of 1.5 B parameters from Phi-1.5: the bridge alone, then soft labels. Sizes of arXiv:2408.10189, the method of
--- arXiv:2510.19266. preset=hybrid keeps the attention of four layers.
--- On a GPU add precision=bf16.
local cab = require "cab"
return cab.recipe {
  data     = cab.data.text { train = "data/corpus_phi.bin", tokenizer = "phi", length = 1024, holdout = 0.001 },
  teacher  = cab.models.phi { size = "1.5", vocab = 51200, weights = "data/phi_1_5.safetensors" },
  student  = cab.models.phi_mamba { size = "1.5b", vocab = 51200, chunk = 128 },
  stages   = {
    { loss = { align = { "attention_bridge", hidden = 2048, map = "none" } }, tokens = "200M" },
    { loss = { soft = { weight = 1, hard = 1 } }, tokens = "2B" },
  },
  optim    = { "adamw", lr = 2e-5, weight_decay = 0.1, schedule = "cosine", warmup = "10 %", clip = 1 },
  batch    = 32, seed = 0,
  eval     = { every = "50M tokens", tokens = 250000, stride = 512 },
  presets  = { hybrid = function(r) r.student.attention = { 6, 12, 18, 24 } end },
  missing  = {
    data = "Make it of any JSONL or text: cab tokenize FILES -o data/corpus_phi.bin --tokenizer phi; then: cab run recipes/phi_mamba_1_5b.lua",
    teacher = "Put the safetensors file of microsoft/phi-1_5 there; then: cab run recipes/phi_mamba_1_5b.lua",
  },
}
