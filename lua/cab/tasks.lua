--- What the documents of published tasks become: a context, the choices that may follow it, and which is right. As in
--- lm-evaluation-harness 0.4: a choice follows its context behind a space, acc_norm divides by the choice's length in characters.
local core = require "cab.core"
local check = require "cab.check"
local M = {}

---@class TaskDoc
---@field context string
---@field contexts? string[] one for each choice instead
---@field choices string[] with the space in front
---@field lengths? integer[] characters of each choice, for acc_norm
---@field gold? integer 1-based; none: acc is whether greedy decoding gives the only choice

-- A field of a line, checked: "string", "table" (a list of strings) or "integer".
local function field(doc, name, kind)
  local value = doc[name]
  if value == nil or value == core.null then doc.fail(("field \"%s\" is missing"):format(name)) end
  if kind == "integer" then value = math.tointeger(tonumber(value)) end
  if type(value) ~= (kind == "integer" and "number" or kind) then doc.fail(("field \"%s\" is no %s"):format(name, kind == "table" and "list" or kind)) end
  if kind == "table" then
    for i, item in ipairs(value) do
      if type(item) ~= "string" then doc.fail(("field \"%s\": item %d is no string"):format(name, i)) end
    end
  end
  return value
end

local function has(doc, name) return doc[name] ~= nil and doc[name] ~= core.null end

-- gold counts from 0, as in the files.
local function choose(doc, context, choices, gold)
  if #choices < 2 then doc.fail(("%d choices, expected at least 2"):format(#choices)) end
  if gold < 0 or gold >= #choices then doc.fail(("the right choice is %d of %d, from 0"):format(gold, #choices)) end
  local out = { context = context, choices = {}, lengths = {}, gold = gold + 1 }
  for i, text in ipairs(choices) do
    out.choices[i], out.lengths[i] = " " .. text, utf8.len(text)
    if text == "" then doc.fail(("choice %d is empty"):format(i)) end
  end
  return out
end

-- { query, choices, gold }: the question without its "Answer:".
local function asked(doc)
  return choose(doc, field(doc, "query", "string"):gsub("%s+$", "") .. "\nAnswer:", field(doc, "choices", "table"), field(doc, "gold", "integer"))
end

local function question(text) return "Question: " .. text .. "\nAnswer:" end

local function piqa(doc)
  if has(doc, "query") then return asked(doc) end
  return choose(doc, question(field(doc, "goal", "string")), { field(doc, "sol1", "string"), field(doc, "sol2", "string") }, field(doc, "label", "integer"))
end

local function arc(doc)
  if has(doc, "query") then return asked(doc) end
  local choices, key = doc.choices, field(doc, "answerKey", "string")
  if type(choices) ~= "table" then doc.fail "field \"choices\" is no object" end
  choices.fail = doc.fail
  local texts, labels = field(choices, "text", "table"), field(choices, "label", "table")
  for i, label in ipairs(labels) do
    if label == key then return choose(doc, question(field(doc, "question", "string")), texts, i - 1) end
  end
  doc.fail(("answerKey \"%s\" is none of the labels"):format(core.escape(key)))
end

local function clean(text)
  text = text:match "^%s*(.-)%s*$":gsub(" %[title%]", ". "):gsub("%[[^\n]-%]", ""):gsub("  ", " ")
  return text
end

local function hellaswag(doc)
  if has(doc, "query") and has(doc, "gold") then
    return choose(doc, field(doc, "query", "string"), field(doc, "choices", "table"), field(doc, "gold", "integer"))
  end
  local b = field(doc, "ctx_b", "string")
  local context = field(doc, "ctx_a", "string") .. " " .. b:sub(1, 1):upper() .. b:sub(2):lower() -- ASCII letters only
  local endings = {}
  for i, text in ipairs(field(doc, "endings", "table")) do endings[i] = clean(text) end
  return choose(doc, clean(field(doc, "activity_label", "string") .. ": " .. context), endings, field(doc, "label", "integer"))
end

-- The sentence up to the gap, filled, is the context; what follows the gap is scored.
local function winogrande(doc)
  local sentence = field(doc, "sentence", "string")
  local before, after = sentence:match "^([^_]*)_(.*)$"
  if not before then doc.fail "the sentence has no _" end
  local answer = field(doc, "answer", "string")
  if answer ~= "1" and answer ~= "2" then doc.fail(("answer is \"%s\", expected \"1\" or \"2\""):format(core.escape(answer))) end
  after = " " .. after:match "^%s*(.-)%s*$"
  return { contexts = { before .. field(doc, "option1", "string"), before .. field(doc, "option2", "string") }, choices = { after, after },
    gold = tonumber(answer) }
end

local function lambada(doc)
  if has(doc, "context") then
    return { context = field(doc, "context", "string"), choices = { " " .. field(doc, "continuation", "string") } }
  end
  local text = field(doc, "text", "string")
  local context, last = text:match "^(.*) ([^ ]*)$"
  if not context then doc.fail "the text has no space" end
  return { context = context, choices = { " " .. last } }
end

--- Tasks by name: how a line is read; norm: has acc_norm; perplexity: of the continuation.
M.all = {
  lambada = { read = lambada, perplexity = true },
  piqa = { read = piqa, norm = true },
  arc_easy = { read = arc, norm = true },
  arc_challenge = { read = arc, norm = true },
  hellaswag = { read = hellaswag, norm = true },
  winogrande = { read = winogrande },
}

--- The documents of a JSONL file. Faults (65) name file, line and field.
---@param task table of M.all
---@param path string
---@param limit? integer
---@return TaskDoc[]
function M.read(task, path, limit)
  local docs, number = {}, 0
  for line in (require "cab.folder".read(path) .. "\n"):gmatch "([^\n]*)\n" do
    number = number + 1
    local function fail(text) check.fail(65, ("%s: line %d: %s"):format(path, number, text), { file = path, id = "task" }) end
    if line:find "%S" then
      local ok, doc = pcall(core.json_decode, line)
      if not ok then fail((tostring(doc.message or doc):gsub("^json_decode: ", ""))) end
      if type(doc) ~= "table" then fail "no JSON object" end
      doc.fail = fail
      docs[#docs + 1] = task.read(doc)
      if #docs == limit then break end
    end
  end
  if #docs == 0 then check.fail(65, path .. ": no documents", { file = path, id = "task" }) end
  return docs
end

return M
