/* bridge.c - maps of a teacher's queries and keys onto what a student's C and B should be, and the loss between the two. */
#include "bridge.h"
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

/* ---- bridge: in two taps of TAP_INPUTS each, then their statistics; options map first second; out y mse gx gw --- */

enum { X, W1, B1, W2, B2, TARGET, TAP_INPUTS, STATISTICS = BRIDGE_TAPS * TAP_INPUTS };

static int bridge_taps(const CabCall *c) { return (int)cab_dim(c, 'M'); }

static BridgeShape bridge_shape(const CabCall *c) {
  int64_t L = cab_dim(c, 'L'), first = (int64_t)c->option[1], second = (int64_t)c->option[2];
  return (BridgeShape){.B = cab_dim(c, 'B'), .L = L, .T = cab_dim(c, 'T'), .N = cab_dim(c, 'N'), .H = cab_dim(c, 'H'),
                       .D = cab_dim(c, 'D'), .first = first ? first - 1 : L, .second = second ? second - 1 : L,
                       .taps = bridge_taps(c), .map = (BridgeMap)c->option[0]};
}

/* Where the gradients of tap i lie in what is kept: gx[M,B,L,N], gw of M times bridge_parameters; NULL where not kept. */
static void bridge_kept(const CabCall *c, const BridgeShape *s, int i, BridgeTap *t) {
  char *gx = CAB_DATA(c->out[2]), *gw = CAB_DATA(c->out[3]);
  size_t size = cab_dtype_size(cab_wide(c->dtype));
  if (cab_dim(c, 'G')) t->gx = gx + (size_t)(i * s->B * s->L * s->N) * cab_dtype_size(c->dtype);
  if (!cab_dim(c, 'P')) return;
  t->gw1 = gw + (size_t)(i * bridge_parameters(s)) * size;
  t->gb1 = (char *)t->gw1 + (size_t)(s->H * s->N) * size;
  t->gw2 = (char *)t->gb1 + (size_t)s->H * size;
  t->gb2 = (char *)t->gw2 + (size_t)(s->D * s->H) * size;
}

static CabStatus bridge_check_tokens(CabCall *c) {
  const int64_t L = cab_dim(c, 'L'), T = cab_dim(c, 'T');
  int found = 0;
  for (int i = 1; i <= 2; i++) {
    double at = c->option[i];
    if (at != (double)(int64_t)at || at < 0 || at > (double)L || (at > 0 && i == 2 && at == c->option[1]))
      return cab_call_fail(c, "class token at %g of %lld tokens", at, (long long)L);
    found += at > 0;
  }
  if (T == L + 1 - found) return CAB_OK;
  return cab_call_fail(c, "the teacher has %lld tokens, the student %lld, %d of them class tokens", (long long)T, (long long)L, found);
}

static CabStatus bridge_check_inputs(CabCall *c) {
  bool standard = c->option[0] == BRIDGE_STANDARD;
  for (int i = 1; i < TAP_INPUTS; i++)
    if (!c->in[X + TAP_INPUTS] != !c->in[i + TAP_INPUTS]) return cab_call_fail(c, "the second tap is not complete");
  for (int i = 0; i < BRIDGE_TAPS; i++) {
    CAB_TRY(cab_call_constant(c, i * TAP_INPUTS + TARGET));
    for (int k = 0; k < 2; k++) {
      bool needed = standard && c->in[i * TAP_INPUTS];
      if (needed != (c->in[STATISTICS + 2 * i + k] != NULL))
        return cab_call_fail(c, "map 'standard' needs 'mean' and 'deviation' of each target, no other map takes them");
      CAB_TRY(cab_call_constant(c, STATISTICS + 2 * i + k));
    }
  }
  return CAB_OK;
}

/* M taps; G, P: size of the kept gradients of taps and parameters, 0 where nobody will ask. */
static CabStatus bridge_check(CabCall *c) {
  bool taps = false, parameters = false;
  CAB_TRY(bridge_check_inputs(c));
  CAB_TRY(bridge_check_tokens(c));
  if (!cab_dim(c, 'N') || !cab_dim(c, 'H') || !cab_dim(c, 'D')) return cab_call_fail(c, "no width is 0");
  for (int i = 0; i < STATISTICS; i++)
    *(i % TAP_INPUTS == X ? &taps : &parameters) |= c->wants_grad && c->in[i] && c->in[i]->requires_grad;
  cab_call_set_dim(c, 'M', c->in[TAP_INPUTS + X] ? 2 : 1);
  BridgeShape s = bridge_shape(c);
  cab_call_set_dim(c, 'G', taps ? s.taps : 0);
  cab_call_set_dim(c, 'P', parameters ? s.taps * bridge_parameters(&s) : 0);
  return CAB_OK;
}

static CabStatus bridge_apply(CabCall *c) {
  BridgeShape s = bridge_shape(c);
  BridgeTap tap[BRIDGE_TAPS] = {0};
  for (int i = 0; i < s.taps; i++) {
    CabTensor **in = c->in + i * TAP_INPUTS, **statistics = c->in + STATISTICS + 2 * i;
    tap[i] = (BridgeTap){.x = CAB_DATA(in[X]), .ldx = cab_ld(in[X]), .w1 = CAB_DATA(in[W1]), .b1 = CAB_DATA(in[B1]),
                         .w2 = CAB_DATA(in[W2]), .b2 = CAB_DATA(in[B2]), .target = CAB_DATA(in[TARGET]),
                         .ld_target = cab_ld(in[TARGET]), .mean = CAB_DATA(statistics[0]), .deviation = CAB_DATA(statistics[1])};
    bridge_kept(c, &s, i, &tap[i]);
  }
  CabTensor *scratch = NULL;
  if (c->device == cab_cpu() && !(scratch = cab_scratch(c, c->dtype, bridge_scratch(&s)))) return cab_error()->code;
  RUN(c, bridge_forward, &s, tap, CAB_DATA(c->out[1]), CAB_DATA(c->out[0]), CAB_DATA(scratch));
  return CAB_OK;
}

static CabStatus bridge_gradient(CabCall *c) {
  BridgeShape s = bridge_shape(c);
  BridgeTap tap[BRIDGE_TAPS] = {0}, to[BRIDGE_TAPS] = {0};
  for (int i = 0; i < s.taps; i++) {
    CabTensor **gin = c->gin + i * TAP_INPUTS;
    bridge_kept(c, &s, i, &tap[i]);
    to[i] = (BridgeTap){.gx = CAB_DATA(gin[X]), .gw1 = CAB_DATA(gin[W1]), .gb1 = CAB_DATA(gin[B1]), .gw2 = CAB_DATA(gin[W2]),
                        .gb2 = CAB_DATA(gin[B2])};
  }
  RUN(c, bridge_backward, &s, tap, CAB_DATA(c->gout[0]), CAB_DATA(c->gout[1]), to);
  return CAB_OK;
}

#define SIGNATURE "x[B,L,D] mean^[D]? deviation^[D]? | map=none|softmax|relu|exp|standard -> y[B,L,D]"

const CabOp cab_ops_bridge[] = {
  {"map_queries", SIGNATURE, queries_apply, queries_gradient, "x deviation y",
   "kernel map of queries; softmax runs over features (arXiv 1812.01243)", map_check, NULL},
  {"map_keys", SIGNATURE, keys_apply, keys_gradient, "x deviation y",
   "kernel map of keys; softmax runs over tokens (arXiv 1812.01243)", map_check, NULL},
  {"bridge",
   "B~[B,L,N] B_w1^[H,N] B_b1^[H] B_w2^[D,H] B_b2^[D] k~[B,T,D] C~[B,L,N]? C_w1^[H,N]? C_b1^[H]? C_w2^[D,H]? C_b2^[D]? "
   "q~[B,T,D]? k_mean^[D]? k_deviation^[D]? q_mean^[D]? q_deviation^[D]? | map=none|relu|exp|standard first=1 second=0 "
   "-> y^[] mse^[M] ~gx[G,B,L,N] ~gw^[P]",
   bridge_apply, bridge_gradient, "gx gw",
   "mse(w2 silu(w1 B + b1) + b2, map(k)) and the same of C and q, y their sum (arXiv 2510.19266); k, q in the teacher's token "
   "order, first, second: the student's class tokens, 0: none", bridge_check, NULL},
  {0},
};
