/* Bytes are a whole archive. What is accepted must tile the file, and each entry reads to the size it says or is refused. */
#include "support/memfile.h"
#include "zip.h"

#define CHECK(condition) ((condition) ? (void)0 : abort())

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  CabFile file = memfile(data, size);
  CabZip zip;
  if (cab_zip_open(&file, &zip) != CAB_OK) {
    CHECK(cab_error()->code == CAB_E_INPUT && cab_error()->id[0]);
    return 0;
  }
  uint64_t used = 0;
  for (int i = 0; i < zip.count; i++) {
    const CabZipEntry *e = &zip.entry[i];
    CabBytes bytes;
    uint8_t head[16];
    uint64_t got;
    CHECK(cab_zip_find(&zip, e->name) == i && e->data_at + e->packed <= size);
    used += e->packed + 30;
    if (e->bytes > 1 << 20) continue;
    if (cab_zip_read(&file, e, &bytes) == CAB_OK) {
      CHECK(bytes.length == e->bytes);
      CHECK(cab_zip_head(&file, e, head, sizeof head, &got) == CAB_OK && got == (e->bytes < 16 ? e->bytes : 16));
      for (uint64_t j = 0; j < got; j++) CHECK(head[j] == bytes.data[j]);
      cab_bytes_free(&bytes);
    } else CHECK(cab_error()->code == CAB_E_INPUT);
  }
  CHECK(used <= size);
  cab_zip_free(&zip);
  return 0;
}
