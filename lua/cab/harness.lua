--- Evaluation of language models on tasks, with acc and acc_norm as the common harness (lm-evaluation-harness 0.4) computes them.
--- A model is a function score(ids, first): ids i32[b,l] -> logits [b, l-first+1, V] of the positions first .. l (from 1); M.model
--- makes one of a model. Rows are padded at their end, which a causal model does not see.
local core = require "cab.core"
local check = require "cab.check"
local tasks = require "cab.tasks"
local M = {}

--- The scoring function of a language model.
---@param model table with body(ids) and logits(y)
---@param device? string
---@return fun(ids: any, first: integer): any
function M.model(model, device)
  return function(ids, first)
    if device and device ~= "cpu" then ids = ids:to(device) end
    return model:logits((model:body(ids)):slice(2, first, ids:size(2)))
  end
end

local function ids_of(tokenizer, text)
  local t <close> = tokenizer:encode(text, false)
  return t:count() > 0 and t:totable() or {}
end

--- Ids of a context and of what follows it, encoded together: white space at the context's end belongs to what follows. An empty
--- context is <|endoftext|>.
---@param tokenizer userdata
---@param context string
---@param continuation string
---@return integer[] context
---@return integer[] continuation
function M.pair(tokenizer, context, continuation)
  local kept = context:gsub("%s+$", "")
  continuation, context = context:sub(#kept + 1) .. continuation, kept
  if context == "" then
    local ending = require "cab.tokenizer".ending(tokenizer)
    if not ending then check.fail(2, "an empty context needs a tokenizer with <|endoftext|>", { id = "task" }) end
    return { ending }, ids_of(tokenizer, continuation)
  end
  local whole, before = ids_of(tokenizer, context .. continuation), ids_of(tokenizer, context)
  return before, table.move(whole, #before + 1, #whole, 1, {})
end

-- Input ids of a request and where its continuation begins: the last `most` ids before the last one.
local function row_of(request, most)
  local all = table.move(request.continuation, 1, #request.continuation, #request.context + 1, table.move(request.context, 1, #request.context, 1, {}))
  local from = math.max(1, #all - most)
  return { ids = table.move(all, from, #all - 1, 1, {}), targets = request.continuation, request = request,
    first = #all - from - #request.continuation + 1 }
end

-- Scores rows that were padded to one length.
local function run(score, rows)
  local scope <close> = core.scope()
  local length, first = 0, math.huge
  for _, row in ipairs(rows) do length, first = math.max(length, #row.ids), math.min(first, row.first) end
  local ids, targets = {}, {}
  for i, row in ipairs(rows) do
    local line = table.move(row.ids, 1, #row.ids, 1, {})
    for t = #line + 1, length do line[t] = 0 end
    ids[i] = line
    for t = first, length do
      targets[#targets + 1] = t >= row.first and row.targets[t - row.first + 1] or -1
    end
  end
  local logits = core.no_grad(function() return score(core.tensor(ids, "i32"), first) end)
  local width = length - first + 1
  local p, greedy = core.token_scores(logits:reshape(#rows * width, -1), core.tensor(targets, "i32"))
  p, greedy = p:totable(), greedy:totable()
  for i, row in ipairs(rows) do
    local sum, all = 0, true
    for t = row.first, row.first + #row.targets - 1 do
      local at = (i - 1) * width + t - first + 1
      sum, all = sum + p[at], all and greedy[at] == 1
    end
    if sum ~= sum or sum == -math.huge then check.fail(76, "the logits of a task are not finite", { id = "nonfinite" }) end
    row.request.loglikelihood, row.request.greedy = sum, all
  end
end

--- Fills in the log-likelihood of each request's continuation and whether greedy decoding gives it.
---@param score fun(ids: any, first: integer): any
---@param requests table[] { context: integer[], continuation: integer[] } -> loglikelihood, greedy
---@param o? table positions (most ids the model takes, default 1024), tokens (ids of a batch, default 2048), progress (fun(done, total))
function M.loglikelihoods(score, requests, o)
  o = o or {}
  local most, room, rows = o.positions or 1024, o.tokens or 2048, {}
  for i, request in ipairs(requests) do
    if #request.continuation == 0 then check.fail(65, ("request %d has an empty continuation"):format(i), { id = "task" }) end
    if #request.continuation > most then
      check.fail(65, ("request %d: %d ids to score, the model takes %d"):format(i, #request.continuation, most), { id = "task" })
    end
    rows[i] = row_of(request, most)
    rows[i].number = i
  end
  table.sort(rows, function(a, b) -- equal lengths together; a total order
    if #a.ids ~= #b.ids then return #a.ids > #b.ids end
    return a.number < b.number
  end)
  local at = 1
  while at <= #rows do
    local count = math.max(1, math.min(#rows - at + 1, room // #rows[at].ids))
    run(score, table.move(rows, at, at + count - 1, 1, {}))
    at = at + count
    if o.progress then o.progress(at - 1, #rows) end
  end
end

-- The first of the largest.
local function argmax(list)
  local best = 1
  for i = 2, #list do if list[i] > list[best] then best = i end end
  return best
end

local function share(hits, n)
  local p = hits / n
  return p, n > 1 and math.sqrt(p * (1 - p) / (n - 1)) or 0
end

-- Requests of a document: one for each choice.
local function requests_of(doc, tokenizer)
  local out = {}
  for i, choice in ipairs(doc.choices) do
    local context, continuation = M.pair(tokenizer, doc.contexts and doc.contexts[i] or doc.context, choice)
    out[i] = { context = context, continuation = continuation }
  end
  return out
end

local function tally(row, doc, requests)
  local plain, normed = {}, {}
  for i, r in ipairs(requests) do
    plain[i], normed[i] = r.loglikelihood, r.loglikelihood / (doc.lengths and doc.lengths[i] or 1)
  end
  row.total = row.total + requests[1].loglikelihood
  if not doc.gold then
    row.acc = row.acc + (requests[1].greedy and 1 or 0)
    return
  end
  row.acc = row.acc + (argmax(plain) == doc.gold and 1 or 0)
  row.norm = row.norm + (argmax(normed) == doc.gold and 1 or 0)
end

--- A task on a model.
---@param name string lambada, piqa, arc_easy, arc_challenge, hellaswag, winogrande
---@param path string its JSONL file, in the fields of its publication or as query, choices, gold
---@param score fun(ids: any, first: integer): any
---@param tokenizer userdata
---@param o? table positions, tokens, progress as in loglikelihoods; limit (documents at most)
---@return table { task, documents, acc, acc_stderr, acc_norm?, acc_norm_stderr?, perplexity? (lambada) }
function M.task(name, path, score, tokenizer, o)
  local task = tasks.all[name] or check.fail(2, check.unknown("task", name, tasks.all), { id = "task" })
  local docs, requests = tasks.read(task, path, o and o.limit), {}
  local of = {}
  for i, doc in ipairs(docs) do
    of[i] = requests_of(doc, tokenizer)
    table.move(of[i], 1, #of[i], #requests + 1, requests)
  end
  M.loglikelihoods(score, requests, o)
  local row = { acc = 0, norm = 0, total = 0 }
  for i, doc in ipairs(docs) do tally(row, doc, of[i]) end
  local out = { task = name, documents = #docs }
  out.acc, out.acc_stderr = share(row.acc, #docs)
  if task.norm then out.acc_norm, out.acc_norm_stderr = share(row.norm, #docs) end
  if task.perplexity then out.perplexity = math.exp(-row.total / #docs) end
  return out
end

--- Prints the tasks of a training job's student.
---@param job Job
---@param given string[] "NAME=FILE.jsonl"
function M.report(job, given)
  for _, text in ipairs(given) do
    local name, path = text:match "^([%w_]+)=(.+)$"
    if not name then check.fail(2, ("--task %s: expected NAME=FILE.jsonl"):format(text), { id = "usage" }) end
    local model = job.student
    local r = M.task(name, path, M.model(model, job.device), job.data.tokenizer, { positions = model.positions or job.data.length })
    local parts = { ("%s: acc %.2f +- %.2f %%"):format(name, 100 * r.acc, 100 * r.acc_stderr) }
    if r.acc_norm then parts[#parts + 1] = ("acc_norm %.2f +- %.2f %%"):format(100 * r.acc_norm, 100 * r.acc_norm_stderr) end
    if r.perplexity then parts[#parts + 1] = ("perplexity %.2f"):format(r.perplexity) end
    print(("%s  (%d documents)"):format(table.concat(parts, "  "), r.documents))
  end
end

return M
