# tests/gpu/env.sh   sourced by the scripts beside it: where Lua, its libraries and cuBLAS are.
# A folder .gpu with Lua and libraries for a machine without them (.gpu/lib, .gpu/share, .gpu/lua) is used if it is there.
if [ -d .gpu ]; then
  export LD_LIBRARY_PATH=$PWD/.gpu/lib:${LD_LIBRARY_PATH:-}
  export LUA_PATH="$PWD/.gpu/share/?.lua;$PWD/.gpu/share/?/init.lua;;" LUA_CPATH="$PWD/.gpu/lua/?.so;;"
fi
# cuBLAS: of the system, of the toolkit, or of PyTorch.
if ! ldconfig -p | grep -q 'libcublasLt\.so'; then
  for dir in /usr/local/cuda/lib64 $(python3 -c 'import nvidia, os; p = list(nvidia.__path__)[0]; print(*(os.path.join(p, d, "lib") for d in os.listdir(p)))' 2>/dev/null); do
    ls "$dir"/libcublasLt.so* >/dev/null 2>&1 && export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}:$dir
  done
fi
