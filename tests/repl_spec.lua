-- The prompt at a terminal and in a pipe, and runs in memory.
local cab = require "cab"
local core = require "cab.core"
local folder = require "cab.folder"
local lfs = require "lfs"
local manual = require "cab.manual"
local process = require "process"
local refused = require "refused"
local repl = require "cab.repl"

local dir = process.folder()
teardown(function() os.execute("rm -r " .. dir) end)
local python = os.execute "python3 -c 'import pty' 2>/dev/null" == true

local strategy = process.put(dir .. "/mine.lua", [[
local cab = require "cab"
local mine = cab.strategy { name = "mine", needs = { student = { "hidden" }, teacher = { "hidden" } }, options = { scale = 1 } }
function mine:build(pairs) self.lift = cab.nn.list(#pairs, function() return cab.nn.linear(pairs.width, pairs.dim) end) end
function mine:loss(pairs)
  local sum = 0
  for i, s, t in pairs:each() do sum = sum + self:fit(self.lift[i](s.hidden), t.hidden) end
  return sum * self.scale
end
return mine
]])
local recipe = process.put(dir .. "/r.lua", ([[
local cab = require "cab"
return cab.recipe { data = cab.data.fashion { fraction = 0.02 }, student = cab.models.vim { image = 28, patch = 7, dim = 8, depth = 2, state = 2 },
  teacher = cab.models.vit { image = 28, patch = 7, dim = 8, depth = 2, heads = 2 },
  stages = { { loss = { soft = 1, mine = { dofile "%s" } }, steps = 2000 } }, batch = 10, eval = { batch = 2000 } }]]):format(strategy))

-- Types lines at a terminal. @return integer code, string output
local function terminal(lines, prefix)
  return process.sh(("%s HOME=%s timeout 200 python3 tests/terminal.py %s '%s' repl"):format(prefix or "", dir,
    process.put(dir .. "/lines.txt", table.concat(lines, "\n") .. "\n"), process.program))
end
local function piped(lines)
  return process.sh(("'%s' repl < %s"):format(process.program, process.put(dir .. "/piped.txt", table.concat(lines, "\n") .. "\n")))
end

describe("a run in memory", function()
  it("takes the steps that cab run takes, and shows its taps", function()
    local s = cab.open(recipe)
    refused(1, function() return s.student.layers[1].B end)
    s:step(3)
    assert.equal(3, s.steps)
    assert.same({ 10, 17, 2 }, s.student.layers[2].B:shape())
    assert.same({ 10, 17, 17 }, s.student.layers[1].matrix_b:shape())
    assert.same({ 10, 2, 17, 17 }, s.teacher.layers[2].attention:shape())
    assert.truthy(refused(1, function() return s.student.layers[1].Bb end).message:find "did you mean 'B'")
    assert.matches("top1", tostring(s:eval()))
    local out = dir .. "/run"
    refused(75, function() core.loadfile(recipe)():override { "log=1" }:run { out = out, quiet = true, stop_after = 3 } end)
    for i, row in ipairs((folder.metrics(out .. "/metrics.jsonl"))) do assert.equal(row.loss, s.history[i].loss) end
    s:close()
  end)
  it("goes into a run folder from which cab resume goes on, bit for bit", function()
    local short = process.put(dir .. "/short.lua", (folder.read(recipe):gsub("steps = 2000", "steps = 8"):gsub("batch = 10", "batch = 10, log = 1")))
    local s = cab.open(short)
    s:step(5)
    assert.matches("cab resume", tostring(s:save(dir .. "/saved")))
    s:close()
    local code, said = process.sh(("'%s' resume %s/saved --quiet"):format(process.program, dir))
    assert.equal(0, code, said)
    core.loadfile(short)():run { out = dir .. "/whole", quiet = true }
    assert.equal(core.hash(dir .. "/whole/checkpoints/step-8.safetensors"), core.hash(dir .. "/saved/checkpoints/step-8.safetensors"))
    assert.equal(folder.read(dir .. "/whole/metrics.jsonl"), folder.read(dir .. "/saved/metrics.jsonl"))
  end)
  it("reads a strategy's file again when it was edited, and goes on with the same weights", function()
    local text = folder.read(strategy)
    local s = cab.open(recipe)
    s:step(2)
    local weights = s.job.params[1].tensor:totable()
    process.put(strategy, (text:gsub("options = { scale = 1 }", "options = { scale = 100 }")))
    local e = refused(2, function()
      process.put(strategy, (text:gsub("pairs.width, pairs.dim%)", "pairs.width, pairs.dim, { bias = false })")))
      s:reload()
    end)
    assert.truthy(e.message:find "other parameters now")
    assert.same(weights, s.job.params[1].tensor:totable())
    process.put(strategy, (text:gsub("sum %* self.scale", "sum * 100 * self.scale")))
    local before = s.terms.mine
    s:step(1) -- sees that the file is another
    assert.is_true(s.terms.mine > 50 * before, tostring(s.terms.mine))
    assert.equal(3, s.steps)
    process.put(strategy, text)
    s:close()
  end)
  it("of a comparison is the run that was asked for", function()
    local s = cab.open("recipes/quickstart.lua", { "batch=8", run = "soft" })
    assert.equal("soft", s.run)
    assert.equal(8, s.recipe.batch)
    s:close()
    assert.truthy(refused(2, cab.open, "recipes/quickstart.lua", { run = "sotf" }).message:find "did you mean 'soft'")
  end)
end)

describe("the prompt", function()
  local env = repl.environment()
  local function line(text)
    local out = {}
    repl.line(text, env, function(t) out[#out + 1] = t end)
    return table.concat(out, "\n")
  end
  it("keeps the last results", function()
    line "40 + 2"
    line '"other"'
    line "nil"
    assert.equal('"other"\t42', line "return _, __")
  end)
  it("explains ops, functions, strategies, commands and headings", function()
    assert.equal(core.help "matmul", line "?matmul")
    assert.matches("A recipe file as a run in memory", line "?cab.open")
    assert.matches("arXiv:2510.19266", line "?attention_bridge")
    assert.matches("Example: cab resume", line "?resume")
    assert.matches("docs/trust.md", line "?Fuzzing")
    assert.matches("did you mean 'matmul'", line "? matmull")
    assert.matches("plot%(x%)", line "?")
    assert.equal(core.help "conv1d", manual.about(cab.op.conv1d, env))
  end)
  it("completes names not loaded yet, fields, tensors, sessions, and files inside strings", function()
    assert.same({ "cab.tasks" }, repl.complete("cab.tas", env))
    env.t = core.zeros { 2 }
    assert.same({ "t:shape" }, repl.complete("t:shap", env))
    env.s = setmetatable({}, { __name = "cab.session" })
    assert.same({ "s:reload" }, repl.complete("s:rel", env))
    assert.same({ "quickstart.lua" }, repl.complete("quick", env, 'cab.open "recipes/'))
    assert.same({ "recipes/" }, repl.complete("recip", env, "cab.open('"))
    assert.same({}, repl.complete("recip", env, "x = 'a' .. "))
  end)
  it("draws curves and maps, and says what cannot be drawn", function()
    local show = require "cab.show"
    assert.equal(5, select(2, show.plot({ 1, 2, 3 }):gsub("[^\n]+", "")))
    assert.matches("█", show.show(core.tensor { { 0, 1 }, { 1, 0 } }))
    assert.matches("0 to 0", show.show(core.zeros { 2, 3, 4, 4 }))
    for _, bad in ipairs { 3, "no-such-run", {}, core.zeros { 2, 2, 2, 2, 2 } } do assert.is_false((pcall(show.plot, bad))) end
    if require "cab.plot".gnuplot() then
      show.plot({ 1, 2, 3 }, dir .. "/c.png")
      show.show(core.tensor { { 0, 1 }, { 1, 0 } }, dir .. "/m.png")
      assert.equal("u8", core.read_image(dir .. "/m.png"):dtype())
    end
  end)
  it("works in a pipe: many lines, chunks over lines, timing", function()
    local code, text = piped { "function f(x)", "  return x + 1", "end", "f(41)", "time(f, 1)", "x = cab.tensor { 1, 2 }", "x:shape()", "?matmul" }
    assert.equal(0, code, text)
    assert.matches("^42\n[%d.e-]+ s\n2\n{2}\nmatmul", text)
  end)
  it("starts in less than 50 ms", function()
    local best = math.huge
    for _ = 1, 10 do
      local begun = core.now()
      process.sh(("'%s' repl </dev/null"):format(process.program))
      best = math.min(best, core.now() - begun)
    end
    assert.is_true(best < 0.05, ("%.0f ms"):format(1000 * best))
  end)
end)

describe("at a terminal", function()
  if not python then pending "lines are typed: no python3 with pty here" return end
  it("lives through 300 lines with 100 errors and 20 interrupts, memory as at the start", function()
    local lines = { "core = cab.core", "function live() collectgarbage() collectgarbage() return cab.memory().live end",
      "before = live(); heap = core.heap_limit()", 'print("live", before)' }
    local errors = { "error 'x'", "nothing.at.all", "cab.op.matmul(cab.zeros{2,3}, cab.zeros{2,3})", ")", "cab.zeros{1 << 42}", "cab.tensor{1}:close():x()",
      "error({})", "cab.open 'none.lua'", "local t <close> = 3", "string.rep(nil)" }
    for i = 1, 100 do
      lines[#lines + 1] = errors[(i - 1) % #errors + 1]
      lines[#lines + 1] = i % 2 == 0 and ("y = cab.normal({ 10, 10 }, 0, 1, %d, 'x'); return y:range().max > 0"):format(i) or ("x%d = %d"):format(i % 7, i)
      if i % 5 == 0 then
        lines[#lines + 1] = i % 10 == 0 and "^C 0.15 while true do pcall(function() while true do end end) end"
          or "^C 0.15 for i = 1, math.huge do z = i end"
      end
      if i % 2 == 0 and #lines < 296 then lines[#lines + 1] = "x1 = cab.op.sum(y):item()" end
    end
    while #lines < 297 do lines[#lines + 1] = "_ = nil" end
    lines[#lines + 1] = "y, x1, _, __, ___ = nil"
    lines[#lines + 1] = 'print("end", live() - before, core.heap_limit() - heap < 200000)'
    lines[#lines + 1] = 'print("alive", x6)'
    assert.equal(300, #lines)
    local code, text = terminal(lines)
    assert.equal(0, code, text:sub(-2000))
    assert.equal(20, select(2, text:gsub("error: [^\n]*interrupted", "")), text:sub(-3000))
    assert.matches("end%s+0%s+true", text)
    assert.matches("alive%s+%d+", text)
  end)
  it("a step that is interrupted is whole: the run goes on as if nothing had been", function()
    local code, text = terminal { ('r = cab.open "%s"'):format(recipe), "^C 0.5 r:step(1900)", "n = r.steps", "print('whole', n, #r.history)",
      "^C 0.4 r:step(1900 - n)", "if r.steps < 1900 then r:step(1900 - r.steps) end", "print('loss', ('%.17g'):format(r.loss), r.steps)" }
    assert.equal(0, code, text)
    local a, b = text:match "whole%s+(%d+)%s+(%d+)"
    assert.equal(a, b, text)
    assert.matches("interrupted after %d+ of 1900", text)
    local s = cab.open(recipe)
    s:step(1900)
    assert.equal(("%.17g"):format(s.loss), text:match "loss%s+([%d.e-]+)%s+1900")
    s:close()
  end)
  it("keeps its history between starts, and completes at TAB", function()
    os.remove(dir .. "/.cab_history")
    terminal { "first = 'a line to find again'" }
    assert.matches("a line to find again", (folder.read(dir .. "/.cab_history"):gsub("\\040", " ")))
    local _, text = terminal { "^R \\x1b[A\\r", "first", "t = cab.tensor{3}", "^R t:sha\\t()\\r", "^R io.open('recipes/quick\\t\\r" }
    assert.matches('"a line to find again"', text)
    assert.matches("{1}", text)
    assert.matches("recipes/quickstart.lua", text)
    assert.is_not_nil(lfs.attributes(dir .. "/.cab_history"))
  end)
end)
