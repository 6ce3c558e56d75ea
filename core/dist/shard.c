/* shard.c - the optimizer's state spread over the ranks (stage 1 of ZeRO, arXiv 1910.02054). The parameters move into one buffer, of
 * which each rank owns an interval: it alone updates that, and sends it to all. Intervals end at borders of parameters or, within one,
 * at multiples of what kernels update at a time, so that the bits are those of whole updates. */
#include <string.h>

#include "ranks.h"

enum { PIECE = 8192, PLACE = 32, MOST = 1 << 26 }; /* elements: of a cut, between the beginnings of parameters, of one message */

struct CabShard {
  int count, ranks;
  int64_t *at;      /* of each parameter in the buffer, then the end */
  int64_t *border;  /* rank r owns border[r] .. border[r+1] */
  CabTensor **param, *flat;
  MpiHandle *request;
};

/* Where the interval before `ideal` ends. */
static int64_t border_near(const CabShard *s, const int64_t *n, int64_t ideal) {
  int i = 0;
  while (i + 1 < s->count && s->at[i + 1] <= ideal) i++;
  if (!s->count) return 0;
  int64_t inside = (ideal - s->at[i] + PIECE / 2) / PIECE * PIECE;
  return inside < n[i] ? s->at[i] + inside : s->at[i + 1];
}

static CabStatus move_in(CabShard *s, CabTensor **params) {
  int64_t *n = cab_calloc((size_t)s->count + 1, sizeof *n);
  if (!n) return cab_error()->code;
  for (int i = 0; i < s->count; i++) n[i] = cab_tensor_count(params[i]), s->at[i + 1] = s->at[i] + (n[i] + PLACE - 1) / PLACE * PLACE;
  for (int r = 1; r < s->ranks; r++) s->border[r] = border_near(s, n, s->at[s->count] * r / s->ranks);
  s->border[s->ranks] = s->at[s->count];
  cab_free(n);
  CabDevice *device = s->count ? params[0]->storage->device : cab_cpu();
  CabTensor *flat = cab_tensor_zeros(device, s->count ? params[0]->dtype : CAB_F32, 1, &s->at[s->count]);
  s->flat = flat ? cab_tensor_alias(flat) : NULL; /* in no scope */
  cab_tensor_release(flat);
  if (!s->flat) return cab_error()->code;
  for (int i = 0; i < s->count; i++) {
    CAB_TRY(cab_tensor_move(params[i], s->flat, s->at[i]));
    s->param[i] = cab_tensor_retain(params[i]);
  }
  return CAB_OK;
}

CabShard *cab_shard_new(int count, CabTensor **params, int ranks) {
  CabShard *s = cab_calloc(1, sizeof *s);
  if (!s) return NULL;
  s->count = count, s->ranks = ranks;
  s->at = cab_calloc((size_t)count + 1, sizeof *s->at), s->border = cab_calloc((size_t)ranks + 1, sizeof *s->border);
  s->param = cab_calloc((size_t)count + 1, sizeof *s->param), s->request = cab_calloc((size_t)ranks, sizeof *s->request);
  if (s->at && s->border && s->param && s->request && move_in(s, params) == CAB_OK) return s;
  CabError error = *cab_error();
  cab_shard_free(s);
  *cab_error() = error;
  return NULL;
}

void cab_shard_free(CabShard *s) {
  if (!s) return;
  for (int i = 0; s->param && i < s->count; i++) cab_tensor_release(s->param[i]);
  cab_tensor_release(s->flat);
  cab_free(s->at), cab_free(s->border), cab_free(s->param), cab_free(s->request);
  cab_free(s);
}

int64_t cab_shard_border(const CabShard *s, int rank) { return s->border[rank]; }
int64_t cab_shard_place(const CabShard *s, int param) { return s->at[param]; }
int cab_shard_ranks(const CabShard *s) { return s->ranks; }
int cab_shard_count(const CabShard *s) { return s->count; }

static CabStatus gather_on_cpu(CabShard *s) {
  const size_t size = cab_dtype_size(s->flat->dtype);
  const MpiHandle type = s->flat->dtype == CAB_F32 ? cab_mpi.f32 : cab_mpi.f64;
  char *flat = cab_tensor_data(s->flat);
  bool more = true;
  for (int64_t from = 0; more; from += MOST) {
    more = false;
    for (int r = 0; r < s->ranks; r++) {
      int64_t at = s->border[r] + from, n = s->border[r + 1] - at;
      s->request[r] = 0;
      if (n <= 0) continue;
      if (n > MOST) more = true, n = MOST;
      CAB_TRY(cab_dist_check(cab_mpi.ibcast(flat + (size_t)at * size, (int)n, type, r, cab_mpi.world, &s->request[r]), "weights", n * (int64_t)size));
    }
    for (int r = 0; r < s->ranks; r++)
      if (s->border[r] + from < s->border[r + 1]) CAB_TRY(cab_dist_wait(1, &s->request[r], "weights", (int64_t)s->flat->storage->bytes));
  }
  return CAB_OK;
}

CabStatus cab_shard_gather(CabShard *s) {
  CabDevice *device = s->flat->storage->device;
  if (s->ranks == 1) return CAB_OK;
  if (device == cab_cpu()) CAB_TRY(gather_on_cpu(s));
  else {
    CabWire *wire = cab_dist_wire(device);
    if (!wire) return cab_error()->code;
    CAB_TRY(wire->share(wire, cab_tensor_data(s->flat), s->ranks, s->border, s->flat->dtype));
    CAB_TRY(wire->join(wire));
  }
  cab_tensor_touch(s->flat, NULL);
  return CAB_OK;
}
