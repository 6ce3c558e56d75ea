return {
  about = "Evaluate the best weights of a run, or of each run of a comparison, again: top-1, top-5, loss or perplexity, R2 of the bridge.",
  examples = {
    { "cab eval runs/quickstart-1", "" },
    { "cab eval runs/phi_mamba-1 --task piqa=piqa.jsonl --task lambada=lambada.jsonl", "acc, acc_norm, perplexity" },
    { "cab eval runs/shakespeare-1 --lengths 32", "perplexity of the same tokens in windows of up to 32 times the training length" },
  },
  arguments = { { "run", "Run folder, or the folder of a comparison.", of = "run" }, require "cab.commands".overrides },
  options = {
    { "--task", "Of language models, also a task: lambada, piqa, arc_easy, arc_challenge, hellaswag, winogrande.", value = "NAME=FILE.jsonl",
      repeated = true },
    { "--lengths", "Of language models, also perplexity in windows of 1, 2, 4, .. N times the training length.", value = "N", kind = "integer" },
  },
  common = { "json" },
  run = function(o) return require "cab.evaluate".main(o) end,
}
