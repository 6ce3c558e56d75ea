local commands = require "cab.commands"
return {
  about = "Go on with a run, or a comparison's runs, from the newest checkpoint. Its recipe must be what it was.",
  examples = {
    { "cab resume runs/quickstart-1", "" },
    { "cab resume runs/my-1 --latest-good", "from an older checkpoint if the newest is damaged" },
  },
  arguments = { { "run", "Run folder.", of = "run" } },
  options = {
    { "--latest-good", "Take an older checkpoint if the newest is damaged." },
    { "--chart", "Below the bar of a terminal, a chart of the loss so far." },
  },
  common = { "quiet", "json" },
  notes = commands.exit_codes,
  run = function(o) return require "cab.runs".resume(o.run, o) end,
}
