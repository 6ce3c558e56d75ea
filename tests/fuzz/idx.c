/* The first byte chooses images, labels or gzip; the rest is the file. */
#include "../../core/data/dataset.c"
#include "../../core/data/idx.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  CabIdx idx;
  CabBytes bytes;
  if (!size) return 0;
  if (data[0] & 2) {
    if (cab_gunzip(data + 1, size - 1, "fuzz", 1 << 20, &bytes) != CAB_OK) return 0;
    cab_idx_parse(bytes.data, bytes.length, 3, "fuzz", &idx);
    cab_bytes_free(&bytes);
    return 0;
  }
  uint32_t sum = 0;
  if (cab_idx_parse(data + 1, size - 1, data[0] & 1 ? 3 : 1, "fuzz", &idx) == CAB_OK)
    for (uint64_t i = 0; i < (uint64_t)idx.count * idx.height * idx.width; i++) sum += idx.data[i];
  volatile uint32_t used = sum;
  (void)used;
  return 0;
}
