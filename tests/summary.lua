-- Busted output: failures as they come, one line at the end.
return function(options)
  local busted = require "busted"
  local handler = require "busted.outputHandlers.base"()
  local verbose = os.getenv "CAB_TEST_NAMES"
  local skipped = {}

  local function name(element, parent) return handler.getFullName({ element = element, parent = parent, name = element.name }) end

  function handler.testEnd(element, parent, status)
    if verbose then io.write(("%s %s\n"):format(status, name(element, parent))) io.flush() end
    if status == "pending" then skipped[#skipped + 1] = handler.getFullName(element) end
    return nil, true
  end

  local function failure(element, _, message, trace)
    io.write(("\nFAILED %s\n%s\n%s\n"):format(handler.getFullName(element), tostring(message), trace and trace.traceback or ""))
    io.flush()
    return nil, true
  end

  function handler.suiteEnd()
    local failed = handler.failuresCount + handler.errorsCount
    for _, text in ipairs(skipped) do print("skipped " .. text) end
    print(("%d passed, %d failed%s"):format(handler.successesCount, failed,
      handler.pendingsCount > 0 and (", %d skipped"):format(handler.pendingsCount) or ""))
    return nil, true
  end

  busted.subscribe({ "test", "end" }, handler.testEnd, { predicate = handler.cancelOnPending })
  busted.subscribe({ "suite", "end" }, handler.suiteEnd)
  busted.subscribe({ "failure" }, failure)
  busted.subscribe({ "error" }, failure)
  local _ = options
  return handler
end
