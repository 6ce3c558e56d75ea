return {
  about = "Compare finished runs: those that differ only in their seed are one row, with mean, spread and interval.",
  examples = {
    { "cab compare runs/quickstart-1 runs/quickstart-2", "" },
    { "cab compare runs/a-* --metric loss", "" },
  },
  arguments = { { "runs", "Run folders, or folders of runs.", many = true, least = 1, of = "run" } },
  options = { { "--metric", "Of the last evaluation.", value = "NAME", of = { "top1", "top5", "loss", "perplexity" } } },
  common = { "json" },
  run = function(o)
    local rows, text = require "cab.grouped".compare(o.runs, o.metric)
    print(o.json and require "cab.core".json_encode(require "cab.runs".plain(rows)) or text)
  end,
}
