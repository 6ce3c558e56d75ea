# make demo   installs what is missing, builds, distils a Vision Mamba from a ViT on the embedded images
# make test   installs what is missing, builds, runs all tests; ends with "N passed, N failed"
# make | install PREFIX=/usr/local DESTDIR= | module (libcab.so, require "cab" from any Lua 5.4) | dist | bench | lint | asan | fuzz FUZZ_SECONDS=60 FUZZ_RUNS=-1 | crash | clean
SHELL    := /bin/bash
B        ?= build
PREFIX   ?= /usr/local
CC       ?= gcc
FUZZ_SECONDS ?= 60
FUZZ_RUNS ?= -1
SANITIZE :=
SPECS    := tests# of make asan
PIC      := -fPIC -fno-semantic-interposition# one set of objects for the program and the library
VERSION  := $(shell sed -n 's/.*CAB_VERSION "\(.*\)"/\1/p' core/lua/cab.h)
PACKAGES := gcc libc6-dev liblua5.4-dev libopenblas-openmp-dev libpng-dev libjpeg62-turbo-dev zlib1g-dev libjansson-dev \
            libxxhash-dev libutf8proc-dev lua-busted lua-argparse lua-filesystem libedit2 gnuplot-nox
LINTERS  := lua-check cppcheck
TESTERS  := openmpi-bin zsh fish

MODULES  := base tensor ops io data dist lua
CPPFLAGS += $(MODULES:%=-Icore/%) -Ikernels -I/usr/include/lua5.4 -D_GNU_SOURCE
OPT      ?= -O2 -g
KOPT     ?= -O3 -g
CFLAGS   := $(OPT) -std=gnu11 -Wall -Wextra -Wno-format-truncation -Wno-missing-field-initializers -fopenmp $(PIC) -fstack-protector-strong $(SANITIZE)
LDLIBS   := -llua5.4 -lopenblas -lpng -ljpeg -lz -ljansson -lxxhash -lutf8proc -ldl -lpthread -lm
KFLAGS   := $(KOPT) -std=gnu11 -Wall -Wextra -fopenmp $(PIC) -fno-math-errno -fno-trapping-math -Icore/base -Ikernels $(SANITIZE)
MARCH_v4 := -march=x86-64-v4 -mprefer-vector-width=512
MARCH_v3 := -march=x86-64-v3
MARCH_v2 := -march=x86-64-v2

CORE     := $(wildcard $(MODULES:%=core/%/*.c))
KERNELS  := $(wildcard kernels/*.c)
OBJECTS  := $(CORE:%.c=$B/%.o) $(B)/twins.o \
            $(foreach k,$(KERNELS:%.c=$B/%),$(foreach r,f32 f64,$(foreach i,v2 v3 v4,$k.$r.$i.o)))

# The CUDA device, where there is a compiler for it: opened at run time, so the same build runs without a GPU.
CUDA     ?= $(patsubst %/bin/nvcc,%,$(or $(shell command -v nvcc),$(wildcard /usr/local/cuda/bin/nvcc)))
NVCC     := $(if $(wildcard $(CUDA)/include/cublasLt.h),$(CUDA)/bin/nvcc)
CUDA_ARCH := -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=[sm_90,compute_90]
NVFLAGS  := -std=c++17 -O3 -lineinfo -Xfatbin -compress-all -Icore/base -Icore/tensor -Icore/dist -Ikernels -Xcompiler -fPIC,-Wall $(CUDA_ARCH)
CUDA_OBJECTS := $(patsubst %.cu,$B/%.cu.o,$(wildcard kernels/*.cu core/tensor/*.cu core/dist/*.cu))

.PHONY: all deps demo test module install install-rock dist bench lint asan fuzz crash clean
all: $B/cab $(if $(NVCC),$B/libcab_cuda.so)

$B/cab: $(OBJECTS)
	$(CC) $(CFLAGS) -pie -rdynamic -Wl,-z,relro,-z,now -o $@ $^ $(LDLIBS)

$B/%.cu.o: %.cu
	@mkdir -p $(@D)
	$(NVCC) $(NVFLAGS) -MMD -MP -c -o $@ $<
$B/libcab_cuda.so: $(CUDA_OBJECTS)
	$(NVCC) -shared -cudart static -o $@ $^ -lcublas -lcublasLt

$B/core/%.o: core/%.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

# One object for each kernel, element type and instruction set: kernels/gate.f32.v4.o
define VARIANT
$B/kernels/%.$(1).$(2).o: kernels/%.c
	@mkdir -p $$(@D)
	$(CC) $(KFLAGS) -DREAL=$(1) -DISA=$(2) $(MARCH_$(2)) -MMD -MP -c -o $$@ $$<
endef
$(foreach r,f32 f64,$(foreach i,v2 v3 v4,$(eval $(call VARIANT,$r,$i))))

# The CPU backend's table, read off the TWIN declarations.
$B/twins.c: $(wildcard kernels/*.h)
	@mkdir -p $(@D)
	@names=$$(sed -n 's/^TWIN(\([a-z0-9_]*\),.*/\1/p' $^); \
	{ for n in $$names; do for r in f32 f64; do for i in v2 v3 v4; do echo "void $${n}_cpu_$${r}_$$i(void);"; done; done; done; \
	  echo 'const struct { const char *name; void *variant[2][3]; } cab_twins[] = {'; \
	  for n in $$names; do echo "  {\"$$n\", {{$${n}_cpu_f32_v2, $${n}_cpu_f32_v3, $${n}_cpu_f32_v4}, {$${n}_cpu_f64_v2, $${n}_cpu_f64_v3, $${n}_cpu_f64_v4}}},"; done; \
	  echo '  {0}};'; } > $@
$B/twins.o: $B/twins.c
	$(CC) -w $(CFLAGS) -c -o $@ $<

deps:
	@tests/install-packages $(PACKAGES)

demo: deps
	@$(MAKE) --no-print-directory -s -j$$(nproc) $B/cab $(if $(wildcard /dev/nvidiactl),all)
	$B/cab run recipes/quickstart.lua

test: deps
	@tests/install-packages $(TESTERS)
	@$(MAKE) --no-print-directory -s -j$$(nproc) all module
	$B/cab run tests/main.lua

# The program's objects as a shared library: C programs link it, Lua loads it as cab/core.so.
module: $B/libcab.so
$B/libcab.so: $(filter-out $B/core/lua/main.o,$(OBJECTS))
	$(CC) $(CFLAGS) -shared -Wl,-z,relro,-z,now -Wl,-soname,libcab.so -o $@ $^ $(filter-out -llua5.4,$(LDLIBS))

install: all module
	install -d $(addprefix $(DESTDIR)$(PREFIX)/,bin include lib/cab lib/pkgconfig lib/lua/5.4/cab share/lua/5.4 share/man/man1 share/doc/cab \
	  share/bash-completion/completions share/zsh/vendor-completions share/fish/vendor_completions.d share/cab)
	install $B/cab $(DESTDIR)$(PREFIX)/bin/cab
	install -m 644 $B/libcab.so $(DESTDIR)$(PREFIX)/lib/libcab.so
	ln -sfn ../../../libcab.so $(DESTDIR)$(PREFIX)/lib/lua/5.4/cab/core.so
	ln -sfn ../../cab/lua/cab $(DESTDIR)$(PREFIX)/share/lua/5.4/cab
	install -m 644 core/lua/cab.h $(DESTDIR)$(PREFIX)/include/cab.h
	sed 's|@PREFIX@|$(PREFIX)|; s|@VERSION@|$(VERSION)|' packaging/cab.pc.in > $(DESTDIR)$(PREFIX)/lib/pkgconfig/cab.pc
	[ ! -f $B/libcab_cuda.so ] || install -m 644 $B/libcab_cuda.so $(DESTDIR)$(PREFIX)/lib/cab/libcab_cuda.so
	cp -r lua recipes examples data $(DESTDIR)$(PREFIX)/share/cab/
	cp -r README.md LICENSE docs/. $(DESTDIR)$(PREFIX)/share/doc/cab/
	$B/cab completion man > $(DESTDIR)$(PREFIX)/share/man/man1/cab.1
	$B/cab completion bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/cab
	$B/cab completion zsh > $(DESTDIR)$(PREFIX)/share/zsh/vendor-completions/_cab
	$B/cab completion fish > $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/cab.fish

# Into a tree of LuaRocks: the library without the embedded images and texts.
install-rock: module
	install -d $(ROCK_LUADIR) $(ROCK_LIBDIR)/cab
	install $B/libcab.so $(ROCK_LIBDIR)/cab/core.so
	cp -r lua/cab $(ROCK_LUADIR)/

# What a release is: the committed files, the same bytes each time.
dist:
	git archive --format=tar --prefix=cab-$(VERSION)/ HEAD | xz -9 > cab-$(VERSION).tar.xz
	@echo cab-$(VERSION).tar.xz

bench: all
	$B/cab run tests/bench/bench.lua
	$B/cab run tests/bench/language.lua
	$B/cab run tests/bench/audit.lua
	$B/cab run tests/bench/cache.lua
	$B/cab run tests/bench/tokenizer.lua

lint:
	@tests/install-packages $(LINTERS)
	luacheck -q lua recipes examples tests
	$(CC) $(CPPFLAGS) -w -std=gnu11 -fsyntax-only tests/fuzz/*.c tests/fuzz/support/*.c
	cppcheck -q --error-exitcode=1 --inline-suppr --enable=warning,portability --suppress=missingIncludeSystem \
	  --suppress=nullPointerOutOfMemory --suppress=missingInclude --suppress=arrayIndexThenCheck $(MODULES:%=-Icore/%) -Ikernels $(addprefix core/,base tensor ops io data dist)

# Everything under AddressSanitizer and UBSan, with fault points compiled in and no allocator cache.
asan: deps
	@$(MAKE) --no-print-directory -s -j$$(nproc) all B=build-asan OPT="-O1 -g -DCAB_FAULTS -DCAB_NO_CACHE" KOPT="-O1 -g" \
	  CUDA= SANITIZE="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
	ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1 LSAN_OPTIONS=suppressions=tests/lsan.supp OMP_NUM_THREADS=2 build-asan/cab run tests/main.lua $(SPECS)

# One program for each tests/fuzz/NAME.c. Overrides are parsed in Lua: that one has all of the core in it, and no
# AddressSanitizer, which would only see Lua's heap, at half the speed.
FUZZ := $(patsubst tests/fuzz/%.c,build-fuzz/%,$(wildcard tests/fuzz/*.c))
FUZZ_CC := clang -O2 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined -fopenmp=libgomp $(CPPFLAGS) -w
build-fuzz/%: tests/fuzz/%.c $(wildcard core/io/*.c core/data/*.c core/base/*.c)
	@mkdir -p $(@D)
	$(FUZZ_CC) -o $@ $< tests/fuzz/support/*.c $(wildcard core/io/*.c core/base/*.c) -lpng -ljpeg -lz -ljansson -lxxhash -lutf8proc -lgomp -lm
build-fuzz/recipe: tests/fuzz/recipe.c $(CORE) $(filter-out $B/core/%,$(OBJECTS))
	@mkdir -p $(@D)
	$(FUZZ_CC) -fno-sanitize=address -o $@ $< $(filter-out core/lua/main.c,$(CORE)) $(filter-out $B/core/%,$(OBJECTS)) $(LDLIBS) -lgomp
fuzz:
	@tests/install-packages $(PACKAGES) clang libclang-rt-14-dev
	@$(MAKE) --no-print-directory -s $(FUZZ)
	@set -o pipefail; for f in $(FUZZ); do echo "== $$f"; mkdir -p $$f.corpus; $$f -max_total_time=$(FUZZ_SECONDS) -runs=$(FUZZ_RUNS) -max_len=6200 -rss_limit_mb=512 -timeout=10 \
	  -print_final_stats=1 -artifact_prefix=$$f- $$f.corpus tests/fuzz/seeds/$${f##*/} 2>&1 | grep -E "ERROR|SUMMARY|does not hold|stat::number_of_executed_units|stat::average" || exit 1; done

crash: all
	$B/cab run tests/crash/kill.lua 1000

clean:
	rm -rf build build-asan build-fuzz

-include $(wildcard $B/core/*/*.d $B/kernels/*.d)
