/* Bytes are one CIFAR batch file, plain or gzip, opened as the program opens it. Plain ones mostly get a whole record. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../core/data/cifar.c"
#include "../../core/data/dataset.c"

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t room);

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed) {
  size = LLVMFuzzerMutate(data, size, room);
  if (seed % 4 && size >= 2 && data[0] != 0x1f && room >= 2 * RECORD) {
    size_t whole = RECORD * (1 + seed % 2);
    if (size < whole) memset(data + size, 0, whole - size);
    size = whole;
    data[0] %= 16, data[whole - RECORD] %= 16;
  }
  return size;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static int file = -1;
  static char path[32];
  const char *paths[] = {path};
  if (file < 0) {
    file = memfd_create("cifar", 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
  }
  if (ftruncate(file, 0) || pwrite(file, data, size, 0) != (ssize_t)size) abort();
  CabDataset *ds = cab_cifar_open(1, paths, 10, NULL);
  if (!ds) return cab_error()->code == CAB_E_INPUT ? 0 : (abort(), 0);
  unsigned sum = 0;
  for (int64_t i = 0; i < ds->count; i++) {
    CabImage image;
    int warnings;
    if (ds->labels[i] < 0 || ds->labels[i] >= 10 || ds->kind->fetch(ds, i, NULL, &warnings, &image) != CAB_OK) abort();
    for (int p = 0; p < image.width * image.height * image.channels; p++) sum += image.pixels[p];
  }
  volatile unsigned used = sum;
  (void)used;
  cab_dataset_release(ds);
  return 0;
}
