/* nn.c - linear maps, norms, attention, patches, convolution over tokens, embedding. */
#include <math.h>

#include "attention.h"
#include "conv1d.h"
#include "elementwise.h"
#include "embed.h"
#include "gemm.h"
#include "norm.h"
#include "op.h"
#include "places.h"
#include "rotary.h"

/* ---- linear --------------------------------------------------------------------------------- */

static CabStatus linear_check(CabCall *c) {
  if (c->rows > INT32_MAX || cab_dim(c, 'I') > INT32_MAX || cab_dim(c, 'O') > INT32_MAX)
    return cab_call_fail(c, "more than 2^31 rows or columns");
  return CAB_OK;
}

static CabStatus linear_apply(CabCall *c) {
  RUN(c, linear_forward, c->rows, cab_dim(c, 'O'), cab_dim(c, 'I'), CAB_DATA(c->in[0]), cab_ld(c->in[0]), CAB_DATA(c->in[1]),
      CAB_DATA(c->in[2]), CAB_DATA(c->out[0]));
  return CAB_OK;
}

static CabStatus linear_gradient(CabCall *c) {
  RUN(c, linear_backward, c->rows, cab_dim(c, 'O'), cab_dim(c, 'I'), CAB_DATA(c->gout[0]), CAB_DATA(c->in[0]), cab_ld(c->in[0]),
      CAB_DATA(c->in[1]), CAB_DATA(c->gin[0]), c->add[0], CAB_DATA(c->gin[1]), CAB_DATA(c->gin[2]));
  return CAB_OK;
}

/* ---- norms: in x w b residual, out y sum [mean] rstd ---------------------------------------- */

/* Without a residual `sum` is x itself, an alias, unless it is wider. */
static CabStatus norm_check(CabCall *c) {
  if (c->in[3] || c->dtype != cab_wide(c->dtype)) return CAB_OK;
  c->out[1] = cab_tensor_detach(c->in[0]);
  return c->out[1] ? CAB_OK : cab_error()->code;
}

static CabStatus norm_apply(CabCall *c, bool rms) {
  RUN(c, norm_forward, rms, c->option[0], c->rows, cab_dim(c, 'D'), CAB_DATA(c->in[0]), CAB_DATA(c->in[3]), CAB_DATA(c->in[1]),
      CAB_DATA(c->in[2]), CAB_DATA(c->out[0]), c->out[1] && c->out[1]->storage != c->in[0]->storage ? CAB_DATA(c->out[1]) : NULL, rms ? NULL : CAB_DATA(c->out[2]),
      CAB_DATA(c->out[rms ? 2 : 3]));
  return CAB_OK;
}

/* x and residual share one gradient, that of their sum, unless their types differ. */
static CabStatus norm_gradient(CabCall *c, bool rms) {
  int64_t D = cab_dim(c, 'D'), n = c->rows * D;
  bool share = c->gin[0] && c->gin[3] && c->gin[0]->dtype == c->gin[3]->dtype;
  CabTensor *gy = cab_gout(c, 0, n), *partial = NULL;
  if (!gy || ((c->gin[1] || c->gin[2]) && !(partial = cab_scratch(c, cab_wide(c->dtype), 2 * NORM_BLOCKS * D)))) return cab_error()->code;
  RUN(c, norm_backward, rms, c->rows, D, CAB_DATA(c->out[1]), CAB_DATA(c->in[1]), rms ? NULL : CAB_DATA(c->out[2]),
      CAB_DATA(c->out[rms ? 2 : 3]), CAB_DATA(gy), CAB_DATA(c->gout[1]), CAB_DATA(c->gin[0]), share ? NULL : CAB_DATA(c->gin[3]),
      CAB_DATA(c->gin[1]), CAB_DATA(c->gin[2]), CAB_DATA(partial));
  if (share) cab_share_gin(c, 3, c->gin[0]);
  return CAB_OK;
}

static CabStatus layer_apply(CabCall *c) { return norm_apply(c, false); }
static CabStatus layer_gradient(CabCall *c) { return norm_gradient(c, false); }
static CabStatus rms_apply(CabCall *c) { return norm_apply(c, true); }
static CabStatus rms_gradient(CabCall *c) { return norm_gradient(c, true); }

/* ---- attention: in q k v place, out y map lse ------------------------------------------------------ */

/* The kernel reads q, k and v with one row stride, as thirds of a packed projection have. Sets H heads, K map tokens. */
static CabStatus attention_check(CabCall *c) {
  double heads = c->option[0];
  int64_t D = cab_dim(c, 'D'), H = (int64_t)heads;
  if (heads != (double)H || H < 1 || D % H) return cab_call_fail(c, "'heads' is %g and does not divide D=%lld", heads, (long long)D);
  cab_call_set_dim(c, 'H', H);
  cab_call_set_dim(c, 'K', c->option[2] ? cab_dim(c, 'L') : 0);
  if (c->in[3] && (!c->option[1] || c->option[2])) return cab_call_fail(c, "'place' goes with causal=true and map=false");
  if (cab_ld(c->in[0]) == cab_ld(c->in[1]) && cab_ld(c->in[0]) == cab_ld(c->in[2])) return CAB_OK;
  for (int i = 0; i < 3; i++) CAB_TRY(cab_call_copy_input(c, i));
  return CAB_OK;
}

typedef struct {
  int64_t B, L, H, P;
  double scale; /* option 0: 1/sqrt(P) */
  bool causal, map;
} Heads;
static Heads heads_of(const CabCall *c) {
  int64_t H = cab_dim(c, 'H'), P = cab_dim(c, 'D') / H;
  double scale = c->option[3] != 0 || P == 0 ? c->option[3] : 1 / sqrt((double)P);
  return (Heads){cab_dim(c, 'B'), cab_dim(c, 'L'), H, P, scale, c->option[1] != 0, c->option[2] != 0};
}

static CabStatus attention_apply(CabCall *c) {
  Heads h = heads_of(c);
  RUN(c, attention_forward, h.B, h.L, h.H, h.P, h.scale, h.causal, CAB_DATA(c->in[0]), CAB_DATA(c->in[1]), CAB_DATA(c->in[2]),
      cab_ld(c->in[0]), CAB_DATA(c->in[3]), CAB_DATA(c->out[0]), CAB_DATA(c->out[2]), h.map ? CAB_DATA(c->out[1]) : NULL);
  return CAB_OK;
}

static CabStatus attention_gradient(CabCall *c) {
  Heads h = heads_of(c);
  CabTensor *gy = cab_gout(c, 0, h.B * h.L * h.H * h.P);
  if (!gy) return cab_error()->code;
  RUN(c, attention_backward, h.B, h.L, h.H, h.P, h.scale, h.causal, CAB_DATA(c->in[0]), CAB_DATA(c->in[1]), CAB_DATA(c->in[2]),
      cab_ld(c->in[0]), CAB_DATA(c->in[3]), CAB_DATA(c->out[0]), CAB_DATA(c->out[2]), CAB_DATA(gy), h.map ? CAB_DATA(c->gout[1]) : NULL,
      CAB_DATA(c->gin[0]), CAB_DATA(c->gin[1]), CAB_DATA(c->gin[2]), h.H * h.P);
  return CAB_OK;
}

/* ---- patch_embed: in x w b ------------------------------------------------------------------- */

/* T = th tw patches; S keeps the stride. */
static CabStatus patch_check(CabCall *c) {
  int64_t H = cab_dim(c, 'H'), W = cab_dim(c, 'W'), P = cab_dim(c, 'P'), S = (int64_t)c->option[0];
  if (c->option[0] != (double)S || S < 0) return cab_call_fail(c, "'stride' is %g", c->option[0]);
  if (P < 1 || P > H || P > W)
    return cab_call_fail(c, "patches of %lld do not fit in images of %lldx%lld", (long long)P, (long long)H, (long long)W);
  if (!S) S = P;
  cab_call_set_dim(c, 'S', S);
  cab_call_set_dim(c, 'T', ((H - P) / S + 1) * ((W - P) / S + 1));
  if (cab_dim(c, 'B') * cab_dim(c, 'T') > INT32_MAX) return cab_call_fail(c, "more than 2^31 patches");
  return CAB_OK;
}

static CabStatus gather(CabCall *c, CabTensor *col) {
  RUN(c, patch_gather, cab_dim(c, 'B'), cab_dim(c, 'C'), cab_dim(c, 'H'), cab_dim(c, 'W'), cab_dim(c, 'P'), cab_dim(c, 'S'),
      CAB_DATA(c->in[0]), CAB_DATA(col));
  return CAB_OK;
}

static int64_t patch_size(const CabCall *c) { return cab_dim(c, 'C') * cab_dim(c, 'P') * cab_dim(c, 'P'); }

static CabStatus patch_apply(CabCall *c) {
  int64_t rows = cab_dim(c, 'B') * cab_dim(c, 'T'), K = patch_size(c);
  CabTensor *col = cab_scratch(c, c->dtype, rows * K);
  if (!col) return cab_error()->code;
  CAB_TRY(gather(c, col));
  RUN(c, linear_forward, rows, cab_dim(c, 'D'), K, CAB_DATA(col), K, CAB_DATA(c->in[1]), CAB_DATA(c->in[2]), CAB_DATA(c->out[0]));
  return CAB_OK;
}

/* col is gathered again rather than kept: gw = gy^T col;  gcol = gy w, scattered to gx */
static CabStatus patch_gradient(CabCall *c) {
  int64_t rows = cab_dim(c, 'B') * cab_dim(c, 'T'), D = cab_dim(c, 'D'), K = patch_size(c);
  const void *gy = CAB_DATA(c->gout[0]);
  CabTensor *col = c->gin[0] || c->gin[1] ? cab_scratch(c, c->dtype, rows * K) : NULL;
  if ((c->gin[0] || c->gin[1]) && !col) return cab_error()->code;
  if (c->gin[1]) CAB_TRY(gather(c, col));
  RUN(c, linear_backward, rows, D, K, gy, CAB_DATA(col), K, CAB_DATA(c->in[1]), NULL, false, CAB_DATA(c->gin[1]), CAB_DATA(c->gin[2]));
  if (!c->gin[0]) return CAB_OK;
  RUN(c, linear_backward, rows, D, K, gy, NULL, K, CAB_DATA(c->in[1]), CAB_DATA(col), false, NULL, NULL);
  RUN(c, patch_scatter, cab_dim(c, 'B'), cab_dim(c, 'C'), cab_dim(c, 'H'), cab_dim(c, 'W'), cab_dim(c, 'P'), cab_dim(c, 'S'),
      CAB_DATA(col), CAB_DATA(c->gin[0]));
  return CAB_OK;
}

/* ---- conv1d: in x w b; options silu reverse --------------------------------------------------- */

static CabStatus conv_check(CabCall *c) {
  int64_t W = cab_dim(c, 'W');
  if (c->in[3] && c->option[1] != 0) return cab_call_fail(c, "'place' goes with reverse=false");
  return W >= 1 && W <= 8 ? CAB_OK : cab_call_fail(c, "the kernel is %lld wide, expected 1 to 8", (long long)W);
}

static CabStatus conv_apply(CabCall *c) {
  RUN(c, conv1d_forward, cab_dim(c, 'B'), cab_dim(c, 'L'), cab_dim(c, 'E'), cab_dim(c, 'W'), c->option[0] != 0, c->option[1] != 0,
      CAB_DATA(c->in[0]), cab_ld(c->in[0]), CAB_DATA(c->in[3]), CAB_DATA(c->in[1]), CAB_DATA(c->in[2]), CAB_DATA(c->out[0]));
  return CAB_OK;
}

static CabStatus conv_gradient(CabCall *c) {
  int64_t E = cab_dim(c, 'E'), W = cab_dim(c, 'W');
  CabTensor *partial = cab_scratch(c, cab_wide(c->dtype), CONV1D_BLOCKS * E * (W + 1));
  if (!partial) return cab_error()->code;
  RUN(c, conv1d_backward, cab_dim(c, 'B'), cab_dim(c, 'L'), E, W, c->option[0] != 0, c->option[1] != 0, CAB_DATA(c->in[0]),
      cab_ld(c->in[0]), CAB_DATA(c->in[3]), CAB_DATA(c->in[1]), CAB_DATA(c->in[2]), CAB_DATA(c->gout[0]), CAB_DATA(c->gin[0]),
      cab_ld(c->gin[0]), c->add[0],
      CAB_DATA(c->gin[1]), CAB_DATA(c->gin[2]), CAB_DATA(partial));
  return CAB_OK;
}

/* ---- embedding ------------------------------------------------------------------------------- */

static CabStatus embedding_check(CabCall *c) { return cab_call_check_ids(c, 0, 0, cab_dim(c, 'V')); }

static CabStatus embedding_apply(CabCall *c) {
  RUN(c, embedding_forward, c->rows, cab_dim(c, 'D'), cab_dim(c, 'V'), CAB_DATA(c->in[0]), CAB_DATA(c->in[1]), CAB_DATA(c->out[0]));
  return CAB_OK;
}
static CabStatus embedding_gradient(CabCall *c) {
  if (c->gin[1])
    RUN(c, embedding_backward, c->rows, cab_dim(c, 'D'), cab_dim(c, 'V'), CAB_DATA(c->in[0]), CAB_DATA(c->gout[0]),
        CAB_DATA(c->gin[1]));
  return CAB_OK;
}

/* ---- places: in segment ---------------------------------------------------------------------- */

static CabStatus places_apply(CabCall *c) {
  RUN(c, places, cab_dim(c, 'B'), cab_dim(c, 'L'), CAB_DATA(c->in[0]), CAB_DATA(c->out[0]));
  return CAB_OK;
}

/* ---- rotary: in x; options heads width base start --------------------------------------------------------------- */

static CabStatus rotary_check(CabCall *c) {
  const double heads = c->option[0];
  const int64_t D = cab_dim(c, 'D'), H = (int64_t)heads;
  if (heads != (double)H || H < 1 || D % H) return cab_call_fail(c, "'heads' is %g and does not divide D=%lld", heads, (long long)D);
  const double width = c->option[1] != 0 ? c->option[1] : (double)(D / H);
  const int64_t W = (int64_t)width;
  if (width != (double)W || W < 0 || W % 2 || W > D / H)
    return cab_call_fail(c, "'width' is %g, expected an even number up to the %lld elements of a head", width, (long long)(D / H));
  cab_call_set_dim(c, 'W', W);
  if (!(c->option[2] > 0)) return cab_call_fail(c, "'base' is %g, expected above 0", c->option[2]);
  return CAB_OK;
}

static CabStatus rotary_turn(CabCall *c, double turn, const CabTensor *x, int64_t ld, CabTensor *y) {
  const int64_t D = cab_dim(c, 'D'), H = (int64_t)c->option[0];
  RUN(c, rotary, cab_dim(c, 'B'), cab_dim(c, 'L'), H, D / H, cab_dim(c, 'W'), c->option[2], c->option[3], turn, CAB_DATA(x), ld,
      CAB_DATA(y));
  return CAB_OK;
}
static CabStatus rotary_apply(CabCall *c) { return rotary_turn(c, 1, c->in[0], cab_ld(c->in[0]), c->out[0]); }
static CabStatus rotary_gradient(CabCall *c) { return rotary_turn(c, -1, c->gout[0], cab_dim(c, 'D'), c->gin[0]); }

const CabOp cab_ops_nn[] = {
  {"linear", "x~[*,I] w^[O,I] b^[O]? -> y[*,O]", linear_apply, linear_gradient, "x w", "y = x w^T + b", linear_check, NULL, "x"},
  {"layer_norm", "x[*,D] w^[D] b^[D]? residual^[*,D]? | eps=1e-6 -> y[*,D] sum^[*,D] ~mean^[*] ~rstd^[*]", layer_apply, layer_gradient,
   "w sum mean rstd", "y = (s - mean) / sqrt(var + eps) w + b, s = x + residual (arXiv 1607.06450)", norm_check, NULL},
  {"rms_norm", "x[*,D] w^[D] b^[D]? residual^[*,D]? | eps=1e-5 -> y[*,D] sum^[*,D] ~rstd^[*]", rms_apply, rms_gradient, "w sum rstd",
   "y = s / sqrt(mean s^2 + eps) w + b, s = x + residual (arXiv 1910.07467)", norm_check, NULL},
  {"attention", "q~[B,L,D] k~[B,L,D] v~[B,L,D] place:i32[B,L]? | heads=1 causal=false map=false scale=0 -> y[B,L,D] map[B,H,K,K] ~lse^[B,H,L]",
   attention_apply, attention_gradient, "q k v place y lse",
   "y = softmax(scale q k^T) v per head; scale 0: 1/sqrt(D/heads) (arXiv 1706.03762); map is empty unless asked for; place (of "
   "op.places): documents of a row do not see each other",
   attention_check, NULL},
  {"rotary", "x~[B,L,D] | heads=1 width=0 base=10000 start=0 -> y[B,L,D]", rotary_apply, rotary_gradient, "",
   "first `width` elements of each head (0: all) turned by (start + token) base^(-2i/width) (arXiv 2104.09864)", rotary_check, NULL},
  {"patch_embed", "x[B,C,H,W] w^[D,C,P,P] b^[D]? | stride=0 -> y[B,T,D]", patch_apply, patch_gradient, "x w",
   "linear map of each patch; stride 0: P (arXiv 2010.11929)", patch_check, NULL},
  {"conv1d", "x~[B,L,E] w^[E,1,W] b^[E]? place:i32[B,L]? | silu=true reverse=false -> y[B,L,E]", conv_apply, conv_gradient, "x w b place",
   "causal depthwise convolution over tokens and SiLU (arXiv 2312.00752, figure 3); reverse: anti-causal; place (of op.places): documents "
   "of a row do not reach each other", conv_check, NULL, "x", "x"},
  {"places", "segment:i32[B,L] -> place:i32[B,L]", places_apply, NULL, "",
   "place of each token in its document, from 0: a document is a run of one number", NULL, NULL},
  {"embedding", "ids:i32[*] w[V,D] -> y[*,D]", embedding_apply, embedding_gradient, "ids", "y[i] = w[ids[i]]", embedding_check, NULL},
  {0},
};
