--- Charts through gnuplot, as PNG or SVG: lines, boxes, heat maps, from plain tables of numbers.
local core = require "cab.core"
local check = require "cab.check"
local M = {}

-- Okabe and Ito's colours, told apart by all eyes.
M.colours = { "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000" }

--- True if gnuplot can be run.
---@return boolean
function M.gnuplot() return os.execute "command -v gnuplot >/dev/null 2>&1" == true end

-- Of a series: its colour, then for those after the eighth the same colours with other dashes and points. Dash 2 is for `dashed` alone.
local marks = { { dash = 1, point = 7 }, { dash = 4, point = 4 }, { dash = 3, point = 9 }, { dash = 5, point = 12 } }

local function quoted(text) return "'" .. core.escape(tostring(text)):gsub("'", "''") .. "'" end
M.quoted = quoted

---@class Chart
---@field title? string
---@field x? string label
---@field y? string label
---@field series? table[] {name, points = {{x, y}, ...}, dashed?, band? = {{x, low, high}, ...}, style? = "lines"|"points"|"linespoints"}
---@field boxes? table[] {label, values, group?, at?, tic?}: a box plot, boxes of one group in one colour
---@field groups? integer of boxes
---@field heat? {rows: number[][], marks?: {[1]: integer, [2]: integer}[], xtics?: string[], ytics?: string[], low?: number, high?: number,
--- bare?: boolean (no numbers, no scale)}
---@field logx? boolean
---@field logy? boolean
---@field width? number of boxes
---@field low? number of y
---@field high? number of y
---@field size? {[1]: integer, [2]: integer} pixels

local function data(script, name, rows)
  script[#script + 1] = ("%s << END"):format(name)
  for _, row in ipairs(rows) do
    local cells = {}
    for i, v in ipairs(row) do cells[i] = (type(v) ~= "number" or v ~= v or math.abs(v) == math.huge) and "NaN" or ("%.7g"):format(v) end
    script[#script + 1] = table.concat(cells, " ")
  end
  script[#script + 1] = "END"
end

local function lines(c, script)
  local plots, bands = {}, 0 -- bands first: none lies over a line
  for i, s in ipairs(c.series) do
    local colour = s.colour or M.colours[(i - 1) % #M.colours + 1]
    local mark = marks[(i - 1) // #M.colours % #marks + 1]
    if s.band and #s.band > 0 then
      data(script, "$b" .. i, s.band)
      bands = bands + 1
      table.insert(plots, bands, ("$b%d using 1:2:3 with filledcurves fc rgb '%s' fs transparent solid 0.18 noborder notitle"):format(i, colour))
    end
    data(script, "$s" .. i, s.points)
    local style = s.style or (#s.points > 40 and "lines" or "linespoints")
    plots[#plots + 1] = ("$s%d using 1:2 with %s lc rgb '%s' lw %s pt %d ps %g dt %d title %s"):format(i, style, colour, s.thin and "1" or "2",
      mark.point, mark.point == 7 and 0.6 or 0.9, s.dashed and 2 or mark.dash, s.name and quoted(s.name) or "''")
  end
  script[#script + 1] = "plot " .. table.concat(plots, ", ")
end

-- Quartiles, whiskers at the last value within 1.5 of the box, and the mean as a point.
local function boxes(c, script)
  local groups, tics, seen = {}, {}, {}
  for i, b in ipairs(c.boxes) do
    local g = b.group or ""
    if not groups[g] then
      groups[g] = { rows = {}, number = #groups + 1, name = g }
      groups[#groups + 1] = groups[g]
    end
    local v = table.move(b.values, 1, #b.values, 1, {})
    table.sort(v)
    local function quantile(p)
      local at = 1 + p * (#v - 1)
      local low = math.floor(at)
      return v[low] + (at - low) * ((v[low + 1] or v[low]) - v[low])
    end
    local q1, q3 = quantile(0.25), quantile(0.75)
    local bottom, top = v[1], v[#v]
    for _, x in ipairs(v) do if x >= q1 - 1.5 * (q3 - q1) then bottom = x break end end
    for k = #v, 1, -1 do if v[k] <= q3 + 1.5 * (q3 - q1) then top = v[k] break end end
    table.insert(groups[g].rows, { b.at or i, bottom, q1, quantile(0.5), q3, top })
    local at = b.tic or b.at or i
    if not seen[at] then tics[#tics + 1] = ("%s %g"):format(quoted(b.label), at) end
    seen[at] = true
  end
  script[#script + 1] = "set xtics (" .. table.concat(tics, ", ") .. ") nomirror"
  local first, last = math.huge, -math.huge
  for i, b in ipairs(c.boxes) do first, last = math.min(first, b.at or i), math.max(last, b.at or i) end
  script[#script + 1] = ("set xrange [%g:%g]"):format(first - 0.4, last + 0.4)
  script[#script + 1] = ("set boxwidth %g"):format(c.width or 0.5)
  local plots = {}
  for i, g in ipairs(groups) do
    data(script, "$g" .. i, g.rows)
    local colour = M.colours[(i - 1) % #M.colours + 1]
    plots[#plots + 1] = ("$g%d using 1:3:2:6:5 with candlesticks whiskerbars 0.5 lc rgb '%s' lw 1.4 fs solid 0.25 border title %s"):format(i, colour,
      g.name ~= "" and quoted(g.name) or "''")
    plots[#plots + 1] = ("$g%d using 1:4:4:4:4 with candlesticks lc rgb '%s' lw 3 notitle"):format(i, colour)
  end
  script[#script + 1] = "plot " .. table.concat(plots, ", ")
end

local function heat(c, script)
  local h, rows = c.heat, {}
  for y, row in ipairs(h.rows) do
    for x, v in ipairs(row) do rows[#rows + 1] = { x, y, v } end
  end
  data(script, "$heat", rows)
  local function tics(list, count)
    local out = {}
    for i = 1, count do out[i] = ("%s %d"):format(quoted(list and list[i] or i), i) end
    return table.concat(out, ", ")
  end
  local wide, high = #h.rows[1], #h.rows
  for _, line in ipairs { ("set xrange [0.5:%g]"):format(wide + 0.5), ("set yrange [0.5:%g]"):format(high + 0.5), "unset key", "unset grid",
    ("set xtics (%s) scale 0"):format(tics(h.xtics, wide)), ("set ytics (%s) scale 0"):format(tics(h.ytics, high)),
    "set palette defined (0 '#fcfdbf', 0.25 '#fc8961', 0.5 '#b73779', 0.75 '#51127c', 1 '#000004')" } do script[#script + 1] = line end
  if h.low then script[#script + 1] = ("set cbrange [%g:%s]"):format(h.low, h.high or "*") end
  if h.bare then
    for _, line in ipairs { "set xtics rotate by 60 right font ',8'", "set ytics font ',8'", "unset colorbox", "unset border" } do script[#script + 1] = line end
  end
  local plots = { "$heat using 1:2:3 with image pixels" }
  if #rows <= 200 and not h.bare then -- numbers, white where the square is dark
    plots[#plots + 1] = ("$heat using 1:2:(sprintf('%%.2f',$3)):($3 > %g ? 0xffffff : 0x000000) with labels font ',9' tc rgb variable notitle"):format(
      ((h.low or 0) + (h.high or 1)) / 2)
  end
  if h.marks and #h.marks > 0 then
    data(script, "$marks", h.marks)
    plots[#plots + 1] = "$marks using 1:2:(0.48):(0.48) with boxxyerror fs empty border lc rgb '#0072b2' lw 3 notitle"
  end
  script[#script + 1] = "plot " .. table.concat(plots, ", ")
end

-- The script of a chart without its terminal.
local function script_of(c)
  local s = { "set encoding utf8", "set border 3 lc rgb '#666666'", "set tics nomirror", "set grid lc rgb '#cccccc' lw 0.6",
    ("set key tmargin left vertical Left reverse samplen 1.5 spacing 1.2 maxrows %d"):format(((c.groups or #(c.series or {})) + 1) // 2),
    ("set xlabel %s"):format(quoted(c.x or "")), ("set ylabel %s"):format(quoted(c.y or "")) }
  if c.title then s[#s + 1] = ("set %s %s"):format(c.heat and "title" or "key title", quoted(c.title)) .. (c.heat and " offset 0,0.2" or " left") end
  if c.logx then -- a little more than the points: a tick on the very edge may be rounded away
    local low, high = math.huge, 0
    for _, line in ipairs(c.series) do
      for _, p in ipairs(line.points) do
        if p[1] > 0 then low, high = math.min(low, p[1]), math.max(high, p[1]) end
      end
    end
    s[#s + 1] = "set logscale x" .. (low <= high and ("; set xrange [%g:%g]"):format(low / 1.02, high * 1.02) or "")
  end
  if c.logy then s[#s + 1] = "set logscale y; set format y '%g'" end
  if c.xtics then s[#s + 1] = ("set xtics (%s)"):format(table.concat(c.xtics, ", ")) end
  if c.low or c.high then s[#s + 1] = ("set yrange [%s:%s]"):format(c.low or "*", c.high or "*") end
  local draw = c.heat and heat or c.boxes and boxes or lines
  draw(c, s)
  return s
end

local function run(script)
  local out = os.tmpname()
  local pipe = io.popen(("gnuplot >%s 2>&1"):format(out), "w")
  pipe:write(table.concat(script, "\n"), "\n")
  local ok = pipe:close()
  local f <close> = io.open(out)
  local said = f and f:read "a" or ""
  os.remove(out)
  return ok, said:match "[^\n]*error[^\n]*" or said:match "line %d+: [^\n]*" or said:sub(1, 200)
end

local terminals = { svg = "svg noenhanced dynamic font 'sans,13' background rgb 'white'", png = "pngcairo noenhanced font 'sans,11'" }

-- Path checked, gnuplot asked for; the kind of file, or nil and why nothing can be drawn.
local function kind_of(path)
  local kind = path:match "%.(%a+)$"
  if not terminals[kind or ""] then check.fail(2, ("%s: charts are .png or .svg"):format(path), { id = "usage" }) end
  if not M.gnuplot() then return nil, "no gnuplot: charts are not drawn" end
  return kind
end

local function finish(path, kind, size, script)
  table.insert(script, 1, ("set terminal %s size %d,%d"):format(terminals[kind], size[1], size[2]))
  table.insert(script, 2, "set output " .. "'" .. path:gsub("'", "''") .. "'")
  local ok, said = run(script)
  if not ok then return nil, "gnuplot: " .. core.escape(said) end
  return path
end

--- Draws a chart into a file, by its ending .png or .svg. Without gnuplot nothing is drawn, and the reason comes back.
---@param path string
---@param c Chart
---@return string? path
---@return string? why not
function M.chart(path, c)
  local kind, why = kind_of(path)
  if not kind then return nil, why end
  return finish(path, kind, c.size or { 900, 520 }, script_of(c))
end

--- Draws several charts in one file, line by line.
---@param path string
---@param list Chart[]
---@param o {columns: integer, cell: integer[]}
---@return string? path
---@return string? why not
function M.grid(path, list, o)
  local kind, why = kind_of(path)
  if not kind then return nil, why end
  local height = (#list + o.columns - 1) // o.columns
  local script = { ("set multiplot layout %d,%d"):format(height, o.columns) }
  for _, c in ipairs(list) do
    script[#script + 1] = "reset"
    for _, line in ipairs(script_of(c)) do script[#script + 1] = line end
  end
  script[#script + 1] = "unset multiplot"
  return finish(path, kind, { o.columns * o.cell[1], height * o.cell[2] }, script)
end

-- gnuplot's SVG without what nobody sees: its header, background, empty groups and marks that are not used; inks become the page's.
local function slim(text)
  text = text:gsub("^.-<svg", "<svg", 1):gsub("<desc>.-</desc>", ""):gsub("<title>.-</title>", ""):gsub("%s+$", "")
  text = text:gsub('<rect[^>]-fill="#ffffff"[^>]*/>', "", 1):gsub("black", "currentColor"):gsub("#666666", "currentColor")
    :gsub("rgb%(102, ?102, ?102%)", "currentColor"):gsub("stroke='rgb%(204, 204, 204%)'", "stroke='currentColor' stroke-opacity='.25'")
  text = text:gsub("<defs>(.-)</defs>", function(defs)
    local used, kept = {}, {}
    for id in text:gmatch "href='#([%w]+)'" do used[id] = true end
    for line in defs:gmatch "[^\n]+" do
      local id = line:match "id='([%w]+)'"
      if not id or used[id] then kept[#kept + 1] = line end
    end
    return "<defs>" .. table.concat(kept, "\n") .. "</defs>"
  end)
  local count
  repeat text, count = text:gsub("<g [^>]*>%s*</g>", "") until count == 0
  return (text:gsub("\n%s*", "\n"):gsub("\n+", "\n"))
end

--- The same as SVG text for a page: no size of its own, text and axes in the page's colour.
---@param c Chart
---@return string? svg
---@return string? why not
function M.svg(c)
  local path = os.tmpname() .. ".svg"
  local drawn, why = M.chart(path, c)
  if not drawn then return nil, why end
  local f <close> = io.open(path)
  local text = f:read "a"
  os.remove(path)
  os.remove((path:gsub("%.svg$", "")))
  return slim(text)
end

--- Writes words onto a PNG, pixel for pixel as it was otherwise. Without gnuplot the picture stays as it is.
---@param path string PNG
---@param width integer
---@param height integer
---@param labels table[] {x, y (from the top), text, "left"|"center"|"right"}
function M.label(path, width, height, labels)
  if not M.gnuplot() then return end
  local bare = path .. ".bare.png"
  os.rename(path, bare)
  local name = "'" .. bare:gsub("'", "''") .. "'"
  local script = { "unset border", "unset tics", "unset key", "set margins 0,0,0,0", "set size 1,1", "set origin 0,0",
    ("set xrange [0:%d]"):format(width), ("set yrange [0:%d]"):format(height) }
  for _, l in ipairs(labels) do
    script[#script + 1] = ("set label %s at %g,%g %s front font ',8'"):format(quoted(l[3]), l[1], height - l[2], l[4])
  end
  script[#script + 1] = ("plot %s binary filetype=png dx=1 dy=1 origin=(0.5,0.5) with rgbimage pixels"):format(name)
  if finish(path, "png", { width, height }, script) then os.remove(bare) else os.rename(bare, path) end
end

return M
