/* subset.c - nested per-class subsets: 5 % of a seed is contained in its 10 %. */
#include <math.h>
#include <string.h>

#include "dataset.h"

static CabStatus check(const int32_t *labels, int64_t count, double fraction, int32_t *classes) {
  if (!(fraction > 0 && fraction <= 1)) return cab_fail(CAB_E_LUA, "subset: fraction is %g, expected 0 < fraction <= 1", fraction);
  if (count > INT32_MAX) return cab_fail(CAB_E_LUA, "subset: %lld labels", (long long)count);
  *classes = 0;
  for (int64_t i = 0; i < count; i++) {
    if (labels[i] < 0 || labels[i] >= 1 << 24) return cab_fail(CAB_E_LUA, "subset: label %d at %lld", labels[i], (long long)i + 1);
    if (labels[i] >= *classes) *classes = labels[i] + 1;
  }
  return CAB_OK;
}

/* Marks the chosen ones of a class: place k of its permutation is its member order[k]. member: [n] indices. */
static void choose(const int32_t *member, uint32_t n, uint32_t *order, double fraction, CabRng key, uint8_t *chosen) {
  uint32_t take = (uint32_t)ceil(fraction * n - 1e-9);
  cab_permutation(key, order, n);
  for (uint32_t k = 0; k < take; k++) chosen[member[order[k]]] = 1;
}

CabStatus cab_subset(const int32_t *labels, int64_t count, double fraction, uint64_t seed, int32_t **out, int64_t *out_count) {
  int32_t classes = 0;
  *out = NULL, *out_count = 0;
  CAB_TRY(check(labels, count, fraction, &classes));
  size_t n = (size_t)count;
  int64_t *start = cab_calloc((size_t)classes + 2, sizeof *start), total = 0; /* start[c+1]: first member of class c, then its end */
  int32_t *member = cab_malloc(n, sizeof *member), *picked = cab_malloc(n, sizeof *picked);
  uint32_t *order = cab_malloc(n, sizeof *order);
  uint8_t *chosen = cab_calloc(n, 1);
  CabStatus status = start && member && picked && order && chosen ? CAB_OK : CAB_E_MEMORY;
  if (status == CAB_OK) {
    for (size_t i = 0; i < n; i++) start[labels[i] + 2]++;
    for (int32_t c = 0; c < classes; c++) start[c + 2] += start[c + 1];
    for (size_t i = 0; i < n; i++) member[start[labels[i] + 1]++] = (int32_t)i;
    for (int32_t c = 0; c < classes; c++) {
      int64_t first = start[c];
      CabRng key = {seed, cab_hash_name("subset") + (uint64_t)c * 0x9e3779b97f4a7c15u};
      choose(member + first, (uint32_t)(start[c + 1] - first), order, fraction, key, chosen);
    }
    for (size_t i = 0; i < n; i++)
      if (chosen[i]) picked[total++] = (int32_t)i;
    *out = picked, *out_count = total;
  } else cab_free(picked);
  cab_free(start), cab_free(member), cab_free(order), cab_free(chosen);
  return status;
}
