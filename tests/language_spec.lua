-- The tiny language pair, its losses and every gradient against an independent f64 autograd reference, on each device.
local core = require "cab.core"
local cab = require "cab"
local devices = require "devices"
local parity = require "parity"
local op = core.ops

local FOLDER = "tests/fixtures/goldens/"
local params = core.load(FOLDER .. "lang_tiny_params.safetensors")
local ref = core.load(FOLDER .. "lang_tiny_ref_fp64.safetensors")
local ids = params["input.ids"]

local function plain(t) return t:detach():to("cpu"):to "f64" end

local function close(a, name, tolerance)
  local d = parity.l2(plain(a), assert(ref[name], name))
  assert.is_true(d <= tolerance, ("%s: relative L2 error %.3g"):format(name, d))
end

-- what: { dtype=, device=, precision=, chunk=, blocks=: the losses by op.head_loss, a few rows at a time }
local function models(what)
  local extra = { vocab = 211, dtype = what.dtype, device = what.device, precision = what.precision }
  local student = cab.models.phi_mamba { dim = 64, depth = 2, heads = 4, state = 16, chunk = what.chunk }:build(extra)
  local teacher = cab.models.gpt2 { dim = 64, depth = 2, heads = 4, positions = 48 }:build(extra)
  student:load(params, "student.")
  cab.models.load(teacher, params, "teacher.")
  return student, teacher:freeze()
end

local function bridge_of(student, teacher, what)
  local pairing = cab.pairs.new { student = student, teacher = teacher }
  local bridge = cab.strategy.create { "attention_bridge", hidden = 64, map = "none" }
  bridge:prepare(pairing, { dtype = what.dtype, device = what.device })
  bridge:load(params)
  return pairing, bridge
end

-- The loss of each published mode from its parts, and what its gradients are called.
local modes = {
  distillonly = function(l) return l.align end,
  ourskl = function(l) return l.ce + l.kl end,
  distill = function(l) return l.ce + 0.5 * l.kl + 0.5 * l.align end,
}

-- ce: shifted by one; kl: cross-entropy with the teacher's softmax over all positions, without the teacher's entropy.
local function losses(student, teacher, what)
  local pairing, bridge = bridge_of(student, teacher, what)
  local tokens, segment = ids:to(what.device), core.zeros({ 2, 48 }, "i32", what.device)
  local ty, teacher_taps = teacher:body(tokens, { q = true, k = true }, { segment = segment })
  local y, taps = student:body(tokens, { B = true, C = true }, { segment = segment })
  local teacher_logits, logits = teacher:logits(ty), student:logits(y)
  pairing:step(taps, teacher_taps)
  local V, targets, l = 211, tokens:slice(2, 2, 48):clone():reshape(94), { align = bridge:run(pairing, {}) }
  if what.blocks then
    local w, b = student:head()
    local function head(o)
      for name, t in pairs { x = y, w = w, b = b, ids = tokens, tx = ty, tw = teacher:head(), rows = what.blocks } do o[name] = t end
      return (op.head_loss(o))
    end
    l.ce, l.kl = head {}, head { ce = 0, kl = 1, divergence = "cross" }
  else
    l.ce = op.cross_entropy(logits:slice(2, 1, 47):reshape(94, V), targets)
    l.kl = op.cross_entropy(logits:reshape(96, V), nil, op.cast(op.softmax(teacher_logits), { to = what.dtype }):reshape(96, V))
  end
  return l, bridge, { logits = logits, taps = taps, teacher_logits = teacher_logits, teacher_taps = teacher_taps }
end

local function check_gradients(mode, student, bridge, tolerance)
  local seen, expected = 0, 0
  for _, list in ipairs { student:parameters "student.", bridge:parameters() } do
    for _, p in ipairs(list) do
      local name = ("grad_%s.%s"):format(mode, p.name)
      if ref[name] then -- of a mode without alignment the bridge's are not there
        if p.tensor.grad then
          close(p.tensor.grad, name, tolerance)
        else
          local r = ref[name]:range()
          assert.is_true(r.min == 0 and r.max == 0, name .. " is missing")
        end
        seen = seen + 1
      end
    end
  end
  for name in pairs(ref) do
    if name:find(("grad_%s."):format(mode), 1, true) == 1 then expected = expected + 1 end
  end
  assert.is_true(expected > 0)
  assert.equal(expected, seen)
end

local function goldens(case)
  local where = ("%s on %s, chunk %d%s"):format(case.precision or case.dtype, case.device, case.chunk, case.blocks and ", losses in blocks" or "")
  describe("language goldens in " .. where, function()
    for mode, total in pairs(modes) do
      it("has the reference's outputs, losses and gradients: " .. mode, function()
        local scope <close> = core.scope()
        local student, teacher = models(case)
        local l, bridge, got = losses(student, teacher, case)
        close(got.logits, "student_logits", case.output)
        close(got.teacher_logits, "teacher_logits", case.output)
        for i = 1, 2 do
          for _, name in ipairs { "q", "k" } do -- [b,l,H*P] -> [b,H,l,P]
            close(got.teacher_taps[name][i]:reshape(2, 48, 4, 16):permute(1, 3, 2, 4), ("teacher.%d.%s"):format(i - 1, name), case.output)
          end
          for _, name in ipairs { "B", "C" } do
            close(got.taps[name][i]:reshape(2, 48, 4, 16), ("student.%d.%s"):format(i - 1, name), case.output)
          end
        end
        for name, value in pairs(l) do close(value:reshape(1), "loss." .. name, case.output) end
        local sum = total(l)
        close(sum:reshape(1), "loss." .. mode, case.output)
        sum:backward()
        check_gradients(mode, student, bridge, case.gradient)
      end)
    end
  end)
end

devices.each(function(device)
  for _, chunk in ipairs { 16, 1, 48, 13 } do
    for _, blocks in ipairs { false, 7 } do
      goldens { device = device, dtype = "f64", chunk = chunk, blocks = blocks, output = 1e-9, gradient = 1e-9 }
      goldens { device = device, dtype = "f32", chunk = chunk, blocks = blocks, output = 1e-5, gradient = 1e-4 }
    end
  end
  if device ~= "cpu" then
    goldens { device = device, dtype = "f32", precision = "bf16", chunk = 16, blocks = 7, output = 2e-2, gradient = 5e-2 }
  end
end)

-- ---- models against PyTorch ------------------------------------------------------------------------------------------------

local small = core.load "tests/fixtures/models.safetensors"

-- The tensors of a model in the file, by the name after its prefix.
local function of(prefix)
  local list = {}
  for name, t in pairs(small) do
    if name:sub(1, #prefix) == prefix then list[name:sub(#prefix + 1)] = t end
  end
  return list
end

local function build(name, dtype)
  local extra = { vocab = 23, dtype = dtype }
  local M = cab.models
  if name == "phi" then return M.phi { dim = 16, depth = 2, heads = 2, rotary = 4 }:build(extra) end
  if name == "mamba" then return M.mamba { dim = 16, depth = 2, state = 4, rank = 1 }:build(extra) end
  return M.mamba2 { dim = 16, depth = 2, state = 4, head = 8, groups = tonumber(name:match "%d$"), chunk = 4 }:build(extra)
end

local function near(a, b, tolerance, what)
  local d = parity.l2(plain(a), b)
  assert.is_true(d <= tolerance, ("%s: relative L2 error %.3g"):format(what, d))
end

for _, name in ipairs { "phi", "mamba", "mamba2.1", "mamba2.2" } do
  for _, case in ipairs { { "f64", 1e-10, 1e-9 }, { "f32", 1e-5, 1e-4 } } do
    local dtype, output, gradient = table.unpack(case)
    it(("%s agrees with PyTorch in %s: logits and every gradient"):format(name, dtype), function()
      local model, tokens = build(name, dtype), small[name .. ".ids"]
      cab.models.load(model, of(name .. ".param."))
      local wanted = name == "phi" and { q = true, k = true } or nil
      local logits, taps = model:forward(tokens, wanted)
      near(logits, small[name .. ".logits"], output, "logits")
      for i = 1, wanted and 2 or 0 do
        near(taps.q[i], small["phi.q." .. i], output, "q")
        near(taps.k[i], small["phi.k." .. i], output, "k")
      end
      op.cross_entropy(logits:slice(2, 1, 10):reshape(20, 23), tokens:slice(2, 2, 11):reshape(20)):backward()
      local want = of(name .. ".grad.")
      for _, p in ipairs(model:parameters()) do
        near(p.tensor.grad, assert(want[p.name], p.name), gradient, p.name)
        want[p.name] = nil
      end
      assert.is_nil(next(want))
    end)
  end
end

-- ---- one token at a time, packed documents, matrices ----------------------------------------------------------------------

local everything = {
  gpt2 = cab.models.gpt2 { dim = 16, depth = 2, heads = 2, positions = 40 },
  phi = cab.models.phi { dim = 16, depth = 2, heads = 2, rotary = 4 },
  phi_mamba = cab.models.phi_mamba { dim = 16, depth = 2, heads = 4, groups = 2, state = 3, chunk = 8 },
  hybrid = cab.models.phi_mamba { dim = 16, depth = 3, heads = 2, state = 3, attention = { 2 } },
  mamba = cab.models.mamba { dim = 16, depth = 2, state = 4 },
  mamba2 = cab.models.mamba2 { dim = 16, depth = 2, state = 4, head = 8, chunk = 8 },
}

local function random_ids(b, l)
  local uniform = core.uniform({ b, l }, 0, 23, 5, "ids", "f64")
  return uniform:to "i32"
end

for name, description in pairs(everything) do
  describe("a small " .. name, function()
    for dtype, tolerance in pairs { f64 = 1e-12, f32 = 1e-5 } do
      it("says the same one token at a time, in " .. dtype, function()
        local model, tokens = description:build { vocab = 23, dtype = dtype }, random_ids(3, 21)
        core.no_grad(function()
          local whole = model:forward(tokens)
          local cache = model:cache(3, 21)
          local parts = { (model:forward(tokens:slice(2, 1, 5), nil, { cache = cache })) }
          for t = 6, 21 do parts[#parts + 1] = model:forward(tokens:slice(2, t, t), nil, { cache = cache }) end
          assert.equal(21, cache.past)
          local d = parity.worst(core.concat(parts, 2), whole)
          assert.is_true(d < tolerance, tostring(d))
        end)
      end)
    end

    it("lets nothing of a packed document reach the next", function()
      local model, tokens, lengths = description:build { vocab = 23, dtype = "f64" }, random_ids(1, 19), { 3, 7, 1, 8 }
      local numbers, parts, first = {}, {}, 1
      for number, n in ipairs(lengths) do
        for _ = 1, n do numbers[#numbers + 1] = number end
        parts[number] = model:forward(tokens:slice(2, first, first + n - 1))
        first = first + n
      end
      local segment = core.tensor({ numbers, { table.unpack(numbers) } }, "i32")
      local packed = model:forward(core.concat({ tokens, tokens }, 1), nil, { segment = segment })
      local whole = core.concat(parts, 2)
      for row = 1, 2 do
        local d = parity.worst(packed:slice(1, row, row), whole)
        assert.is_true(d < 1e-11, tostring(d))
      end
    end)

    it("reaches every parameter from its logits", function()
      local model = description:build { vocab = 23, dtype = "f64" }
      local dead = cab.audit(model:parameters(), function()
        local logits = model:forward(random_ids(2, 9))
        return op.sum(logits * core.normal(logits:shape(), 0, 1, 2, "noise", "f64"))
      end)
      assert.same({}, dead)
    end)
  end)
end

describe("the mixing matrix", function()
  for _, name in ipairs { "phi_mamba", "mamba2" } do
    it("of " .. name .. ", in tiles, times x is what the scan gives, with gradients", function()
      local b, l, H, P, G, N = 2, 10, 4, 3, 2, 5
      local function rnd(what, ...) return core.normal({ ... }, 0, 1, 4, what, "f64") end
      local args = { x = rnd("x", b, l, H * P), a = rnd("a", b, l, H), B = rnd("B", b, l, G * N), C = rnd("C", b, l, G * N), D = rnd("D", H),
        groups = G, segment = core.tensor({ { 1, 1, 1, 2, 2, 2, 2, 2, 2, 2 }, { 1, 1, 1, 1, 1, 1, 1, 1, 1, 7 } }, "i32") }
      if name == "mamba2" then args.decay, args.a, args.dt = "log", -op.abs(args.a), op.abs(rnd("dt", b, l, H)) end
      local leaves = { "a", "B", "C", "D", args.dt and "dt" or nil }
      local recurrent = require "cab.models.recurrent"
      local function gradients(f)
        for _, n in ipairs(leaves) do args[n] = args[n]:detach():clone() args[n].requires_grad = true end
        local y = f()
        op.sum(y * rnd("g", b, l, H * P)):backward()
        local g = {}
        for _, n in ipairs(leaves) do g[n] = args[n].grad end
        return y:detach(), g
      end
      local y, want = gradients(function() return (op.ssd(args)) end)
      local y2, got = gradients(function()
        local tiles = recurrent.tiles(args)
        local m = core.concat({ tiles:rows(1, 4), tiles:rows(5, 5), tiles:rows(6, l) }, 3)
        local x = args.x:reshape(b, l, H, P):permute(1, 3, 2, 4)
        return op.matmul(m, x):permute(1, 3, 2, 4):reshape(b, l, H * P)
      end)
      assert.is_true(parity.worst(y2, y) < 1e-12)
      for n, g in pairs(want) do assert.is_true(parity.l2(got[n], g) < 1e-11, n) end
    end)
  end
  it("is a tap of the models", function()
    for _, name in ipairs { "phi_mamba", "mamba2" } do
      local model = everything[name]:build { vocab = 23, dtype = "f64" }
      local _, taps = model:body(random_ids(2, 9), { matrix = true })
      local m = taps.matrix[2]:rows(3, 4)
      assert.same({ 2, 4, 2, 9 }, m:shape())
      assert.equal(0, m:totable()[1][1][1][4]) -- causal
    end
  end)
end)

describe("a trained minGPT", function() -- sorts six letters of three; weights of github.com/karpathy/minGPT's layout, MIT
  local function inputs()
    local list = {}
    for n = 0, 728 do
      local row = {}
      for i = 1, 6 do row[i] = n // 3 ^ (i - 1) % 3 // 1 | 0 end
      list[n + 1] = row
    end
    return list
  end
  it("sorts all 729 inputs, one token at a time", function()
    local model = cab.models.gpt2 { dim = 48, depth = 3, heads = 3, positions = 11, tied = false, layout = "out_in",
      weights = "tests/fixtures/gpt_nano_sort.safetensors" }:build { vocab = 3 }
    local list = inputs()
    core.no_grad(function()
      local scope <close> = core.scope()
      local cache, given = model:cache(729, 11), core.tensor(list, "i32")
      local answers = {}
      for _ = 1, 6 do
        local logits = model:forward(given, nil, { cache = cache })
        local last, chosen = logits:slice(2, logits:size(2), logits:size(2)):totable(), {}
        for i, row in ipairs(last) do
          local best = 1
          for v = 2, 3 do if row[1][v] > row[1][best] then best = v end end
          chosen[i] = { best - 1 }
          answers[i] = answers[i] or {}
          table.insert(answers[i], best - 1)
        end
        given = core.tensor(chosen, "i32")
      end
      for i, row in ipairs(list) do
        local want = { table.unpack(row) }
        table.sort(want)
        assert.same(want, answers[i])
      end
    end)
  end)
end)

describe("a language model", function()
  local fails = require "fails"
  it("refuses ids that it has no row or place for", function()
    local model = everything.gpt2:build { vocab = 23 }
    fails("'ids' holds 23 at element 2, expected 0 to 22", model.forward, model, core.tensor({ { 1, 23 } }, "i32"))
    fails("41 tokens, the model has 40 positions", model.forward, model, random_ids(1, 41))
    fails("expected i32[b,l]", model.forward, model, core.zeros { 1, 3 })
    local cache = model:cache(1, 4)
    fails("5 tokens, the cache holds 4", model.forward, model, random_ids(1, 5), nil, { cache = cache })
  end)
  it("refuses sizes that do not fit, by name", function()
    fails("gpt2: dim 10 is not a multiple of heads 3", function() cab.models.gpt2 { dim = 10, depth = 1, heads = 3 }:build() end)
    fails("expected 1 to 2", function() cab.models.phi_mamba { dim = 8, depth = 2, heads = 2, state = 4, attention = { 3 } }:build() end)
    fails("did you mean 'state'", function() cab.models.mamba { stat = 3 } end)
  end)
  it("with a tied head takes a file that holds it twice, and refuses another head", function()
    local model = everything.gpt2:build { vocab = 23 }
    local state = {}
    for name, t in pairs(model:state()) do state[name] = t:detach():clone() end
    state["lm_head.weight"] = state["transformer.wte.weight"]:clone()
    cab.models.load(model, state)
    state["lm_head.weight"]:fill(0)
    assert.equal(65, fails("the head is the embedding table", cab.models.load, model, state).code)
  end)
  it("pads its table and leaves the padding out of the logits", function()
    local model = everything.mamba:build { vocab = 23 }
    assert.same({ 24, 16 }, model:parameters()[1].tensor:shape())
    assert.same({ 1, 3, 23 }, model:forward(random_ids(1, 3)):shape())
  end)
end)
