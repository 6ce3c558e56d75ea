-- cab inspect, convert and diff as a user runs them: what they print and the exit codes.
local core = require "cab.core"
local cab = require "cab"
local lfs = require "lfs"
local FOLDER = "tests/fixtures/weights/"

local exe <close> = assert(io.open("/proc/self/cmdline", "rb"))
local program = exe:read("a"):match "^[^%z]+"
local dir = os.tmpname()
os.remove(dir)
lfs.mkdir(dir)

-- Exit code and everything printed.
local function run(command)
  local pipe = io.popen(("'%s' %s 2>&1"):format(program, command))
  local text = pipe:read "a"
  local _, kind, code = pipe:close()
  assert.equal("exit", kind, text)
  return code, text
end
local function has(text, part) assert.truthy(text:find(part, 1, true), text) end

describe("cab inspect", function()
  it("lists every format, and what else a checkpoint holds", function()
    local code, text = run("inspect " .. FOLDER .. "checkpoint_2.pth")
    assert.equal(0, code, text)
    assert.truthy(text:find "module%.half%s+F16%s+%[5%]%s+%-2%.5%s+6%.55e%+04%s+1\n", text)
    has(text, "15 tensors, 82 values, 0 NaN")
    has(text, "not read: model_ema, optimizer, args, epoch, best, rng, spectrum, curve, rest")
    assert.equal(0, run("inspect " .. FOLDER .. "checkpoint_2.pth --key model_ema"))
    has(select(2, run("inspect " .. FOLDER .. "hf_deit/model.safetensors")), "layout: hf_deit")
    has(select(2, run("inspect " .. FOLDER .. "arrays.npz")), "4 tensors")
    core.save(dir .. "/n.safetensors", { x = core.tensor { 0 / 0, 1 } })
    has(select(2, run("inspect " .. dir .. "/n.safetensors")), "1 NaN")
  end)
  it("ends with the code that its help states", function()
    local code, text = run "inspect --help"
    assert.equal(0, code)
    assert.equal(1, text:find "Example: cab inspect")
    has(text, "exit codes: 0 done")
    assert.equal(2, run "inspect")
    assert.equal(74, run("inspect " .. dir .. "/gone.pth"))
    core.write_file(dir .. "/bad.pth", "PK\3\4")
    code, text = run(("inspect %s/bad.pth"):format(dir))
    assert.equal(65, code)
    has(text, ("cab: error[E65-zip-end]: %s/bad.pth: byte 0: "):format(dir))
    code, text = run("inspect " .. FOLDER .. "checkpoint_2.pth --key modl")
    assert.equal(65, code)
    has(text, "there are: model, model_ema, optimizer, args, epoch, best, rng, spectrum, curve, rest")
  end)
end)

describe("cab convert", function()
  it("renames both ways, bit-equal", function()
    local there, back = dir .. "/there.safetensors", dir .. "/back.safetensors"
    for name, to in pairs { timm_vit = "hf", timm_distilled = "hf", hf_mamba = "mamba_ssm", hf_gpt2 = "mingpt" } do
      local source = dir .. "/source.safetensors"
      local home = cab.names.detect((cab.load(FOLDER .. name .. "/model.safetensors"))).name
      assert.equal(0, run(("convert %s%s/model.safetensors %s --to %s --force"):format(FOLDER, name, source, home))) -- with GPT-2's tied head
      local code, text = run(("convert %s %s --to %s --force"):format(source, there, to))
      assert.equal(0, code, text)
      has(text, home .. " -> ")
      assert.equal(0, run(("convert %s %s --to %s --force"):format(there, back, home)))
      code, text = run(("diff %s %s"):format(source, back))
      assert.equal(0, code, text)
      assert.equal(0, run(("diff %s %s"):format(source, there))) -- names of one family
    end
  end)
  it("writes another dtype, and a PyTorch checkpoint as safetensors", function()
    local out = dir .. "/out.safetensors"
    assert.equal(0, run(("convert %scheckpoint_4.pth %s --to same --key model_ema --dtype bf16"):format(FOLDER, out)))
    local t = core.load(out)
    assert.same({ "bf16", "i32" }, { t.w:dtype(), t.long:dtype() })
    local code, text = run(("diff %s %scheckpoint_4.pth --key model_ema --tolerance 100"):format(out, FOLDER))
    assert.equal(1, code)
    has(text, "14 tensors equal, 1 different") -- infinity
  end)
  it("refuses what it cannot do, with the reason", function()
    local source, out = FOLDER .. "timm_vit/model.safetensors", dir .. "/x.safetensors"
    local function refuses(code, part, args)
      local got, text = run("convert " .. args)
      assert.equal(code, got, text)
      has(text, part)
      assert.is_nil(lfs.attributes(out))
    end
    refuses(2, "missing option '--to'", source .. " " .. out) -- no --to
    refuses(2, "did you mean 'timm'", ("%s %s --to tim"):format(source, out))
    refuses(2, "timm is a layout of vit, vim one of vim", ("%s %s --to vim"):format(source, out))
    refuses(2, "only safetensors is written", ("%s %s --to hf"):format(source, dir .. "/x.pth"))
    refuses(65, "its names are of no known layout; nearest is", ("%scheckpoint_2.pth %s --to timm"):format(FOLDER, out))
    refuses(65, "is no name of layout vim", ("%s %s --from vim --to vim"):format(source, out))
    refuses(2, "key 'model' is for PyTorch checkpoints", ("%s %s --to hf --key model"):format(source, out))
    refuses(2, "unknown dtype 'f16'", ("%s %s --to hf --dtype f16"):format(source, out))
    refuses(2, "exists; --force replaces it", ("%s %s --to hf"):format(source, dir .. "/back.safetensors"))
  end)
end)

describe("cab diff", function()
  it("lists what differs and ends with 1", function()
    local a, b = dir .. "/a.safetensors", dir .. "/b.safetensors"
    core.save(a, { same = core.ones { 3 }, value = core.tensor { 1, 2 }, shape = core.ones { 2 }, left = core.ones { 1 }, nan = core.tensor { 0 / 0 } })
    core.save(b, { same = core.ones({ 3 }, "f64"), value = core.tensor { 1, 2.5 }, shape = core.ones { 1, 2 },
      right = core.ones { 1 }, nan = core.tensor { 0 / 0 } })
    local code, text = run(("diff %s %s"):format(a, b))
    assert.equal(1, code)
    for _, part in ipairs { "value   [2]     [2]             0.5        0.2", "another shape", "only in A", "only in B",
      "1 not finite", "1 tensors equal, 5 different" } do
      has(text, part)
    end
    assert.equal(1, run(("diff %s %s --tolerance 0.5"):format(a, b)))
    assert.equal(0, run(("diff %s %s"):format(a:gsub("a%.s", "there.s"), a:gsub("a%.s", "there.s"))))
    assert.equal(2, run(("diff %s %s --tolerance x"):format(a, b)))
    has(select(2, run "diff --help"), "exit codes: 0 equal, 1 different")
  end)
end)

describe("damaged images", function()
  local folder = "../shared/data/broken/"
  local function each(path, visit)
    for name in lfs.dir(path) do
      if name:sub(1, 1) ~= "." then
        if lfs.attributes(path .. name, "mode") == "directory" then each(path .. name .. "/", visit) else visit(path .. name) end
      end
    end
  end
  it("and other files are read, or refused with code 65, file and reason", function()
    if not lfs.attributes(folder) then return pending("needs " .. folder) end
    local read, refused = 0, 0
    each(folder, function(path)
      local ok, e = pcall(path:find "%.pt$" and core.load or core.read_image, path)
      if not ok then
        assert.equal(65, e.code, tostring(e))
        assert.truthy(e.id ~= "" and e.message:find(path:sub(1, 60), 1, true), tostring(e))
      end
      read, refused = read + (ok and 1 or 0), refused + (ok and 0 or 1)
    end)
    assert.is_true(read > 100 and refused > 30, read .. " read, " .. refused .. " refused")
  end)
end)
