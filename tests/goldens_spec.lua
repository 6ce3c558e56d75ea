-- Both tiny vision models, the losses and every gradient against an independent f64 autograd reference, on each device.
local core = require "cab.core"
local cab = require "cab"
local devices = require "devices"

local FOLDER = "tests/fixtures/goldens/"
local params = core.load(FOLDER .. "vision_tiny_params.safetensors")
local ref = core.load(FOLDER .. "vision_tiny_ref_fp64.safetensors")

local function flat(t) return t:to("f64"):clone():reshape(t:count()):totable() end

-- |a - b| / |b| over all elements; |a - b| where b is all but zero.
local function distance(a, b)
  local x, y, d, n = flat(a), flat(b), 0, 0
  assert.equal(#y, #x)
  for i = 1, #x do d, n = d + (x[i] - y[i]) ^ 2, n + y[i] ^ 2 end
  return n > 1e-24 and (d / n) ^ 0.5 or d ^ 0.5
end

local function close(a, name, tolerance)
  local d = distance(a, assert(ref[name], name))
  assert.is_true(d <= tolerance, ("%s: relative L2 error %.3g"):format(name, d))
end

-- What storing activations in bf16 does to each gradient by itself, in float64 PyTorch (tests/reference/strategies.py): name -> relative error.
local noise = {}
local errors, meta = core.load "tests/fixtures/bf16.safetensors"
for i, name in ipairs(core.json_decode(meta.names)) do noise[name] = errors.error:slice(1, i, i):item() end

-- what: { dtype=, device=, precision= }, as models take them.
local function models(what)
  local extra = { image = 32, classes = 10, dtype = what.dtype, precision = what.precision, device = what.device }
  local student = cab.models.vim { dim = 32, depth = 4, state = 8, patch = 8 }:build(extra)
  local teacher = cab.models.vit { dim = 32, depth = 2, heads = 2, patch = 8 }:build(extra)
  student:load(params, "student.")
  teacher:load(params, "teacher."):freeze()
  return student, teacher
end

local function vision(case)
  describe(("vision goldens in %s on %s"):format(case.precision or case.dtype, case.device), function()
    local student, teacher, logits, taps, teacher_logits, teacher_taps

    setup(function()
      local images = params["input.images"]:to(case.dtype):to(case.device)
      student, teacher = models(case)
      teacher_logits, teacher_taps = teacher:forward(images, { q = true, k = true })
      logits, taps = student:forward(images, { B = true, C = true })
    end)

    it("has the reference's logits", function()
      close(teacher_logits, "teacher_logits", case.output)
      close(logits, "logits", case.output)
    end)

    it("has the reference's q and k", function() -- [b,l,H*P] -> [b,H,l,P]
      for i = 1, 2 do
        for _, name in ipairs { "q", "k" } do
          close(teacher_taps[name][i]:reshape(3, 17, 2, 16):permute(1, 3, 2, 4), ("teacher.%d.%s"):format(i - 1, name), case.output)
        end
      end
    end)

    it("has the reference's B and C, the backward ones in reversed token order", function() -- [b,l,N] -> [b,1,N,l]
      for i = 1, 4 do
        for _, name in ipairs { "B", "C" } do
          close(taps[name][i]:permute(1, 3, 2):reshape(3, 1, 8, 17), ("student.%d.%s"):format(i - 1, name), case.output)
          close(taps[name .. "_b"][i]:flip(2):permute(1, 3, 2):reshape(3, 1, 8, 17), ("student.%d.%s_b"):format(i - 1, name), case.output)
        end
      end
    end)

    it("has the reference's losses and connected gradients", function()
      local pairing = cab.pairs.new { student = student, teacher = teacher }
      local bridge = cab.strategy.create { "attention_bridge", hidden = 16, map = "softmax" }
      bridge:prepare(pairing, { dtype = case.dtype, device = case.device })
      bridge:load(params)
      local soft = cab.strategy.create "soft"
      pairing:step(taps, teacher_taps)
      local batch = { logits = logits, teacher = teacher_logits }
      local a, b = bridge:run(pairing, batch), soft:run(pairing, batch)
      local total = b + 3 * a
      close(a, "loss.align", case.output)
      close(b, "loss.soft", case.output)
      close(total, "loss.total", case.output)
      total:backward()
      local seen = 0
      for _, list in ipairs { student:parameters "student.", bridge:parameters() } do
        for _, p in ipairs(list) do
          assert(p.tensor.grad, p.name .. " has no gradient")
          close(p.tensor.grad, "grad_connected_total." .. p.name, case.gradient or math.max(2e-2, 2 * noise[p.name]))
          seen = seen + 1
        end
      end
      local expected = 0
      for name in pairs(ref) do
        if name:find("grad_connected_total.", 1, true) == 1 then expected = expected + 1 end
      end
      assert.equal(expected, seen)
    end)
  end)
end

devices.each(function(device)
  vision { device = device, dtype = "f64", output = 1e-9, gradient = 1e-9 }
  vision { device = device, dtype = "f32", output = 1e-5, gradient = 1e-4 }
  if device ~= "cpu" then vision { device = device, dtype = "f32", precision = "bf16", output = 2e-2 } end
end)

describe("the detached bridge", function()
  it("has the gradients of the published code", function()
    local student, teacher = models { dtype = "f64" }
    local images = params["input.images"]:to "f64"
    local pairing = cab.pairs.new { student = student, teacher = teacher }
    local bridge = cab.strategy.create { "attention_bridge", hidden = 16, map = "softmax", detach = true }
    bridge:prepare(pairing, { dtype = "f64" })
    bridge:load(params)
    local teacher_logits, teacher_taps = teacher:forward(images, { q = true, k = true })
    local logits, taps = student:forward(images, { B = true, C = true })
    pairing:step(taps, teacher_taps)
    local batch = { logits = logits, teacher = teacher_logits }
    local soft = cab.strategy.create "soft"
    local total = soft:run(pairing, batch) + 3 * bridge:run(pairing, batch)
    total:backward()
    for _, list in ipairs { student:parameters "student.", bridge:parameters() } do
      for _, p in ipairs(list) do close(p.tensor.grad, "grad_upstream_total." .. p.name, 1e-9) end
    end
  end)
end)
