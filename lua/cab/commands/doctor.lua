local core = require "cab.core"
return {
  about = "What a report of a problem needs: versions, processor, threads, GPU, optional programs.",
  examples = { { "cab doctor", "" }, { "cab doctor --json", "" } },
  common = { "json" },
  run = function(o)
    local facts = core.doctor()
    local devices, why = core.devices()
    local rows = {}
    for _, name in ipairs(require "cab.options".names(facts)) do rows[#rows + 1] = { name, facts[name] } end
    for _, d in ipairs(devices) do rows[#rows + 1] = { d.name, d.chip } end
    if #devices == 1 then rows[#rows + 1] = { "cuda", "no: " .. why } end
    rows[#rows + 1] = { "gnuplot", require "cab.plot".gnuplot() and "yes" or "no: charts are skipped" }
    rows[#rows + 1] = { "line editing", core.editline and core.editline.available() and "libedit" or "no: plain input" }
    if o.json then
      local all = {}
      for _, r in ipairs(rows) do all[r[1]] = r[2] end
      print(core.json_encode(all))
      return 0
    end
    for _, r in ipairs(rows) do print(("%-16s %s"):format(r[1], tostring(r[2]))) end
    return 0
  end,
}
