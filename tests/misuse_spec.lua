-- Every op, every argument, every kind of bad value: a Lua error with script:line, the op's name and the shapes; nothing leaks.
local core = require "cab.core"
local op = core.ops
local tensors, metadata = core.load("tests/fixtures/ops.safetensors")

local first = {} -- op -> its richest reference case
for _, case in ipairs(core.json_decode(metadata.cases)) do
  if not first[case.op] or #case.inputs > #first[case.op].inputs then first[case.op] = case end
end

local function arguments(case)
  local args = {}
  for k, v in pairs(case.options) do args[k] = v end
  for _, name in ipairs(case.inputs) do args[name] = tensors[case.key .. ".in." .. name] end
  return args
end

local function closed()
  local t = core.zeros { 2 }
  t:close()
  return t
end

local required = { -- arguments that may be absent are not tested with nil
  b = true, D = true, D_b = true, z = true, bias = true, bias_b = true, residual = true, mean = true, deviation = true, labels = true, target = true,
}

local bad = {
  { "a string", function() return "x" end },
  { "a number", function() return 1.5 end },
  { "a foreign userdata", function() return io.stdout end },
  { "a closed tensor", closed, "closed" },
  { "another dtype", function(t) return core.zeros(t:shape(), t:dtype() == "u8" and "f32" or "u8") end },
  { "too many dims", function() return core.zeros({ 1, 2, 1, 2, 1, 2, 1 }, "f64") end, nil, { add = true, sub = true, mul = true,
    div = true, sum = true, mean = true, softmax = true } },
}

local function elementwise(name) return #first[name].inputs == 1 and not name:match "^map_" and name ~= "patch_embed" end

local total = 0
for name, case in pairs(first) do
  describe("misuse of op." .. name, function()
    for _, input in ipairs(case.inputs) do
      for _, kind in ipairs(bad) do
        local label, make, word, skip = kind[1], kind[2], kind[3], kind[4]
        local tolerant = (skip and (skip[name] or elementwise(name) or name == "gate" or name == "linear" or name == "layer_norm" or
          name == "rms_norm" or name == "mse" or name == "cosine" or name == "frobenius" or name == "matmul" or name == "embedding"))
          or (label == "a number" and name:match "^[asmd][diu][dbvl]$")
        if not tolerant then
          total = total + 1
          it(("'%s' as %s"):format(input, label), function()
            local args = arguments(case)
            args[input] = make(args[input])
            local ok, err = pcall(op[name], args)
            assert.is_false(ok)
            assert.equal(1, err.code)
            local text = tostring(err)
            assert.truthy(text:find(name, 1, true), text)
            if word then assert.truthy(text:find(word, 1, true), text) end
          end)
        end
      end
      if not required[input] then
        total = total + 1
        it(("'%s' missing"):format(input), function()
          local args = arguments(case)
          args[input] = nil
          local ok, err = pcall(op[name], args)
          assert.is_false(ok)
          assert.truthy(tostring(err):find(input, 1, true), tostring(err))
        end)
      end
    end
    it("an unknown option", function()
      local args = arguments(case)
      args.no_such_option = 1
      local ok, err = pcall(op[name], args)
      assert.is_false(ok)
      assert.truthy(tostring(err):find("no_such_option", 1, true), tostring(err))
    end)
    it("no argument at all", function() assert.is_false((pcall(op[name]))) end)
  end)
end

describe("error messages", function()
  it("name script, line, op, argument and both shapes", function()
    local ok, err = pcall(function() return op.matmul(core.zeros { 2, 3 }, core.zeros { 4, 2 }) end)
    assert.is_false(ok)
    local text = tostring(err)
    assert.truthy(text:match "misuse_spec%.lua:%d+: matmul: ", text)
    assert.truthy(text:find("[4,2]", 1, true), text)
  end)
  it("come 10,000 times without a leak", function()
    local a, b = core.zeros { 2, 3 }, core.zeros { 4, 2 }
    collectgarbage()
    local before = core.memory().live
    for _ = 1, 10000 do pcall(op.matmul, a, b) end
    collectgarbage()
    assert.equal(before, core.memory().live)
  end)
end)
