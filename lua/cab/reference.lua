--- The reference of recipes: every key with its type, default, range and meaning, read off the schemas that check it. Written as
--- docs/recipe.md, and as types for editors (cab.types).
local core = require "cab.core"
local check = require "cab.check"
local lfs = require "lfs"
local meanings = require "cab.meanings"
local M = {}

-- Sorted keys.
local function keys(t) return require "cab.options".names(t) end

local function strategies()
  local list = {}
  for name in lfs.dir(core.library .. "/cab/strategies") do
    if name:find "%.lua$" then list[#list + 1] = name:sub(1, -5) end
  end
  table.sort(list)
  return list
end

---@class ReferenceSection
---@field title string "optim", "data.fashion"
---@field about string
---@field rules table key -> rule of cab.check
---@field where string[] sections of cab.meanings, the first that has a key says what it means

--- All sections, in the order of a recipe.
---@return ReferenceSection[]
function M.sections()
  local recipes, list = require "cab.recipe", {}
  local function add(title, about, rules, ...) list[#list + 1] = { title = title, about = about, rules = rules, where = { ... } } end
  add("recipe", "`cab.recipe { ... }`", recipes.schema, "recipe")
  for _, name in ipairs(keys(recipes.parts)) do add(name, ("`%s = { ... }`"):format(name), recipes.parts[name], name) end
  add("stages.N", "`stages = { { loss = { ... }, epochs = 10 }, ... }`", recipes.stage, "stage")
  add("stages.N.loss.TERM", "`align = { \"attention_bridge\", weight = 3 }`; the strategy's options stand beside these.",
    { strategy = { "string|table" }, weight = { "number|table", default = 1, min = 0 } }, "term")
  add("stages.N.stop", "`stop = { of = \"align\", r2 = 0.9 }`: looked at after each evaluation, on the first batch of the test images.", recipes.stop, "stop")
  local weights = require "cab.weighting".kinds
  for _, name in ipairs(keys(weights)) do
    add("weight " .. name, ("`weight = { \"%s\", ... }`"):format(name), weights[name], "weight." .. name, "weight")
  end
  for _, name in ipairs(strategies()) do
    local class = require "cab".strategies[name]
    add("strategy " .. name, class.about or "", class.options, "strategy." .. name, "bridge", "soft", "reuse")
  end
  local maps = require "cab.layers".schema
  for _, name in ipairs(keys(maps)) do
    if next(maps[name]) then add("layer map " .. name, ("`pairs = { \"%s\", ... }`"):format(name), maps[name], "map") end
  end
  local kinds = require "cab.data".kinds
  for _, name in ipairs(keys(kinds)) do
    add("data." .. name, ("`cab.data.%s { ... }`"):format(name), kinds[name].options, "data." .. name, name == "imagenet" and "data.folder" or "data", "data")
  end
  local models = require "cab.models".kinds
  for _, name in ipairs(keys(models)) do
    add("models." .. name, ("`cab.models.%s { ... }`"):format(name), models[name].options, "model." .. name, "model", "model_language")
  end
  add("compare", "`cab.compare { ... }`", require "cab.compare".schema, "compare")
  add("study", "`cab.study { ... }`, run by `cab sweep`", require "cab.study".schema, "study")
  return list
end

--- What a key of a section means, nil where nobody said.
---@param section ReferenceSection
---@param key string
---@return string?
function M.meaning(section, key)
  for _, name in ipairs(section.where) do
    local text = meanings[name] and meanings[name][key]
    if text then return text end
  end
end

-- A default as it is written in a recipe.
local function literal(value)
  if type(value) == "string" then return ("%q"):format(value) end
  if type(value) ~= "table" then return type(value) == "number" and ("%.14g"):format(value) or tostring(value) end
  local parts = {}
  for _, v in ipairs(value) do parts[#parts + 1] = literal(v) end
  for _, k in ipairs(keys(value)) do parts[#parts + 1] = k .. " = " .. literal(value[k]) end
  return #parts == 0 and "{}" or "{ " .. table.concat(parts, ", ") .. " }"
end

--- A rule in words: its type with choices or range, and its default.
---@param rule any
---@return string type
---@return string default "", where there is none
function M.words(rule)
  rule = check.entry(rule)
  local kind = rule[1]:gsub("|", " or ")
  if rule.one_of then
    local list = {}
    for i, v in ipairs(rule.one_of) do list[i] = literal(v) end
    kind = table.concat(list, ", ")
  elseif rule.min and rule.max then kind = ("%s, %.14g .. %.14g"):format(kind, rule.min, rule.max)
  elseif rule.min then kind = ("%s, at least %.14g"):format(kind, rule.min)
  end
  local default = rule.required and "**required**" or rule.default ~= nil and "`" .. literal(rule.default) .. "`" or ""
  return kind, default
end

--- docs/recipe.md.
---@return string
function M.markdown()
  local out = { "# Recipe reference", "",
    "Every key that a recipe may have, written by `build/cab run tests/docs_tables.lua recipe > docs/recipe.md` from the schemas that",
    "check it. An override is its path: `cab run my.lua optim.lr=1e-3 stages.1.loss.align=5 student.depth=8`. An unknown key is an error with the",
    "nearest name.", "" }
  for _, s in ipairs(M.sections()) do
    table.insert(out, ("## %s\n\n%s\n\n| key | type | default | meaning |\n|---|---|---|---|"):format(s.title, s.about))
    for _, key in ipairs(keys(s.rules)) do
      local kind, default = M.words(s.rules[key])
      table.insert(out, ("| `%s` | %s | %s | %s |"):format(key, kind, default, M.meaning(s, key) or "?"))
    end
    out[#out + 1] = ""
  end
  return table.concat(out, "\n")
end

--- Keys without a meaning, and meanings without a key.
---@return string[]
function M.gaps()
  local list, used = {}, {}
  for _, s in ipairs(M.sections()) do
    for _, key in ipairs(keys(s.rules)) do
      local found = false
      for _, name in ipairs(s.where) do
        if not found and meanings[name] and meanings[name][key] then
          found = true
          used[name .. "." .. key] = true
        end
      end
      if not found then list[#list + 1] = ("%s of %s has no meaning: add it to lua/cab/meanings.lua"):format(key, s.title) end
    end
  end
  for _, name in ipairs(keys(meanings)) do
    for _, key in ipairs(keys(meanings[name])) do
      if not used[name .. "." .. key] then list[#list + 1] = ("%s of %s in lua/cab/meanings.lua is no key of any recipe"):format(key, name) end
    end
  end
  return list
end

return M
