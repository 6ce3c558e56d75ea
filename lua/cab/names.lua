--- Names and layouts of published checkpoints, as rules between each layout and the one its family has here. A rule maps names
--- only: `#` stands for a number, `*` for the last part. Several names on the left are parts of one tensor, joined along its
--- first dimension; `transpose` turns matrices (Conv1D of GPT-2 keeps [in,out]).
local core = require "cab.core"
local check = require "cab.check"
local options = require "cab.options"

local M = {}

-- Rules that keep names as they are.
local function same(...)
  local rules = {}
  for i, name in ipairs { ... } do rules[i] = { name, name } end
  return rules
end

local function join(...)
  local all = {}
  for _, list in ipairs { ... } do table.move(list, 1, #list, #all + 1, all) end
  return all
end

local timm = same("cls_token", "dist_token", "pos_embed", "patch_embed.proj.*", "blocks.#.norm1.*", "blocks.#.norm2.*", "blocks.#.attn.qkv.*",
  "blocks.#.attn.proj.*", "blocks.#.mlp.fc1.*", "blocks.#.mlp.fc2.*", "norm.*", "fc_norm.*", "head.*", "head_dist.*")

-- Hugging Face's ViT and DeiT. `l`: names within a layer, from `layers` on.
local function hugging_face(prefix, layers, l)
  local e, b = prefix .. "embeddings.", prefix .. layers .. ".#."
  local function parts(...)
    local out = {}
    for i, name in ipairs { ... } do out[i] = b .. name .. ".*" end
    return out
  end
  return {
    { e .. "cls_token", "cls_token" }, { e .. "distillation_token", "dist_token" }, { e .. "position_embeddings", "pos_embed" },
    { e .. "patch_embeddings.projection.*", "patch_embed.proj.*" }, { b .. "layernorm_before.*", "blocks.#.norm1.*" },
    { b .. "layernorm_after.*", "blocks.#.norm2.*" }, { parts(l.q, l.k, l.v), "blocks.#.attn.qkv.*" }, { b .. l.o .. ".*", "blocks.#.attn.proj.*" },
    { b .. l.fc1 .. ".*", "blocks.#.mlp.fc1.*" }, { b .. l.fc2 .. ".*", "blocks.#.mlp.fc2.*" }, { prefix .. "layernorm.*", "norm.*" },
  }
end
-- As saved on disk, and as modules of transformers 5 name them.
local saved = { q = "attention.attention.query", k = "attention.attention.key", v = "attention.attention.value", o = "attention.output.dense",
  fc1 = "intermediate.dense", fc2 = "output.dense" }
local modules = { q = "attention.q_proj", k = "attention.k_proj", v = "attention.v_proj", o = "attention.o_proj", fc1 = "mlp.fc1", fc2 = "mlp.fc2" }
local classifier, teacher = { { "classifier.*", "head.*" } }, { { "cls_classifier.*", "head.*" }, { "distillation_classifier.*", "head_dist.*" } }

local function mamba(embedding)
  return join({ { "backbone." .. embedding .. ".weight", "backbone.embedding.weight" } }, same("backbone.layers.#.norm.*", "backbone.layers.#.mixer.A_log",
    "backbone.layers.#.mixer.D", "backbone.layers.#.mixer.dt_bias", "backbone.layers.#.mixer.conv1d.*", "backbone.layers.#.mixer.in_proj.*",
    "backbone.layers.#.mixer.x_proj.*", "backbone.layers.#.mixer.dt_proj.*", "backbone.layers.#.mixer.norm.*", "backbone.layers.#.mixer.out_proj.*",
    "backbone.norm_f.*", "lm_head.weight"))
end

local mamba_tied = { ["lm_head.weight"] = "backbone.embedding.weight" }

local gpt2_matrices = { "transformer.h.#.attn.c_attn.weight", "transformer.h.#.attn.c_proj.weight", "transformer.h.#.mlp.c_fc.weight",
  "transformer.h.#.mlp.c_proj.weight" }
local gpt2_rest = same("transformer.wte.weight", "transformer.wpe.weight", "transformer.h.#.ln_1.*", "transformer.h.#.ln_2.*", "transformer.h.#.attn.c_attn.bias",
  "transformer.h.#.attn.c_proj.bias", "transformer.h.#.mlp.c_fc.bias", "transformer.h.#.mlp.c_proj.bias", "transformer.ln_f.*", "lm_head.weight")
local function turned(names)
  local rules = {}
  for i, name in ipairs(names) do rules[i] = { name, name, transpose = true } end
  return rules
end
-- c_attn makes q, k and v at once: [D,3D] in Conv1D, [3D,D] in a linear layer.
local function conv1d(tensors)
  local t = tensors["h.0.attn.c_attn.weight"] or tensors["transformer.h.0.attn.c_attn.weight"]
  return t and t:rank() == 2 and t:size(2) == 3 * t:size(1)
end
local masks = { "transformer.h.#.attn.bias", "transformer.h.#.attn.masked_bias" }

--- Layouts in the order in which they are tried. family: its first layout is the one that models here have. prefix: may be
--- missing in the file. drop: tensors that models here have no use for. tied: tensors that a file may leave out, being others.
M.layouts = {
  { name = "timm", family = "vit", rules = timm, about = "timm and DeiT, also distilled" },
  { name = "mae", family = "vit", rules = timm, drop = { "mask_token", "decoder_pos_embed", "decoder_embed.*", "decoder_blocks.#.norm1.*",
    "decoder_blocks.#.norm2.*", "decoder_blocks.#.attn.qkv.*", "decoder_blocks.#.attn.proj.*", "decoder_blocks.#.mlp.fc1.*", "decoder_blocks.#.mlp.fc2.*",
    "decoder_norm.*", "decoder_pred.*" }, about = "MAE, its decoder left out" },
  { name = "hf_vit", family = "vit", rules = join(hugging_face("vit.", "encoder.layer", saved), classifier), prefix = "vit.", drop = { "vit.pooler.dense.*" },
    about = "Hugging Face ViT" },
  { name = "hf_deit", family = "vit", rules = join(hugging_face("deit.", "encoder.layer", saved), teacher, classifier), prefix = "deit.",
    drop = { "deit.pooler.dense.*" }, about = "Hugging Face DeiT, with a distilled head or without" },
  { name = "hf_vit_modules", family = "vit", rules = join(hugging_face("vit.", "layers", modules), classifier), drop = { "vit.pooler.dense.*" },
    about = "state_dict() of the ViT in transformers 5" },
  { name = "hf_deit_modules", family = "vit", rules = join(hugging_face("deit.", "layers", modules), teacher, classifier), drop = { "deit.pooler.dense.*" },
    about = "state_dict() of the DeiT in transformers 5" },
  { name = "vim", family = "vim", about = "Vim", rules = same("cls_token", "cls_token_head", "cls_token_tail", "pos_embed", "patch_embed.proj.*",
    "layers.#.norm.*",
    "layers.#.mixer.A_log", "layers.#.mixer.A_b_log", "layers.#.mixer.D", "layers.#.mixer.D_b", "layers.#.mixer.in_proj.*", "layers.#.mixer.conv1d.*",
    "layers.#.mixer.conv1d_b.*", "layers.#.mixer.x_proj.*", "layers.#.mixer.x_proj_b.*", "layers.#.mixer.dt_proj.*", "layers.#.mixer.dt_proj_b.*",
    "layers.#.mixer.out_proj.*", "norm_f.*", "head.*") },
  { name = "mamba_ssm", family = "mamba", rules = mamba "embedding", tied = mamba_tied, about = "mamba_ssm, Mamba and Mamba-2" },
  { name = "hf_mamba", family = "mamba", rules = mamba "embeddings", tied = mamba_tied, about = "Hugging Face Mamba and Mamba-2" },
  { name = "phi_mamba", family = "phi_mamba", about = "Phi-Mamba", rules = same("backbone.embedding.weight", "backbone.layers.#.input_layernorm.*",
    "backbone.layers.#.mixer.D", "backbone.layers.#.mixer.z_bias", "backbone.layers.#.mixer.conv1d.*", "backbone.layers.#.mixer.in_proj.*",
    "backbone.layers.#.mixer.out_proj.*", "backbone.layers.#.mlp.fc1.*", "backbone.layers.#.mlp.fc2.*", "backbone.final_layernorm.*", "lm_head.*") },
  { name = "hf_gpt2", family = "gpt2", rules = join(same(table.unpack(gpt2_matrices)), gpt2_rest), prefix = "transformer.", drop = masks, test = conv1d,
    tied = { ["lm_head.weight"] = "transformer.wte.weight" }, about = "Hugging Face GPT-2" },
  { name = "mingpt", family = "gpt2", rules = join(turned(gpt2_matrices), gpt2_rest), drop = masks, test = function(t) return not conv1d(t) end,
    about = "minGPT and nanoGPT: linear layers as [out,in]" },
  { name = "hf_phi", family = "phi", about = "Hugging Face Phi", drop = { "model.layers.#.self_attn.rotary_emb.inv_freq" },
    rules = same("model.embed_tokens.weight", "model.layers.#.self_attn.q_proj.*",
    "model.layers.#.self_attn.k_proj.*", "model.layers.#.self_attn.v_proj.*", "model.layers.#.self_attn.dense.*", "model.layers.#.mlp.fc1.*",
    "model.layers.#.mlp.fc2.*", "model.layers.#.input_layernorm.*", "model.final_layernorm.*", "lm_head.*") },
}

-- Rule name -> Lua pattern, made once.
local patterns = setmetatable({}, { __index = function(t, name)
  t[name] = "^" .. name:gsub("[%.%-]", "%%%0"):gsub("#", "(%%d+)"):gsub("%*", "([%%w_]+)") .. "$"
  return t[name]
end })

-- The captures of `name` put into `template`; nil where `name` does not match.
local function rewrite(name, from, template)
  local captures = { name:match(patterns[from]) }
  if #captures == 0 then return nil end
  local i = 0
  return (template:gsub("[#*]", function()
    i = i + 1
    return captures[i]
  end))
end

local function parts_of(rule) return type(rule[1]) == "table" and rule[1] or { rule[1] } end

--- The layout of this name; an unknown one is an error with the nearest name.
---@param name string
---@return table
function M.layout(name)
  local names = {}
  for _, l in ipairs(M.layouts) do
    if l.name == name then return l end
    names[#names + 1] = l.name
  end
  return options.unknown("layout", name, names)
end

--- Hugging Face's layout of the family: the first that has a place for every tensor.
---@param family string
---@param tensors table<string, cab.Tensor> under the names of the family here
function M.hugging_face(family, tensors)
  for _, l in ipairs(M.layouts) do
    if l.family == family and l.name:find "^hf_" and pcall(M.published, tensors, l) then return l end
  end
  check.fail(65, ("no layout of Hugging Face for a %s with these tensors"):format(family), { id = "weights-layout" })
end

--- The layout of the models of `family` here.
function M.home(family)
  for _, l in ipairs(M.layouts) do
    if l.family == family then return l end
  end
end

-- Canonical name, number of the part, rule; "" for a name that is dropped; nil for one that has no place.
local function place(layout, name)
  for _, full in ipairs { name, layout.prefix and layout.prefix .. name } do
    for _, rule in ipairs(layout.rules) do
      for i, part in ipairs(parts_of(rule)) do
        local to = rewrite(full, part, rule[2])
        if to then return to, i, rule end
      end
    end
    for _, dropped in ipairs(layout.drop or {}) do
      if rewrite(full, dropped, "") then return "" end
    end
  end
end

--- The first layout in which every name has a place. nil, the nearest layout and its unexpected names if there is none.
---@param tensors table<string, cab.Tensor>
---@return string? kind
function M.detect(tensors)
  local best, least
  for _, layout in ipairs(M.layouts) do
    local unexpected = {}
    for name in pairs(tensors) do
      if not place(layout, name) then unexpected[#unexpected + 1] = name end
    end
    if next(tensors) and #unexpected == 0 and (not layout.test or layout.test(tensors)) then return layout end
    if not least or #unexpected < #least then best, least = layout, unexpected end
  end
  table.sort(least)
  return nil, best, least
end

local function matrix(rule, name, t)
  if not rule.transpose then return t end
  if t:rank() ~= 2 then check.fail(65, ("%s has %d dimensions, expected a matrix"):format(name, t:rank()), { id = "weights-layout" }) end
  return t:transpose(1, 2)
end

--- Tensors of a layout under the names of its family here. Dropped names are returned, sorted.
---@param tensors table<string, cab.Tensor>
---@param layout table
---@return table<string, cab.Tensor>
---@return string[] dropped
function M.normal(tensors, layout)
  local out, pieces, dropped = {}, {}, {}
  for name, t in pairs(tensors) do
    local to, part, rule = place(layout, name)
    if not to then check.fail(65, ("'%s' is no name of layout %s"):format(core.escape(name), layout.name), { id = "weights-layout" }) end
    if to == "" then
      dropped[#dropped + 1] = name
    else
      local p = pieces[to] or { names = parts_of(rule) }
      if p[part] then check.fail(65, ("'%s' stands twice in the file, with prefix and without"):format(to), { id = "weights-layout" }) end
      p[part], pieces[to] = matrix(rule, name, t), p
    end
  end
  for name, p in pairs(pieces) do
    for i = 1, #p.names do
      if not p[i] then check.fail(65, ("%s: one of its parts is missing, %s"):format(name, p.names[i]), { id = "weights-layout" }) end
    end
    out[name] = #p.names == 1 and p[1] or core.no_grad(core.concat, p, 1)
  end
  for name, source in pairs(layout.tied or {}) do out[name] = out[name] or out[source] end
  table.sort(dropped)
  return out, dropped
end

--- Tensors under the names of their family here, in another layout of it.
---@param tensors table<string, cab.Tensor>
---@param layout table
---@return table<string, cab.Tensor>
function M.published(tensors, layout)
  local out = {}
  for name, t in pairs(tensors) do
    local found
    for _, rule in ipairs(layout.rules) do
      local parts = parts_of(rule)
      found = rewrite(name, rule[2], parts[1])
      if found then
        if #parts > 1 and t:size(1) % #parts ~= 0 then
          check.fail(65, ("%s: %d rows are not %d equal parts"):format(name, t:size(1), #parts), { id = "weights-layout" })
        end
        local n = #parts > 1 and t:size(1) // #parts
        for i, part in ipairs(parts) do
          out[rewrite(name, rule[2], part)] = n and t:slice(1, (i - 1) * n + 1, i * n) or matrix(rule, name, t)
        end
        break
      end
    end
    if not found then check.fail(65, ("layout %s has no place for '%s'"):format(layout.name, core.escape(name)), { id = "weights-layout" }) end
  end
  return out
end

return M
