/* dataset.c - what all kinds share. */
#include <string.h>

#include "dataset.h"

CabStatus cab_dataset_init(CabDataset *ds, const CabDatasetKind *kind, int64_t count, int classes, const char *const *names) {
  ds->kind = kind;
  ds->refs = 1;
  if (count > INT32_MAX) return cab_fail(CAB_E_INPUT, "%s: %lld records, at most 2^31 - 1", kind->name, (long long)count);
  if (!(ds->labels = cab_calloc((size_t)count, sizeof *ds->labels))) return CAB_E_MEMORY;
  ds->count = count;
  if (names) {
    if (!(ds->names = cab_calloc((size_t)classes, sizeof *ds->names))) return CAB_E_MEMORY;
    for (int i = 0; i < classes; i++) {
      size_t n = strlen(names[i]) + 1;
      if (!(ds->names[i] = cab_malloc(n, 1))) return CAB_E_MEMORY;
      memcpy(ds->names[i], names[i], n);
      ds->classes = i + 1;
    }
  }
  ds->classes = classes;
  return CAB_OK;
}

const char *cab_dataset_number(const CabDataset *ds, int64_t index, char *room) {
  (void)ds;
  snprintf(room, 24, "%lld", (long long)index + 1);
  return room;
}

CabDataset *cab_dataset_retain(CabDataset *ds) {
  ds->refs++;
  return ds;
}

void cab_dataset_release(CabDataset *ds) {
  if (!ds || --ds->refs > 0) return;
  for (int i = 0; ds->names && i < ds->classes; i++) cab_free(ds->names[i]);
  cab_free(ds->names);
  cab_free(ds->labels);
  ds->kind->destroy(ds);
}
