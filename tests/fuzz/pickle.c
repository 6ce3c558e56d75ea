/* Bytes are a pickle. What is accepted holds references within bounds only, and lists end. */
#include <stdlib.h>

#include "pickle.h"

#define CHECK(condition) ((condition) ? (void)0 : abort())

static void check_items(const CabPickle *p, const CabPickleValue *v) {
  uint32_t count = 0;
  for (uint32_t cell = v->items.first; cell; cell = p->cell[cell].next, count++) CHECK(cell < p->cells && p->cell[cell].value < p->values);
  CHECK(count == v->count);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  CabPickle p;
  if (cab_pickle_parse(data, size, "fuzz", 0, &p) != CAB_OK) {
    CHECK(cab_error()->code == CAB_E_INPUT && cab_error()->id[0]);
    return 0;
  }
  CHECK(p.root < p.values);
  for (uint32_t i = 0; i < p.values; i++) {
    const CabPickleValue *v = &p.value[i];
    char text[340];
    CHECK(v->at < size);
    if (v->kind == CAB_P_TEXT) CHECK((uint64_t)v->text + v->count <= size && cab_pickle_text(&p, v, text) == text);
    if (v->kind == CAB_P_LIST || v->kind == CAB_P_TUPLE || v->kind == CAB_P_DICT) check_items(&p, v);
    if (v->kind == CAB_P_DICT) CHECK(v->count % 2 == 0);
    if (v->kind == CAB_P_STORAGE || v->kind == CAB_P_TENSOR) CHECK(v->call < p.values && p.value[v->call].kind == CAB_P_TUPLE);
  }
  cab_pickle_free(&p);
  return 0;
}
