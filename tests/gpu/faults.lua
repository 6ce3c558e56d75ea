-- faults.lua [BAD.so] [FOREIGN]: faults of a GPU, each in a process of its own: exit codes, messages, what still works after.
-- BAD.so: from bad.cu. FOREIGN: a folder with the program and a library that is built for another chip. What is not given is
-- skipped. Ends with "N passed, N failed"; exit code 1 if any failed.
local core = require "cab.core"
local bad, foreign = arg[1] or "", arg[2] or ""
local program = core.library .. "/../build/cab"
local passed, failed, skipped = 0, 0, 0

local function read(path)
  local file <close> = assert(io.open(path, "rb"))
  return file:read "a"
end

local function write(path, text)
  local file <close> = assert(io.open(path, "wb"))
  assert(file:write(text))
end

local work = os.tmpname()
os.remove(work)
assert(os.execute("mkdir -p " .. work))

--- Runs a script; c: { name, script, code, text patterns..., env=, program=, needs= }. The script has `core`, `op`, `cab`, `break_it`.
local function check(c)
  if c.needs == "" then
    skipped = skipped + 1
    return print("skipped " .. c[1])
  end
  local script, out = work .. "/script.lua", work .. "/out.txt"
  write(script, ([[
local core = require "cab.core"
local cab, op = require "cab", core.ops
local function break_it(how) assert(package.loadlib(%q, how))() end
local function code_of(f, ...) local ok, e = pcall(f, ...) return ok and 0 or e.code, tostring(e) end
local _ = break_it, code_of, cab, op
]]):format(bad) .. c[2])
  local begun = core.now()
  local _, _, code = os.execute(("%s timeout 120 %s run %s >%s 2>&1"):format(c.env or "", c.program or program, script, out))
  local text, problem = read(out), nil
  if code ~= c[3] then problem = ("exit code %d, expected %d"):format(code, c[3]) end
  for i = 4, #c do
    if not problem and not text:find(c[i]) then problem = "no match for " .. c[i] end
  end
  passed, failed = passed + (problem and 0 or 1), failed + (problem and 1 or 0)
  print(("%-6s %s (%.1f s)%s"):format(problem and "FAILED" or "ok", c[1], core.now() - begun, problem and ": " .. problem .. "\n" .. text or ""))
  if not problem then print("       " .. (text:match "[^\n]*error[^\n]*" or text:match "[^\n]*" or "")) end
end

-- ---- a device that is lost ------------------------------------------------------------------------

for how, says in pairs { bad_address = "illegal memory access", bad_assertion = "device%-side assert" } do
  check { how .. ": exit 69, the cause", [[
local x = core.ones({ 1000 }, "f32", "cuda")
core.sync "cuda"
break_it "]] .. how .. [["
print(op.sum(x):item())]], 69, "error%[E69", "cuda:0: ", says, "lost to this process", needs = bad }
  check { how .. " with CAB_SYNC=1: names the op", [[
local x = core.ones({ 1000 }, "f32", "cuda")
break_it "]] .. how .. [["
print(op.exp(x):item())]], 69, "cuda:0: unary", says, env = "CAB_SYNC=1", needs = bad }
end
check { "a lost device stays lost, the CPU works, the process ends in order", [[
local x = core.ones({ 1000 }, "f32", "cuda")
break_it "bad_address"
local code = code_of(function() return op.sum(x):item() end)
assert(code == 69, code)
local again, text = code_of(core.zeros, { 3 }, "f32", "cuda")
assert(again == 69 and text:find "lost after an earlier error", text)
assert(code_of(function() return x:totable() end) == 69)
assert(code_of(core.sync, "cuda") == 69)
assert(op.sum(core.ones { 5 }):item() == 5)
core.trim "cuda"
print "still here"]], 0, "still here", needs = bad }

-- A run: the last checkpoint is whole, and a new process goes on from it.
local run = ([[
local calls = 0
local strategy = cab.strategy { needs = {}, options = {} }
function strategy:loss(_, batch)
  calls = calls + 1
  if BREAK and calls > 4 then break_it "bad_address" end
  return op.cross_entropy(batch.logits, batch.labels)
end
cab.recipe {
  data = cab.data.fashion { fraction = 0.01 }, teacher = cab.models.vit { dim = 12, depth = 1, heads = 2, patch = 7 },
  student = cab.models.vim { dim = 12, depth = 1, patch = 7, state = 3 },
  stages = { { loss = { own = strategy }, steps = 6 } }, batch = 8, log = 1, device = "cuda", capture = false,
  checkpoint = { every = 1 },
}:run { out = %q, quiet = true, resume = not BREAK or nil }
print "finished"]]):format(work .. "/run")
check { "a run that loses its device: exit 69, a whole checkpoint", "local BREAK = true\n" .. run, 69, "error%[E69", "illegal memory access",
  needs = bad }
check { "the same run goes on in a new process", "local BREAK = false\n" .. run, 0, "finished", needs = bad }

-- ---- a device that is not there ---------------------------------------------------------------------

local use = [[
assert(op.sum(core.ones { 5 }):item() == 5)
print(core.device "auto")
core.zeros({ 1 }, "f32", "cuda")]]
check { "no visible GPU", use, 69, "device 'cuda' is not available", "cpu", env = "CUDA_VISIBLE_DEVICES=" }
check { "an index beyond the last GPU", [[core.zeros({ 1 }, "f32", "cuda:15")]], 69, "'cuda:15' is not available: there are %d+ GPUs" }

local alone = work .. "/alone/build"
assert(os.execute(("mkdir -p %s && cp %s %s/cab && ln -s %s %s/../lua"):format(alone, program, alone, core.library, alone)))
check { "no library beside the program", use, 69, "libcab_cuda.so: not found beside the program", "cpu", program = alone .. "/cab" }
write(alone .. "/libcab_cuda.so", "not a library")
check { "a library that is none", use, 69, "libcab_cuda.so: ", "cpu", program = alone .. "/cab" }

check { "a library for another chip: named at the launch", [[
local x = core.ones({ 1000 }, "f32", "cuda")
print(op.sum(x):item())]], 69, "cuda:0: %w+: built for sm_120, this chip is sm_%d+", program = foreign .. "/build/cab", needs = foreign }

os.execute("rm -rf " .. work)
print(("%d passed, %d failed, %d skipped"):format(passed, failed, skipped))
os.exit(failed == 0, true)
