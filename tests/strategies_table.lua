--- docs/strategies.md, from the strategies, bridges' maps and layer maps themselves.
--- build/cab run tests/strategies_table.lua > docs/strategies.md
local cab = require "cab"
local M = {}

local function taps(needs)
  local out = {}
  for _, side in ipairs { "student", "teacher" } do
    if #(needs[side] or {}) > 0 then out[#out + 1] = side .. " " .. table.concat(needs[side], " ") end
  end
  return #out > 0 and table.concat(out, "; ") or "logits"
end

local LAYER_MAPS = {
  { '"proportional"', "student layer l of L learns from teacher layer floor(l T / L); the default, as published" },
  { '"one_to_one"', "as many layers in both, or an error" }, { '{"last", k=4}', "the last k layers of each" },
  { '{"stride", k=2}', "every k-th layer of the deeper model, counted back from its last; k fills the shallower one unless given" },
  { '{"manual", 1, false, 2}', "a teacher layer or false for each student layer" },
  { '{"learned", near=0, temperature=1, final=0.1}', "a softmax over the teacher layers at most `near` from the proportional one (0: all), trained with the "
    .. "losses that it mixes, sharpened from `temperature` to `final` over the run; every evaluation reports it" },
  { '{"search", by="cka", monotone=true, images=200}', "the most similar teacher layers before the first step, by linear CKA of hidden states or "
    .. "`ridge`, the R2 of the best linear bridge from B, C onto k, q; the run says which" },
}

local HEAD = [[
# Strategies

A loss term of a recipe names one: `loss = { soft = 1, align = { "attention_bridge", weight = 3, depth = 1 } }`. One file each in
`lua/cab/strategies`; `cab help NAME` prints the same. Options show their default first. Written by
`build/cab run tests/strategies_table.lua > docs/strategies.md`.

| strategy | what it does | taps | options | source |
|---|---|---|---|---|]]

local LAYERS = [[

## Layer maps

`pairs = ...` of a recipe.

| map | which teacher layer |
|---|---|]]

local REST = [[

## Kernel maps

`map` of a strategy: what the teacher's tap becomes. %s. `softmax` runs over tokens
for k and over features for all else. `learned` is the feature map of a linear attention, trained beside. One's own, before the recipe:
`cab.maps.define("cube", function(x, tap) return x * x * x end)`, then `map = "cube"`.

## Bridges

`onto` says which tap of the student is fitted to which of the teacher's: `{ B = "k", C = "q" }`, B alone, `{ B = "hidden", C = "hidden" }`
(is B, C <- K, Q special?), `{ x = "v" }`, `{ z = "q" }`. `control` puts another image's targets, or fixed random ones, in their place.
`kind = "ridge"` solves the best linear bridge of each batch in closed form: nothing to train; its R2 is what a linear bridge can reach on
that batch. `heads = "each"` has a bridge a head, a group of B and C once for each of its heads. `share` lets layers, directions or taps
have one bridge together. The published code is `detach = true` (the loss never reaches the student) in vision and `frozen = true` (the
bridge is not trained) in language; its setting with the gradient connected is `map = "softmax"`, weight 3.
]]

--- docs/strategies.md.
---@return string
function M.text()
  local out = { HEAD }
  for _, name in ipairs(cab.strategy.names) do
    local d = cab.strategy.described(name)
    local options = {}
    for i, o in ipairs(d.options) do options[i] = "`" .. o:gsub("|", "\\|") .. "`" end
    out[#out + 1] = ("| `%s` | %s | %s | %s | %s |"):format(name, d.about:gsub("|", "\\|"), taps(d.needs), table.concat(options, "<br>"), d.source)
  end
  out[#out + 1] = LAYERS
  for _, m in ipairs(LAYER_MAPS) do out[#out + 1] = ("| `%s` | %s |"):format(m[1], m[2]) end
  out[#out + 1] = REST:format(table.concat(cab.maps.names, ", "))
  return table.concat(out, "\n")
end

if arg and arg[0] and arg[0]:find "strategies_table%.lua$" then
  io.write(M.text())
  return 0
end
return M
