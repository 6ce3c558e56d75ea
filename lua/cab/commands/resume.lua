local commands = require "cab.commands"
return {
  about = "Go on with a run, or a comparison's runs, from the newest checkpoint. Its recipe must be what it was.",
  examples = {
    { "cab resume runs/quickstart-1", "" },
    { "cab resume runs/my-1 --latest-good", "from an older checkpoint if the newest is damaged" },
    { "cab resume runs/my-1 --replay-step 412", "was a bad number in the data, or in the hardware?" },
  },
  arguments = { { "run", "Run folder.", of = "run" } },
  options = {
    { "--latest-good", "Take an older checkpoint if the newest is damaged." },
    { "--replay-step", "Only compute this step again, twice, from the checkpoint before it, and compare: equal (0), or code 76, which says whether "
      .. "data or hardware is to blame. The run stays as it is.", value = "N", kind = "integer" },
    { "--chart", "Below the bar of a terminal, a chart of the loss so far." },
  },
  common = { "quiet", "json" },
  notes = commands.exit_codes,
  run = function(o)
    if o.replay_step then return require "cab.replay".main(o.run, o.replay_step, o) end
    return require "cab.runs".resume(o.run, o)
  end,
}
