/* The first byte chooses: bytes as a .npy file, or as the pickle of a PyTorch file with a storage of 64 bytes. What is described
 * lies within its bytes, and every value of it can be looked at. */
#include <string.h>
#include <zlib.h>

#include "support/memfile.h"
#include "weights.h"
#include "zip.h"

#define CHECK(condition) ((condition) ? (void)0 : abort())

static void put(uint8_t *to, size_t *n, const void *from, size_t count) {
  memcpy(to + *n, from, count);
  *n += count;
}

/* An archive of two stored entries, right in all but the pickle. */
static size_t archive(uint8_t *out, const uint8_t *pickle, size_t size) {
  static const uint8_t storage[64];
  const char *names[2] = {"a/data.pkl", "a/data/0"};
  const uint8_t *bytes[2] = {pickle, storage};
  uint32_t sizes[2] = {(uint32_t)size, sizeof storage}, at[2], crc[2];
  size_t n = 0;
  for (int i = 0; i < 2; i++) {
    uint16_t head[5] = {20, 0, 0, 0, 0}, tail[2] = {(uint16_t)strlen(names[i]), 0};
    at[i] = (uint32_t)n;
    crc[i] = (uint32_t)crc32_z(0, bytes[i], sizes[i]);
    put(out, &n, "PK\3\4", 4), put(out, &n, head, 10), put(out, &n, &crc[i], 4), put(out, &n, &sizes[i], 4), put(out, &n, &sizes[i], 4);
    put(out, &n, tail, 4), put(out, &n, names[i], tail[0]), put(out, &n, bytes[i], sizes[i]);
  }
  uint32_t directory = (uint32_t)n;
  for (int i = 0; i < 2; i++) {
    uint16_t head[6] = {20, 20, 0, 0, 0, 0}, tail[5] = {(uint16_t)strlen(names[i])}, attributes[2] = {0};
    put(out, &n, "PK\1\2", 4), put(out, &n, head, 12), put(out, &n, &crc[i], 4), put(out, &n, &sizes[i], 4), put(out, &n, &sizes[i], 4);
    put(out, &n, tail, 10), put(out, &n, attributes, 4), put(out, &n, &at[i], 4), put(out, &n, names[i], tail[0]);
  }
  uint32_t length = (uint32_t)n - directory;
  uint16_t counts[4] = {0, 0, 2, 2}, comment = 0;
  put(out, &n, "PK\5\6", 4), put(out, &n, counts, 8), put(out, &n, &length, 4), put(out, &n, &directory, 4), put(out, &n, &comment, 2);
  return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static uint8_t bytes[1 << 20];
  if (!size || size > sizeof bytes / 2) return 0;
  bool pth = data[0] & 1;
  CabWeights w = {.cached = -1};
  w.file = pth ? memfile(bytes, archive(bytes, data + 1, size - 1)) : memfile(data + 1, size - 1);
  if (pth) CHECK(cab_zip_open(&w.file, &w.zip) == CAB_OK);
  CabStatus status = pth ? cab_pth_open(&w, data[0] & 2 ? "model_ema" : NULL) : cab_npy_open(&w);
  if (status != CAB_OK) CHECK(cab_error()->code == CAB_E_INPUT && cab_error()->id[0]);
  for (int i = 0; status == CAB_OK && i < w.count; i++) {
    CabRange range;
    uint64_t count = cab_shape_count(w.weight[i].rank, w.weight[i].shape);
    CHECK(count != SZ_BAD && strlen(w.weight[i].name) < size + 8);
    if (count < 1 << 12) CHECK(cab_weights_range(&w, i, &range) == CAB_OK && range.nan + range.infinite <= count);
  }
  w.file.fd = -1;
  cab_weights_close(&w);
  return 0;
}
