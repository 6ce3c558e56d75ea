local tools = require "cab.weight_tools"
return {
  about = "Compare two weight files, of any formats and layouts of one model.",
  examples = { { "cab diff best.safetensors published.pth --tolerance 1e-6", "" } },
  arguments = { { "a", tools.formats .. ".", of = "file" }, { "b", "The same.", of = "file" } },
  options = { tools.key, { "--tolerance", "Largest difference of two values that counts as none.", value = "X", kind = "number", default = 0 } },
  common = { "json" },
  notes = "A NaN equals nothing. Dtypes are not compared.\nexit codes: 0 equal, 1 different, else " .. tools.codes:match "2 usage.*",
  run = tools.diff,
}
