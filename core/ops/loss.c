/* loss.c - scalar losses. */
#include "largest.h"
#include "loss.h"

#include "elementwise.h"
#include "gemm.h"
#include "head.h"
#include "op.h"

static const double COSINE_EPS = 1e-8;

/* ---- cross_entropy: in x labels target, out y lse ---------------------------------------------- */

static CabStatus entropy_check(CabCall *c) {
  double smoothing = c->option[0];
  if (!c->in[1] == !c->in[2]) return cab_call_fail(c, "give either 'labels' or 'target'");
  if (smoothing < 0 || smoothing > 1) return cab_call_fail(c, "'smoothing' is %g, expected 0 to 1", smoothing);
  if (c->in[2] && smoothing != 0) return cab_call_fail(c, "'smoothing' is for labels: the target is used as it is");
  CAB_TRY(cab_call_constant(c, 2));
  return c->in[1] ? cab_call_check_ids(c, 1, -1, cab_dim(c, 'C')) : CAB_OK;
}

static CabStatus entropy_apply(CabCall *c) {
  CabTensor *partial = cab_scratch(c, cab_wide(c->dtype), LOSS_BLOCKS);
  if (!partial) return cab_error()->code;
  RUN(c, cross_entropy_forward, cab_dim(c, 'R'), cab_dim(c, 'C'), c->option[0], CAB_DATA(c->in[0]), CAB_DATA(c->in[1]),
      CAB_DATA(c->in[2]), CAB_DATA(c->out[0]), CAB_DATA(c->out[1]), CAB_DATA(partial));
  return CAB_OK;
}

static CabStatus entropy_gradient(CabCall *c) {
  RUN(c, cross_entropy_backward, cab_dim(c, 'R'), cab_dim(c, 'C'), c->option[0], CAB_DATA(c->in[0]), CAB_DATA(c->in[1]),
      CAB_DATA(c->in[2]), CAB_DATA(c->out[1]), CAB_DATA(c->gout[0]), CAB_DATA(c->gin[0]));
  return CAB_OK;
}

/* ---- losses between two tensors ----------------------------------------------------------------- */

static CabStatus kl_check(CabCall *c) {
  return c->option[0] > 0 ? CAB_OK : cab_call_fail(c, "'temperature' is %g, expected above 0", c->option[0]);
}
static CabStatus kl_apply(CabCall *c) {
  CabTensor *partial = cab_scratch(c, cab_wide(c->dtype), LOSS_BLOCKS);
  if (!partial) return cab_error()->code;
  RUN(c, kl_forward, cab_dim(c, 'R'), cab_dim(c, 'C'), c->option[0], CAB_DATA(c->in[0]), CAB_DATA(c->in[1]), CAB_DATA(c->out[0]),
      CAB_DATA(partial));
  return CAB_OK;
}
static CabStatus kl_gradient(CabCall *c) {
  RUN(c, kl_backward, cab_dim(c, 'R'), cab_dim(c, 'C'), c->option[0], CAB_DATA(c->in[0]), CAB_DATA(c->in[1]), CAB_DATA(c->gout[0]),
      CAB_DATA(c->gin[0]), CAB_DATA(c->gin[1]));
  return CAB_OK;
}

static CabStatus mse_apply(CabCall *c) {
  CabTensor *partial = cab_scratch(c, cab_wide(c->dtype), LOSS_BLOCKS);
  if (!partial) return cab_error()->code;
  RUN(c, mse_forward, c->rows, CAB_DATA(c->in[0]), CAB_DATA(c->in[1]), CAB_DATA(c->out[0]), CAB_DATA(partial));
  return CAB_OK;
}
static CabStatus mse_gradient(CabCall *c) {
  RUN(c, mse_backward, c->rows, CAB_DATA(c->in[0]), CAB_DATA(c->in[1]), CAB_DATA(c->gout[0]), CAB_DATA(c->gin[0]),
      CAB_DATA(c->gin[1]));
  return CAB_OK;
}

static CabStatus cosine_apply(CabCall *c) {
  CabTensor *partial = cab_scratch(c, cab_wide(c->dtype), LOSS_BLOCKS);
  if (!partial) return cab_error()->code;
  RUN(c, cosine_forward, c->rows, cab_dim(c, 'D'), COSINE_EPS, CAB_DATA(c->in[0]), CAB_DATA(c->in[1]), CAB_DATA(c->out[0]),
      CAB_DATA(partial));
  return CAB_OK;
}
static CabStatus cosine_gradient(CabCall *c) {
  RUN(c, cosine_backward, c->rows, cab_dim(c, 'D'), COSINE_EPS, CAB_DATA(c->in[0]), CAB_DATA(c->in[1]), CAB_DATA(c->gout[0]),
      CAB_DATA(c->gin[0]), CAB_DATA(c->gin[1]));
  return CAB_OK;
}

static CabStatus frobenius_apply(CabCall *c) {
  CabTensor *partial = cab_scratch(c, cab_wide(c->dtype), LOSS_BLOCKS);
  if (!partial) return cab_error()->code;
  RUN(c, frobenius_forward, c->rows, cab_dim(c, 'M') * cab_dim(c, 'N'), CAB_DATA(c->in[0]), CAB_DATA(c->in[1]), CAB_DATA(c->out[0]),
      CAB_DATA(partial));
  return CAB_OK;
}
static CabStatus frobenius_gradient(CabCall *c) {
  RUN(c, frobenius_backward, c->rows, cab_dim(c, 'M') * cab_dim(c, 'N'), CAB_DATA(c->in[0]), CAB_DATA(c->in[1]),
      CAB_DATA(c->gout[0]), CAB_DATA(c->gin[0]), CAB_DATA(c->gin[1]));
  return CAB_OK;
}

/* ---- head_loss: in x w b ids segment tx tw tb top logits targets, out y parts gx gw gb ------------------------------------------ */

enum { HEAD_X, HEAD_W, HEAD_B, HEAD_IDS, HEAD_SEGMENT, HEAD_TX, HEAD_TW, HEAD_TB, HEAD_TOP, HEAD_TOP_LOGITS, HEAD_TARGETS };
enum { HEAD_CE, HEAD_KL, HEAD_DIVERGENCE, HEAD_TEMPERATURE, HEAD_SMOOTHING, HEAD_VOCAB, HEAD_ROWS };

static CabStatus head_numbers(const CabCall *c) {
  const double *o = c->option;
  if (!(o[HEAD_CE] >= 0) || !(o[HEAD_KL] >= 0)) return cab_call_fail(c, "'ce' is %g and 'kl' %g, expected weights of at least 0", o[HEAD_CE], o[HEAD_KL]);
  if (!(o[HEAD_TEMPERATURE] > 0)) return cab_call_fail(c, "'temperature' is %g, expected above 0", o[HEAD_TEMPERATURE]);
  if (!(o[HEAD_SMOOTHING] >= 0 && o[HEAD_SMOOTHING] <= 1)) return cab_call_fail(c, "'smoothing' is %g, expected 0 to 1", o[HEAD_SMOOTHING]);
  if (o[HEAD_ROWS] != (double)(int64_t)o[HEAD_ROWS] || o[HEAD_ROWS] < 0)
    return cab_call_fail(c, "'rows' is %g, expected a whole number, 0: the device's", o[HEAD_ROWS]);
  return CAB_OK;
}

/* The teacher is its hidden states and its head, or its largest logits; none where kl is 0. */
static CabStatus head_teacher(const CabCall *c) {
  CabTensor *const *in = c->in;
  const bool whole = in[HEAD_TX] && in[HEAD_TW], part = in[HEAD_TOP] && in[HEAD_TOP_LOGITS];
  if (!in[HEAD_TX] != !in[HEAD_TW] || !in[HEAD_TOP] != !in[HEAD_TOP_LOGITS] || (in[HEAD_TB] && !whole))
    return cab_call_fail(c, "'tx' goes with 'tw', 'top' with 'top_logits', 'tb' with 'tw'");
  if (whole && part) return cab_call_fail(c, "give the teacher as 'tx' and 'tw' or as 'top' and 'top_logits', not both");
  if (c->option[HEAD_KL] != 0 && !whole && !part) return cab_call_fail(c, "'kl' is %g, but there is no teacher", c->option[HEAD_KL]);
  if (part && c->option[HEAD_DIVERGENCE] > HEAD_CROSS)
    return cab_call_fail(c, "this divergence needs all of the teacher's logits, 'top' works with forward and cross");
  for (int i = HEAD_TX; i <= HEAD_TB; i++) CAB_TRY(cab_call_constant(c, i));
  CAB_TRY(cab_call_constant(c, HEAD_TOP_LOGITS));
  return cab_call_constant(c, HEAD_TARGETS);
}

/* A block of rows where the recipe does not say: on a GPU each adds once to gw, which is long. There, vocabularies are filled up to a
 * multiple of HEAD_PAD: products with an odd side take ten times as long. */
enum { HEAD_BLOCK = 256, HEAD_BLOCK_GPU = 1024, HEAD_PAD = 64 };
static int64_t head_padded(const CabCall *c, int64_t n) { return c->device == cab_cpu() ? n : (n + HEAD_PAD - 1) / HEAD_PAD * HEAD_PAD; }

/* Sets N, the entries in use; R rows and S entries of gradients, 0 if none is wanted. */
static CabStatus head_check(CabCall *c) {
  CAB_TRY(head_numbers(c));
  CAB_TRY(head_teacher(c));
  const int64_t V = cab_dim(c, 'V'), U = c->in[HEAD_TW] ? cab_dim(c, 'U') : V, most = V < U ? V : U;
  const double vocab = c->option[HEAD_VOCAB];
  if (vocab == 0 && V != U)
    return cab_call_fail(c, "'w' has %lld rows and 'tw' %lld: say how many are in use with 'vocab'", (long long)V, (long long)U);
  const int64_t N = vocab == 0 ? V : (int64_t)vocab;
  if (vocab != (double)(int64_t)vocab || N < 1 || N > most)
    return cab_call_fail(c, "'vocab' is %g, expected a whole number from 1 to %lld", vocab, (long long)most);
  CAB_TRY(cab_call_check_ids(c, HEAD_IDS, 0, N));
  if (c->in[HEAD_TOP]) CAB_TRY(cab_call_check_ids(c, HEAD_TOP, 0, N));
  cab_call_set_dim(c, 'N', N);
  cab_call_set_dim(c, 'R', c->wants_grad ? cab_dim(c, 'B') * cab_dim(c, 'L') : 0);
  cab_call_set_dim(c, 'S', c->wants_grad ? head_padded(c, V) : 0);
  return CAB_OK;
}

typedef struct { /* a call of head_loss: its shape and what it holds of one block of rows */
  HeadShape s;
  bool whole, part;   /* the teacher's states and head, or its largest logits */
  CabCall wide;       /* the call, for twins on losses, which are wide */
  CabTensor *w, *tw;  /* weights in the call's dtype */
  CabTensor *logits, *teacher, *losses, *count, *sums;
} Head;

static const char *head_row_of(const CabCall *c, int input, int64_t row, int64_t ld) {
  return (const char *)cab_tensor_data(c->in[input]) + (size_t)(row * ld) * cab_dtype_size(c->dtype);
}

/* w in the call's dtype, with rows of zeros up to `rows`: itself, or a copy that lives as long as the call. NULL: error slot. */
static CabTensor *head_weights(CabCall *c, CabTensor *w, int64_t rows) {
  const int64_t count = cab_tensor_count(w), all = rows * w->shape[1];
  if (w->dtype == c->dtype && all == count) return w;
  CabTensor *copy = cab_scratch(c, c->dtype, all), *flat = copy ? cab_reshape(w, 1, &count) : NULL;
  CabTensor *first = flat ? cab_slice(copy, 0, 0, count) : NULL, *rest = first ? cab_slice(copy, 0, count, all) : NULL;
  const bool fine = rest && !cab_tensor_copy(first, flat) && !cab_tensor_fill(rest, 0);
  cab_tensor_release(flat);
  cab_tensor_release(first);
  cab_tensor_release(rest);
  return fine ? copy : NULL;
}

static CabStatus head_open(CabCall *c, int64_t block, Head *h) {
  CabTensor **in = c->in;
  const double *o = c->option;
  const CabDtype wide = cab_wide(c->dtype);
  h->whole = in[HEAD_TX] && o[HEAD_KL] != 0, h->part = in[HEAD_TOP] && o[HEAD_KL] != 0;
  h->s = (HeadShape){.B = cab_dim(c, 'B'), .L = cab_dim(c, 'L'), .vocab = cab_dim(c, 'N'), .V = head_padded(c, cab_dim(c, 'V')),
                     .U = h->whole ? head_padded(c, cab_dim(c, 'U')) : 0, .K = h->part ? cab_dim(c, 'K') : 0, .ce = o[HEAD_CE],
                     .kl = o[HEAD_KL], .smoothing = o[HEAD_SMOOTHING], .temperature = o[HEAD_TEMPERATURE],
                     .divergence = (HeadDivergence)o[HEAD_DIVERGENCE]};
  if (h->part && h->s.K == 0) return cab_call_fail(c, "'top' is empty");
  h->w = head_weights(c, in[HEAD_W], h->s.V);
  h->tw = h->w && h->whole ? head_weights(c, in[HEAD_TW], h->s.U) : NULL;
  h->logits = cab_scratch(c, c->dtype, block * h->s.V);
  h->teacher = cab_scratch(c, c->dtype, block * (h->part ? h->s.K : h->s.U));
  h->losses = cab_scratch(c, wide, 2 * h->s.B * h->s.L);
  h->count = cab_scratch(c, wide, 2);
  h->sums = cab_scratch(c, wide, h->s.V);
  h->wide = *c, h->wide.dtype = wide;
  return h->w && (h->tw || !h->whole) && h->logits && h->teacher && h->losses && h->count && h->sums ? CAB_OK : cab_error()->code;
}

/* Logits of both sides without their biases; of a list the teacher's, a copy: they become probabilities. */
static CabStatus head_logits(CabCall *c, const Head *h, int64_t first, int64_t rows) {
  CabTensor **in = c->in;
  const int64_t D = cab_dim(c, 'D'), ldx = cab_ld(in[HEAD_X]), K = h->s.K;
  RUN(c, gemm, false, true, rows, h->s.V, D, 1, head_row_of(c, HEAD_X, first, ldx), ldx, CAB_DATA(h->w), D, 0,
      CAB_DATA(h->logits), h->s.V);
  if (h->part) RUN(c, affine, rows * K, 1.0, 0.0, head_row_of(c, HEAD_TOP_LOGITS, first, K), CAB_DATA(h->teacher));
  if (!h->whole) return CAB_OK;
  const int64_t E = cab_dim(c, 'E'), ldt = cab_ld(in[HEAD_TX]);
  RUN(c, gemm, false, true, rows, h->s.U, E, 1, head_row_of(c, HEAD_TX, first, ldt), ldt, CAB_DATA(h->tw), E, 0,
      CAB_DATA(h->teacher), h->s.U);
  return CAB_OK;
}

/* gx of the block, and its part of gw and gb: g^T x, column sums of g. */
static CabStatus head_block_gradient(CabCall *c, const Head *h, int64_t first, int64_t rows) {
  const int64_t D = cab_dim(c, 'D'), V = h->s.V, ldx = cab_ld(c->in[HEAD_X]);
  const void *g = CAB_DATA(h->logits);
  char *gx = (char *)cab_tensor_data(c->out[2]) + (size_t)(first * D) * cab_dtype_size(c->dtype);
  RUN(c, gemm, false, false, rows, D, V, 1, g, V, CAB_DATA(h->w), D, 0, gx, D);
  RUN(c, gemm_wide, true, false, V, D, rows, 1, g, V, head_row_of(c, HEAD_X, first, ldx), ldx, first > 0, CAB_DATA(c->out[3]), D);
  if (!c->in[HEAD_B]) return CAB_OK;
  RUN(c, column_sum, rows, V, g, V, first > 0 ? CAB_DATA(h->sums) : CAB_DATA(c->out[4]));
  if (first > 0) RUN(&h->wide, axpy, V, 1.0, CAB_DATA(h->sums), CAB_DATA(c->out[4]));
  return CAB_OK;
}

static CabStatus head_block(CabCall *c, const Head *h, int64_t first, int64_t rows) {
  CabTensor **in = c->in;
  const int32_t *top = h->part ? (const int32_t *)cab_tensor_data(in[HEAD_TOP]) + first * h->s.K : NULL;
  CAB_TRY(head_logits(c, h, first, rows));
  RUN(c, head_rows, &h->s, first, rows, CAB_DATA(in[HEAD_IDS]), CAB_DATA(in[HEAD_SEGMENT]), CAB_DATA(h->count), CAB_DATA(h->logits),
      CAB_DATA(in[HEAD_B]), h->whole || h->part ? CAB_DATA(h->teacher) : NULL, CAB_DATA(in[HEAD_TB]), top, c->wants_grad,
      CAB_DATA(h->losses));
  return c->wants_grad ? head_block_gradient(c, h, first, rows) : CAB_OK;
}

/* parts = sums of the rows' shares; y = ce parts[0] + kl parts[1]. */
static CabStatus head_sum(CabCall *c, const Head *h) {
  const int64_t one = 1, two = 2;
  const CabCall *wide = &h->wide;
  char *weights = cab_tensor_data(h->count), *products = cab_tensor_data(h->losses);
  RUN(wide, sum_middle, 2, h->s.B * h->s.L, 1, 1.0, CAB_DATA(h->losses), CAB_DATA(c->out[1]));
  if (h->s.B * h->s.L == 0) { /* no block wrote anything */
    for (int i = 3; c->wants_grad && i <= 4; i++) CAB_TRY(cab_tensor_fill(c->out[i], 0));
    return cab_tensor_fill(c->out[0], 0);
  }
  RUN(wide, fill, 1, h->s.ce, weights);
  RUN(wide, fill, 1, h->s.kl, weights + cab_dtype_size(wide->dtype));
  RUN(wide, binary, BINARY_MUL, 1, &two, weights, &one, CAB_DATA(c->out[1]), &one, products);
  RUN(wide, sum_middle, 1, 2, 1, 1.0, products, CAB_DATA(c->out[0]));
  return CAB_OK;
}

static CabStatus head_apply(CabCall *c) {
  const int64_t all = cab_dim(c, 'B') * cab_dim(c, 'L');
  const double given = c->option[HEAD_ROWS], most = given != 0 ? given : c->device == cab_cpu() ? HEAD_BLOCK : HEAD_BLOCK_GPU;
  const int64_t block = most < (double)all ? (int64_t)most : all;
  Head h;
  CAB_TRY(head_open(c, block, &h));
  RUN(c, head_count, h.s.B, h.s.L, CAB_DATA(c->in[HEAD_IDS]), CAB_DATA(c->in[HEAD_SEGMENT]), CAB_DATA(h.count));
  if (c->in[HEAD_TARGETS]) RUN(&h.wide, affine, 1, 1.0, 0.0, CAB_DATA(c->in[HEAD_TARGETS]), CAB_DATA(h.count));
  for (int64_t first = 0; first < all; first += block) CAB_TRY(head_block(c, &h, first, all - first < block ? all - first : block));
  return head_sum(c, &h);
}

/* The gradients are there but for the factor that arrives. */
static CabStatus head_scale(CabCall *c, int input, CabTensor *kept) {
  CabCall call = *c;
  if (!c->gin[input]) return CAB_OK;
  call.dtype = kept->dtype;
  RUN(&call, head_scaled, cab_tensor_count(c->gin[input]), CAB_DATA(kept), CAB_DATA(c->gout[0]), CAB_DATA(c->gin[input]));
  return CAB_OK;
}

static CabStatus head_gradient(CabCall *c) {
  if (c->gout[1]) return cab_call_fail(c, "'parts' are for reading: no gradient goes through them");
  CAB_TRY(head_scale(c, HEAD_X, c->out[2]));
  CAB_TRY(head_scale(c, HEAD_W, c->out[3]));
  return head_scale(c, HEAD_B, c->out[4]);
}

/* ---- largest: in x; option k; out y place ------------------------------------------------------------------------------- */

static CabStatus largest_check(CabCall *c) {
  const double k = c->option[0];
  if (!(k >= 1 && k <= (double)cab_dim(c, 'C')) || k != (double)(int64_t)k)
    return cab_call_fail(c, "'k' is %g, expected a whole number from 1 to %lld", k, (long long)cab_dim(c, 'C'));
  cab_call_set_dim(c, 'K', (int64_t)k);
  return CAB_OK;
}
static CabStatus largest_apply(CabCall *c) {
  RUN(c, largest, cab_dim(c, 'R'), cab_dim(c, 'C'), cab_dim(c, 'K'), CAB_DATA(c->in[0]), CAB_DATA(c->out[0]), CAB_DATA(c->out[1]));
  return CAB_OK;
}

const CabOp cab_ops_loss[] = {
  {"cross_entropy", "x[R,C] labels:i32[R]? target^[R,C]? | smoothing=0 -> y^[] ~lse^[R]", entropy_apply, entropy_gradient,
   "x labels target lse", "mean of -sum target log softmax(x); label -1 is left out (smoothing: arXiv 1512.00567, section 7)",
   entropy_check, NULL},
  {"kl", "student[R,C] teacher[R,C] | temperature=1 -> y^[]", kl_apply, kl_gradient, "student teacher",
   "T^2 KL(softmax(teacher/T) || softmax(student/T)), mean over rows (arXiv 1503.02531)", kl_check, NULL},
  {"mse", "a[*] b[*] -> y^[]", mse_apply, mse_gradient, "a b", "mean of (a - b)^2", NULL, NULL},
  {"cosine", "a[*,D] b[*,D] -> y^[]", cosine_apply, cosine_gradient, "a b", "mean over rows of 1 - a.b / (|a| |b|)", NULL, NULL},
  {"frobenius", "a[*,M,N] b[*,M,N] -> y^[]", frobenius_apply, frobenius_gradient, "a b",
   "mean over matrices of |a - b|_F; gradient 0 at a = b", NULL, NULL},
  {"head_loss",
   "x~[B,L,D] w^[V,D] b^[V]? ids:i32[B,L] segment:i32[B,L]? tx~[B,L,E]? tw^[U,E]? tb^[U]? top:i32[B,L,K]? top_logits[B,L,K]? targets^[1]? | "
   "ce=1 kl=0 divergence=forward|cross|reverse|jsd temperature=1 smoothing=0 vocab=0 rows=0 -> y^[] parts^[2] ~gx[R,D] ~gw^[S,D] ~gb^[S]",
   head_apply, head_gradient, "gx gw gb",
   "of logits x w^T + b, `rows` tokens at a time (0: as the device likes): ce times cross-entropy with the next id of the segment + kl times a divergence from "
   "the teacher's tx tw^T + tb or its largest logits; parts: both, unweighted; "
   "targets: what divides the sum of cross-entropies in place of how many there are, where these rows are part of a batch (arXiv 1503.02531; generalised "
   "JSD: 2306.13649)",
   head_check, NULL},
  {"largest", "x[R,C] | k=1 -> y[R,K] place:i32[R,K]", largest_apply, NULL, "",
   "the k largest of each row, largest first, and their columns from 0; of equals the first", largest_check, NULL},
  {0},
};
