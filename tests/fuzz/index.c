/* The index of a folder: what is taken is written again to the same bytes. The hash is set right, or nothing would be taken. */
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "../../core/data/index.c"
#include "../../core/data/listing.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  CabListing list;
  CabBytes again;
  if (size < HEAD) return 0;
  uint8_t *copy = malloc(size);
  memcpy(copy, data, size);
  memcpy(copy, MAGIC, sizeof MAGIC);
  put(copy + sizeof MAGIC, XXH64(copy + HEAD, size - HEAD, 0), 8);
  if (cab_index_decode(copy, size, &list)) {
    if (cab_index_encode(&list, &again) != CAB_OK || again.length != size || memcmp(again.data, copy, size)) abort();
    cab_bytes_free(&again);
    cab_listing_free(&list);
  }
  free(copy);
  return 0;
}
