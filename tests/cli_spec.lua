local core = require "cab.core"
local lfs = require "lfs"
local repl = require "cab.repl"

local program = core.library:gsub("/lua$", "") .. "/build/cab"
if not lfs.attributes(program) then program = "/proc/self/exe" end
local exe = io.open("/proc/self/cmdline", "rb")
if exe then program = exe:read("a"):match("^[^%z]+") or program; exe:close() end

local root = os.tmpname()
os.remove(root)
lfs.mkdir(root)

local function write(name, text)
  local path = root .. "/" .. name
  core.write_file(path, text)
  return path
end
-- Exit code and everything printed.
local function cab(args, input)
  local out = root .. "/out"
  local _, kind, code = os.execute(("printf %%s '%s' | %s %s >%s 2>&1"):format((input or ""):gsub("'", "'\\''"), program, args, out))
  local f = assert(io.open(out))
  local text = f:read("a")
  f:close()
  assert.are.equal("exit", kind)
  return code, text
end

local recipe = [[
local cab = require "cab"
return cab.recipe {
  data = cab.data.fashion { fraction = 0.01 },
  student = cab.models.vim { image = 28, patch = 7, dim = 8, depth = 1, state = 4 },
  stages = { { loss = { vanilla = 1 }, epochs = 1 } }, batch = 50, eval = { batch = 500 },
}]]

describe("cli", function()
  teardown(function() os.execute("rm -r " .. root) end)

  it("shows and lists the data of a recipe", function()
    local file = write("seen.lua", recipe)
    local code, text = cab(("data show %s data.fraction=1 --sample 3 --out %s/seen.png"):format(file, root))
    assert.are.equal(0, code, text)
    assert.are.equal("u8", core.read_image(root .. "/seen.png"):dtype())
    assert.are.equal(0, (cab(("data subset %s --fraction 0.1 --out %s/ten.txt"):format(file, root))))
  end)

  it("runs a recipe with overrides, evaluates and inspects what came out", function()
    local path = write("r.lua", recipe)
    local code, text = cab(("run %s --out %s/a stages.1.epochs=2"):format(path, root))
    assert.are.equal(0, code, text)
    assert.matches("top1", text)
    local again
    code, again = cab(("eval %s/a"):format(root))
    assert.are.equal(0, code, again)
    assert.are.equal(text:match("top1 ([%d.]+)"), again:match("top1 ([%d.]+)"))
    code, text = cab(("inspect %s/a/best.safetensors"):format(root))
    assert.are.equal(0, code, text)
    assert.matches("head%.weight", text)
  end)

  it("evaluates each run of a comparison, with the R2 of its bridge", function()
    local path = write("c.lua", [[
local cab = require "cab"
local function run(name, loss) return { name = name, stages = { { loss = loss, epochs = 1 } } } end
return cab.compare {
  base = {
    data = cab.data.fashion { fraction = 0.01 }, batch = 50, eval = { batch = 500 },
    teacher = cab.models.vit { image = 28, patch = 7, dim = 8, depth = 1, heads = 2 },
    student = cab.models.vim { image = 28, patch = 7, dim = 8, depth = 1, state = 4 },
  },
  pictures = 2,
  runs = { run("a", { soft = 1 }), run("b", { align = { "attention_bridge", hidden = 4 } }) },
}]])
    local code, text = cab(("run %s --out %s/c"):format(path, root))
    assert.are.equal(0, code, text)
    assert.is_not_nil(lfs.attributes(root .. "/c/attention.png"))
    local r2 = text:match("align R2 ([%-%d.]+)")
    code, text = cab(("eval %s/c"):format(root))
    assert.are.equal(0, code, text)
    assert.matches("/c/a/best.safetensors.*/c/b/best.safetensors", text)
    assert.are.equal(r2, text:match("align R2 ([%-%d.]+)"))
    code, text = cab(("eval %s"):format(root .. "/none"))
    assert.are.equal(2, code, text)
  end)

  it("exits with 2 for misuse, with the nearest name", function()
    local path = write("r.lua", recipe)
    local cases = {
      { "rnu", "run" }, { "run", "file" }, { "run " .. path .. " optim.lrr=1", "did you mean 'lr'" },
      { "run " .. path .. " --ot x", "%-%-out" }, { "run " .. path .. " --resume=best", "latest%-good" },
      { "run " .. write("bad.lua", "return cab.recipe {"), "unexpected symbol" },
      { "run " .. write("plain.lua", "return {}"), "plain table" },
    }
    for _, case in ipairs(cases) do
      local code, text = cab(case[1])
      assert.are.equal(2, code, case[1] .. "\n" .. text)
      assert.matches(case[2], text)
    end
  end)

  it("prints errors that hold escape sequences harmlessly", function()
    local path = write("esc.lua", "error('\\27[31mred\\nline')")
    local code, text = cab("run " .. path)
    assert.are.equal(1, code)
    assert.matches("\\x1B%[31mred\nline", text)
    code, text = cab(("run %s '\27[31m=1'"):format(write("r.lua", recipe)))
    assert.are.equal(2, code)
    assert.is_nil(text:find "\27")
  end)

  it("exits with 74 for a missing file, 65 for bytecode and bad weights, 1 for a Lua error", function()
    local code, text = cab("run " .. root .. "/none.lua")
    assert.are.equal(74, code, text)
    write("b.luac", string.dump(function() end))
    code, text = cab(("run %s/b.luac"):format(root))
    assert.are.equal(65, code, text)
    assert.matches("text only", text)
    write("w.safetensors", "junk")
    code, text = cab(("inspect %s/w.safetensors"):format(root))
    assert.are.equal(65, code, text)
    write("e.lua", "local x = nil\nprint(x.y)")
    code, text = cab(("run %s/e.lua"):format(root))
    assert.are.equal(1, code, text)
    assert.matches("e%.lua:2", text)
  end)

  it("stops at SIGTERM, SIGUSR1 and SIGINT after the step with 75, and goes on with --resume", function()
    local path = write("long.lua", (recipe:gsub("epochs = 1", "steps = 400000")))
    local function signalled(arguments, signal)
      local script = write("go.sh", ("%s run %s --out %s/b %s & p=$!; sleep 1.5; kill -%s $p; wait $p\n"):format(program, path, root, arguments, signal))
      local pipe = io.popen(("sh %s 2>&1; echo exit $?"):format(script))
      local text = pipe:read("a")
      pipe:close()
      assert.matches("exit 75", text)
      return math.tointeger(tonumber(text:match("stopped after step (%d+)"))), text
    end
    local step = signalled("", "TERM")
    local later, text = signalled("--resume", "USR1")
    assert.is_true(step > 0 and later > step)
    assert.matches("resumed at step " .. step, text)
    local last
    last, text = signalled("--resume", "INT")
    assert.is_true(last > later)
    assert.matches("resumed at step " .. later, text)
  end)

  it("runs a plain script with its arguments", function()
    local path = write("s.lua", "print(arg[0], #arg, arg[1], ...)")
    local code, text = cab(("run %s --anything x=1"):format(path))
    assert.are.equal(0, code)
    assert.matches("s%.lua\t2\t%-%-anything\t%-%-anything\tx=1", text)
  end)

  it("has help, doctor and a prompt that errors do not end", function()
    local code, text = cab("--help")
    assert.are.equal(0, code)
    assert.matches("^Example: cab run", text)
    code, text = cab("doctor")
    assert.are.equal(0, code, text)
    assert.matches("openblas", text)
    code, text = cab("repl", "1 + 1\nx = 3\nerror 'no'\nx\nfunction f()\n return 7\nend\nf()\n)\ncab.tensor{1,2}:shape()\nhelp 'matmul'\n")
    assert.are.equal(0, code, text)
    assert.matches("2\nerror: .*no\n3\n7\n.*unexpected symbol.*{2}\nmatmul", text)
  end)
end)

describe("repl", function()
  it("completes globals and fields", function()
    local env = repl.environment()
    assert.are.same({ "cab.tensor" }, repl.complete("cab.tenso", env))
    assert.are.same({ "string.byte" }, repl.complete("string.by", env))
    env.t = core.zeros { 2 }
    local found = false
    for _, name in ipairs(repl.complete("t:sha", env)) do found = found or name == "t:shape" end
    assert.is_true(found)
    assert.are.same({}, repl.complete("nothing.at.all", env))
  end)
  it("prints escape sequences of values and errors harmlessly", function()
    local lines = {}
    repl.line('error("\\27[31mred")', repl.environment(), function(t) lines[#lines + 1] = t end)
    assert.is_nil(lines[1]:find("\27"))
    for _, text in ipairs { 'setmetatable({}, { __tostring = function() return "\27[2J\xc2\x9b1m\x9b" end })', 'error "\xc2\x9b\x9b\127"',
      'return "\27\x9b"', 'x = "\27', "\27[31m)" } do
      lines = {}
      repl.line(text, repl.environment(), function(t) lines[#lines + 1] = t end)
      assert.is_nil(table.concat(lines):find "[\27\127]")
      assert.is_nil(table.concat(lines):find "\xc2\x9b")
      assert.truthy(utf8.len(table.concat(lines)))
    end
  end)
  it("cuts huge strings, whether values or errors", function()
    for _, text in ipairs { '("x"):rep(10000000)', 'error(("x"):rep(10000000))', '{ ("x"):rep(10000000) }', 'cab[("x"):rep(10000000)]' } do
      local lines = {}
      repl.line(text, repl.environment(), function(t) lines[#lines + 1] = t end)
      assert.is_true(#lines[1] < 10000, text)
    end
  end)
end)
