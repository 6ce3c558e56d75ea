/* memfile.h - the fuzzer's bytes as a file: one memory file, written anew for each input. */
#ifndef MEMFILE_H
#define MEMFILE_H
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "file.h"

static CabFile memfile(const uint8_t *data, size_t size) {
  static int fd = -1;
  static size_t length;
  if (fd < 0 && (fd = memfd_create("fuzz", 0)) < 0) abort();
  if (length != size && ftruncate(fd, (off_t)size)) abort();
  length = size;
  if (size && pwrite(fd, data, size, 0) != (ssize_t)size) abort();
  return (CabFile){.fd = fd, .size = size, .path = "fuzz"};
}

#endif
