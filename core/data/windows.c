/* windows.c - batches of ids [b, l] from a stream: windows of equal length in an order that is a function of (seed, epoch), so that a
 * place in it is one number. */
#include <string.h>

#include "text.h"

struct CabWindows {
  CabTokens *tokens;
  CabWindowOptions o;
  uint32_t *order;        /* NULL: as they stand */
  int64_t batches, taken;
  int32_t *ids, *segments; /* [batch, length] */
  double wait;
};

void cab_windows_close(CabWindows *w) {
  if (!w) return;
  cab_tokens_release(w->tokens);
  cab_free(w->order), cab_free(w->ids), cab_free(w->segments);
  cab_free(w);
}

static CabStatus check(const CabTokens *t, const CabWindowOptions *o) {
  if (o->length < 1 || o->length > 1 << 24) return cab_fail(CAB_E_LUA, "windows: length is %d", o->length);
  if (o->batch < 1 || o->batch > 1 << 20) return cab_fail(CAB_E_LUA, "windows: batch is %d", o->batch);
  if (o->start < 0) return cab_fail(CAB_E_LUA, "windows: start is %lld", (long long)o->start);
  if (o->windows > UINT32_MAX) return cab_fail(CAB_E_LUA, "windows: %llu windows, at most 2^32 - 1", (unsigned long long)o->windows);
  uint64_t need = sz_add(o->first, sz_mul(o->windows, (uint64_t)o->length));
  if (need > cab_tokens_count(t))
    return cab_fail(CAB_E_LUA, "windows: %llu windows of %d ids from %llu on, there are %llu ids", (unsigned long long)o->windows, o->length,
                    (unsigned long long)o->first, (unsigned long long)cab_tokens_count(t));
  return CAB_OK;
}

CabWindows *cab_windows_open(CabTokens *t, const CabWindowOptions *o) {
  if (check(t, o) != CAB_OK) return NULL;
  CabWindows *w = cab_calloc(1, sizeof *w);
  if (!w) return NULL;
  w->o = *o, w->tokens = cab_tokens_retain(t), w->taken = o->start;
  w->batches = (int64_t)((o->windows + (o->drop_last ? 0 : (uint64_t)o->batch - 1)) / (uint64_t)o->batch);
  size_t room = (size_t)o->batch * (size_t)o->length;
  w->ids = cab_malloc(room, sizeof *w->ids), w->segments = cab_malloc(room, sizeof *w->segments);
  if (o->shuffle) w->order = cab_malloc(o->windows, sizeof *w->order);
  if (!w->ids || !w->segments || (o->shuffle && !w->order)) return cab_windows_close(w), NULL;
  if (w->order) cab_permutation((CabRng){o->seed, cab_hash_name("order") + o->epoch * 0x9e3779b97f4a7c15u}, w->order, (uint32_t)o->windows);
  return w;
}

void cab_windows_order(const CabWindows *w, int32_t *out) {
  for (uint64_t i = 0; i < w->o.windows; i++) out[i] = w->order ? (int32_t)w->order[i] : (int32_t)i;
}

int64_t cab_windows_batches(const CabWindows *w) { return w->batches; }
double cab_windows_wait(const CabWindows *w) { return w->wait; }

static void number(const int32_t *ids, int length, int64_t ending, int32_t *segments) {
  int32_t document = 0;
  for (int i = 0; i < length; i++) {
    segments[i] = document;
    document += ids[i] == ending;
  }
}

CabStatus cab_windows_next(CabWindows *w, int *count, const int32_t **ids, const int32_t **segments) {
  double begun = cab_now();
  uint64_t first = (uint64_t)w->taken * (uint64_t)w->o.batch;
  *count = 0, *ids = w->ids, *segments = w->segments;
  if (w->taken >= w->batches) return CAB_OK;
  uint64_t left = w->o.windows - first, n = left < (uint64_t)w->o.batch ? left : (uint64_t)w->o.batch;
  int64_t ending = cab_tokens_format(w->tokens)->ending;
  for (uint64_t i = 0; i < n; i++) {
    uint64_t window = w->order ? w->order[first + i] : first + i, length = (uint64_t)w->o.length;
    CAB_TRY(cab_tokens_read(w->tokens, w->o.first + window * length, length, w->ids + i * length));
    number(w->ids + i * length, w->o.length, ending, w->segments + i * length);
  }
  w->taken++;
  w->wait += cab_now() - begun;
  *count = (int)n;
  return CAB_OK;
}
