/* bridge.c - maps of a teacher's queries and keys onto what a student's C and B should be. */
#include "elementwise.h"
#include "loss.h"
#include "op.h"
#include "softmax.h"

/* in x mean deviation; option map, in the order of its words */
enum { MAP_NONE, MAP_SOFTMAX, MAP_RELU, MAP_EXP, MAP_STANDARD };

static CabStatus map_check(CabCall *c) {
  bool standard = c->option[0] == MAP_STANDARD;
  if (standard != (c->in[1] && c->in[2]) || (!standard && (c->in[1] || c->in[2])))
    return cab_call_fail(c, "map 'standard' needs 'mean' and 'deviation', no other map takes them");
  CAB_TRY(cab_call_constant(c, 1));
  CAB_TRY(cab_call_constant(c, 2));
  if (c->option[0] != MAP_NONE) return CAB_OK;
  c->out[0] = cab_tensor_detach(c->in[0]); /* y is x: an alias */
  return c->out[0] ? CAB_OK : cab_error()->code;
}

static UnaryKind map_kind(const CabCall *c) { return c->option[0] == MAP_RELU ? UNARY_RELU : UNARY_EXP; }

static CabStatus map_apply(CabCall *c, int64_t outer, int64_t n, int64_t inner) {
  const void *x = CAB_DATA(c->in[0]);
  void *y = CAB_DATA(c->out[0]);
  int64_t rows = cab_dim(c, 'B') * cab_dim(c, 'L'), D = cab_dim(c, 'D');
  switch ((int)c->option[0]) {
    case MAP_NONE: break;
    case MAP_SOFTMAX: RUN(c, softmax_forward, outer, n, inner, x, y); break;
    case MAP_STANDARD: RUN(c, standardise_forward, rows, D, x, CAB_DATA(c->in[1]), CAB_DATA(c->in[2]), y); break;
    default: RUN(c, unary, map_kind(c), rows * D, x, y);
  }
  return CAB_OK;
}

static CabStatus map_gradient(CabCall *c, int64_t outer, int64_t n, int64_t inner) {
  const void *gy = CAB_DATA(c->gout[0]);
  void *gx = CAB_DATA(c->gin[0]);
  int64_t rows = cab_dim(c, 'B') * cab_dim(c, 'L'), D = cab_dim(c, 'D');
  switch ((int)c->option[0]) {
    case MAP_NONE: cab_share_gin(c, 0, c->gout[0]); break;
    case MAP_SOFTMAX: RUN(c, softmax_backward, outer, n, inner, CAB_DATA(c->out[0]), gy, gx); break;
    case MAP_STANDARD: RUN(c, standardise_backward, rows, D, CAB_DATA(c->in[2]), gy, gx); break;
    default: RUN(c, unary_backward, map_kind(c), rows * D, CAB_DATA(c->in[0]), gy, gx);
  }
  return CAB_OK;
}

/* Softmax over features for queries, over tokens for keys: then q'(k'^T v) needs no further norm (arXiv 1812.01243). */
static CabStatus queries_apply(CabCall *c) { return map_apply(c, cab_dim(c, 'B') * cab_dim(c, 'L'), cab_dim(c, 'D'), 1); }
static CabStatus queries_gradient(CabCall *c) { return map_gradient(c, cab_dim(c, 'B') * cab_dim(c, 'L'), cab_dim(c, 'D'), 1); }
static CabStatus keys_apply(CabCall *c) { return map_apply(c, cab_dim(c, 'B'), cab_dim(c, 'L'), cab_dim(c, 'D')); }
static CabStatus keys_gradient(CabCall *c) { return map_gradient(c, cab_dim(c, 'B'), cab_dim(c, 'L'), cab_dim(c, 'D')); }

#define SIGNATURE "x[B,L,D] mean^[D]? deviation^[D]? | map=none|softmax|relu|exp|standard -> y[B,L,D]"

const CabOp cab_ops_bridge[] = {
  {"map_queries", SIGNATURE, queries_apply, queries_gradient, "x deviation y",
   "kernel map of queries; softmax runs over features (arXiv 1812.01243)", map_check, NULL},
  {"map_keys", SIGNATURE, keys_apply, keys_gradient, "x deviation y",
   "kernel map of keys; softmax runs over tokens (arXiv 1812.01243)", map_check, NULL},
  {0},
};
