std = "lua54+busted"
max_line_length = 140
ignore = { "211/_.*", "211/scope", "212/self", "212/_.*" }
files["tests"] = { ignore = { "211", "212" } }
