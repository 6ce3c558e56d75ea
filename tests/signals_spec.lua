-- SIGINT at the prompt: endless lines stop, the session goes on; twice within 2 s ends it.
local process = require "process"
local dir = process.folder()

-- A prompt on a pipe ($p its process, descriptor 3 its input, $o its output); `lines` of sh drive it.
local function prompt(lines)
  local code, output = process.sh(([[
    cd %s; rm -f in out; mkfifo in; o=out
    %s repl < in > out 2>&1 & p=$!
    exec 3> in
    seen() { n=0; while ! grep -q "$1" out; do sleep 0.02; n=$((n + 1)); [ $n -lt 1500 ] || exit 99; done; }
    %s
    exec 3>&-
    wait $p; code=$?
    cat out
    exit $code]]):format(dir, process.program, lines))
  return code, output
end

teardown(function() os.execute("rm -r " .. dir) end)

describe("SIGINT at the prompt", function()
  it("stops an endless line; tensors stay and the prompt goes on", function()
    local code, output = prompt [[
      echo 'x = cab.tensor { 1, 2 }; print "ready"; while true do end' >&3
      seen ready
      kill -INT $p
      seen interrupted
      echo 'print("sum", op.sum(x):item())' >&3]]
    assert.equal(0, code, output)
    assert.truthy(output:find "error: .*interrupted.*sum%s+3%.0", output)
  end)
  it("stops one that catches its errors, too", function()
    local code, output = prompt [[
      echo 'print "ready"; while true do pcall(function() while true do end end) end' >&3
      seen ready
      kill -INT $p
      seen interrupted
      echo 'print(40 + 2)' >&3]]
    assert.equal(0, code, output)
    assert.truthy(output:find "interrupted.*42", output)
  end)
  it("stops an endless line within half a second of its own time", function()
    local code, output = prompt [[
      echo 'print "ready"; local c = os.clock; t = 0; while true do t = c() end' >&3
      seen ready
      echo 'print("spent", os.clock() - t)' >&3
      kill -INT $p
      seen spent]]
    assert.equal(0, code, output)
    assert.is_true(tonumber(output:match "spent%s+([%d.e-]+)") < 0.5, output)
  end)
  it("twice within 2 s ends the program with 130", function()
    local code, output = prompt [[
      echo 'print "ready"' >&3
      seen ready
      kill -INT $p; sleep 0.1; kill -INT $p]]
    assert.equal(130, code, output)
  end)
end)
