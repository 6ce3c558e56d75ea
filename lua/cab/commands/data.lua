local commands = require "cab.commands"
local function act(name)
  return function(o)
    local text = require "cab.data_tools"[name](require "cab.runs".resolved(o.recipe, o.overrides), o)
    if not o.quiet then print(text) end
    return 0
  end
end
local recipe = { "recipe", "Recipe file.", of = "recipe" }
local show = {
  about = "Write the picture of a training record that the network sees in an epoch.",
  examples = { { "cab data show my.lua --sample 17 --epoch 3", "as show.png" } },
  arguments = { recipe, commands.overrides },
  options = {
    { "--sample", "Number of the record, from 1.", value = "N", kind = "integer", default = 1 },
    { "--epoch", "The epoch, from 0.", value = "N", kind = "integer", default = 0 },
    { "--out", "The PNG to write.", value = "FILE", default = "show.png", of = "file" },
  },
  common = { "quiet" },
  run = act "show",
}
local subset = {
  about = "Write a list of a seeded share of each class; 1 % lies in 5 % lies in 10 %.",
  examples = { { "cab data subset my.lua --fraction 0.1 --out ten.txt", "a list for data.list" } },
  arguments = { recipe, commands.overrides },
  options = {
    { "--fraction", "Share of each class, above 0, at most 1.", value = "X", kind = "number", required = true },
    { "--seed", "Default: data.seed of the recipe.", value = "N", kind = "integer" },
    { "--out", "The list to write.", value = "FILE", required = true, of = "file" },
  },
  common = { "quiet" },
  run = act "subset",
}
return {
  about = "Look at the data of a recipe, or list a part of it.",
  examples = { show.examples[1], subset.examples[1] },
  actions = { show = show, subset = subset },
}
