--- A student's weights from its teacher's: x <- V, B <- K, C <- Q, out_proj <- the attention's output, MLP, norms, embedding and
--- head, and the attention of layers that kept theirs, where shapes allow (arXiv 2408.15237; 2408.10189, stage 3). What does not fit is left as it is, and told.
local core = require "cab.core"
local check = require "cab.check"
local options = require "cab.options"
local op = core.ops
local M = {}

M.parts = { "mixer", "attention", "mlp", "norms", "embedding", "head" }

--- Options of strategies that copy weights.
M.options = {
  parts = { "table", default = M.parts }, strict = false,                                   -- strict: what does not fit is an error
  conv = { "string", default = "keep", one_of = { "identity", "keep" } },                    -- identity: the current token alone passes
  gate = { "string", default = "keep", one_of = { "keep", "open" } },                        -- open: z = 0 and silu of its bias is 1
}

--- What such a strategy needs of both models: no taps. Checks `parts` as the recipe is read.
---@param o table options
---@return table
function M.needs(o)
  for _, part in ipairs(o.parts) do options.choice(part, M.parts, "part of the student") end
  return {}
end

local function shape_text(t) return "[" .. table.concat(t:shape(), ",") .. "]" end

---@class Report what was copied and what was left, by name of the student's parameter
local Report = {}
Report.__index = Report

function Report:left(name, why) table.insert(self.missing, ("%s (%s)"):format(name, why)) end

-- `to`, a parameter or part of one, becomes `from`; left alone where shapes differ or the teacher has none.
function Report:copy(name, to, from, why)
  if not from then return self:left(name, why or "the teacher has none") end
  if not to then return self:left(name, why or "the student has none") end
  if shape_text(to) ~= shape_text(from) then return self:left(name, ("student %s, teacher %s"):format(shape_text(to), shape_text(from))) end
  to:copy(from)
  table.insert(self.copied, name)
end

-- ---- teachers: weights as [out,in] ----------------------------------------------------------------------------------------

local teachers = {}

-- Three equal parts along the first dimension.
local function thirds(t)
  local n = t:size(1) // 3
  return t:slice(1, 1, n), t:slice(1, n + 1, 2 * n), t:slice(1, 2 * n + 1, 3 * n)
end

function teachers.vit(m)
  return {
    layer = function(i)
      local B = m.blocks[i]
      local q, k, v = thirds(B.attn.qkv.weight)
      local bq, bk, bv = thirds(B.attn.qkv.bias)
      return { q = q, k = k, v = v, out = B.attn.proj.weight, bq = bq, bk = bk, bv = bv, out_bias = B.attn.proj.bias, norm = B.norm1,
        fc1 = B.mlp.fc1.weight, fc1_bias = B.mlp.fc1.bias, fc2 = B.mlp.fc2.weight, fc2_bias = B.mlp.fc2.bias }
    end,
    norm = m.norm, patch = m.patch_embed.proj, head = m.head.weight, head_bias = m.head.bias, class = m.cls_token, positions = m.pos_embed,
  }
end

function teachers.gpt2(m)
  local in_out = m.options.layout == "in_out"
  local function weight(linear) return in_out and linear.weight:permute(2, 1) or linear.weight end
  return {
    layer = function(i)
      local B = m.transformer.h[i]
      local q, k, v = thirds(weight(B.attn.c_attn))
      local bq, bk, bv = thirds(B.attn.c_attn.bias)
      return { q = q, k = k, v = v, out = weight(B.attn.c_proj), bq = bq, bk = bk, bv = bv, out_bias = B.attn.c_proj.bias, norm = B.ln_1,
        fc1 = weight(B.mlp.c_fc), fc1_bias = B.mlp.c_fc.bias, fc2 = weight(B.mlp.c_proj), fc2_bias = B.mlp.c_proj.bias }
    end,
    norm = m.transformer.ln_f, embedding = m.transformer.wte.weight, head = m:head(),
  }
end

function teachers.phi(m)
  local inner = m.model
  return {
    layer = function(i)
      local L = inner.layers[i]
      local a = L.self_attn
      return { q = a.q_proj.weight, k = a.k_proj.weight, v = a.v_proj.weight, out = a.dense.weight, bq = a.q_proj.bias, bk = a.k_proj.bias,
        bv = a.v_proj.bias, out_bias = a.dense.bias, norm = L.input_layernorm, fc1 = L.mlp.fc1.weight, fc1_bias = L.mlp.fc1.bias,
        fc2 = L.mlp.fc2.weight, fc2_bias = L.mlp.fc2.bias }
    end,
    norm = inner.final_layernorm, embedding = inner.embed_tokens.weight, head = m.lm_head.weight, head_bias = m.lm_head.bias,
  }
end

-- ---- students -------------------------------------------------------------------------------------------------------------

-- x rows [E,D] <- V [D,D], E/D times, and out_proj [D,E] <- output / (E/D) each time: the sum is the same.
local function value_path(r, name, x, out, w)
  local E, D = x:size(1), w.v:size(1)
  if E % D ~= 0 or x:size(2) ~= w.v:size(2) or out:size(1) ~= w.out:size(1) then
    r:left(name .. "x, out_proj", ("student %s, teacher %s"):format(shape_text(x), shape_text(w.v)))
    return
  end
  for i = 0, E // D - 1 do
    x:slice(1, i * D + 1, (i + 1) * D):copy(w.v)
    out:slice(2, i * D + 1, (i + 1) * D):copy(w.out * (D / E))
  end
  table.insert(r.copied, name .. "x")
  table.insert(r.copied, name .. "out_proj")
end

-- in_proj's rows first .. first + n - 1.
local function rows(weight, first, n) return weight:slice(1, first, first + n - 1) end

-- B or C rows [G*N,D] <- K or Q [H*P,D], through the feature map [H,P,N] of a linear attention if there is one.
local function key_rows(r, name, to, from, feature, mixer)
  if feature then
    local H, P, N = feature:size(1), feature:size(2), feature:size(3)
    from = op.matmul(feature:permute(1, 3, 2), from:reshape(H, P, from:size(2))):reshape(H * N, from:size(2))
  end
  local heads = mixer.groups and (" of %d groups"):format(mixer.groups) or ""
  if shape_text(to) == shape_text(from) then r:copy(name, to, from) else
    r:left(name, ("student %s%s, teacher %s"):format(shape_text(to), heads, shape_text(from)))
  end
end

-- A bias through the feature map, as key_rows.
local function key_bias(bias, feature)
  if not feature then return bias end
  local H, P, N = feature:size(1), feature:size(2), feature:size(3)
  return op.matmul(bias:reshape(H, 1, P), feature):reshape(H * N)
end

-- The convolution lets the current token through alone; its bias is what the teacher's q, k, v have.
local function identity_conv(r, name, conv, bias)
  local width = conv.weight:size(3)
  conv.weight:fill(0)
  conv.weight:slice(3, width, width):fill(1)
  if bias and shape_text(bias) == shape_text(conv.bias) then conv.bias:copy(bias) else conv.bias:fill(0) end
  table.insert(r.copied, name .. "conv1d (identity)")
end

-- The mixer of Mamba-2: in_proj has the parts of `order`, each { name, rows }.
local function mamba2_mixer(r, name, m, w, order, o)
  local at, part = 1, {}
  for _, p in ipairs(order) do
    part[p[1]], at = rows(m.in_proj.weight, at, p[2]), at + p[2]
  end
  value_path(r, name, part.x, m.out_proj.weight, w)
  local fk, fq = o.feature and o.feature("k"), o.feature and o.feature("q")
  key_rows(r, name .. "B", part.B, w.k, fk, m)
  key_rows(r, name .. "C", part.C, w.q, fq, m)
  if o.conv == "identity" then
    local fits = part.x:size(1) == w.v:size(1)
    identity_conv(r, name, m.conv1d, fits and core.concat({ w.bv, key_bias(w.bk, fk), key_bias(w.bq, fq) }, 1))
  end
  if o.gate == "open" and m.z_bias then -- silu(z + 1.2785) = 1 at z = 0
    part.z:fill(0)
    m.z_bias:fill(1.278464542761074)
    table.insert(r.copied, name .. "z (open)")
  end
end

-- The mixer of Mamba-1: B, C are made of the convolved x, not of the layer's input, so K and Q have no place there.
local function mamba1_mixer(r, name, m, w, o)
  value_path(r, name, rows(m.in_proj.weight, 1, m.E), m.out_proj.weight, w)
  r:left(name .. "B, C", "x_proj reads the convolved x, K and Q the layer's input")
  if o.conv == "identity" then
    for _, conv in ipairs { m.conv1d, m.conv1d_b } do identity_conv(r, name, conv, m.E == w.v:size(1) and w.bv) end
  end
end

local function norm(r, name, to, from)
  r:copy(name .. ".weight", to.weight, from.weight)
  if rawget(to, "bias") then r:copy(name .. ".bias", to.bias, rawget(from, "bias")) end
end

local students = {}

-- The teacher's positions [1,T,D] with the class token where the student has it.
local function positions(student, source)
  local at = student.class_positions
  local total, patches = source:size(2), {}
  if #at ~= 1 or total ~= student.tokens then return nil end
  local p = at[1]
  if p > 1 then patches[1] = source:slice(2, 2, p) end
  patches[#patches + 1] = source:slice(2, 1, 1)
  if p < total then patches[#patches + 1] = source:slice(2, p + 1, total) end
  return #patches > 1 and core.concat(patches, 2) or patches[1]
end

function students.vim(m)
  return {
    layer = function(r, i, w, o, want)
      local L, name = m.layers[i], ("layers.%d."):format(i - 1)
      if want.mixer then mamba1_mixer(r, name .. "mixer.", L.mixer, w, o) end
      if want.norms then norm(r, name .. "norm", L.norm, w.norm) end
    end,
    rest = function(r, t, want)
      if want.norms then norm(r, "norm_f", m.norm_f, t.norm) end
      if want.head then
        r:copy("head.weight", m.head.weight, t.head)
        r:copy("head.bias", m.head.bias, t.head_bias)
      end
      if not want.embedding then return end
      for _, key in ipairs { "weight", "bias" } do r:copy("patch_embed.proj." .. key, m.patch_embed.proj[key], t.patch and t.patch[key]) end
      for _, key in ipairs(m.class_names) do r:copy(key, m[key], t.class) end
      r:copy("pos_embed", m.pos_embed, t.positions and positions(m, t.positions), "other tokens")
    end,
  }
end

-- What students of text share. embedding, final: modules; head: weight and bias, or nil where it is the embedding.
local function text_rest(embedding, final, final_name, head)
  return function(r, t, want)
    if want.norms then norm(r, "backbone." .. final_name, final, t.norm) end
    if want.embedding then
      local n = t.embedding and math.min(embedding.weight:size(1), t.embedding:size(1)) -- rows may only pad the table
      r:copy("backbone.embedding.weight", n and embedding.weight:slice(1, 1, n), n and t.embedding:slice(1, 1, n))
    end
    if not want.head or not head then return end
    r:copy("lm_head.weight", head.weight, t.head)
    if t.head_bias then r:copy("lm_head.bias", head.bias, t.head_bias) else head.bias:fill(0) end
  end
end

function students.phi_mamba(m)
  local b = m.backbone
  return {
    layer = function(r, i, w, o, want)
      local L, name = b.layers[i], ("backbone.layers.%d."):format(i - 1)
      local x = L.mixer
      if want.mixer and x then
        local E, S = x.E, x.groups * x.N
        mamba2_mixer(r, name .. "mixer.", x, w, { { "x", E }, { "B", S }, { "C", S }, { "z", E }, { "a", x.heads } }, o)
      end
      for _, p in ipairs(want.attention and L.self_attn and { { "q", "q_proj", "bq" }, { "k", "k_proj", "bk" }, { "v", "v_proj", "bv" },
        { "out", "dense", "out_bias" } } or {}) do
        r:copy(name .. "self_attn." .. p[2] .. ".weight", L.self_attn[p[2]].weight, w[p[1]])
        r:copy(name .. "self_attn." .. p[2] .. ".bias", L.self_attn[p[2]].bias, w[p[3]])
      end
      if want.norms then norm(r, name .. "input_layernorm", L.input_layernorm, w.norm) end
      for _, key in ipairs(want.mlp and { "fc1", "fc2" } or {}) do
        r:copy(name .. "mlp." .. key .. ".weight", L.mlp[key].weight, w[key])
        r:copy(name .. "mlp." .. key .. ".bias", L.mlp[key].bias, w[key .. "_bias"])
      end
    end,
    rest = text_rest(b.embedding, b.final_layernorm, "final_layernorm", m.lm_head),
  }
end

local function mamba(mixer)
  return function(m)
    return {
      layer = function(r, i, w, o, want)
        local L, name = m.backbone.layers[i], ("backbone.layers.%d."):format(i - 1)
        if want.mixer then mixer(r, name .. "mixer.", L.mixer, w, o) end
        if want.norms then norm(r, name .. "norm", L.norm, w.norm) end
      end,
      rest = text_rest(m.backbone.embedding, m.backbone.norm_f, "norm_f"),
    }
  end
end
students.mamba = mamba(mamba1_mixer)
students.mamba2 = mamba(function(r, name, m, w, o)
  local E, S = m.E, m.groups * m.N
  mamba2_mixer(r, name, m, w, { { "z", E }, { "x", E }, { "B", S }, { "C", S }, { "dt", m.heads } }, o)
end)

-- ---- both -----------------------------------------------------------------------------------------------------------------

--- Writes the teacher's weights into the student, layer by layer as pairs has them.
---@param pairs table
---@param o {parts: string[], conv: "keep"|"identity", gate: "keep"|"open", strict?: boolean, features?: cab.Module}
---@return {copied: string[], missing: string[]} names of the student's parameters
function M.copy(pairs, o)
  local r, want, student, teacher = setmetatable({ copied = {}, missing = {} }, Report), {}, pairs.student, pairs.teacher
  for _, part in ipairs(o.parts) do want[part] = true end
  local from = (teachers[teacher.kind] or options.unknown("teacher whose weights can be reused", teacher.kind, options.names(teachers)))(teacher)
  local to = (students[student.kind] or options.unknown("student that can take a teacher's weights", student.kind, options.names(students)))(student)
  core.no_grad(function()
    local scope <close> = core.scope()
    for i = 1, student.depth do
      local layer = pairs.map[i]
      if layer then
        local feature = o.features and function(name) return o.features:weight(layer, name) end
        to.layer(r, i, from.layer(layer), { conv = o.conv, gate = o.gate, feature = feature }, want)
      else
        r:left(("layer %d"):format(i), "no teacher layer")
      end
    end
    to.rest(r, from, want)
  end)
  if o.strict and #r.missing > 0 then check.fail(2, "the teacher's weights do not fit: " .. table.concat(r.missing, "; "), { id = "reuse" }) end
  return r
end

--- What a run says of a report, one line.
---@param r {copied: string[], missing: string[]}
---@return string
function M.words(r)
  local left = #r.missing > 0 and "; left as they were: " .. table.concat(r.missing, "; ") or ""
  return ("%d tensors or parts of them taken from the teacher%s"):format(#r.copied, left)
end

return M
