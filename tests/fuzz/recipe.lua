-- What must hold for any override texts: refused with code 2 and the recipe as it was, or a recipe that is accepted as it
-- stands, also after its way through recipe.json.
local cab = require "cab"
local core = cab.core
local encodable = require "cab.runs".encodable
local recipe = cab.recipe {
  name = "fuzz",
  data = cab.data.fashion { fraction = 0.1, flip = true },
  teacher = cab.models.vit { image = 28, patch = 7, dim = 16, depth = 2, heads = 2 },
  student = cab.models.vim { image = 28, patch = 7, dim = 16, depth = 2, state = 4 },
  stages = {
    { name = "one", loss = { soft = { weight = 1, temperature = 2 }, align = { "attention_bridge", hidden = 8 } }, steps = 6 },
    { loss = { vanilla = 1, soft = 1 }, epochs = 0.5, lr = 1e-3 },
  },
  optim = { "adamw", lr = 1e-2, clip = 1, ema = 0.9 },
}
local start = recipe.resolved
local before = core.json_encode(encodable(start))
local calls = 0

return function(bytes)
  local texts = {}
  for text in bytes:gmatch "[^\n]+" do texts[#texts + 1] = text end
  local ok, e = pcall(recipe.override, recipe, texts)
  local accepted = recipe.resolved
  recipe.resolved = start
  if not ok then
    assert(core.is_error(e) and e.code == 2 and #e.message > 0, e)
    assert(accepted == start)
  elseif #bytes % 4 == 0 then -- a share, for speed
    local after = core.json_encode(encodable(accepted))
    assert(core.json_encode(encodable(cab.recipe(core.json_decode(after)).resolved)) == after, after)
  end
  calls = calls + 1
  if calls % 64 == 0 then assert(core.json_encode(encodable(start)) == before, "the recipe was changed") end
end
