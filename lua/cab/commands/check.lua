return {
  about = "Build what a recipe says and train nothing: which parameters and taps each loss term reaches, memory by class, time.",
  examples = {
    { "cab check recipes/quickstart.lua", "" },
    { "cab check my.lua stages.1.loss.align=10 batch=256", "the same with other values" },
  },
  arguments = { { "recipe", "Recipe file.", of = "recipe" }, require "cab.commands".overrides },
  common = { "json" },
  notes = "exit code 2 where an edge that a loss declares carries no gradient, or a stage trains nothing; 71 where a step does not fit in memory",
  run = function(o) return require "cab.checkup".main(o) end,
}
