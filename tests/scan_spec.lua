-- The scan beyond single calls: the weight that dt goes through, gradients that go into parts of one buffer or onto others, threads.
local core = require "cab.core"
local refused = require "refused"
local op = core.ops

local B, L, E, N, R = 2, 37, 19, 5, 3
local seed = 0
local function normal(...)
  seed = seed + 1
  return core.normal({ ... }, 0, 1, seed, "scan", "f64")
end

-- joined: columns of dt, B, C of width r, N, N, as a projection gives them.
local function inputs(r)
  local t = { u = normal(B, L, E), joined = normal(B, L, r + 2 * N), A = op.affine(op.abs(normal(E, N)), -1, -0.1), D = normal(E),
    bias = normal(E), weight = normal(E, r), g = normal(B, L, E), more = normal(B, L, N) }
  for _, v in pairs(t) do v.requires_grad = true end
  return t
end

-- Gradients of sum(g y) + 2 sum(more B), by name; parts(joined) -> dt, B, C, weight.
local function gradients(t, parts)
  for _, v in pairs(t) do v.grad = nil end
  local dt, b, c, weight = parts(t.joined)
  local y = op.selective_scan { u = t.u, dt = dt, A = t.A, B = b, C = c, D = t.D, bias = t.bias, weight = weight }
  local loss = op.sum(y * t.g) + op.sum(b * t.more) * 2 -- newer than the scan: its gradient of B is there first
  loss:backward()
  local got = {}
  for _, name in ipairs { "u", "joined", "A", "D", "bias", "weight" } do got[name] = t[name].grad end
  return got, y
end

local function same(want, got)
  for name, t in pairs(want) do
    local off = op.abs(t - got[name]):range().max
    assert.is_true(off < 1e-11, ("%s off by %g"):format(name, off))
  end
end

describe("op.selective_scan", function()
  it("with a weight is the scan of the product, gradients written into their columns of one buffer and onto others", function()
    local t = inputs(R)
    local want, y = gradients(t, function(x)
      local function part(first, last) return (x:slice(3, first, last) * 1) end -- a copy, with a gradient of its own
      return op.linear(part(1, R), t.weight), part(R + 1, R + N), part(R + N + 1, R + 2 * N)
    end)
    local got, same_y = gradients(t, function(x)
      local dt, b, c = x:split(3, { R, N, N })
      return dt, b, c, t.weight
    end)
    same(want, got)
    same({ y = y }, { y = same_y })
  end)
  it("writes the gradient of a dt as wide as u into its columns too", function()
    local t = inputs(E)
    local function run(copies)
      return gradients(t, function(x)
        local dt, b, c = x:split(3, { E, N, N })
        if copies then dt, b, c = dt * 1, b * 1, c * 1 end
        return dt, b, c
      end)
    end
    local want = run(true)
    same(want, (run(false)))
  end)
  it("with a weight gives the same bits for any number of threads", function()
    local threads <close> = setmetatable({ core.threads() }, { __close = function(t) core.threads(t[1]) end })
    local t, first = inputs(R), nil
    for _, count in ipairs { 1, 2, 5 } do
      core.threads(count)
      local got = gradients(t, function(x)
        local dt, b, c = x:split(3, { R, N, N })
        return dt, b, c, t.weight
      end)
      first = first or got
      for name, g in pairs(first) do assert.same(g:totable(), got[name]:totable()) end
    end
  end)
end)

describe("a scan refuses", function()
  local function call(columns, r, back)
    local function z(...) return core.zeros({ ... }, "f64") end
    local args = { u = z(B, L, E), dt = z(B, L, columns), A = z(E, N), B = z(B, L, N), C = z(B, L, N), weight = r and z(E, r) or nil }
    if not back then return op.selective_scan(args) end
    for _, name in ipairs { "u", "dt", "A", "B", "C" } do args[name .. "_b"] = args[name] end
    return op.scan_pair(args)
  end
  local function message(...) return tostring(refused(1, call, ...)) end
  it("a dt that is narrower than u without a weight", function()
    assert.truthy(message(R):find("'dt' has 3 columns, expected E=19, or a weight [E=19,R=3]", 1, true))
    assert.truthy(message(R, nil, true):find("scan_pair: 'dt' has 3 columns, expected E=19", 1, true))
  end)
  it("a weight of another width than dt, of none or too many columns", function()
    assert.truthy(message(R, R + 1):find("'weight' is f64[19,4], expected [E=19,R=3]", 1, true))
    assert.truthy(message(0, 0):find("'weight' has 0 columns, expected 1 to 64", 1, true))
    assert.truthy(message(65, 65):find("'weight' has 65 columns, expected 1 to 64", 1, true))
    assert.equal(3, call(64, 64):rank())
  end)
  it("a weight of one direction only", function()
    assert.truthy(message(R, R, true):find("'weight' and 'weight_b': give both or neither", 1, true))
  end)
end)
