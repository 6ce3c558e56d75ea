/* idx.c - MNIST's format: 00 00 TYPE DIMS, one big-endian u32 per dimension, then the values. Gzip is unpacked. */
#include <string.h>

#include "dataset.h"
#include "rd.h"

enum { MAX_FILE = 1 << 30, U8 = 8 };

typedef struct {
  CabDataset base;
  CabBytes bytes;
  CabIdx images;
  char *path;
} Idx;

CabStatus cab_idx_parse(const uint8_t *bytes, size_t length, int dims, const char *file, CabIdx *out) {
  CabRd rd = rd_open(bytes, length);
  uint32_t magic = rd_u32be(&rd), wanted = (uint32_t)(U8 << 8 | dims), size[3] = {1, 1, 1};
  if (rd.bad) return cab_fail_file(CAB_E_INPUT, "idx-size", file, 0, "%zu bytes are no IDX file", length);
  if (magic >> 16) return cab_fail_file(CAB_E_INPUT, "idx-magic", file, 0, "no IDX file: expected 00 00, got %02x %02x", magic >> 24, magic >> 16 & 255);
  if (magic >> 8 != U8) return cab_fail_file(CAB_E_INPUT, "idx-type", file, 2, "values of type 0x%02x, expected 0x08 (unsigned bytes)", magic >> 8 & 255);
  if (magic != wanted) return cab_fail_file(CAB_E_INPUT, "idx-dims", file, 3, "%u dimensions, expected %d", magic & 255, dims);
  for (int i = 0; i < dims; i++) size[i] = rd_u32be(&rd);
  if (rd.bad) return cab_fail_file(CAB_E_INPUT, "idx-size", file, (int64_t)length, "the header ends early");
  uint64_t need = sz_mul(sz_mul(size[0], size[1]), size[2]);
  if (dims == 3 && (size[1] == 0 || size[2] == 0 || size[1] > CAB_IMAGE_MAX_SIDE || size[2] > CAB_IMAGE_MAX_SIDE))
    return cab_fail_file(CAB_E_INPUT, "idx-size", file, 8, "images of %u x %u pixels, expected 1 to %d a side", size[1], size[2], CAB_IMAGE_MAX_SIDE);
  if (need != rd_left(&rd))
    return cab_fail_file(CAB_E_INPUT, "idx-size", file, (int64_t)rd.position, "%u x %u x %u values need %llu bytes, %llu follow",
                         size[0], size[1], size[2], (unsigned long long)need, (unsigned long long)rd_left(&rd));
  *out = (CabIdx){size[0], size[1], size[2], rd_slice(&rd, need)};
  return CAB_OK;
}

static CabStatus fetch(CabDataset *ds, int64_t index, const CabWish *wish, int *warnings, CabImage *out) {
  const Idx *d = (const Idx *)ds;
  (void)warnings, (void)wish;
  *out = (CabImage){.width = (int)d->images.width, .height = (int)d->images.height, .channels = 1,
                    .pixels = d->images.data + (size_t)index * d->images.width * d->images.height};
  return CAB_OK;
}

static const char *path_of(const CabDataset *ds, int64_t index, char *room) {
  (void)index, (void)room;
  return ((const Idx *)ds)->path;
}

static void destroy(CabDataset *ds) {
  cab_free(((Idx *)ds)->path);
  cab_bytes_free(&((Idx *)ds)->bytes);
  cab_free(ds);
}

static const CabDatasetKind kind = {"idx", fetch, path_of, cab_dataset_number, destroy};

static CabStatus read_labels(Idx *d, const char *path, const CabIdx *labels, int classes, const char *const *names) {
  int top = 0;
  if (labels->count != d->images.count)
    return cab_fail_file(CAB_E_INPUT, "idx-count", path, 4, "%u labels for %u images", labels->count, d->images.count);
  for (uint32_t i = 0; i < labels->count; i++) {
    if (classes && labels->data[i] >= classes)
      return cab_fail_file(CAB_E_INPUT, "idx-label", path, 8 + (int64_t)i, "record %u: label %d, expected 0 to %d", i + 1, labels->data[i], classes - 1);
    top = labels->data[i] >= top ? labels->data[i] + 1 : top;
  }
  CAB_TRY(cab_dataset_init(&d->base, &kind, labels->count, classes ? classes : top, names));
  for (uint32_t i = 0; i < labels->count; i++) d->base.labels[i] = labels->data[i];
  d->base.width = (int)d->images.width, d->base.height = (int)d->images.height, d->base.channels = 1;
  return CAB_OK;
}

static CabStatus open_both(Idx *d, const char *images, const char *labels, int classes, const char *const *names) {
  CabBytes bytes;
  CabIdx parsed;
  size_t length = strlen(images) + 1;
  if (!(d->path = cab_malloc(length, 1))) return CAB_E_MEMORY;
  memcpy(d->path, images, length);
  CAB_TRY(cab_read_maybe_gz(images, MAX_FILE, &d->bytes));
  CAB_TRY(cab_idx_parse(d->bytes.data, d->bytes.length, 3, images, &d->images));
  CAB_TRY(cab_read_maybe_gz(labels, MAX_FILE, &bytes));
  CabStatus status = cab_idx_parse(bytes.data, bytes.length, 1, labels, &parsed);
  if (status == CAB_OK) status = read_labels(d, labels, &parsed, classes, names);
  cab_bytes_free(&bytes);
  return status;
}

CabDataset *cab_idx_open(const char *images, const char *labels, int classes, const char *const *names) {
  Idx *d = cab_calloc(1, sizeof *d);
  if (!d) return NULL;
  d->base.kind = &kind, d->base.refs = 1;
  if (open_both(d, images, labels, classes, names) == CAB_OK) return &d->base;
  cab_dataset_release(&d->base);
  return NULL;
}
