--- Tensors, runs and attention at the terminal, or as a file: plot(x), show(x) of the prompt.
local core = require "cab.core"
local check = require "cab.check"
local term = require "cab.term"
local M = {}

local shades = { " ", "░", "▒", "▓", "█" }

--- Series of points: braille at the terminal, gnuplot into a file.
---@param list table[] as of a Chart
---@param file? string
---@param c? table title, x, y
---@return string
function M.series(list, file, c)
  if #list == 0 or #list[1].points == 0 then check.fail(1, "plot: there is nothing to draw", { id = "plot" }) end
  if file then
    local chart = { series = list }
    for k, v in pairs(c or {}) do chart[k] = v end
    local path, why = require "cab.plot".chart(file, chart)
    if not path then check.fail(1, "plot: " .. why, { id = "plot" }) end
    return path
  end
  local out = {}
  for _, s in ipairs(list) do
    local values = {}
    for i, p in ipairs(s.points) do values[i] = p[2] end
    if #list > 1 and s.name then out[#out + 1] = s.name end
    for _, line in ipairs(term.chart(values, math.min(72, term.width() - 12), 5)) do out[#out + 1] = line end
  end
  return table.concat(out, "\n")
end

-- Numbers [h][w] as shades, at most `columns` wide: cells are means.
local function shaded(rows, columns)
  local h, w = #rows, #rows[1]
  local wide = math.min(w, columns // 2)
  local high = math.max(1, math.floor(h * wide / w + 0.5))
  local cells, low, top = {}, math.huge, -math.huge
  for y = 1, high do
    cells[y] = {}
    for x = 1, wide do
      local sum, n = 0, 0
      for sy = (y - 1) * h // high + 1, math.max(y * h // high, (y - 1) * h // high + 1) do
        for sx = (x - 1) * w // wide + 1, math.max(x * w // wide, (x - 1) * w // wide + 1) do sum, n = sum + rows[sy][sx], n + 1 end
      end
      cells[y][x] = sum / n
      low, top = math.min(low, cells[y][x]), math.max(top, cells[y][x])
    end
  end
  local out = {}
  for y = 1, high do
    local line = {}
    for x = 1, wide do
      local v = top > low and (cells[y][x] - low) / (top - low) or 0
      line[x] = shades[math.min(5, math.floor(5 * v) + 1)]:rep(2)
    end
    out[y] = table.concat(line)
  end
  out[#out + 1] = ("%.4g to %.4g"):format(low, top)
  return table.concat(out, "\n")
end

--- plot(x): a tensor of one dimension, a list of numbers, a session, or a run folder (its loss); plot(x, "FILE.png") draws a file;
--- plot("RUN", "FILE.png", "similarity") any chart of `cab plot`.
---@param x any
---@param file? string .png or .svg
---@param what? string of a run folder: a chart of `cab plot`; default: loss
---@return string
function M.plot(x, file, what)
  if type(x) == "table" and type(x.plot) == "function" then return x:plot(file) end
  if type(x) == "string" then
    local charts = require "cab.charts"
    if file then return charts.draw(what or "loss", x, file) end
    local chart, why = charts.chart(what or "loss", charts.runs { x })
    if not chart then check.fail(1, "plot: " .. why, { id = "plot" }) end
    if not chart.series then check.fail(1, ("plot: %s needs a file: plot(%q, 'FILE.png', %q)"):format(what, x, what), { id = "plot" }) end
    return M.series(chart.series, nil, chart)
  end
  if type(x) == "userdata" then
    if x:rank() == 2 then return M.show(x, file) end
    if x:rank() ~= 1 then check.fail(1, ("plot: a tensor of %d dimensions; 1 is a curve, 2 a map, show(x) takes more"):format(x:rank()), { id = "plot" }) end
    x = x:to("cpu"):totable()
  end
  if type(x) ~= "table" or type(x[1]) ~= "number" then
    check.fail(1, "plot: a tensor, a list of numbers, a session or a run folder is expected, got a " .. type(x), { id = "plot" })
  end
  local points = {}
  for i, v in ipairs(x) do points[i] = { i, v } end
  return M.series({ { points = points } }, file)
end

--- show(x): a map [h,w], an image [1 or 3,H,W], attention [heads,l,l] or [b,heads,l,l] (the first record, mean over heads), as shades
--- at the terminal or as PNG.
---@param x any tensor
---@param file? string .png
---@return string
function M.show(x, file)
  if type(x) ~= "userdata" then check.fail(1, "show: a tensor is expected, got a " .. type(x), { id = "plot" }) end
  if x:rank() < 2 or x:rank() > 4 or x:count() == 0 then
    check.fail(1, ("show: %d dimensions, expected [h,w], [c,H,W], [heads,l,l] or [b,heads,l,l]"):format(x:rank()), { id = "plot" })
  end
  local scope <close> = core.scope() -- luacheck: ignore scope
  local t = core.no_grad(function()
    local y = x:detach():to("cpu"):to "f32"
    while y:rank() > 3 do y = y:slice(1, 1, 1):reshape(table.unpack(y:shape(), 2)) end
    return y:rank() == 3 and core.ops.mean(y, { dim = 1 }) or y
  end)
  local h, w = t:size(1), t:size(2)
  t = t:reshape(h, w)
  if not file then return shaded(t:totable(), math.min(96, term.width() - 2)) end
  if not file:find "%.png$" then check.fail(2, file .. ": pictures are .png", { id = "usage" }) end
  local rows, flipped = t:totable(), {}
  for i = 1, h do flipped[i] = rows[h + 1 - i] end -- the first row is the top one
  local path, why = require "cab.plot".chart(file, { heat = { rows = flipped, bare = h * w > 200, low = t:range().min }, size = { 560, 480 } })
  if not path then check.fail(1, "show: " .. why, { id = "plot" }) end
  return path
end

return M
