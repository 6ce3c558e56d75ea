-- What make install, make module and make dist leave.
local lfs = require "lfs"
local process = require "process"

local function read(path)
  local f <close> = assert(io.open(path, "rb"))
  return f:read "a"
end

describe("the packaging files", function()
  it("name the packages that the build installs", function()
    local list = read "Makefile":match "\nPACKAGES := (.-)\nLINTERS":gsub("\\", " ")
    local control = read "packaging/control"
    for name in list:gmatch "%S+" do
      local runtime = name:match "^lua%-" and name or name == "libedit2" and name or name == "gnuplot-nox" and name
      if name ~= "lua-busted" then
        assert.truthy(control:match(runtime and "\nPackage.*" or "Build%-Depends[^\n]*"):find(name, 1, true), name .. " is not in packaging/control")
      end
    end
  end)
  it("have one version", function()
    local version = read "core/lua/cab.h":match 'CAB_VERSION "([^"]+)"'
    assert.equal(version, require "cab.core".version)
    assert.is_not_nil(lfs.attributes(("cab-%s-1.rockspec"):format(version)), "the rockspec is of another version")
    assert.equal(version, require "cab.core".doctor().cab)
  end)
  it("include a rockspec that is Lua and names what is needed", function()
    local rock = {}
    assert(load(read "cab-0.1.0-1.rockspec", "=rockspec", "t", rock))()
    assert.equal("cab", rock.package)
    assert.same({ "lua == 5.4", "argparse >= 0.7", "luafilesystem >= 1.8" }, rock.dependencies)
    for _, target in ipairs { rock.build.build_target, rock.build.install_target } do
      assert.truthy(read "Makefile":find("\n" .. target .. ":", 1, true), target)
    end
  end)
end)

local built = lfs.attributes "build/libcab.so" and lfs.attributes "build/cab" and os.execute "command -v make >/dev/null"
local newest = 0
for _, folder in ipairs { "base", "tensor", "ops", "io", "data", "lua" } do
  for name in lfs.dir("core/" .. folder) do newest = math.max(newest, lfs.attributes(("core/%s/%s"):format(folder, name), "modification")) end
end
local fresh = built and lfs.attributes("build/libcab.so", "modification") >= newest and lfs.attributes("build/cab", "modification") >= newest

describe("installed", function()
  if not fresh then
    pending "below a DESTDIR: build/libcab.so is not there or old: make all module"
    return
  end
  local dir = process.folder()
  teardown(function() os.execute("rm -r " .. dir) end)
  local usr = dir .. "/usr"
  it("below a DESTDIR, the program finds its library, and files name no build folder", function()
    local code, said = process.sh(("make -s CUDA= install DESTDIR=%s PREFIX=/usr"):format(dir))
    assert.equal(0, code, said)
    code, said = process.sh(("cd / && %s/bin/cab run %s/share/cab/recipes/quickstart.lua batch=20 stages.1.epochs=0.02 --quiet --out %s/run"):format(usr, usr, dir))
    assert.equal(0, code, said)
    for _, file in ipairs { "bin/cab", "lib/libcab.so", "include/cab.h", "lib/pkgconfig/cab.pc", "share/man/man1/cab.1", "share/doc/cab/cli.md",
      "share/bash-completion/completions/cab", "share/zsh/vendor-completions/_cab", "share/fish/vendor_completions.d/cab.fish" } do
      assert.is_not_nil(lfs.attributes(usr .. "/" .. file), file)
    end
    assert.is_nil(read(usr .. "/lib/pkgconfig/cab.pc"):find(dir, 1, true))
  end)
  if os.execute "command -v lua5.4 >/dev/null" then
    it("a plain lua5.4 has it by require", function()
      local code, said = process.sh(([[cd / && LUA_PATH="%s/share/lua/5.4/?.lua;%s/share/lua/5.4/?/init.lua;;" LUA_CPATH="%s/lib/lua/5.4/?.so;;" lua5.4 -e '
        local cab = require "cab"
        local model = cab.models.vim { dim = 8, depth = 1, state = 2, patch = 14 }:build { image = 28, classes = 10, channels = 1 }
        print(cab.op.sum(cab.tensor { 1, 2 }):item(), model:size() > 0, pcall(cab.op.matmul, 1))']]):format(usr, usr, usr))
      assert.equal(0, code, said)
      assert.matches("^3.0\ttrue\tfalse\t.*matmul", said)
    end)
  else
    pending "a plain lua5.4 has it: no lua5.4 here"
  end
  it("a C program has it by pkg-config", function()
    process.put(dir .. "/x.c", [[
#include <cab.h>
#include <stdio.h>
#include <string.h>
int main(void) {
  lua_State *L = cab_open();
  if (!L) return printf("%s\n", cab_message(L)), 9;
  if (strcmp(cab_version(), CAB_VERSION)) return 8;
  if (cab_run(L, "local cab = require 'cab'; print(cab.op.sum(cab.tensor { 1, 2, 3 }):item())")) return printf("%s\n", cab_message(L)), 7;
  int code = cab_run(L, "require 'cab'.load 'none.safetensors'");
  printf("%d %s\n", code, cab_message(L));
  printf("%d\n", cab_run(L, "x = ="));
  code = cab_run(L, "x = 1");
  printf("%d '%s'\n", code, cab_message(L));
  lua_close(L);
  return 0;
}]])
    local code, said = process.sh(([[cd %s && export PKG_CONFIG_PATH=usr/lib/pkgconfig PKG_CONFIG_SYSROOT_DIR=%s &&
      cc -o x x.c -I usr/include $(PKG_CONFIG_SYSROOT_DIR= pkg-config --cflags lua5.4) -L usr/lib -lcab $(PKG_CONFIG_SYSROOT_DIR= pkg-config --libs lua5.4) &&
      pkg-config --libs cab && LD_LIBRARY_PATH=usr/lib ./x]]):format(dir, dir))
    assert.equal(0, code, said)
    assert.matches("%-lcab", said)
    assert.matches("6%.0\n74 [^\n]*none.safetensors[^\n]*\n1\n0 ''\n$", said)
  end)
end)

describe("make dist", function()
  local inside = os.execute "git rev-parse --is-inside-work-tree >/dev/null 2>&1"
  if not inside then pending "packs what is committed: no git repository here" return end
  it("packs what is committed, the same bytes each time", function()
    local dir = process.folder()
    local code, said = process.sh(("make -s dist && mv cab-*.tar.xz %s/a.tar.xz && make -s dist && cmp cab-*.tar.xz %s/a.tar.xz && rm cab-*.tar.xz"
      .. " && tar tf %s/a.tar.xz"):format(dir, dir, dir))
    os.execute("rm -r " .. dir)
    assert.equal(0, code, said)
    for _, file in ipairs { "Makefile", "core/lua/cab.h", "lua/cab/cli.lua", "packaging/cab.pc.in", "tests/main.lua", "LICENSE" } do
      assert.truthy(said:find("/" .. file, 1, true), file)
    end
  end)
end)
