/* subset.c - nested per-class subsets: 5 % of a seed is contained in its 10 %, and so is what is held out of it. */
#include <math.h>
#include <string.h>

#include "dataset.h"

enum { TAKEN = 1, HELD }; /* marks of records */

static CabStatus check(const int32_t *labels, int64_t count, double fraction, double hold, int32_t *classes) {
  if (!(hold >= 0 && hold < 1)) return cab_fail(CAB_E_LUA, "subset: hold is %g, expected 0 <= hold < 1", hold);
  if (!(fraction > 0 && fraction <= 1)) return cab_fail(CAB_E_LUA, "subset: fraction is %g, expected 0 < fraction <= 1", fraction);
  if (count > INT32_MAX) return cab_fail(CAB_E_LUA, "subset: %lld labels", (long long)count);
  *classes = 0;
  for (int64_t i = 0; i < count; i++) {
    if (labels[i] < 0 || labels[i] >= 1 << 24) return cab_fail(CAB_E_LUA, "subset: label %d at %lld", labels[i], (long long)i + 1);
    if (labels[i] >= *classes) *classes = labels[i] + 1;
  }
  return CAB_OK;
}

/* Marks the chosen ones of a class: place k of its permutation is its member order[k]. Of the first m, floor(hold m) are held, evenly
 * spread, so that both parts of a larger m contain those of a smaller one. member: [n] indices. */
static void choose(const int32_t *member, uint32_t n, uint32_t *order, double fraction, double hold, CabRng key, uint8_t *mark) {
  uint32_t take = (uint32_t)ceil(fraction * n - 1e-9);
  cab_permutation(key, order, n);
  for (uint32_t k = 0; k < take; k++)
    mark[member[order[k]]] = floor(hold * (k + 1) + 1e-9) > floor(hold * k + 1e-9) ? HELD : TAKEN;
}

/* Appends the records with a mark. */
static void gather(const uint8_t *marks, size_t n, uint8_t mark, int32_t *picked, int64_t *total) {
  for (size_t i = 0; i < n; i++)
    if (marks[i] == mark) picked[(*total)++] = (int32_t)i;
}

CabStatus cab_subset(const int32_t *labels, int64_t count, double fraction, double hold, uint64_t seed, int32_t **out, int64_t *out_count,
                     int64_t *out_held) {
  int32_t classes = 0;
  *out = NULL, *out_count = *out_held = 0;
  CAB_TRY(check(labels, count, fraction, hold, &classes));
  size_t n = (size_t)count;
  int64_t *start = cab_calloc((size_t)classes + 2, sizeof *start), total = 0; /* start[c+1]: first member of class c, then its end */
  int32_t *member = cab_malloc(n, sizeof *member), *picked = cab_malloc(n, sizeof *picked);
  uint32_t *order = cab_malloc(n, sizeof *order);
  uint8_t *marks = cab_calloc(n, 1);
  CabStatus status = start && member && picked && order && marks ? CAB_OK : CAB_E_MEMORY;
  if (status == CAB_OK) {
    for (size_t i = 0; i < n; i++) start[labels[i] + 2]++;
    for (int32_t c = 0; c < classes; c++) start[c + 2] += start[c + 1];
    for (size_t i = 0; i < n; i++) member[start[labels[i] + 1]++] = (int32_t)i;
    for (int32_t c = 0; c < classes; c++) {
      int64_t first = start[c];
      CabRng key = {seed, cab_hash_name("subset") + (uint64_t)c * 0x9e3779b97f4a7c15u};
      choose(member + first, (uint32_t)(start[c + 1] - first), order, fraction, hold, key, marks);
    }
    gather(marks, n, TAKEN, picked, &total);
    *out = picked, *out_count = total;
    gather(marks, n, HELD, picked, &total);
    *out_held = total - *out_count;
  } else cab_free(picked);
  cab_free(start), cab_free(member), cab_free(order), cab_free(marks);
  return status;
}
