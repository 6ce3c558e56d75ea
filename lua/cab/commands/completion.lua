local commands = require "cab.commands"
local M = {
  about = "Print a completion script for a shell, or the manual page; all made from the table of commands.",
  examples = {
    { 'eval "$(cab completion bash)"', "for this shell; in ~/.bashrc for all" },
    { "cab completion fish > ~/.config/fish/completions/cab.fish", "" },
    { "cab completion man > cab.1; man ./cab.1", "" },
  },
  arguments = { { "kind", "bash, zsh, fish, man (the manual page) or markdown (docs/cli.md).", of = { "bash", "fish", "man", "markdown", "zsh" } } },
  run = function(o) return require "cab.completion".main(o.kind) end,
}

--- `cab completion words WORD...` is what the scripts ask; its words are anybody's, options as well.
function M.main(words)
  if words[1] == "words" then
    for _, line in ipairs(require "cab.completion".words(table.move(words, 2, #words, 1, {}))) do print(line) end
    return 0
  end
  return M.run(commands.parse("completion", M, words))
end

return M
