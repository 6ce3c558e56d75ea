local assert = require "luassert"

--- Calls f(...), which must raise an error table (of this code, if given); returns it.
return function(code, f, ...)
  local ok, e = pcall(f, ...)
  assert.is_false(ok, "was not refused")
  assert.equal("table", type(e), tostring(e))
  if code then assert.equal(code, e.code) end
  return e
end
