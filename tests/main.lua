-- Runs the specs in this process: build/cab run tests/main.lua [busted options] [files]. Ends with "N passed, N failed".
if #arg == 0 then arg[1] = "tests" end
local options = { "--pattern=_spec%.lua$", "--lpath=./lua/?.lua;./lua/?/init.lua;./tests/?.lua", "-o", "tests/summary.lua" }
for i = #options, 1, -1 do table.insert(arg, 1, options[i]) end
require "busted.runner" { standalone = false }
