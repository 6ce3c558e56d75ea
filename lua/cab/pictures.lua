--- Pictures of pixels, through libpng: attention maps beside their images.
local core = require "cab.core"
local M = {}

-- A list of l values with the class token taken out -> side x side rows, scaled to 0 .. 1.
local function grid(values, class, side)
  local low, high, patches = math.huge, -math.huge, {}
  for i, v in ipairs(values) do
    if i ~= class then
      v = math.abs(v)
      patches[#patches + 1] = v
      low, high = math.min(low, v), math.max(high, v)
    end
  end
  local rows = {}
  for y = 1, side do
    rows[y] = {}
    for x = 1, side do rows[y][x] = (patches[(y - 1) * side + x] - low) / math.max(high - low, 1e-30) end
  end
  return rows
end

--- The teacher's attention from the class token to the patches, mean over heads, of one layer.
---@param teacher table vit
---@param images any f32[b,C,H,W]
---@param layer integer
---@return table[] maps one a picture: rows of 0 .. 1
function M.teacher_maps(teacher, images, layer)
  local scope <close> = core.scope()
  return core.no_grad(function()
    local _, taps = teacher:forward(images, { attention = true })
    local rows = core.ops.mean(taps.attention[layer], { dim = 2 }):totable() -- [b,l,l]
    local out = {}
    for i, map in ipairs(rows) do
      if teacher.distilled then table.remove(map[1], 2) end -- the second token is no patch
      out[i] = grid(map[1], 1, teacher.side)
    end
    return out
  end)
end

--- The student's implicit attention (scan matrices of both directions summed) from its class token.
---@param student table vim
---@param images any f32[b,C,H,W]
---@param layer integer
---@return table[] maps
function M.student_maps(student, images, layer)
  local scope <close> = core.scope()
  return core.no_grad(function()
    local _, taps = student:forward(images, { matrix = true })
    local sum = taps.matrix[layer]
    if taps.matrix_b then sum = sum + taps.matrix_b[layer] end
    local class, out = student.class_positions[1], {}
    for i, map in ipairs(sum:totable()) do out[i] = grid(map[class], class, student.side) end
    return out
  end)
end

-- Black, purple, orange, pale yellow.
local function heat(v)
  local r = math.min(1, 1.6 * v)
  local g = math.max(0, math.min(1, 1.8 * v - 0.6))
  local b = v < 0.5 and 0.9 * v or math.max(0, 0.45 - 1.6 * (v - 0.5)) + math.max(0, 3 * (v - 0.8))
  return math.floor(255 * r + 0.5), math.floor(255 * g + 0.5), math.floor(255 * math.min(1, b) + 0.5)
end

--- A picture: a row for each image; the image, then each column of maps beside it, enlarged.
---@param images any f32[b,C,H,W] normalised
---@param columns table[] lists of maps, one map an image
---@param path string PNG
---@param o? table cell (pixels a side, 112), gap (6)
---@return string path
function M.mosaic(images, columns, path, o)
  o = o or {}
  local cell, gap = o.cell or 112, o.gap or 6
  local count, channels, side = images:size(1), images:size(2), images:size(3)
  local range = images:range()
  local scale = 255 / math.max(range.max - range.min, 1e-30)
  local width, rows = (cell + gap) * (#columns + 1) + gap, {}
  local function blank()
    local line = {}
    for x = 1, width do line[x] = { 255, 255, 255 } end
    return line
  end
  local pixels = images:totable()
  for i = 1, count do
    for _ = 1, gap do rows[#rows + 1] = blank() end
    for y = 0, cell - 1 do
      local line = blank()
      local sy = y * side // cell + 1
      for x = 0, cell - 1 do
        local p, sx = {}, x * side // cell + 1
        for c = 1, 3 do p[c] = math.floor((pixels[i][math.min(c, channels)][sy][sx] - range.min) * scale + 0.5) end
        line[gap + x + 1] = p
      end
      for k, maps in ipairs(columns) do
        local map = maps[i]
        local row = map[y * #map // cell + 1]
        for x = 0, cell - 1 do line[(cell + gap) * k + gap + x + 1] = { heat(row[x * #row // cell + 1]) } end
      end
      rows[#rows + 1] = line
    end
  end
  for _ = 1, gap do rows[#rows + 1] = blank() end
  local scope <close> = core.scope()
  core.write_png(path, core.tensor(rows, "u8"))
  return path
end

-- ---- sheets: maps over their images ---------------------------------------------------------------------------------------

-- A grid scaled to 0 .. 1, read between its cells: value(x, y) with x, y in 0 .. 1.
local function smooth(rows)
  local low, high, side = math.huge, -math.huge, #rows
  for _, row in ipairs(rows) do for _, v in ipairs(row) do low, high = math.min(low, v), math.max(high, v) end end
  local scale = 1 / math.max(high - low, 1e-30)
  return function(x, y)
    local gx, gy = math.max(0, math.min(side - 1, x * side - 0.5)), math.max(0, math.min(side - 1, y * side - 0.5))
    local x0, y0 = math.floor(gx), math.floor(gy)
    local x1, y1, fx, fy = math.min(x0 + 1, side - 1), math.min(y0 + 1, side - 1), gx - x0, gy - y0
    local top = rows[y0 + 1][x0 + 1] * (1 - fx) + rows[y0 + 1][x1 + 1] * fx
    local bottom = rows[y1 + 1][x0 + 1] * (1 - fx) + rows[y1 + 1][x1 + 1] * fx
    return (top * (1 - fy) + bottom * fy - low) * scale
  end
end

-- An image as a function of (x, y) in 0 .. 1 -> r, g, b in 0 .. 255.
local function sampler(image, low, scale)
  local channels, side = #image, #image[1]
  return function(x, y)
    local sx, sy = math.min(side, math.floor(x * side) + 1), math.min(side, math.floor(y * side) + 1)
    local r = (image[1][sy][sx] - low) * scale
    if channels < 3 then return r, r, r end
    return r, (image[2][sy][sx] - low) * scale, (image[3][sy][sx] - low) * scale
  end
end

-- Fills a cell of a flat list of bytes; overlay: the map's colours over the image in grey.
local function fill(pixels, width, left, top, cell, picture, map)
  for y = 0, cell - 1 do
    local at = 3 * ((top + y) * width + left)
    for x = 0, cell - 1 do
      local r, g, b = picture((x + 0.5) / cell, (y + 0.5) / cell)
      if map then
        local grey, v = 0.3 * r + 0.59 * g + 0.11 * b, map((x + 0.5) / cell, (y + 0.5) / cell)
        local hr, hg, hb = heat(v)
        local share = 0.35 + 0.4 * v -- where little is looked at, the image shows
        r, g, b = grey + share * (hr - grey), grey + share * (hg - grey), grey + share * (hb - grey)
      end
      pixels[at + 1], pixels[at + 2], pixels[at + 3] = math.floor(r + 0.5), math.floor(g + 0.5), math.floor(b + 0.5)
      at = at + 3
    end
  end
end

--- A sheet: for each image a block of lines, one a model; in a line the image and then its maps over it, enlarged, with titles where
--- there is gnuplot to write them.
---@param images any f32[b,C,H,W] normalised
---@param lines table[] {name, columns = {{title, grids}, ...}}
---@param path string PNG
---@param o? table cell (pixels a side, 84)
---@return string path
function M.sheet(images, lines, path, o)
  local cell, gap, left, line_top = o and o.cell or 84, 6, 80, 18
  local most = 0
  for _, line in ipairs(lines) do most = math.max(most, #line.columns) end
  local range, list = images:range(), images:totable()
  local scale = 255 / math.max(range.max - range.min, 1e-30)
  local line_height = cell + line_top
  local width, height = left + (cell + gap) * (most + 1) + gap, #list * (#lines * line_height + 2 * gap) + gap
  local pixels, labels = {}, {}
  for i = 1, 3 * width * height do pixels[i] = 255 end
  for i, image in ipairs(list) do
    local picture = sampler(image, range.min, scale)
    for k, line in ipairs(lines) do
      local top = gap + (i - 1) * (#lines * line_height + 2 * gap) + (k - 1) * line_height + line_top
      labels[#labels + 1] = { left - 8, top + cell // 2, line.name, "right" }
      if k == 1 then fill(pixels, width, left, top, cell, picture) end
      for c, column in ipairs(line.columns) do
        local x = left + (cell + gap) * c
        fill(pixels, width, x, top, cell, picture, smooth(column[2][i]))
        labels[#labels + 1] = { x + cell // 2, top - line_top // 2 + 1, column[1], "center" }
      end
    end
  end
  do
    local scope <close> = core.scope()
    core.write_png(path, core.tensor(pixels, "u8"):reshape { height, width, 3 })
  end
  require "cab.plot".label(path, width, height, labels)
  return path
end

return M
