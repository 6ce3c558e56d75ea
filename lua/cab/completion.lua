--- What a shell completes, the manual page and docs/cli.md: all read off the table of commands.
local core = require "cab.core"
local commands = require "cab.commands"
local check = require "cab.check"
local lfs = require "lfs"
local M = {}

local scripts = {
  bash = [==[
# cab for bash: the program itself says what fits.
_cab() {
  local IFS=$'\n' line
  COMPREPLY=()
  while read -r line; do
    case $line in
      :files) compopt -o default 2>/dev/null; COMPREPLY+=($(compgen -f -- "${COMP_WORDS[COMP_CWORD]}")) ;;
      *) COMPREPLY+=("${line%%$'\t'*}") ;;
    esac
  done < <("${COMP_WORDS[0]}" completion words "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
  [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[=/] ]] && compopt -o nospace 2>/dev/null
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=/}
complete -F _cab cab
]==],
  zsh = [==[
#compdef cab
# cab for zsh: the program itself says what fits.
_cab() {
  local line word; local -a given whole open
  given=("${(@)words[2,CURRENT]}")
  while IFS= read -r line; do
    word=${${line%%$'\t'*}//:/\\:}
    case $word in
      \\:files) _files ;;
      *=|*/) open+=("$word:${line#*$'\t'}") ;;
      *) whole+=("$word:${line#*$'\t'}") ;;
    esac
  done < <("${words[1]}" completion words "${given[@]}" 2>/dev/null)
  (( ${#whole} )) && _describe cab whole
  (( ${#open} )) && _describe cab open -S ''
}
(( $+functions[compdef] )) && compdef _cab cab
]==],
  fish = [==[
# cab for fish: the program itself says what fits.
function __cab_words
    set -l given (commandline -opc) (commandline -ct)
    for line in ($given[1] completion words $given[2..-1] 2>/dev/null)
        if test "$line" = ":files"
            __fish_complete_path (commandline -ct)
        else
            echo $line
        end
    end
end
complete -c cab -f -a '(__cab_words)'
]==],
}

-- Run folders below runs/.
local function run_folders(add)
  if lfs.attributes("runs", "mode") ~= "directory" then return end
  for name in lfs.dir "runs" do
    local path = "runs/" .. name
    if name:sub(1, 1) ~= "." and lfs.attributes(path, "mode") == "directory" then
      add(path, "run")
      for _, run in ipairs(require "cab.folder".runs(path)) do if run ~= path then add(run, "run") end end
    end
  end
end

-- "optim.lr=" of each number, text and switch of a resolved recipe.
local function override_keys(path, add)
  local ok, r = pcall(require "cab.runs".resolved, path)
  if not ok then return end
  local function walk(t, at)
    for _, key in ipairs(require "cab.options".names(t)) do
      local here, value = at == "" and key or at .. "." .. key, t[key]
      if type(value) == "table" and not value.is_strategy then walk(value, here)
      elseif type(value) ~= "table" and key ~= "kind" then add(here .. "=", "now " .. core.escape(tostring(value))) end
    end
    for i, value in ipairs(t) do if type(value) == "table" then walk(value, at .. "." .. i) end end
  end
  walk(r, "")
end

-- What an argument or an option's value may be.
local function values(of, words, add)
  if type(of) == "table" then
    for _, v in ipairs(of) do add(v, "") end
  elseif of == "run" then
    run_folders(add)
    add(":files")
  elseif of == "override" then
    for _, w in ipairs(words) do if w:find "%.lua$" and lfs.attributes(w) then return override_keys(w, add) end end
  elseif of then add(":files") end
end

-- What may stand where the last word is. words: behind "cab", the last one unfinished.
local function candidates(words, add)
  if #words <= 1 then
    for _, name in ipairs(commands.list()) do add(name, commands.get(name).about) end
    return add("help", "Help for a command or an op.")
  end
  local c, _, used = commands.find(table.move(words, 1, #words - 1, 1, {}))
  if words[1] == "help" then for _, name in ipairs(commands.list()) do add(name, "") end end
  if not c then return end
  if c.actions and used == 1 then
    for name, action in pairs(c.actions) do add(name, action.about) end
    return
  end
  local before, position = words[#words - 1], 1
  for _, o in ipairs(commands.options(c)) do
    for word in o[1]:gmatch "%S+" do
      if word == before and o.value and not o.bare then return values(o.of, words, add) end
      add(word, o[2])
    end
  end
  for i = used + 1, #words - 1 do if words[i]:sub(1, 1) ~= "-" then position = position + 1 end end
  local list = c.arguments or {}
  local a = list[math.min(position, #list)]
  if a and (position <= #list or a.many) and words[#words]:sub(1, 1) ~= "-" then values(a.of, words, add) end
end

--- A line for each word that fits: word, tab, what it is; ":files" where file names fit, too.
---@param words string[] behind "cab", the last one unfinished
---@return string[]
function M.words(words)
  local out, last, seen = {}, words[#words] or "", {}
  candidates(words, function(word, about)
    if seen[word] then return end
    if word == ":files" or (word:sub(1, #last) == last and (word:sub(1, 1) ~= "-" or last:sub(1, 1) == "-")) then
      seen[word], out[#out + 1] = true, word == ":files" and word or word .. "\t" .. (about or "")
    end
  end)
  return out
end

-- All commands with their actions, in order: {name, command}.
local function all()
  local out = {}
  for _, name in ipairs(commands.list()) do
    local c = commands.get(name)
    if c.actions then
      for _, action in ipairs(require "cab.options".names(c.actions)) do out[#out + 1] = { name .. " " .. action, c.actions[action] } end
    else out[#out + 1] = { name, c } end
  end
  return out
end

-- roff: no line begins with a dot or a quote, hyphens and backslashes are themselves.
local function roff(text) return (text:gsub("\\", "\\e"):gsub("%-", "\\-"):gsub("\n([.'])", "\n\\&%1"):gsub("^([.'])", "\\&%1")) end

--- The manual page.
---@return string
function M.man()
  local out = { '.TH CAB 1 "" "CAB" "User Commands"', ".SH NAME", "cab \\- distils transformers into state space models", ".SH SYNOPSIS",
    ".B cab", ".I COMMAND", "[...]", ".SH COMMANDS" }
  for _, entry in ipairs(all()) do
    local name, c = entry[1], entry[2]
    out[#out + 1] = (".SS cab %s\n%s"):format(roff(name), roff(c.about))
    out[#out + 1] = ".PP\n.nf"
    for _, e in ipairs(c.examples) do out[#out + 1] = "    " .. roff(e[1]) .. ((e[2] or "") ~= "" and "   # " .. roff(e[2]) or "") end
    out[#out + 1] = ".fi"
    for _, a in ipairs(c.arguments or {}) do out[#out + 1] = (".TP\n.I %s\n%s"):format(roff(a[1]:upper()), roff(a[2])) end
    for _, o in ipairs(commands.options(c)) do
      local left, right = commands.describe(o)
      out[#out + 1] = (".TP\n.B %s\n%s"):format(roff(left), roff(right))
    end
    if c.notes and c.notes ~= commands.exit_codes then out[#out + 1] = ".PP\n.nf\n" .. roff(c.notes) .. "\n.fi" end
  end
  out[#out + 1] = ".SH EXIT STATUS\n" .. roff(commands.exit_codes:gsub("^exit codes: ", ""))
  out[#out + 1] = ".SH ENVIRONMENT\n.TP\n.B NO_COLOR\nNo colours."
  out[#out + 1] = ".SH FILES\n.TP\n.I runs/NAME\\-N\nThe folders of runs.\n.TP\n.I ~/.cab_history\nThe lines of the prompt."
  return table.concat(out, "\n") .. "\n"
end

--- docs/cli.md.
---@return string
function M.markdown()
  local out = { "# The command line\n",
    "Made by `cab completion markdown > docs/cli.md` from the table of commands, `lua/cab/commands`. Each command says the same under `--help`.",
    "Overrides are `key=value`, options may stand anywhere; what is unknown is an error with the nearest name.\n",
    "`eval \"$(cab completion bash)\"` completes commands, options, run folders and the keys of a recipe; `zsh` and `fish` likewise.\n" }
  for _, entry in ipairs(all()) do
    local c = setmetatable({ notes = entry[2].notes ~= commands.exit_codes and entry[2].notes or false }, { __index = entry[2] })
    out[#out + 1] = ("## cab %s\n\n```\n%s\n```\n"):format(entry[1], commands.help(entry[1], c))
  end
  out[#out + 1] = ("## Exit codes\n\n%s."):format(commands.exit_codes:gsub("^exit codes: ", ""))
  return table.concat(out, "\n") .. "\n"
end

--- `cab completion KIND`.
---@param kind string
---@return integer exit code
function M.main(kind)
  local text = kind == "man" and M.man() or kind == "markdown" and M.markdown() or scripts[kind]
  if not text then
    check.fail(2, "cab completion: " .. check.unknown("kind", kind, { "bash", "fish", "man", "markdown", "zsh" }), { id = "usage" })
  end
  io.stdout:write(text)
  return 0
end

return M
