local charts = require "cab.charts"
return {
  about = "Draw runs: curves, similarity with the teacher, attention maps, layer maps.",
  examples = {
    { "cab plot runs/quickstart-1", "accuracy of its runs over steps, as accuracy.png" },
    { "cab plot runs/quickstart-1 --what similarity --out similarity.svg", "implicit attention against the teacher's, layer by layer" },
    { "cab plot runs/quickstart-1/bridge --what attention --layer 2", "maps of each head over the test images" },
    { "cab plot runs/* --what fraction", "accuracy against the share of the data" },
  },
  arguments = { { "runs", "Run folders, or folders of runs.", many = true, least = 1, of = "run" } },
  options = {
    { "--what", "What to draw: " .. table.concat(charts.names(), ", ") .. ".", value = "CHART", default = "accuracy", of = charts.names() },
    { "--out", "The .png or .svg to write. Default: CHART.png.", value = "FILE", of = "file" },
    { "--images", "Of attention and similarity: so many test images.", value = "N", kind = "integer" },
    { "--layer", "Of attention: this layer of the student. Default: all, the mean over heads.", value = "N", kind = "integer" },
  },
  common = { "quiet" },
  run = function(o) return charts.main(o) end,
}
