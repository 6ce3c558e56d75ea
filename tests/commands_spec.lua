-- The table of commands, and what is made from it: help, parsing, completion, manual page, docs/cli.md.
local commands = require "cab.commands"
local completion = require "cab.completion"
local core = require "cab.core"
local process = require "process"
local refused = require "refused"

local dir = process.folder()
teardown(function() os.execute("rm -r " .. dir) end)

-- Code and output of the program. args as of a shell.
local function cab(args, prefix) return process.sh(("%s '%s' %s </dev/null"):format(prefix or "", process.program, args)) end

local function each(f)
  for _, name in ipairs(commands.list()) do
    local c = commands.get(name)
    f(name, c)
    for action, a in pairs(c.actions or {}) do f(name .. " " .. action, a) end
  end
end

describe("each command", function()
  it("has a file, and each file is in the list", function()
    local known = {}
    for _, name in ipairs(commands.list()) do known[name .. ".lua"] = true end
    for name in require "lfs".dir "lua/cab/commands" do
      if name:find "%.lua$" and name ~= "init.lua" then assert(known[name], name .. " is not in commands.names") end
    end
  end)
  it("has help with an example first, the same under --help, -h and cab help", function()
    each(function(name, c)
      local text = commands.help(name, c)
      assert.equal(1, text:find("Example: cab", 1, true) or text:find("Example: ", 1, true), name)
      assert.truthy(text:find("Usage: cab " .. name, 1, true), name)
      for _, o in ipairs(commands.options(c)) do assert.truthy(text:find(o[1]:match "%-%-[%w-]+", 1, true), name .. o[1]) end
      assert.truthy(c.run or c.main or c.actions, name .. " does nothing")
    end)
    local code, text = cab "data show --help"
    assert.equal(0, code)
    assert.equal(text, select(2, cab "help data show"))
    assert.equal(text, select(2, cab "data show x -h"))
    code, text = cab "help matmul"
    assert.equal(0, code)
    assert.matches("^matmul ", text)
    assert.equal(2, (cab "help nothing-of-that-name"))
  end)
  it("takes quiet, json and out in one spelling", function()
    each(function(name, c)
      for _, o in ipairs(commands.options(c)) do
        local word = o[1]:match "%-%-([%w-]+)"
        if word == "quiet" or word == "json" then assert.equal(commands.common[word], o, name) end
        assert.truthy(word:find "^[%l-]+$", name .. ": " .. word)
      end
    end)
  end)
end)

describe("a command's words", function()
  it("that are unknown are answered with the nearest", function()
    for line, expected in pairs {
      ["rnu"] = "unknown command 'rnu'; did you mean 'run'?", ["data shwo x"] = "did you mean 'show'?", ["eval x --tsak a=b"] = "did you mean '%-%-task'?",
      ["run --ot x"] = "did you mean '%-%-out'?", ["plot x --what acuracy"] = "x: neither a run folder", ["completion basch"] = "did you mean 'bash'?",
      ["data"] = "one of show, subset is expected", ["generate"] = "missing", ["data show recipes/quickstart.lua --sample x"] = "'x' is no integer",
      ["--hepl"] = "unknown option",
    } do
      local code, text = cab(line)
      assert.equal(2, code, line .. text)
      assert.matches(expected, text)
      assert.equal(1, select(2, text:gsub("\n", "")), text) -- one line
    end
  end)
  it("become options with defaults", function()
    local c = commands.get "generate"
    local o = commands.parse("generate", c, { "r", "--prompt", "x", "--tokens=3" })
    assert.same({ "r", "x", 3, 0.8 }, { o.run, o.prompt, o.tokens, o.temperature })
    refused(2, commands.parse, "generate", c, { "r", "--prompt", "x", "--tokens", "3.5" })
  end)
  it("of a bare option leave arguments that follow it alone", function()
    local c = commands.get "run"
    local o = commands.parse("run", c, { "x.lua", "--resume", "optim.lr=1" })
    assert.same({ "newest", { "optim.lr=1" } }, { o.resume, o.overrides })
    assert.equal("latest-good", commands.parse("run", c, { "x.lua", "--resume=latest-good" }).resume)
  end)
end)

describe("completion", function()
  local function words(...)
    local out = {}
    for i, line in ipairs(completion.words { ... }) do out[i] = line:match "^[^\t]*" end
    return out
  end
  it("knows commands, actions, options, their values, run folders' words and the keys of a recipe", function()
    assert.same({ "resume" }, words "res")
    assert.same({ "show", "subset" }, (function() local t = words("data", "s") table.sort(t) return t end)())
    assert.same({ "--lengths" }, words("eval", "--l"))
    assert.same({ "gpt2" }, words("tokenize", "--tokenizer", "g"))
    assert.same({ "optim.lr=" }, words("run", "recipes/quickstart.lua", "optim.lr"))
    assert.same({ ":files" }, words("inspect", "x"))
    assert.same({ "--resume" }, words("run", "x.lua", "--res"))
  end)
  it("fills in words in bash", function()
    local code, text = process.sh(([[bash -c 'cab() { :; }; source <("%s" completion bash)
      try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _cab 2>/dev/null; echo "${COMPREPLY[*]}"; }
      try "%s" comple
      try "%s" run recipes/quickstart.lua optim.wei']]):format(process.program, process.program, process.program))
    assert.equal(0, code, text)
    assert.equal("completion\noptim.weight_decay=\n", text)
  end)
  -- What a person sees who presses TAB in zsh, in a terminal of its own.
  local zsh = [==[
zmodload zsh/zpty
zpty z 'TERM=dumb COLUMNS=100 zsh -f -i'
zpty -w z 'PS1="%% "; unsetopt beep; autoload -U compinit; compinit -u -D; source <(cab completion zsh); echo REA""DY'
zpty -r z line '*READY*'
typed() { zpty -w -n z "$1"; zpty -r z line "*$2*" && print -r -- "found $2"; zpty -w -n z $'\C-u' }
typed $'cab comple\t' completion
typed $'cab eval --le\t' --lengths
typed $'cab run recipes/quickst\toptim.wei\t' optim.weight_decay=
zpty -d z]==]
  for shell, ask in pairs {
    zsh = { "zsh -f " .. process.put(dir .. "/tab.zsh", zsh), "^found completion\nfound %-%-lengths\nfound optim%.weight_decay=\n$" },
    fish = { [[fish -c 'cab completion fish | source; complete -C "cab comple"; complete -C "cab eval --le"
      complete -C "cab run recipes/quickstart.lua optim.wei"; complete -C "cab inspect READ"']],
      "^completion\t[^\n]*\n%-%-lengths\t[^\n]*\noptim.weight_decay=\tnow 0.05\nREADME.md\n$" },
  } do
    if os.execute(("command -v %s >/dev/null"):format(shell)) then
      it("fills in words in " .. shell, function()
        require "lfs".link(process.program, dir .. "/cab", true)
        local code, text = process.sh(("HOME=%s PATH=%s:$PATH timeout 60 %s"):format(dir, dir, ask[1]))
        assert.equal(0, code, text)
        assert.matches(ask[2], text)
      end)
    else
      pending("fills in words in " .. shell .. ": no " .. shell .. " here")
    end
  end
end)

describe("made from the table", function()
  it("docs/cli.md stands as it is", function()
    local f <close> = assert(io.open "docs/cli.md")
    assert(f:read "a" == completion.markdown(), "docs/cli.md is old: build/cab completion markdown > docs/cli.md")
  end)
  it("the manual page has each command and option, and no line that roff would take for a request", function()
    local text = completion.man()
    each(function(name, c)
      if not c.actions then assert.truthy(text:find(".SS cab " .. name:gsub("%-", "\\-"), 1, true), name) end
    end)
    for line in text:gmatch "[^\n]+" do
      local request = line:match "^%.(%w+)"
      if line:sub(1, 1) == "." or line:sub(1, 1) == "'" then
        assert(request and ("TH SH SS TP PP B I nf fi"):find(request, 1, true), line)
      end
    end
  end)
end)

describe("output", function()
  it("has no colours where there is no terminal, or where NO_COLOR says so", function()
    local recipe = process.put(dir .. "/r.lua", [[
local cab = require "cab"
return cab.recipe { data = cab.data.fashion { fraction = 0.01 }, student = cab.models.vim { image = 28, patch = 14, dim = 8, depth = 1, state = 2 },
  stages = { { loss = { vanilla = 1 }, steps = 3 } }, batch = 10, eval = { batch = 2000 } }]])
    local code, text = cab(("run %s --out %s/plain"):format(recipe, dir))
    assert.equal(0, code, text)
    assert.is_nil(text:find "\27")
    local function pty(prefix, out)
      return select(2, process.sh(("%s script -qec \"%s run %s --chart --out %s/%s\" /dev/null </dev/null"):format(prefix, process.program, recipe, dir, out)))
    end
    assert.truthy(pty("TERM=xterm NO_COLOR=", "colour"):find "\27%[3")
    local without = pty("TERM=xterm NO_COLOR=1", "none")
    assert.truthy(without:find "top%-1")
    assert.is_nil(without:find "\27%[%d+m")
  end)
  it("of a run without a terminal is a plain line every so often, with rate, time left, memory and loss terms, and a table at the end", function()
    local code, text = process.script(dir, [[
local progress = require "cab.progress"
local bar = progress.new { total = 4, name = "r", every = 0 }
for step = 1, 4 do bar:tick(step, 10, progress.losses { loss = 1.5, ["loss.soft"] = 0.5, ["loss.align"] = 0.25 }, 1.5) end
bar:summary { path = "runs/r-1", top1 = 50, loss = 1, steps = 4, seconds = 3661, images_per_second = 12, best = 60, best_step = 2,
  peak = 1 << 20, r2 = { align = 0.5 } }
]])
    assert.equal(0, code, text)
    assert.equal(3, select(2, text:gsub("r %d/4  %d%d:%d%d left  %d+ images/s  [%d.]+ %a+  loss 1.5000 %(align 0.25, soft 0.5%)\n", "")), text)
    assert.is_nil(text:find "\27")
    for _, line in ipairs { "top%-1 +50.00 %%", "R2 of align +0.500", "best +top%-1 60.00 %% of step 2", "time +1:01:01, 12 images/s", "memory +1.0 MiB",
      "folder +runs/r%-1" } do
      assert.matches(line, text)
    end
  end)
  it("is nothing at all with --quiet, and one JSON value with --json", function()
    local code, text = cab(("run %s/r.lua --quiet --out %s/quiet"):format(dir, dir))
    assert.equal(0, code)
    assert.equal("", text)
    code, text = cab(("run %s/r.lua --json --out %s/json"):format(dir, dir))
    assert.equal(0, code)
    assert.equal(3, core.json_decode(text).steps)
    code, text = cab(("resume %s/json"):format(dir)) -- has ended: no step is taken, so there is no rate
    assert.equal(0, code)
    assert.matches("time +[%d:]+\n", text)
    code, text = cab(("eval %s/json --json"):format(dir))
    assert.equal(0, code, text)
    assert.is_number(core.json_decode(text)[1].top1)
    code, text = cab(("inspect %s/json/best.safetensors --json"):format(dir))
    assert.equal(0, code)
    assert.is_true(#core.json_decode(text).tensors > 5)
    code, text = cab(("diff %s/json/best.safetensors %s/quiet/best.safetensors --json"):format(dir, dir))
    assert.equal(0, code)
    assert.same({}, core.json_decode(text).different)
    assert.is_string(core.json_decode(select(2, cab "doctor --json")).isa)
  end)
end)
