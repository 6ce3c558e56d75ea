-- cab run tests/tokenizer_compare.lua DIR: the files of tests/reference/tokenizer.py COUNT SEED DIR against this tokenizer.
local core = require "cab.core"
local dir = arg[1] or error "usage: tokenizer_compare.lua DIR"
local open, right, wrong = {}, {}, {}
for line in io.lines(dir .. "/cases.jsonl") do
  local case = core.json_decode(line)
  local k = case.kind
  open[k] = open[k] or core.tokenizer { file = dir .. "/" .. k .. ".json" }
  local ids = open[k]:encode(case.text)
  local got = ids:count() > 0 and ids:totable() or {}
  if table.concat(got, ",") == table.concat(case.ids, ",") then
    right[k] = (right[k] or 0) + 1
  else
    wrong[k] = (wrong[k] or 0) + 1
    if wrong[k] <= 5 then print(k, line, core.json_encode(core.json_array(got))) end
  end
end
for k in pairs(open) do print(("%-8s %d equal, %d different"):format(k, right[k] or 0, wrong[k] or 0)) end
