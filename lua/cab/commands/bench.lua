return {
  about = "Measure what a training step of a recipe costs on this machine, and where the time goes.",
  examples = {
    { "cab bench", "the quickstart's bridge run" },
    { "cab bench recipes/vim_tiny_cifar.lua batch=128 precision=bf16 --steps 50", "" },
  },
  arguments = { { "recipe", "Recipe file; of a comparison its last run counts.", of = "recipe", optional = true }, require "cab.commands".overrides },
  options = { { "--steps", "Steps to measure.", value = "N", kind = "integer", default = 20 } },
  common = { "json" },
  run = function(o) return require "cab.bench".main(o) end,
}
