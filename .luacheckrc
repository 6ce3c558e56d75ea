std = "lua54+busted"
max_line_length = 165
ignore = { "211/_.*", "211/scope", "212/self", "212/_.*" }
files["tests/main.lua"] = { globals = { "arg" } }
files["tests"] = { ignore = { "211", "212" } }
