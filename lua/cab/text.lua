--- What the trainer must know of text: how a batch of ids becomes losses, and perplexity. A batch is ids i32[b,l] and, where rows
--- hold several documents, segment i32[b,l], their numbers (-1: padding). The next id is the target: op.head_loss shifts them, in
--- one place, and ends at each document.
local core = require "cab.core"
local check = require "cab.check"
local options = require "cab.options"
local dist = require "cab.dist"
local op = core.ops
local M = {}

-- Faults (2) where weights came with another tokenizer than the data's.
local function same_tokenizer(job, role)
  local spec, tokenizers = job.recipe[role], require "cab.tokenizer"
  local weights = spec and spec.weights or ""
  if weights == "" or not job.data.tokenizer then return end
  local own <close>, folder = tokenizers.beside(require "cab.data".find(weights))
  local why = own and tokenizers.mismatch(own, job.data.tokenizer, { role, "data" })
  if why then check.fail(2, ("%s has another tokenizer than data.tokenizer: %s"):format(folder, why), { id = "vocabulary" }) end
end

--- Faults (2) where models and data do not go together.
---@param job Job data, student, teacher
function M.preflight(job)
  local data, student, teacher = job.data, job.student, job.teacher
  local longest = job.recipe.eval.lengths * data.length
  if longest > 0 and data.tokens.test < longest then
    check.fail(2, ("eval.lengths: %d times %d tokens are %d, the test text has %d"):format(job.recipe.eval.lengths, data.length, longest,
      data.tokens.test), { id = "recipe" })
  end
  for role, model in pairs { student = student, teacher = teacher } do
    same_tokenizer(job, role)
    if model.vocab < data.vocab then
      check.fail(2, ("the data has %d ids, the %s (%s) only %d: %s.vocab must be at least that of the tokenizer"):format(data.vocab, role,
        model.kind, model.vocab, role), { id = "vocabulary" })
    end
    if model.positions and model.positions < data.length then
      check.fail(2, ("rows have %d tokens, the %s (%s) has %d positions: set data.length=%d"):format(data.length, role, model.kind,
        model.positions, model.positions), { id = "positions" })
    end
  end
  if teacher and teacher.vocab ~= student.vocab then
    check.fail(2, ("the student has %d ids, the teacher %d: logits are compared id by id, so both need one tokenizer's ids; set vocab"):format(
      student.vocab, teacher.vocab), { id = "vocabulary" })
  end
end

-- Both losses of a batch at once: head{ ce=, kl=, temperature=, divergence=, smoothing= } runs op.head_loss on the hidden states.
-- teacher() gives the teacher's, when a divergence is asked for; `cached` its largest logits where they are read from files.
local function head_of(job, batch, y, teacher, cached)
  return function(o)
    local w, b = job.student:head()
    local args = { x = y, w = w, b = b, ids = batch.ids, segment = batch.segment, vocab = job.student.vocab, targets = job.part and job.part.targets }
    for name, value in pairs(o) do args[name] = value end
    local k = o.largest or 0
    args.largest = nil
    if o.kl and o.kl ~= 0 and cached then
      args.top, args.top_logits = job.cache:largest(cached, k)
    elseif o.kl and o.kl ~= 0 and k > 0 then
      local rows, l = batch.ids:size(1), batch.ids:size(2)
      local largest, place = core.no_grad(function() return op.largest(batch.teacher:reshape(rows * l, job.teacher.vocab), { k = k }) end)
      args.top, args.top_logits = place:reshape(rows, l, k), largest:reshape(rows, l, k)
    elseif o.kl and o.kl ~= 0 then
      args.tx = teacher()
      args.tw, args.tb = job.teacher:head()
    end
    return (op.head_loss(args))
  end
end

--- The losses of a batch, as Job:losses gives them. Logits are made only a block of rows at a time, unless a strategy reads
--- batch.logits [b,l,vocab] or batch.teacher.
---@param job Job
---@param stage table
---@param ids any i32[b,l]
---@param segment? any i32[b,l]
---@return table[] terms
---@return nil
---@return table taps
function M.losses(job, stage, ids, segment)
  local about, hidden, teacher_taps = { segment = segment }, nil, nil
  local cached = job.cache and job.cache.now and job.cache:rows(job.part)
  local function teacher()
    if cached then job.cache:refuse_all() end
    if not hidden then
      hidden, teacher_taps = core.no_grad(function() return job.teacher:body(ids, stage.teacher_taps, about) end)
    end
    return hidden
  end
  if cached then teacher_taps = cached.taps elseif stage.teacher_taps then teacher() end
  local y, taps
  if not stage.apart then y, taps = job.student:body(ids, stage.student_taps, about) end
  local batch = { ids = ids, segment = segment }
  batch.head = head_of(job, batch, y, teacher, cached)
  local whole = { logits = function() return job.student:logits(y) end,
    teacher = function() return core.no_grad(job.teacher.logits, job.teacher, teacher()) end }
  setmetatable(batch, { __index = function(t, key)
    local value = whole[key] and whole[key]()
    rawset(t, key, value)
    return value
  end })
  if job.pairs then job.pairs:step(taps, teacher_taps, about) end
  local terms = {}
  for i, term in ipairs(stage.terms) do
    terms[i] = { name = term.name, weight = term.weight, scale = term.scale, strategy = term.strategy, value = term.strategy:run(job.pairs, batch) }
  end
  return terms, nil, taps
end

-- Sum of the cross-entropies of ids[from+1 ..] of each row, given all before them.
local function cost(model, ids, from)
  local scope <close> = core.scope()
  local l, w, b = ids:size(2), model:head()
  local y = model:body(ids):slice(2, from, l)
  local loss = op.head_loss { x = y, w = w, b = b, ids = ids:slice(2, from, l), vocab = model.vocab }
  return loss:item() * ids:size(1) * (l - from)
end

--- Perplexity of ids i32[n]: windows of `window` tokens, each `stride` behind the one before, in which only the tokens are counted
--- that no window before it has. A stride of a window (the default) forgets all at each border; a smaller one costs more and
--- always has at least window - stride tokens before the counted ones. With full = true those of the first window without them are
--- not counted, nor those behind the last whole window.
---@param model table
---@param ids any i32[n]
---@param o? table window (default: the model's positions, or 1024), stride, batch (default 8), full (false), together (each rank of
--- several takes some of the windows)
---@return table {perplexity, loss, tokens, window, stride, seconds}
function M.perplexity(model, ids, o)
  o = o or {}
  local n, begun = ids:count(), core.now()
  local window = math.min(o.window or model.positions or 1024, n)
  local stride, batch = math.min(o.stride or window, window), o.batch or 8
  if n < 2 or window < 2 or stride < 1 then options.fail(1, "perplexity", ("perplexity: %d tokens, window %d, stride %d"):format(n, window, stride)) end
  local total, tokens, turn, ranks = 0, 0, 0, o.together and dist.size or 1
  core.no_grad(function()
    local function add(first, count, length, from)
      turn = turn + 1
      if turn % ranks ~= dist.rank % ranks then return end
      local rows = {}
      for i = 1, count do rows[i] = ids:slice(1, first + (i - 1) * stride, first + (i - 1) * stride + length - 1):reshape(1, length) end
      total = total + cost(model, #rows > 1 and core.concat(rows, 1) or rows[1], from)
      tokens = tokens + count * (length - from)
    end
    local first, from = 1 + stride, math.max(window - stride, 1)
    add(1, 1, window, o.full and from or 1)
    while first + window - 1 <= n do
      local count = math.min(batch, (n - first - window + 1) // stride + 1)
      add(first, count, window, from)
      first = first + count * stride
    end
    local left = n - first + 1 -- the last window is a short one
    if left > from and not o.full then add(first, 1, left, from) end
  end)
  if ranks > 1 then
    total, tokens = table.unpack(dist.sum("perplexity", { total, tokens }))
    tokens = math.tointeger(tokens)
  end
  return { perplexity = math.exp(total / tokens), loss = total / tokens, tokens = tokens, window = window, stride = stride,
    seconds = core.now() - begun }
end

--- Length generalisation: perplexity of the same tokens given more and more before them. Windows of length, 2 length, .. times *
--- length tokens; of each only the last `length` tokens are counted (of the shortest, all but the first).
---@param model table
---@param ids any i32[n], n >= times * length
---@param o table length (as trained), times (a power of 2), batch (default 8)
---@return table[] rows {length, perplexity?, tokens?, why? (no perplexity: longer than the model's positions)}
function M.lengths(model, ids, o)
  local rows, longest, n = {}, o.length * o.times, ids:count()
  if n < longest then
    check.fail(2, ("lengths: %d times %d tokens are %d, the text has %d"):format(o.times, o.length, longest, n), { id = "usage" })
  end
  local window = o.length
  while window <= longest do
    local row = { length = window }
    if model.positions and model.positions < window then
      row.why = ("%d positions"):format(model.positions)
    else
      local batch = math.max(1, (o.batch or 8) * o.length // window)
      local r = M.perplexity(model, ids:slice(1, longest - window + 1, n), { window = window, stride = o.length, batch = batch, full = true })
      row.perplexity, row.tokens = r.perplexity, r.tokens
    end
    rows[#rows + 1], window = row, 2 * window
  end
  return rows
end

return M
