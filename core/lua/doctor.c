/* doctor.c - core.doctor(): the facts that a report of a problem needs. */
#include "bind.h"
#include "cab.h"

#include <dlfcn.h>
#include <jansson.h>
#include <locale.h>
#include <sys/utsname.h>
#include <unistd.h>
#include <xxhash.h>
#include <zlib.h>

static void fact(lua_State *L, const char *key, const char *value) {
  lua_pushstring(L, value ? value : "?");
  lua_setfield(L, -2, key);
}

static void number(lua_State *L, const char *key, int64_t value) {
  lua_pushinteger(L, value);
  lua_setfield(L, -2, key);
}

/* Libraries answer by name where their headers are not needed otherwise. */
static const char *ask(const char *symbol) {
  union { void *p; const char *(*f)(void); } u = {.p = dlsym(RTLD_DEFAULT, symbol)};
  return u.p ? u.f() : NULL;
}

static int doctor(lua_State *L) {
  struct utsname system;
  char text[160];
  lua_createtable(L, 0, 20);
  fact(L, "cab", CAB_VERSION);
  fact(L, "isa", cab_cpu_isa());
  number(L, "threads", cab_threads());
  number(L, "processors", sysconf(_SC_NPROCESSORS_ONLN));
  number(L, "memory", (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE));
  fact(L, "openblas", ask("openblas_get_config"));
  fact(L, "openblas_core", ask("openblas_get_corename"));
  lua_getglobal(L, "_VERSION");
  lua_setfield(L, -2, "lua");
  fact(L, "lua_release", LUA_RELEASE);
  fact(L, "jansson", JANSSON_VERSION);
  snprintf(text, sizeof text, "%u", XXH_versionNumber());
  fact(L, "xxhash", text);
  fact(L, "zlib", zlibVersion());
  union { void *p; const char *(*f)(void *); } png = {.p = dlsym(RTLD_DEFAULT, "png_get_libpng_ver")};
  fact(L, "libpng", png.p ? png.f(NULL) : NULL);
  fact(L, "compiler", __VERSION__);
  fact(L, "locale", setlocale(LC_NUMERIC, NULL));
  if (uname(&system) == 0) {
    snprintf(text, sizeof text, "%s %s %s", system.sysname, system.release, system.machine);
    fact(L, "system", text);
  }
#ifdef CAB_FAULTS
  fact(L, "build", "faults");
#else
  fact(L, "build", "release");
#endif
  return 1;
}

void bind_doctor(lua_State *L) {
  lua_pushcfunction(L, doctor);
  lua_setfield(L, -2, "doctor");
}
