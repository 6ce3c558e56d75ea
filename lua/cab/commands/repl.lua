return {
  about = "Lua prompt with `cab` in it.",
  examples = {
    { "cab repl", "help() lists the ops, ?matmul explains one; Ctrl-D ends" },
    { "echo 'cab.op.sum(cab.tensor{1,2})' | cab repl", "works in a pipe" },
  },
  run = function() return require "cab.repl".run() end,
}
