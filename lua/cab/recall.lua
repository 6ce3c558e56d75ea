--- Tests of memory that are made on the fly: a pass key in filler text, and associative recall of many pairs. All of them are
--- functions of a seed.
local core = require "cab.core"
local check = require "cab.check"
local M = {}

local FILLER = " The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
local TASK = "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it."
local QUESTION = " What is the pass key? The pass key is"

local function ids_of(tokenizer, text)
  local t <close> = tokenizer:encode(text, false)
  return t:totable()
end

local function append(to, from) return table.move(from, 1, #from, #to + 1, to) end

--- A pass key of five digits at a depth of a text of about `length` ids (never more). Source: arXiv 2305.16300, section 4.2.
---@param tokenizer userdata
---@param o table length (ids of context and answer), depth (0: at the front, 1: at the end), seed (0)
---@return table { context: integer[], continuation: integer[], key: string }, a request for harness.loglikelihoods
function M.passkey(tokenizer, o)
  local length, depth = o.length, o.depth or 0.5
  if math.type(length) ~= "integer" then check.usage(("passkey: length is %s"):format(tostring(length))) end
  if type(depth) ~= "number" or not (depth >= 0 and depth <= 1) then check.usage(("passkey: depth is %s, expected 0 to 1"):format(tostring(depth))) end
  local draw <close> = core.uniform({ 1 }, 0, 1, o.seed or 0, "passkey")
  local key = tostring(10000 + math.floor(draw:totable()[1] * 90000))
  local head, filler = ids_of(tokenizer, TASK), ids_of(tokenizer, FILLER)
  local needle = ids_of(tokenizer, (" The pass key is %s. Remember it. %s is the pass key."):format(key, key))
  local question, answer = ids_of(tokenizer, QUESTION), ids_of(tokenizer, " " .. key)
  local left = length - #head - #needle - #question - #answer
  if left < 0 then check.usage(("passkey: length is %d, the text without filler has %d ids"):format(length, length - left)) end
  local rounds = left // #filler
  local before, context = math.floor(depth * rounds + 0.5), head
  for i = 0, rounds do
    if i == before then append(context, needle) end
    if i < rounds then append(context, filler) end
  end
  return { context = append(context, question), continuation = answer, key = key }
end

--- How often a model says the key, by length and depth.
---@param score fun(ids: any, first: integer): any as in cab.harness
---@param tokenizer userdata
---@param o table lengths, depths ({0, 0.25, 0.5, 0.75, 1}), count (keys each, 5), seed (0), tokens as in loglikelihoods
---@return table[] rows { length, depth, acc, loss: mean negative log-likelihood of the key }
function M.passkeys(score, tokenizer, o)
  local rows, requests = {}, {}
  for _, length in ipairs(o.lengths) do
    for _, depth in ipairs(o.depths or { 0, 0.25, 0.5, 0.75, 1 }) do
      local row = { length = length, depth = depth, requests = {} }
      for i = 1, o.count or 5 do
        row.requests[i] = M.passkey(tokenizer, { length = length, depth = depth, seed = (o.seed or 0) + i })
        requests[#requests + 1] = row.requests[i]
      end
      rows[#rows + 1] = row
    end
  end
  require "cab.harness".loglikelihoods(score, requests, { positions = math.huge, tokens = o.tokens, progress = o.progress })
  for _, row in ipairs(rows) do
    local hits, sum = 0, 0
    for _, r in ipairs(row.requests) do hits, sum = hits + (r.greedy and 1 or 0), sum - r.loglikelihood end
    row.acc, row.loss, row.requests = hits / #row.requests, sum / #row.requests, nil
  end
  return rows
end

-- One row: pairs first, then each key once more, with its value behind it, at gaps that a power law makes short or long.
local function recall_row(o, draw)
  local at = 0
  local function uniform()
    at = at + 1
    return draw[at]
  end
  local function choose(low, high, n) -- n different numbers of low .. high-1
    local list, out = {}, {}
    for v = low, high - 1 do list[#list + 1] = v end
    for i = 1, n do
      local j = i + math.floor(uniform() * (#list - i + 1))
      list[i], list[j] = list[j], list[i]
      out[i] = list[i]
    end
    return out
  end
  local half, pairs_length = o.vocab // 2, 2 * o.pairs
  local keys, values, ids, recalled = choose(1, half, o.pairs), choose(half, o.vocab, o.pairs), {}, {}
  for i = 1, o.pairs do ids[2 * i - 1], ids[2 * i] = keys[i], values[i] end
  local space = (o.length - pairs_length) // 2
  local places = {}
  for i = 1, space do -- without replacement, weight i^(power-1): the largest of log(u) / weight
    places[i] = { i - 1, math.log(1 - uniform()) / i ^ (o.power - 1) }
  end
  table.sort(places, function(a, b) return a[2] > b[2] or (a[2] == b[2] and a[1] < b[1]) end)
  for t = pairs_length + 1, o.length do ids[t] = math.floor(uniform() * o.vocab) end
  for t = 1, o.length do recalled[t] = 0 end
  for i = 1, o.pairs do
    local t = pairs_length + 2 * places[i][1] + 1
    ids[t], ids[t + 1], recalled[t] = keys[i], values[i], 1
  end
  return ids, recalled
end

--- Multi-query associative recall: key value key value ..., then every key again among random ids, each with its value behind it.
--- Where `recalled` is 1 the next id is the value to be remembered: an ordinary language model's loss at these places. Source: arXiv
--- 2312.04927, appendix.
---@param o table vocab (8192), length (64), pairs (4), batch (1), power (0.01), seed (0), index (0: number of the batch)
---@return any ids i32[b,l]
---@return any recalled i32[b,l], 0 or 1
function M.associative(o)
  local set = check.options({ vocab = 8192, length = 64, pairs = 4, batch = 1, power = { "number", default = 0.01, min = 0 }, seed = 0, index = 0 }, o,
    "associative")
  if set.pairs < 1 or set.pairs * 4 > set.length then
    check.usage(("associative: %d pairs need %d ids or more, length is %d"):format(set.pairs, set.pairs * 4, set.length))
  end
  if set.vocab // 2 - 1 < set.pairs then check.usage(("associative: a vocabulary of %d has no %d keys"):format(set.vocab, set.pairs)) end
  local ids, recalled, each = {}, {}, 2 * set.pairs + 2 * set.length
  for b = 1, set.batch do
    local draw <close> = core.uniform({ each }, 0, 1, set.seed, ("associative %d"):format(set.index * set.batch + b))
    ids[b], recalled[b] = recall_row(set, draw:totable())
  end
  return core.tensor(ids, "i32"), core.tensor(recalled, "i32")
end

--- Share of the values that a model says.
---@param score fun(ids: any, first: integer): any
---@param o table as associative; batches (1)
---@return number acc
function M.associative_accuracy(score, o)
  local given, hits, total = check.copy(o), 0, 0
  given.batches = nil
  for i = 0, (o.batches or 1) - 1 do
    local scope <close> = core.scope()
    given.index = i
    local ids, recalled = M.associative(given)
    local b, l = ids:size(1), ids:size(2)
    local list, mask, targets = ids:totable(), recalled:totable(), {}
    for r = 1, b do
      for t = 1, l do
        local wanted = mask[r][t] == 1
        targets[#targets + 1] = wanted and list[r][t + 1] or -1
        total = total + (wanted and 1 or 0)
      end
    end
    local logits = core.no_grad(function() return score(ids, 1) end)
    local _, greedy = core.token_scores(logits:reshape(b * l, -1), core.tensor(targets, "i32"))
    for _, hit in ipairs(greedy:totable()) do hits = hits + hit end
  end
  return hits / total
end

return M
