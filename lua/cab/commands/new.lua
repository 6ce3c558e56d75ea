local new = require "cab.new"
return {
  about = "Write a small commented file that runs: a recipe, a strategy or a model to start from.",
  examples = {
    { "cab new recipe first", "first.lua; cab run first.lua trains it" },
    { "cab new strategy mine", "mine.lua; cab run mine.lua tries it for forty steps" },
    { "cab new model lina", "lina.lua, a student of your own; cab run lina.lua" },
  },
  arguments = { { "kind", "recipe, strategy or model.", of = new.kinds }, { "name", "Of the file, without .lua; may have folders." } },
  common = { "quiet" },
  run = function(o)
    local path = new.write(o.kind, o.name)
    if not o.quiet then print(("%s; next: cab run %s"):format(path, path)) end
    return 0
  end,
}
