--- Progress of a run: a bar with time left and images or tokens a second on a terminal, plain lines elsewhere.
local core = require "cab.core"
local M = {}

---@class Progress
local Progress = {}
Progress.__index = Progress

--- Seconds as "1:02:03" or "02:03".
---@param seconds number
---@return string
function M.clock(seconds)
  if seconds ~= seconds or seconds == math.huge then return "--:--" end
  local s = math.floor(seconds + 0.5)
  if s >= 3600 then return ("%d:%02d:%02d"):format(s // 3600, s // 60 % 60, s % 60) end
  return ("%02d:%02d"):format(s // 60, s % 60)
end

---@param options table total (steps), step (done already), name, quiet, every (seconds between plain lines), unit ("images")
---@return Progress
function M.new(options)
  local now = core.now()
  return setmetatable({
    total = options.total, first = options.step or 0, name = options.name or "", quiet = options.quiet,
    terminal = not options.quiet and core.isatty(), begun = now, drawn = 0, every = options.every or 15, seen = 0, unit = options.unit or "images",
  }, Progress)
end

function Progress:clear()
  if self.terminal and self.shown then
    io.stderr:write("\r\27[K")
    self.shown = false
  end
end

--- Prints a line without breaking the bar.
---@param text string
function Progress:line(text)
  if self.quiet then return end
  self:clear()
  print(text)
  io.stdout:flush()
end

--- After each step.
---@param step integer
---@param count integer images or tokens of this step
---@param text string e.g. "loss 1.23"
function Progress:tick(step, count, text)
  self.seen = self.seen + count
  if self.quiet then return end
  local now = core.now()
  if now - self.drawn < (self.terminal and 0.2 or self.every) then return end
  if self.drawn == 0 and not self.terminal then self.drawn = now; return end
  self.drawn = now
  local spent, done = now - self.begun, step - self.first
  local left = done > 0 and spent / done * (self.total - step) or math.huge
  local facts = ("%s step %d/%d  %s  %.0f %s/s  %s left"):format(self.name, step, self.total, text,
    self.seen / math.max(spent, 1e-9), self.unit, M.clock(left))
  if self.terminal then
    local cells = 24
    local full = math.floor(cells * step / self.total)
    io.stderr:write("\r\27[K[", ("#"):rep(full), ("."):rep(cells - full), "] ", facts)
    self.shown = true
  else
    print(facts)
    io.stdout:flush()
  end
end

--- Images per second so far.
---@return number
function Progress:rate() return self.seen / math.max(core.now() - self.begun, 1e-9) end

return M
