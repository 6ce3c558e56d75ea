/* cifar.c - CIFAR-10 binary batches: records of one label and 3 x 32 x 32 bytes, planes R, G, B. */
#include <string.h>

#include "dataset.h"

enum { SIDE = 32, PLANE = SIDE * SIDE, RECORD = 1 + 3 * PLANE, MAX_FILE = 1 << 30 };

typedef struct {
  CabDataset base;
  uint8_t *pixels; /* [count, 32, 32, 3] */
} Cifar;

static CabStatus fetch(CabDataset *ds, int64_t index, const CabWish *wish, int *warnings, CabImage *out) {
  (void)warnings, (void)wish;
  *out = (CabImage){.width = SIDE, .height = SIDE, .channels = 3, .pixels = ((Cifar *)ds)->pixels + index * 3 * PLANE};
  return CAB_OK;
}

static const char *path_of(const CabDataset *ds, int64_t index, char *room) {
  (void)ds, (void)index, (void)room;
  return "cifar";
}

static void destroy(CabDataset *ds) {
  cab_free(((Cifar *)ds)->pixels);
  cab_free(ds);
}

static const CabDatasetKind kind = {"cifar", fetch, path_of, cab_dataset_number, destroy};

static CabStatus take(Cifar *d, const CabBytes *bytes, const char *path, int64_t first) {
  for (size_t i = 0; i < bytes->length / RECORD; i++) {
    const uint8_t *record = bytes->data + i * RECORD;
    uint8_t *to = d->pixels + ((size_t)first + i) * 3 * PLANE;
    if (record[0] >= d->base.classes)
      return cab_fail_file(CAB_E_INPUT, "cifar-label", path, (int64_t)(i * RECORD), "record %zu: label %d, expected 0 to %d", i + 1,
                           record[0], d->base.classes - 1);
    d->base.labels[first + (int64_t)i] = record[0];
    for (int p = 0; p < PLANE; p++)
      for (int c = 0; c < 3; c++) to[p * 3 + c] = record[1 + c * PLANE + p];
  }
  return CAB_OK;
}

static CabStatus check_size(const CabBytes *bytes, const char *path) {
  if (bytes->length && bytes->length % RECORD == 0) return CAB_OK;
  return cab_fail_file(CAB_E_INPUT, "cifar-size", path, -1, "%zu bytes, expected a multiple of %d (record %zu is cut off)",
                       bytes->length, RECORD, bytes->length / RECORD + 1);
}

static CabStatus open_all(Cifar *d, int files, const char *const *paths, CabBytes *bytes, int classes, const char *const *names) {
  int64_t count = 0, first = 0;
  for (int i = 0; i < files; i++) {
    CAB_TRY(cab_read_maybe_gz(paths[i], MAX_FILE, &bytes[i]));
    CAB_TRY(check_size(&bytes[i], paths[i]));
    count += (int64_t)(bytes[i].length / RECORD);
  }
  CAB_TRY(cab_dataset_init(&d->base, &kind, count, classes, names));
  d->base.channels = 3, d->base.width = d->base.height = SIDE;
  if (!(d->pixels = cab_malloc((size_t)count, 3 * PLANE))) return CAB_E_MEMORY;
  for (int i = 0; i < files; i++) {
    CAB_TRY(take(d, &bytes[i], paths[i], first));
    first += (int64_t)(bytes[i].length / RECORD);
    cab_bytes_free(&bytes[i]);
  }
  return CAB_OK;
}

CabDataset *cab_cifar_open(int files, const char *const *paths, int classes, const char *const *names) {
  static const char *const usual[10] = {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"};
  Cifar *d = cab_calloc(1, sizeof *d);
  CabBytes *bytes = cab_calloc((size_t)files, sizeof *bytes);
  CabStatus status = d && bytes ? CAB_OK : CAB_E_MEMORY;
  if (status == CAB_OK) {
    d->base.kind = &kind, d->base.refs = 1;
    status = open_all(d, files, paths, bytes, names ? classes : 10, names ? names : usual);
    for (int i = 0; i < files; i++) cab_bytes_free(&bytes[i]);
  }
  cab_free(bytes);
  if (status == CAB_OK) return &d->base;
  if (d && d->base.kind) cab_dataset_release(&d->base);
  else cab_free(d);
  return NULL;
}
