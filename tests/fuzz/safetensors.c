/* Bytes are a whole file. What is accepted must be JSON to jansson too, and its tensors must tile the data part. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "safetensors.h"

#define CHECK(condition) ((condition) ? (void)0 : abort())

static void check(const CabSafetensors *st, const uint8_t *header, uint64_t length, uint64_t size) {
  json_error_t error;
  json_t *tree = json_loadb((const char *)header, length, JSON_REJECT_DUPLICATES, &error);
  CHECK(tree);
  json_decref(tree);
  uint64_t bytes = 0;
  for (int i = 0; i < st->count; i++) {
    const CabStTensor *t = &st->tensor[i];
    CHECK(t->begin <= t->end && t->end <= size - 8 - length);
    CHECK(!i || strcmp(st->tensor[i - 1].name, t->name) < 0);
    bytes += t->end - t->begin;
  }
  CHECK(bytes == size - 8 - length && st->data_at == 8 + length);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  CabSafetensors st;
  uint64_t length;
  if (cab_st_header_length(data, size < 8 ? size : 8, size, "fuzz", &length) == CAB_OK &&
      cab_st_parse(data + 8, length, size, "fuzz", &st) == CAB_OK) {
    check(&st, data + 8, length, size);
    cab_st_free(&st);
  } else CHECK(cab_error()->code == CAB_E_INPUT && cab_error()->id[0]);
  return 0;
}
