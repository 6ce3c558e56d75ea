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

return M
