-- The scan of Mamba-2 beyond single calls: chunk sizes, one token at a time, packed documents, a published layer's step.
local core = require "cab.core"
local parity = require "parity"
local op = core.ops

local fails = require "fails"

local B, L, H, P, G, N = 2, 53, 4, 6, 2, 5

-- Inputs by name, each of its own random stream.
local function inputs(dtype, length)
  local shapes = { x = { B, length, H * P }, a = { B, length, H }, B = { B, length, G * N }, C = { B, length, G * N }, D = { H } }
  local t = {}
  for name, shape in pairs(shapes) do t[name] = core.normal(shape, 0, 1, 3, "ssd." .. name, dtype or "f32") end
  t.groups = G
  return t
end

-- The call with some arguments replaced.
local function run(t, more)
  local args = {}
  for k, v in pairs(t) do args[k] = v end
  for k, v in pairs(more or {}) do args[k] = v end
  return op.ssd(args)
end

local function part(t, first, last)
  local out = { D = t.D, groups = G }
  for _, name in ipairs { "x", "a", "B", "C" } do out[name] = t[name]:slice(2, first, last) end
  return out
end

-- Copies of the inputs that want a gradient.
local function wanting(t)
  local leaves = { groups = G }
  for name, value in pairs(t) do
    if name ~= "groups" then
      leaves[name] = value:clone()
      leaves[name].requires_grad = true
    end
  end
  return leaves
end

local function weighed(y, state)
  return op.sum(y * core.normal(y:shape(), 0, 1, 4, "gy", y:dtype())) + op.sum(state * core.normal(state:shape(), 0, 1, 4, "gs", y:dtype()))
end

local function gradients(t, more)
  local leaves, grads = wanting(t), {}
  weighed(run(leaves, more)):backward()
  for name in pairs(t) do
    if name ~= "groups" then grads[name] = leaves[name].grad end
  end
  return grads
end

describe("op.ssd", function()
  it("has the same outputs and gradients for any chunk size", function()
    for _, case in ipairs { { "f64", 1e-12, 1e-11 }, { "f32", 1e-5, 1e-4 } } do
      local dtype, forward, backward = table.unpack(case)
      local t = inputs(dtype, L)
      local y, state = run(t, { chunk = L })
      local want = gradients(t, { chunk = L })
      for _, chunk in ipairs { 1, 7, 16, 48, 64, 256 } do
        local y2, state2 = run(t, { chunk = chunk })
        local got = gradients(t, { chunk = chunk })
        assert.is_true(parity.worst(y2, y) < forward and parity.worst(state2, state) < forward, dtype .. " chunk " .. chunk)
        for name, grad in pairs(want) do
          local d = parity.l2(got[name], grad)
          assert.is_true(d < backward, ("%s chunk %d: gradient of %s off by %g"):format(dtype, chunk, name, d))
        end
      end
    end
  end)

  it("one token at a time, the state handed on, gives the chunked outputs", function()
    local t = inputs("f32", L)
    local y, last = run(t)
    local steps, state = {}, nil
    for i = 1, L do steps[i], state = run(part(t, i, i), { start = state }) end
    local d = parity.worst(core.concat(steps, 2), y)
    assert.is_true(d < 1e-5, tostring(d))
    assert.is_true(parity.worst(state, last) < 1e-5)
  end)

  it("goes on from a state with its gradient", function()
    local t = inputs("f64", L)
    local whole = gradients(t, { chunk = 16 })
    local leaves = wanting(t)
    local y1, middle = run(part(leaves, 1, 20), { chunk = 16 })
    local y2, state = run(part(leaves, 21, L), { start = middle, chunk = 16 })
    weighed(core.concat({ y1, y2 }, 2), state):backward()
    for name, grad in pairs(whole) do assert.is_true(parity.l2(leaves[name].grad, grad) < 1e-11, name) end
  end)

  it("lets nothing of one packed document reach the next", function()
    local t, lengths = inputs("f64", L), { 1, 15, 16, 1, 20 }
    local ids, parts, first = {}, {}, 1
    for number, n in ipairs(lengths) do
      for _ = 1, n do ids[#ids + 1] = number end
      parts[number] = run(part(t, first, first + n - 1), { chunk = 16 })
      first = first + n
    end
    local segment = core.tensor({ ids, ids }, "i32")
    local y = run(t, { segment = segment, chunk = 16 })
    assert.is_true(parity.worst(y, core.concat(parts, 2)) < 1e-13)
    -- the gradient of the last document alone is 0 in all others
    local x = t.x:clone()
    x.requires_grad = true
    op.sum(run(t, { x = x, segment = segment, chunk = 16 }):slice(2, 34, L)):backward()
    assert.equal(0, x.grad:slice(2, 1, 33):range().max)
    assert.is_true(x.grad:slice(2, 34, L):range().max > 0)
  end)

  it("stays finite where a decay underflows, and f32 keeps its accuracy", function()
    local t = inputs("f64", 200)
    t.a = t.a * 60 -- softplus to 180 a token
    local y = run(t, { chunk = 64 })
    local small = {}
    for name, v in pairs(t) do small[name] = type(v) == "number" and v or v:to "f32" end
    local d = parity.worst(run(small, { chunk = 64 }):to "f64", y)
    assert.is_true(d < 1e-5, tostring(d))
    for name, grad in pairs(gradients(small, { chunk = 64 })) do assert.equal(0, grad:range().bad, name) end
  end)

  it("has the same bits whatever the number of threads", function()
    local t, before = inputs("f32", L), core.threads()
    core.threads(1)
    local one = gradients(t, { chunk = 16 })
    core.threads(3)
    local three = gradients(t, { chunk = 16 })
    core.threads(before)
    for name, grad in pairs(one) do assert.same(grad:totable(), three[name]:totable(), name) end
  end)

  it("makes the decode step of a published Mamba-2 layer", function() -- stated: 1.9e-4, values were rounded to f16
    local v = core.load "tests/fixtures/mamba2_step.safetensors"
    local h = v.dA:count()
    local y = op.ssd { x = v.x:reshape(1, 1, h * 64), a = op.log(v.dA):reshape(1, 1, h), B = v.B:reshape(1, 1, 128),
      C = v.C:reshape(1, 1, 128), dt = v.dt:reshape(1, 1, h), D = v.D, start = v.ssm_state:reshape(1, h, 64, 128), decay = "log" }
    local d = parity.worst(y:reshape(h, 64), v.y)
    assert.is_true(d < 1.95e-4, tostring(d))
  end)

  it("refuses shapes and options that do not fit, by name", function()
    local t = inputs("f32", 4)
    fails("4 heads do not share 3 groups evenly", run, t, { groups = 3 })
    fails("'chunk' is 0, expected a whole number from 1 to 256", run, t, { chunk = 0 })
    fails("'chunk' is 1.5", run, t, { chunk = 1.5 })
    fails("E=23 is not a multiple of 4 heads", run, t, { x = core.zeros { B, 4, 23 } })
    fails("'start' has 5 channels and 6 states a head, expected 6 and 5", run, t, { start = core.zeros { B, H, N, P } })
    fails("'segment' is i32[2,5], expected i32[B=2,L=4]", run, t, { segment = core.zeros({ B, 5 }, "i32") })
    fails("0 channels", run, t, { x = core.zeros { B, 4, 0 } })
  end)
end)
