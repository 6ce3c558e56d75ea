local tools = require "cab.weight_tools"
return {
  about = "List the tensors of a weight file: names, shapes, formats, ranges, NaN.",
  examples = { { "cab inspect checkpoint.pth --key model_ema", "" } },
  arguments = { { "file", tools.formats .. ".", of = "file" } },
  options = { tools.key },
  common = { "json" },
  notes = "min and max are of the finite values, as they are stored.\n" .. tools.codes,
  run = tools.inspect,
}
