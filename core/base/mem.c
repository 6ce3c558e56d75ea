/* mem.c - host memory. A size of 0 gives a pointer that may be freed, so NULL always means failure. */
#include <stdlib.h>

#include "base.h"

/* Bytes of count x size, at least 1; 0 where the product is no possible object size. */
static size_t bytes_of(size_t count, size_t size) {
  uint64_t bytes = sz_mul(count, size);
  if (bytes > PTRDIFF_MAX) return 0;
  return bytes ? (size_t)bytes : 1;
}

static void *refuse(size_t count, size_t size) {
  cab_fail(CAB_E_MEMORY, "out of memory: %zu x %zu bytes", count, size);
  return NULL;
}

void *cab_malloc(size_t count, size_t size) {
  size_t bytes = bytes_of(count, size);
  void *p = bytes && !cab_fault("malloc") ? malloc(bytes) : NULL;
  return p ? p : refuse(count, size);
}

void *cab_calloc(size_t count, size_t size) {
  size_t bytes = bytes_of(count, size);
  void *p = bytes && !cab_fault("malloc") ? calloc(1, bytes) : NULL;
  return p ? p : refuse(count, size);
}

/* On failure `old` stays valid. */
void *cab_realloc(void *old, size_t count, size_t size) {
  size_t bytes = bytes_of(count, size);
  void *p = bytes && !cab_fault("malloc") ? realloc(old, bytes) : NULL;
  return p ? p : refuse(count, size);
}

void cab_free(void *p) { free(p); }
