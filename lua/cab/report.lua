--- Tables of text, and `cab report`: runs as one page of HTML that needs nothing else.
local core = require "cab.core"
local check = require "cab.check"
local folders = require "cab.folder"
local M = {}

--- Lines of a table: header and rows of strings, numbers right-aligned.
---@param header string[]
---@param rows string[][]
---@return string
function M.table(header, rows)
  local width, lines = {}, {}
  for _, row in ipairs { header, table.unpack(rows) } do
    for i, text in ipairs(row) do width[i] = math.max(width[i] or 0, utf8.len(text) or #text) end
  end
  for _, row in ipairs { header, table.unpack(rows) } do
    local cells = {}
    for i, text in ipairs(row) do
      local pad = (" "):rep(width[i] - (utf8.len(text) or #text))
      cells[i] = i == 1 and text .. pad or pad .. text
    end
    lines[#lines + 1] = table.concat(cells, "   "):gsub("%s+$", "")
  end
  return table.concat(lines, "\n")
end

-- ---- what the page is made of --------------------------------------------------------------------------------------------

-- A run's files: recipe, manifest, result (empty where it has not ended), evaluations, seconds of training by step.
local function read(run)
  local function json(name)
    local path = ("%s/%s.json"):format(run.path, name)
    return require "lfs".attributes(path) and check.decode(folders.read(path)) or {}
  end
  run.saved, run.result, run.manifest = json "recipe", json "result", folders.manifest(run.path)
  run.evals, run.seconds = {}, {}
  for _, row in ipairs((folders.metrics(run.path .. "/metrics.jsonl"))) do
    if row.eval then run.evals[#run.evals + 1] = { step = row.step, eval = row.eval } end
  end
  local sum = 0
  for _, row in ipairs((folders.metrics(run.path .. "/speed.jsonl"))) do
    sum = sum + (row.seconds or 0)
    run.seconds[#run.seconds + 1] = { row.step, sum }
  end
  return run
end

--- Seconds of training up to a step, of what speed.jsonl has; nil where it has nothing.
local function seconds_at(run, step)
  local found
  for _, s in ipairs(run.seconds) do if s[1] <= step then found = s[2] end end
  return found
end

-- True if a is as good as b, for top-1 or, the other way round, perplexity.
local function reaches(metric, a, b) if metric == "perplexity" then return a <= b end return a >= b end

--- How long each run took to a share of its teacher's quality: of top-1 that share of it, of perplexity the teacher's divided by it.
---@param runs NamedRun[] read
---@param shares number[]
---@return string[] header
---@return string[][] rows
function M.cost(runs, shares)
  local header, rows = { "run", "teacher", "best" }, {}
  for i, s in ipairs(shares) do header[3 + i] = ("to %g %%"):format(100 * s) end
  for _, run in ipairs(runs) do
    local metric = run.evals[1] and run.evals[1].eval.perplexity and "perplexity" or "top1"
    local goal = run.teacher and run.teacher[metric]
    if goal then
      local best
      for _, e in ipairs(run.evals) do if not best or reaches(metric, e.eval[metric], best) then best = e.eval[metric] end end
      local row = { run.name, ("%.2f"):format(goal), best and ("%.2f"):format(best) or "" }
      for _, s in ipairs(shares) do
        local target, cell = metric == "top1" and goal * s or goal / s, "not reached"
        for _, e in ipairs(run.evals) do
          if reaches(metric, e.eval[metric], target) then
            local seconds = seconds_at(run, e.step)
            cell = ("step %d%s"):format(e.step, seconds and (", %.0f s"):format(seconds) or "")
            break
          end
        end
        row[#row + 1] = cell
      end
      rows[#rows + 1] = row
    end
  end
  return header, rows
end

local function number(form, x) return type(x) == "number" and form:format(x) or "" end

--- The table of runs.
---@return string[] header
---@return string[][] rows
function M.runs(runs)
  local text = false
  for _, run in ipairs(runs) do text = text or (run.evals[1] and run.evals[1].eval.perplexity ~= nil) end
  local header = { "run", text and "perplexity" or "top-1 %", text and "best" or "top-5 %", "loss", "R2", "steps", "seconds", "per second", "memory",
    "parameters", "seed", "device" }
  local rows = {}
  for i, run in ipairs(runs) do
    local last, r = run.evals[#run.evals] and run.evals[#run.evals].eval or {}, run.result
    local first, second = number("%.2f", last.top1), number("%.2f", last.top5)
    if text then first, second = number("%.2f", last.perplexity), r.best and number("%.2f", math.exp(-r.best)) or "" end
    local _, r2 = next(last.r2 or {})
    local steps = number("%d", r.steps)
    rows[i] = { run.name, first, second, number("%.4f", last.loss), number("%.3f", r2), steps ~= "" and steps or "not ended",
      number("%.0f", r.seconds), number("%.0f", r.images_per_second or r.tokens_per_second), r.peak and require "cab.term".bytes(r.peak) or "",
      number("%d", run.saved.parameters), number("%d", run.manifest.seed), tostring(run.manifest.device or "") }
  end
  return header, rows
end

-- What the teacher of a run has on the test data.
local function quality(run)
  local scope <close> = core.scope() -- luacheck: ignore scope
  local job = require "cab.job".build(require "cab.runs".recipe(run.path).resolved)
  if job.text then return require "cab.eval".perplexity(job, job.teacher) end
  return require "cab.eval".classify(job.teacher, job.data, { batch = job.recipe.eval.batch })
end

-- The teacher's own quality, each teacher once.
local function teachers(runs, say)
  local known = {}
  for _, run in ipairs(runs) do
    local spec = run.saved.recipe and run.saved.recipe.teacher
    if spec then
      local key = core.json_encode { spec, run.saved.recipe.data }
      if not known[key] then
        say("evaluating the teacher of " .. run.name)
        local ok, found = pcall(quality, run)
        if not ok and check.code(found) ~= 2 and check.code(found) ~= 74 then error(found, 0) end
        known[key] = ok and found or {} -- data or weights are not here any more
      end
      run.teacher = known[key]
    end
  end
end

-- ---- the page -------------------------------------------------------------------------------------------------------------

-- All charts that the runs have, as {title, svg}.
local function curves(runs)
  local out, charts, plot = {}, require "cab.charts", require "cab.plot"
  for _, what in ipairs { "accuracy", "perplexity", "loss", "terms", "fit", "weights", "shares", "conflict", "cosine", "gradient", "rate", "speed", "wait",
    "memory" } do
    local c, most = charts.kinds[what](runs), 0
    for _, line in ipairs(c and c.series or {}) do most = math.max(most, #line.points) end
    if most > 1 then
      local title = c.title
      c.title, c.size = nil, { 560, 340 }
      local svg, why = plot.svg(c)
      out[#out + 1] = { title, svg or why }
    end
  end
  return out
end

-- What needs models and data: similarity, layer maps, attention. A part that cannot be made says why.
local function insights(runs, o, say)
  local out, insight, plot = {}, require "cab.insight", require "cab.plot"
  local function chart(title, f)
    say(title)
    local ok, c, why = pcall(f)
    if not ok and check.code(c) ~= 2 and check.code(c) ~= 74 then error(c, 0) end
    if not ok then c, why = nil, tostring(c) end
    if c then
      c.title, c.size = nil, c.heat and { 460, 380 } or { 560, 340 }
      out[#out + 1] = { title, plot.svg(c) or "" }
    else out[#out + 1] = { title, nil, why } end
  end
  chart("similarity of the student's implicit attention with the teacher's attention, by layer",
    function() return insight.similarity(runs, { images = o.images or 100 }) end)
  for _, run in ipairs(runs) do
    if run.saved.recipe and run.saved.recipe.teacher then
      chart(("%s: CKA of hidden states of student and teacher, framed: the layer map"):format(run.name), function() return insight.map { run } end)
      run.job = nil
    end
  end
  say "attention maps"
  local png = os.tmpname() .. ".png"
  local ok, drawn, why = pcall(insight.attention, runs, png, { images = 2, cell = 64 })
  if not ok and check.code(drawn) ~= 2 and check.code(drawn) ~= 74 then error(drawn, 0) end
  if ok and drawn then
    local f <close> = io.open(png, "rb")
    out[#out + 1] = { "attention of the teacher and implicit attention of the students, mean over heads or channels, over test records", nil, nil, f:read "a" }
  else out[#out + 1] = { "attention maps", nil, ok and why or tostring(drawn) } end
  os.remove(png)
  os.remove((png:gsub("%.png$", "")))
  for _, run in ipairs(runs) do run.job = nil end
  return out
end

-- The keys in which the runs' recipes differ: header and a row a key.
local function differing(runs)
  local header, recipes, rows, of = { "key" }, {}, {}, require "cab.runs"
  for i, run in ipairs(runs) do header[i + 1], recipes[i] = run.name, run.saved.recipe or {} end
  for k, key in ipairs(of.varied(recipes)) do
    rows[k] = { key }
    for i, recipe in ipairs(recipes) do
      local value = of.at(recipe, key)
      local text = value == nil and "" or type(value) == "table" and core.json_encode(of.plain(value)) or tostring(value)
      rows[k][i + 1] = #text > 60 and text:sub(1, 57) .. "..." or text
    end
  end
  return header, rows
end

--- Writes the page.
---@param runs NamedRun[]
---@param path string
---@param o? table title, images, models (false: nothing that needs models and data), say (function)
---@return string path
function M.write(runs, path, o)
  o = o or {}
  local say = o.say or function() end
  for _, run in ipairs(runs) do read(run) end
  local page = require "cab.page".new(o.title or ("CAB: %s"):format(runs[1].path:match "([^/]+)/[^/]+$" or runs[1].name))
  if o.models ~= false then teachers(runs, say) end
  local header, rows = M.runs(runs)
  local cost_header, cost_rows = M.cost(runs, { 0.9, 0.95, 1 })
  page:summary(runs, reaches)
  page:section "Runs"
  page:table(header, rows)
  if #cost_rows > 0 then
    page:section "Cost to reach the teacher's quality"
    page:text("Step and seconds of training (evaluations and saves left out) of the first evaluation that is as good. " ..
      "Of top-1 a share of the teacher's; of perplexity the teacher's divided by the share.")
    page:table(cost_header, cost_rows)
  end
  say "curves"
  page:section "Curves"
  page:figures(curves(runs))
  if o.models ~= false then
    page:section "What the students have of the teacher"
    page:figures(insights(runs, o, say))
    local ok, tokens, lines = pcall(require "cab.insight".last_token, runs)
    if not ok and check.code(tokens) ~= 2 and check.code(tokens) ~= 74 then error(tokens, 0) end
    if ok and #lines > 0 then page:marked("What the last token of a test text looks at, mean over heads: darker is more", tokens, lines) end
  end
  page:section "Recipes"
  header, rows = differing(runs)
  if #rows > 0 then
    page:text "Where they differ:"
    page:table(header, rows)
  end
  for _, run in ipairs(runs) do page:details(run.name .. ": " .. run.path, core.json_encode(require "cab.runs".plain(run.saved.recipe or {}))) end
  page:section "Environment"
  header, rows = { "" }, {}
  for i, run in ipairs(runs) do header[i + 1] = run.name end
  for _, key in ipairs { "device", "started", "hardware.processor", "hardware.threads", "program.xxh64", "program.library", "versions.openblas",
    "versions.system" } do
    local row = { key }
    for i, run in ipairs(runs) do
      local value = require "cab.runs".at(run.manifest, key)
      row[i + 1] = value == nil and "" or tostring(value)
    end
    rows[#rows + 1] = row
  end
  page:table(header, rows)
  core.write_file(path, page:html())
  return path
end

--- `cab report`.
---@param o table runs, out, title, images, no_models, tensorboard, quiet
---@return integer exit code
function M.main(o)
  local runs = require "cab.charts".runs(o.runs)
  local term = core.isatty(2) and not o.quiet
  local function say(text) if term then io.stderr:write("\r\27[K", text) end end
  if o.tensorboard then require "cab.tensorboard".write(runs, o.tensorboard) end
  M.write(runs, o.out, { title = o.title, images = o.images, models = not o.no_models, say = say })
  say ""
  if not o.quiet then
    print(o.out)
    if o.tensorboard then print(o.tensorboard) end
  end
  return 0
end

return M
