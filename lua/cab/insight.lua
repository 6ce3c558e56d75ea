--- What a student has learned of its teacher: implicit attention beside attention, their similarity layer by layer, and which layers
--- resemble which. From run folders or from a job in memory.
local core = require "cab.core"
local check = require "cab.check"
local op = core.ops
local M = {}

--- A job and the weights that it should show: a run folder's best.
---@param run NamedRun
---@return Job
function M.job(run)
  run.job = run.job or require "cab.evaluate".open(run.path)
  return run.job
end

--- The first n test records of a job.
---@return any images f32[b,C,H,W], or ids i32[b,l]
---@return any labels; of ids, segment
function M.batch(job, n)
  local loader <close> = job.data:loader("test", { batch = math.min(n, job.data.count.test or n) })
  return loader:next()
end

local function forward(job, model, input, extra, wanted)
  local _, taps
  if job.text then _, taps = model:body(input, wanted, { segment = extra })
  else _, taps = model:forward(input, wanted) end
  return taps
end

-- [b,l,l] -> [b,1,l,l]; a matrix in tiles whole.
local function whole(m, l)
  if type(m) == "table" then return m:rows(1, l) end
  return m:reshape(m:size(1), 1, m:size(2), m:size(3))
end

local function maps_of_layer(pairs, s, l)
  local m = whole(s.matrix, l)
  if pairs.directional.matrix then -- both scan directions of one layer
    local back = pairs.now.student.matrix_b[s.layer]
    m = m + whole(back, l)
  end
  return m
end

--- The maps of a batch by student layer: teacher f32[b,H,l,l] in the student's token order, student f32[b,heads,l,l] (1 for a mean over
--- channels; both scan directions summed; arXiv 2403.01590). Layers without a teacher layer have none. In the caller's scope.
---@param job Job
---@param input any
---@param extra? any segment of ids
---@return table[] {layer, teacher_layer, teacher, student}
function M.maps(job, input, extra)
  local p, out = job.pairs, {}
  if not p then check.fail(2, "attention maps need a teacher", { id = "plot" }) end
  for role, tap in pairs { student = "matrix", teacher = "attention" } do
    local there = false
    for _, name in ipairs(job[role].taps.names) do there = there or name == tap end
    if not there then check.fail(2, ("the %s is a %s, which has no tap '%s'"):format(role, job[role].kind, tap), { id = "plot" }) end
  end
  core.no_grad(function()
    p:step(forward(job, job.student, input, extra, { matrix = true }), forward(job, job.teacher, input, extra, { attention = true }))
    for i = 1, #p do
      local entry = p[i]
      if entry.suffix == "" then
        local t = entry.t.attention
        out[#out + 1] = { layer = entry.layer, teacher_layer = entry.teacher, teacher = t, student = maps_of_layer(p, entry.s, t:size(3)) }
      end
    end
  end)
  return out
end

-- Mean over heads, absolute, a row a record: [b,H,l,l] -> [b,l*l]
local function rows(x)
  local m = op.mean(op.abs(x:to "f32"), { dim = 2 })
  return m:reshape(m:size(1), m:size(2) * m:size(3))
end

--- Cosine between the student's implicit attention and the teacher's attention, both absolute and averaged over heads or channels:
--- a value a record, by student layer (figure 3 of arXiv:2510.19266).
---@param job Job
---@param n integer test records
---@return table[] {layer, teacher_layer, values: number[]}
function M.cosines(job, n)
  local out, size = {}, job.text and 4 or job.data.size > 64 and 4 or 25
  local loader <close> = job.data:loader("test", { batch = size })
  local seen = 0
  while seen < n do
    local scope <close> = core.scope() -- luacheck: ignore scope
    local input, extra = loader:next()
    if not input then break end
    for i, m in ipairs(M.maps(job, input, job.text and extra or nil)) do
      out[i] = out[i] or { layer = m.layer, teacher_layer = m.teacher_layer, values = {} }
      core.no_grad(function()
        local a, b = rows(m.student), rows(m.teacher)
        local function sum(x) return op.sum(x, { dim = 2 }):totable() end
        local ab, aa, bb = sum(a * b), sum(a * a), sum(b * b)
        for k = 1, math.min(#ab, n - seen) do table.insert(out[i].values, ab[k] / math.max(math.sqrt(aa[k] * bb[k]), 1e-30)) end
      end)
    end
    seen = seen + input:size(1)
  end
  return out
end

--- The chart of M.cosines: a box a layer, side by side for each run that has a teacher.
---@param runs NamedRun[]
---@param o? table images
---@return Chart?
function M.similarity(runs, o)
  local with = {}
  for _, run in ipairs(runs) do
    local scope <close> = core.scope() -- luacheck: ignore scope
    if M.job(run).pairs then with[#with + 1] = { run = run, layers = M.cosines(run.job, o and o.images or 100) } end
    run.job = nil
  end
  if #with == 0 then return nil, "it needs a run with a teacher" end
  local boxes = {}
  for i, w in ipairs(with) do
    for _, layer in ipairs(w.layers) do
      boxes[#boxes + 1] = { label = ("%d"):format(layer.layer), group = w.run.name, values = layer.values, tic = layer.layer,
        at = layer.layer + (i - (#with + 1) / 2) * 0.8 / #with }
    end
  end
  return { title = "student's implicit attention against the teacher's attention", x = "student layer", y = "cosine, a value a test record",
    boxes = boxes, groups = #with, width = 0.7 / #with, low = 0, high = 1 }
end

-- x [b,l,D] without the tokens at some positions.
local function without(x, positions)
  local parts, from = {}, 1
  for _, p in ipairs(positions) do
    if p > from then parts[#parts + 1] = x:slice(2, from, p - 1) end
    from = p + 1
  end
  if from <= x:size(2) then parts[#parts + 1] = x:slice(2, from, x:size(2)) end
  return core.concat(parts, 2)
end

--- Linear CKA (arXiv 1905.00414) of each student layer's hidden states with each teacher layer's, over patches or tokens.
---@param job Job
---@param n? integer test records
---@return number[][] rows by student layer, columns by teacher layer
function M.cka(job, n)
  local scope <close> = core.scope() -- luacheck: ignore scope
  local moments = require "cab.similarity".moments()
  local input, extra = M.batch(job, n or (job.text and 8 or job.data.size > 64 and 8 or 100))
  core.no_grad(function()
    local lists = {}
    for _, role in ipairs { "student", "teacher" } do
      local model = job[role]
      lists[role] = forward(job, model, input, job.text and extra or nil, { hidden = true }).hidden
      if not job.text then
        for i, x in ipairs(lists[role]) do lists[role][i] = without(x, model.class_positions) end
      end
    end
    moments:add(lists.student, lists.teacher)
  end)
  local out = {}
  for i = 1, job.student.depth do
    out[i] = {}
    for t = 1, job.teacher.depth do out[i][t] = moments:cka(i, t) end
  end
  return out
end

--- The layer map of a run over the CKA of its layers.
---@param runs NamedRun[] one
---@return Chart?
---@return string? why not
function M.map(runs, o)
  if #runs ~= 1 then return nil, ("a layer map is of one run, these are %d"):format(#runs) end
  local scope <close> = core.scope() -- luacheck: ignore scope
  local job = M.job(runs[1])
  if not job.teacher then return nil, "it needs a teacher" end
  local marks = {}
  for layer = 1, job.student.depth do
    local t = job.pairs.map[layer]
    if math.type(t) == "integer" then marks[#marks + 1] = { t, layer } end
  end
  return { title = ("%s: CKA of hidden states; frames: the layer map"):format(runs[1].name), x = "teacher layer", y = "student layer",
    heat = { rows = M.cka(job, o and o.images), marks = marks, low = 0, high = 1 } }
end

--- Perplexity of the same tokens behind more and more text: students and, once, their teacher.
---@param runs NamedRun[] of language models
---@param o? table times (16)
function M.lengths(runs, o)
  local list, teacher = {}, nil
  for _, run in ipairs(runs) do
    local scope <close> = core.scope() -- luacheck: ignore scope
    local job = M.job(run)
    if not job.text then return nil, run.path .. " is no run of a language model" end
    local s = { name = run.name, points = {}, style = "linespoints" }
    local t = { name = "teacher", points = {}, style = "linespoints", dashed = true, colour = "#7f7f7f" }
    for _, row in ipairs(require "cab.eval".lengths(job, o and o.times or 16)) do
      if row.student and row.student.perplexity then s.points[#s.points + 1] = { row.length, row.student.perplexity } end
      if row.teacher and row.teacher.perplexity then t.points[#t.points + 1] = { row.length, row.teacher.perplexity } end
    end
    list[#list + 1] = s
    if #t.points > 0 then teacher = teacher or t end
    run.job = nil
  end
  list[#list + 1] = teacher
  local tics = {}
  for i, p in ipairs(list[1].points) do tics[i] = ("'%d' %d"):format(p[1], p[1]) end
  return { title = "perplexity of the same tokens, read in longer windows", x = "tokens of a window", y = "perplexity", series = list, logx = true, xtics = tics }
end

-- ---- pictures of maps ------------------------------------------------------------------------------------------------------

--- What the class token, or where there is none the mean token, looks at: side x side values a record.
---@param map any f32[b,h,l,l]
---@param job Job
---@param head? integer default: the mean over heads
---@return table[] grids {rows} a record
function M.grids(map, job, head)
  local m = op.abs(map:to "f32")
  m = head and m:slice(2, head, head):reshape(m:size(1), m:size(3), m:size(4)) or op.mean(m, { dim = 2 })
  local at, side = job.pairs.class_positions, job.student.side
  local skip = {}
  for _, p in ipairs(at) do skip[p] = true end
  local out = {}
  for i, matrix in ipairs(m:totable()) do
    local row, patches, grid = matrix[at[1]], {}, {}
    for j, v in ipairs(row) do if not skip[j] then patches[#patches + 1] = v end end
    for y = 1, side do grid[y] = table.move(patches, (y - 1) * side + 1, y * side, 1, {}) end
    out[i] = grid
  end
  return out
end

-- Columns of one run: {title, line = 1 teacher | 2.. students, grids}
local function columns(job, maps, layer)
  local teacher, student = {}, {}
  if layer then
    local found
    for _, m in ipairs(maps) do if m.layer == layer then found = m end end
    if not found then check.fail(2, ("layer %d of the student has no teacher layer; it has %d layers"):format(layer, job.student.depth), { id = "plot" }) end
    for h = 1, found.teacher:size(2) do teacher[h] = { ("layer %d, head %d"):format(found.teacher_layer, h), M.grids(found.teacher, job, h) } end
    for h = 1, found.student:size(2) do
      student[h] = { ("layer %d"):format(layer) .. (found.student:size(2) > 1 and (", head %d"):format(h) or ""), M.grids(found.student, job, h) }
    end
  else
    for i, m in ipairs(maps) do
      teacher[i] = { ("layer %d"):format(m.teacher_layer), M.grids(m.teacher, job) }
      student[i] = { ("layer %d"):format(m.layer), M.grids(m.student, job) }
    end
  end
  return teacher, student
end

--- What the last token of a test text looks at: the tokens, and for the teacher and each student the weights of the last pair of layers,
--- mean over heads, the largest 1.
---@param runs NamedRun[] of language models
---@param n? integer tokens (48)
---@return string[] tokens
---@return table[] lines {name, weights}
function M.last_token(runs, n)
  local tokens, lines = {}, {}
  for _, run in ipairs(runs) do
    local scope <close> = core.scope() -- luacheck: ignore scope
    local job = M.job(run)
    if job.pairs and job.text then
      local ids = M.batch(job, 1)
      ids = ids:slice(2, 1, math.min(n or 48, ids:size(2)))
      local maps = M.maps(job, ids)
      local m = maps[#maps]
      local function weights(t)
        local row, top = op.mean(op.abs(t:to "f32"), { dim = 2 }):totable()[1], 1e-30
        row = row[#row]
        for _, v in ipairs(row) do top = math.max(top, v) end
        for i, v in ipairs(row) do row[i] = v / top end
        return row
      end
      if #lines == 0 then
        local tokenizer = require "cab.tokenizer".open(job.recipe.data.tokenizer)
        for i = 1, ids:size(2) do tokens[i] = tokenizer:decode(ids:slice(2, i, i):reshape(1)) end
        tokenizer:close()
        lines[1] = { ("teacher, layer %d"):format(m.teacher_layer), weights(m.teacher) }
      end
      lines[#lines + 1] = { ("%s, layer %d"):format(run.name, m.layer), weights(m.student) }
    end
    run.job = nil
  end
  return tokens, lines
end

-- Text: matrices of teacher and student of a layer, tokens at the axes.
local function text_attention(runs, path, o)
  local charts = {}
  for _, run in ipairs(runs) do
    local scope <close> = core.scope() -- luacheck: ignore scope
    local job = M.job(run)
    if job.pairs then
      local ids = M.batch(job, 1)
      local n = math.min(o.tokens or 24, 48, ids:size(2))
      ids = ids:slice(2, 1, n)
      local names, tokenizer = {}, require "cab.tokenizer".open(job.recipe.data.tokenizer)
      for i = 1, n do names[i] = (tokenizer:decode(ids:slice(2, i, i):reshape(1)):gsub("%c", " ")) end
      tokenizer:close()
      local maps = M.maps(job, ids)
      local m = maps[o.layer or #maps] or check.fail(2, ("layer %d: there are %d with a teacher"):format(o.layer, #maps), { id = "plot" })
      local function chart(title, t)
        local matrix = op.mean(op.abs(t:to "f32"), { dim = 2 }):totable()[1]
        for _, row in ipairs(matrix) do
          local sum = 0
          for _, v in ipairs(row) do sum = sum + v end
          for j, v in ipairs(row) do row[j] = v / math.max(sum, 1e-30) end
        end
        local flipped, tics = {}, {}
        for i = 1, n do flipped[i], tics[i] = matrix[n + 1 - i], names[n + 1 - i] end
        return { title = title, heat = { rows = flipped, xtics = names, ytics = tics, low = 0, bare = true } }
      end
      if #charts == 0 then charts[1] = chart(("teacher, layer %d"):format(m.teacher_layer), m.teacher) end
      charts[#charts + 1] = chart(("%s, layer %d"):format(run.name, m.layer), m.student)
    end
    run.job = nil
  end
  if #charts == 0 then return nil, "it needs a run with a teacher" end
  return require "cab.plot".grid(path, charts, { columns = math.min(#charts, 3), cell = { 460, 460 } })
end

--- Attention maps as a picture: for each test image a line with the teacher's maps and one with each student's, over the image. All
--- layers with the mean over heads, or one layer head by head; of text, whole matrices with tokens at the axes.
---@param runs NamedRun[]
---@param path string PNG
---@param o? table images (3), layer, cell (pixels of a map, 84)
---@return string? path
---@return string? why not
function M.attention(runs, path, o)
  o = o or {}
  if not path:find "%.png$" then check.fail(2, path .. ": attention maps are pictures, .png", { id = "usage" }) end
  do
    local scope <close> = core.scope() -- luacheck: ignore scope
    local is_text = M.job(runs[1]).text
    runs[1].job = nil
    if is_text then return text_attention(runs, path, o) end
  end
  local outer <close> = core.scope() -- luacheck: ignore outer
  local images, lines
  for _, run in ipairs(runs) do
    local job = M.job(run)
    if job.pairs then
      images = images or M.batch(job, o.images or 3)
      local teacher, student = columns(job, M.maps(job, images), o.layer)
      lines = lines or { { name = "teacher", columns = teacher } }
      lines[#lines + 1] = { name = run.name, columns = student }
    end
    run.job = nil
  end
  if not lines then return nil, "it needs a run with a teacher" end
  return require "cab.pictures".sheet(images, lines, path, { cell = o.cell })
end

return M
