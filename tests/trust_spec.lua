-- docs/trust.md names tests that exist, for every row that it should have.
local function read(path)
  local f <close> = assert(io.open(path))
  return f:read "a"
end

describe("the table of faults", function()
  it("names tests that exist, for every row", function()
    local rows, texts = {}, {}
    for row, file, name in read "docs/trust.md":gmatch '\n| (%d+) | [^|]* | `([%w_]+_spec%.lua)`: "([^\n]*)" |' do
      texts[file] = texts[file] or read("tests/" .. file)
      local at
      for _, call in ipairs { 'it("', 'it(("', 'describe("', 'refuses("' } do at = at or texts[file]:find(call .. name, 1, true) end
      assert(at, ("row %s: %s has no test '%s'"):format(row, file, name))
      rows[math.tointeger(tonumber(row))] = true
    end
    for _, span in ipairs { { 1, 21 }, { 23, 35 }, { 40, 47 } } do
      for row = span[1], span[2] do assert(rows[row], ("no test for row %d"):format(row)) end
    end
  end)
end)
