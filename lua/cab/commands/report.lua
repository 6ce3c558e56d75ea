return {
  about = "Write one page of HTML about runs: table, curves, similarity, maps, recipes, cost to reach the teacher's quality.",
  examples = {
    { "cab report runs/quickstart-1", "as report.html; needs nothing else, opens anywhere" },
    { "cab report runs/a-1 runs/b-2 --out both.html --title 'a and b' --tensorboard events", "" },
  },
  arguments = { { "runs", "Run folders, or folders of runs.", many = true, least = 1, of = "run" } },
  options = {
    { "--out", "The page to write.", value = "FILE", default = "report.html", of = "file" },
    { "--title", "Of the page.", value = "TEXT" },
    { "--images", "Similarity is taken over so many test records. Default: 100.", value = "N", kind = "integer" },
    { "--no-models", "Leave out what needs models and data: similarity, maps, the teacher's quality." },
    { "--tensorboard", "Also write the metrics as event files of TensorBoard.", value = "DIR", of = "folder" },
  },
  common = { "quiet" },
  run = function(o) return require "cab.report".main(o) end,
}
