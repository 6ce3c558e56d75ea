--- Phi-Mamba of 123 M parameters from distilGPT2: the bridge alone, then soft labels with next-token cross-entropy. The language
--- setting of arXiv:2510.19266. preset=soft: soft labels alone; preset=4B: twice the tokens; what it is compared with: preset=reuse
--- (the teacher's weights), preset=mohawk (three stages), preset=linearised (a linear attention first).
---
--- The published code aligns with raw q and k and an MLP as wide as the teacher; `align` here does too (map = "none"). On a GPU
--- add precision=bf16.
local cab = require "cab"
local length = 1024
return cab.recipe {
  data     = cab.data.text { train = "data/openwebtext.bin", length = length, holdout = 0.001 },
  teacher  = cab.models.gpt2 { size = "distil", weights = "data/distilgpt2.safetensors" },
  student  = cab.models.phi_mamba { size = "123m", chunk = 128 },
  stages   = {
    { loss = { align = { "attention_bridge", hidden = 768, map = "none" } }, tokens = "200M" },
    { loss = { soft = { weight = 1, hard = 1 } }, tokens = "2B" },
  },
  optim    = { "adamw", lr = 2e-5, weight_decay = 0.1, schedule = "cosine", warmup = "10 %", clip = 1 },
  batch    = 32, seed = 0,
  eval     = { every = "50M tokens", tokens = 250000, stride = 512 },
  presets  = {
    soft   = function(r) table.remove(r.stages, 1) end,
    ["4B"] = function(r) r.stages[#r.stages].tokens = "4B" end,
    reuse  = function(r) r.stages = { { loss = { weight_reuse = { weight = 1, hard = 1 } }, tokens = "2B" } } end,
    mohawk = function(r)
      r.stages = { { loss = { mohawk_orientation = 1 }, tokens = "80M" }, { loss = { mohawk_hidden = 1 }, tokens = "160M" },
        { loss = { mohawk_transfer = 1 }, tokens = "2B" } }
    end,
    linearised = function(r)
      r.stages = { { loss = { linear_attention = { weight = 1, kind = "linear", count = 64 } }, tokens = "200M" },
        { loss = { linearised = { weight = 1, hard = 1 } }, tokens = "2B" } }
    end,
  },
  missing  = {
    data = "Make it of any JSONL or text: cab tokenize FILES -o data/openwebtext.bin; then: cab run recipes/phi_mamba_distilgpt2.lua",
    teacher = "Put model.safetensors of distilgpt2 there (cab convert, if it came as another format); "
      .. "then: cab run recipes/phi_mamba_distilgpt2.lua",
  },
}
