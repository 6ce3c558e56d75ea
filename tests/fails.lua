local assert = require "luassert"

--- Calls f(...), which must raise an error whose message holds the text; returns it.
return function(text, f, ...)
  local ok, e = pcall(f, ...)
  assert.is_false(ok, "expected an error with: " .. text)
  assert.truthy(tostring(e):find(text, 1, true), tostring(e))
  return e
end
