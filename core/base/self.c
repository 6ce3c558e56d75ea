/* self.c - where this code lies: the program, or libcab.so in another one. */
#include "base.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

bool cab_self(char out[4096]) {
  Dl_info info;
  char path[PATH_MAX];
  bool library = dladdr((void *)(uintptr_t)cab_self, &info) && info.dli_fname && strstr(info.dli_fname, ".so");
  if (library) {
    if (!realpath(info.dli_fname, path)) return false;
  } else {
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    if (n <= 0) return false;
    path[n] = 0;
  }
  size_t length = strlen(path);
  if (length >= 4096) return false;
  memcpy(out, path, length + 1);
  return strrchr(out, '/') != NULL;
}
