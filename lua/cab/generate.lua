--- Text from a language model: the prompt at once, then one token at a time from a cache. `cab generate RUN`.
local core = require "cab.core"
local check = require "cab.check"
local options = require "cab.options"
local M = {}

local schema = {
  count = { "integer", default = 200, min = 1 },
  temperature = { "number", default = 0.8, min = 0 },      -- 0: always the likeliest
  top_k = { "integer", default = 0, min = 0 },             -- among the k likeliest, 0: among all
  top_p = { "number", default = 1, min = 0, max = 1 },     -- among the likeliest that have this share together
  seed = { "integer", default = 0, min = 0 },
  stop = { "integer" },                                    -- an id that ends the text
}

-- Ids of the likeliest first, no more than o.top_k and o.top_p allow, with their weights e^((x - max) / T).
local function candidates(logits, o)
  local order, weight, top = {}, {}, -math.huge
  for i, x in ipairs(logits) do
    order[i] = i
    top = math.max(top, x)
  end
  for i, x in ipairs(logits) do weight[i] = math.exp((x - top) / o.temperature) end
  if o.top_k == 0 and o.top_p >= 1 then return order, weight, #order end
  table.sort(order, function(a, b) return logits[a] > logits[b] or (logits[a] == logits[b] and a < b) end)
  local most, sum, all = o.top_k > 0 and math.min(o.top_k, #order) or #order, 0, 0
  for i = 1, most do all = all + weight[order[i]] end
  for i = 1, most do
    sum = sum + weight[order[i]]
    if sum >= o.top_p * all then return order, weight, i end
  end
  return order, weight, most
end

-- An id from 0. dice: uniform in [0, 1).
local function choose(logits, o, dice)
  if o.temperature == 0 then
    local best = 1
    for i = 2, #logits do if logits[i] > logits[best] then best = i end end
    return best - 1
  end
  local order, weight, most = candidates(logits, o)
  local sum = 0
  for i = 1, most do sum = sum + weight[order[i]] end
  local left = dice * sum
  for i = 1, most do
    left = left - weight[order[i]]
    if left < 0 then return order[i] - 1 end
  end
  return order[most] - 1
end

--- Ids that follow a prompt: as many as asked for, or as the model has positions, or up to o.stop (left out).
---@param model table a language model
---@param prompt integer[] at least one id
---@param given? table count, temperature, top_k, top_p, seed, stop
---@return integer[]
function M.ids(model, prompt, given)
  local o = check.options(schema, given, "generate")
  if #prompt == 0 then options.fail(2, "prompt", "generate: the prompt has no token") end
  local count = math.min(o.count, (model.positions or math.huge) - #prompt)
  if count < 1 then options.fail(2, "prompt", ("generate: the prompt has %d tokens, the model %d positions"):format(#prompt, model.positions)) end
  local dice = core.uniform({ count }, 0, 1, o.seed, "generate", "f64"):totable()
  local out, device = {}, model:parameters()[1].tensor:device()
  core.no_grad(function()
    local outer <close> = core.scope() -- luacheck: ignore outer
    local cache, given_ids = model:cache(1, #prompt + count), prompt
    for i = 1, count do
      local scope <close> = core.scope() -- luacheck: ignore scope
      local y = model:body(core.tensor({ given_ids }, "i32", device), nil, { cache = cache })
      local logits = model:logits(y:slice(2, y:size(2), y:size(2)))
      local id = choose(logits:to("cpu"):totable()[1][1], o, dice[i])
      if id == o.stop then return end
      out[i], given_ids = id, { id }
    end
  end)
  return out
end

--- Text that follows a prompt, the prompt included.
---@param model table
---@param tokenizer userdata
---@param prompt string
---@param given? table as for M.ids
---@return string
function M.text(model, tokenizer, prompt, given)
  local encoded <close> = tokenizer:encode(prompt)
  local ids = encoded:count() > 0 and encoded:totable() or {}
  local o = check.copy(given or {})
  o.stop = o.stop or require "cab.tokenizer".ending(tokenizer)
  return prompt .. tokenizer:decode(M.ids(model, ids, o))
end

--- The student of a run folder with its best weights, and the tokenizer of its data.
---@param path string
---@return table model
---@return userdata tokenizer
function M.open(path)
  local saved = check.decode(require "cab.folder".read(path .. "/recipe.json"))
  local recipe = type(saved) == "table" and saved.recipe
  if type(recipe) ~= "table" or type(saved.student) ~= "table" then
    check.fail(65, path .. "/recipe.json: no recipe in it", { file = path .. "/recipe.json", id = "recipe" })
  end
  if not (recipe.data and recipe.data.tokenizer) then
    check.fail(2, path .. ": this run is not one of a language model", { id = "usage" })
  end
  local spec = check.copy(saved.student)
  spec.kind, spec.weights = recipe.student.kind, nil
  local model = require "cab.models".build(spec)
  model:load((core.load(path .. "/best.safetensors")))
  return model, require "cab.tokenizer".open(recipe.data.tokenizer)
end

--- Runs it. @param a table parsed arguments of `cab generate`
function M.main(a)
  local model, tokenizer = M.open(a.run)
  print(M.text(model, tokenizer, a.prompt, { count = a.tokens, temperature = a.temperature, top_k = a.top_k, top_p = a.top_p, seed = a.seed }))
  return 0
end

return M
