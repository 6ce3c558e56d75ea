--- Progress of a run: a bar with time left, rate, loss terms and memory on a terminal, and a chart of the loss if asked for; plain
--- lines elsewhere; a table at the end.
local core = require "cab.core"
local term = require "cab.term"
local M = {}

---@class Progress
local Progress = {}
Progress.__index = Progress

local CHART = 4 -- lines of the chart below the bar

--- Seconds as "1:02:03" or "02:03".
---@param seconds number
---@return string
function M.clock(seconds)
  if seconds ~= seconds or seconds == math.huge then return "--:--" end
  local s = math.floor(seconds + 0.5)
  if s >= 3600 then return ("%d:%02d:%02d"):format(s // 3600, s // 60 % 60, s % 60) end
  return ("%02d:%02d"):format(s // 60, s % 60)
end

--- "loss 1.2345 (align 0.31, soft 0.92)" of a row of metrics: the sum, and its terms as they are before their weights.
---@param row table
---@return string
function M.losses(row)
  local parts = {}
  for key, value in pairs(row) do
    local name = key:match "^loss%.(.+)"
    if name then parts[#parts + 1] = ("%s %.4g"):format(name, value) end
  end
  table.sort(parts)
  local text = "loss " .. (type(row.loss) == "number" and ("%.4f"):format(row.loss) or tostring(row.loss))
  return #parts > 1 and ("%s (%s)"):format(text, table.concat(parts, ", ")) or text
end

---@param options table total (steps), step (done already), name, quiet, every (seconds between plain lines), unit ("images"), chart, device
---@return Progress
function M.new(options)
  local now = core.now()
  return setmetatable({
    total = options.total, first = options.step or 0, name = options.name or "", quiet = options.quiet, chart = options.chart,
    terminal = not options.quiet and core.isatty(), begun = now, drawn = 0, every = options.every or 15, seen = 0, unit = options.unit or "images",
    device = options.device, history = {}, lines = 0,
  }, Progress)
end

--- Takes the bar away, and the chart below it.
function Progress:clear()
  if self.terminal and self.shown then
    io.stderr:write("\r\27[J")
    self.shown = false
  end
end

--- Prints a line without breaking the bar.
---@param text string
function Progress:line(text)
  if self.quiet then return end
  self:clear()
  print(text:find "^warning" and term.paint(text, "yellow") or text)
  io.stdout:flush()
end

-- Bar and chart; the cursor stays on the bar's line.
local function draw(self, step, facts)
  local cells = 20
  local full = math.floor(cells * step / self.total)
  local bar = ("[%s%s] "):format(term.paint(("#"):rep(full), "green", 2), ("."):rep(cells - full))
  local room = term.width() - cells - 4
  if #facts > room then facts = facts:sub(1, room) end
  io.stderr:write("\r\27[J", bar, facts)
  if self.chart and #self.history > 1 then
    local lines = term.chart(self.history, math.max(10, math.min(term.width() - 12, 72)), CHART)
    for _, line in ipairs(lines) do io.stderr:write("\n", term.paint(line, "cyan", 2)) end
    if #lines > 0 then io.stderr:write(("\27[%dA"):format(#lines)) end
  end
  self.shown = true
end

--- After each step.
---@param step integer
---@param count integer images or tokens of this step
---@param text string e.g. "loss 1.23"
---@param loss? number for the chart
function Progress:tick(step, count, text, loss)
  self.seen = self.seen + count
  if self.quiet then return end
  if self.chart and type(loss) == "number" then self.history[#self.history + 1] = loss end
  local now = core.now()
  if now - self.drawn < (self.terminal and 0.2 or self.every) then return end
  if self.drawn == 0 and not self.terminal then self.drawn = now; return end
  self.drawn = now
  local spent, done = now - self.begun, step - self.first
  local left = done > 0 and spent / done * (self.total - step) or math.huge
  local memory = core.memory(self.device)
  local facts = ("%s %d/%d  %s left  %.0f %s/s  %s  %s"):format(self.name, step, self.total, M.clock(left),
    self.seen / math.max(spent, 1e-9), self.unit, term.bytes(memory.live + memory.cached), text)
  if self.terminal then
    draw(self, step, facts)
  else
    print(facts)
    io.stdout:flush()
  end
end

--- What came out, a line each.
---@param r RunResult
function Progress:summary(r)
  if self.quiet then return end
  self:clear()
  local rows = {}
  local function add(name, form, value) if value then rows[#rows + 1] = { name, form:format(value) } end end
  add("top-1", "%.2f %%", r.top1)
  add("top-5", "%.2f %%", r.top5)
  add("perplexity", "%.2f", r.perplexity)
  add("loss", "%.4f", r.loss)
  for _, name in ipairs(require "cab.options".names(r.r2 or {})) do add("R2 of " .. name, "%.3f", r.r2[name]) end
  if r.best_step and r.best_step ~= r.steps then
    rows[#rows + 1] = { "best", (r.perplexity and "perplexity %.2f of step %d" or "top-1 %.2f %% of step %d"):format(
      r.perplexity and math.exp(-r.best) or r.best, r.best_step) }
  end
  add("steps", "%d", r.steps)
  local rate = r.images_per_second or r.tokens_per_second
  rows[#rows + 1] = { "time", M.clock(r.seconds) .. (rate and (", %.0f %s/s"):format(rate, self.unit) or "") }
  add("memory", "%s", term.bytes(r.peak))
  add("folder", "%s", r.path)
  for _, row in ipairs(rows) do print(("  %s %s"):format(term.paint(("%-14s"):format(row[1]), "dim"), row[2])) end
  io.stdout:flush()
end

--- Images or tokens per second so far; nil where a run that had ended was resumed and took no step.
---@return number?
function Progress:rate() return self.seen > 0 and self.seen / math.max(core.now() - self.begun, 1e-9) or nil end

return M
