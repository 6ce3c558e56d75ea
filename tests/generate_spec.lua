-- Generation: choices, ends, and the command; recipes/shakespeare.lua in small, from text to a table and a sample.
local core = require "cab.core"
local cab = require "cab"
local generate = require "cab.generate"
local lfs = require "lfs"

local fails = require "fails"

local model = cab.models.phi_mamba { dim = 16, depth = 1, heads = 2, state = 3 }:build { vocab = 11, dtype = "f64" }
for _, p in ipairs(model:parameters()) do if p.name == "lm_head.weight" then p.tensor:copy(p.tensor:detach() * 40) end end

-- Greedy, from whole sequences.
local function greedy(prompt, count)
  local ids, out = { table.unpack(prompt) }, {}
  core.no_grad(function()
    for i = 1, count do
      local logits = model:forward(core.tensor({ ids }, "i32")):totable()[1][#ids]
      local best = 1
      for k = 2, #logits do if logits[k] > logits[best] then best = k end end
      ids[#ids + 1], out[i] = best - 1, best - 1
    end
  end)
  return out
end

describe("generate", function()
  it("with temperature 0, or the likeliest alone, takes the likeliest id each time", function()
    local want = greedy({ 3, 1, 4 }, 12)
    assert.same(want, generate.ids(model, { 3, 1, 4 }, { count = 12, temperature = 0 }))
    assert.same(want, generate.ids(model, { 3, 1, 4 }, { count = 12, top_k = 1 }))
    assert.same(want, generate.ids(model, { 3, 1, 4 }, { count = 12, top_p = 0 }))
  end)
  it("draws ids as often as their probability says, the same for the same seed", function()
    local logits = core.no_grad(function() return model:forward(core.tensor({ { 2 } }, "i32")) end)
    local p, seen, n = core.ops.softmax(logits):totable()[1][1], {}, 400
    for seed = 1, n do
      local id = generate.ids(model, { 2 }, { count = 1, temperature = 1, seed = seed })[1]
      seen[id] = (seen[id] or 0) + 1
    end
    for id = 0, 10 do
      local expected = n * p[id + 1]
      assert.near(expected, seen[id] or 0, 4.5 * math.sqrt(math.max(expected, 1)))
    end
    local a = generate.ids(model, { 2 }, { count = 30, seed = 5 })
    assert.same(a, generate.ids(model, { 2 }, { count = 30, seed = 5 }))
    assert.are_not.same(a, generate.ids(model, { 2 }, { count = 30, seed = 6 }))
  end)
  it("ends at the stop id and where the model has no position left", function()
    local all = greedy({ 3 }, 6)
    local ids = generate.ids(model, { 3 }, { count = 6, temperature = 0, stop = all[1] })
    assert.same({}, ids)
    local short = cab.models.gpt2 { dim = 8, depth = 1, heads = 2, positions = 5 }:build { vocab = 11 }
    assert.equal(3, #generate.ids(short, { 1, 2 }, { count = 100 }))
    fails("the prompt has 5 tokens, the model 5 positions", generate.ids, short, { 1, 2, 3, 4, 5 })
    fails("the prompt has no token", generate.ids, short, {})
    fails("did you mean 'temperature'", generate.ids, short, { 1 }, { temperatur = 1 })
  end)
end)

describe("recipes/shakespeare.lua", function()
  local root = os.tmpname()
  os.remove(root)
  teardown(function() os.execute("rm -rf " .. root) end)

  it("in small: four runs, a table of perplexities, and text from each", function()
    lfs.mkdir(root)
    local value = core.loadfile "recipes/shakespeare.lua" "recipes/shakespeare.lua"
    for i, run in ipairs(value.runs) do
      local texts = { "stages.1.steps=3", "batch=2", "data.length=32", "eval.tokens=200", "student.dim=16", "student.depth=2", "student.heads=2",
        "device=cpu", "data.tokenizer=gpt2:43" }
      texts[#texts + 1] = i == 1 and "export=" .. root .. "/teacher.safetensors" or nil
      if run.recipe.resolved.teacher then
        for _, t in ipairs { "dim=16", "depth=2", "heads=2", "weights=" .. root .. "/teacher.safetensors" } do texts[#texts + 1] = "teacher." .. t end
      end
      run.recipe:override(texts)
    end
    local results = value:run { out = root .. "/runs", quiet = true }
    assert.equal(4, #results)
    for _, r in ipairs(results) do assert.is_true(r.perplexity > 1 and r.perplexity < 1000, r.name) end
    assert.is_number(results[4].r2.align)
    local f <close> = assert(io.open(root .. "/runs/table.txt"))
    assert.truthy(f:read "a":find("perplexity", 1, true))
    local student, tokenizer = generate.open(root .. "/runs/bridge")
    assert.equal(300, tokenizer:count())
    local text = generate.text(student, tokenizer, "She had", { count = 5 })
    assert.equal("She had", text:sub(1, 7))
    tokenizer:close()
  end)
  it("cab generate and cab eval say what a run writes and how well", function()
    local function output(command)
      local pipe <close> = io.popen("build/cab " .. command .. " 2>&1")
      return pipe:read "a"
    end
    local text = output("generate " .. root .. "/runs/soft --prompt 'She had' --tokens 4 --seed 1")
    assert.equal("She had", text:sub(1, 7))
    assert.equal(text, output("generate " .. root .. "/runs/soft --prompt 'She had' --tokens 4 --seed 1"))
    assert.truthy(output("eval " .. root .. "/runs/soft eval.window=16 eval.stride=8"):find "perplexity [%d.]+  %(199 ids, window 16, stride 8")
    local lengths = output("eval " .. root .. "/runs/soft --lengths 2")
    assert.matches("32 +[%d.]+ +[%d.]+ +%d+\n64 +[%d.]+ +[%d.]+ +%d+", lengths)
    assert.matches("%-%-lengths 3: expected a power of 2", output("eval " .. root .. "/runs/soft --lengths 3"))
    assert.truthy(output("generate " .. root .. "/runs/soft"):find "%-%-prompt")
  end)
end)
