/* math.c - elementwise ops, matrix products, sums, softmax. */
#include "elementwise.h"
#include "gemm.h"
#include "op.h"
#include "softmax.h"

/* ---- a op b, broadcast ---------------------------------------------------------------------- */

/* The first rows of the table stand in the order of BinaryKind, then of UnaryKind. */
enum { BINARY_ROWS = BINARY_DIV + 1 };
static BinaryKind binary_kind(const CabCall *c) { return (BinaryKind)(c->op - cab_ops_math); }
static UnaryKind unary_kind(const CabCall *c) {
  UnaryKind kind = (UnaryKind)(c->op - cab_ops_math - BINARY_ROWS);
  return kind == UNARY_GELU && c->option[0] == 1 ? UNARY_GELU_TANH : kind;
}

/* Strides that read t at the broadcast shape c->lead. */
static void broadcast_strides(const CabCall *c, const CabTensor *t, int64_t *stride) {
  int pad = c->lead_rank - t->rank;
  for (int i = 0; i < c->lead_rank; i++) stride[i] = i < pad || t->shape[i - pad] == 1 ? 0 : t->stride[i - pad];
}

static CabStatus binary_apply(CabCall *c) {
  int64_t a[CAB_MAX_RANK], b[CAB_MAX_RANK];
  broadcast_strides(c, c->in[0], a);
  broadcast_strides(c, c->in[1], b);
  RUN(c, binary, binary_kind(c), c->lead_rank, c->lead, CAB_DATA(c->in[0]), a, CAB_DATA(c->in[1]), b, CAB_DATA(c->out[0]));
  return CAB_OK;
}

/* add: ga = gb = gy; sub: gb = -gy. Nothing is saved. */
static CabStatus sum_gradient(CabCall *c) {
  if (c->gin[0]) cab_share_gin(c, 0, c->gout[0]);
  if (c->gin[1] && binary_kind(c) == BINARY_ADD) cab_share_gin(c, 1, c->gout[0]);
  else if (c->gin[1]) RUN(c, affine, c->rows, -1.0, 0.0, CAB_DATA(c->gout[0]), CAB_DATA(c->gin[1]));
  return CAB_OK;
}

static CabStatus binary_gradient(CabCall *c) {
  int64_t a[CAB_MAX_RANK], b[CAB_MAX_RANK];
  broadcast_strides(c, c->in[0], a);
  broadcast_strides(c, c->in[1], b);
  RUN(c, binary_backward, binary_kind(c), c->lead_rank, c->lead, CAB_DATA(c->in[0]), a, CAB_DATA(c->in[1]), b,
      CAB_DATA(c->gout[0]), CAB_DATA(c->gin[0]), CAB_DATA(c->gin[1]));
  return CAB_OK;
}

/* ---- f(x) ----------------------------------------------------------------------------------- */

static CabStatus unary_apply(CabCall *c) {
  RUN(c, unary, unary_kind(c), c->rows, CAB_DATA(c->in[0]), CAB_DATA(c->out[0]));
  return CAB_OK;
}
static CabStatus unary_gradient(CabCall *c) {
  RUN(c, unary_backward, unary_kind(c), c->rows, CAB_DATA(c->in[0]), CAB_DATA(c->gout[0]), CAB_DATA(c->gin[0]));
  return CAB_OK;
}

static CabStatus affine_apply(CabCall *c) {
  RUN(c, affine, c->rows, c->option[0], c->option[1], CAB_DATA(c->in[0]), CAB_DATA(c->out[0]));
  return CAB_OK;
}
static CabStatus affine_gradient(CabCall *c) {
  RUN(c, affine, c->rows, c->option[0], 0.0, CAB_DATA(c->gout[0]), CAB_DATA(c->gin[0]));
  return CAB_OK;
}

/* ---- matmul --------------------------------------------------------------------------------- */

typedef struct {
  int64_t M, K, N, batch;
  bool a_shared, b_shared;  /* without leading dims while the other has them */
} Product;

/* CabCall keeps no ranks of the inputs: C and D are letters of no argument, set by matmul_check. */
static Product product_of(const CabCall *c) {
  return (Product){.M = cab_dim(c, 'M'), .K = cab_dim(c, 'K'), .N = cab_dim(c, 'N'), .batch = c->rows,
                   .a_shared = cab_dim(c, 'C'), .b_shared = cab_dim(c, 'D')};
}

static CabStatus matmul_check(CabCall *c) {
  cab_call_set_dim(c, 'C', c->lead_rank && c->in[0]->rank == 2);
  cab_call_set_dim(c, 'D', c->lead_rank && c->in[1]->rank == 2);
  Product p = product_of(c);
  if (p.M > INT32_MAX || p.K > INT32_MAX || p.N > INT32_MAX || (p.b_shared && p.batch * p.M > INT32_MAX))
    return cab_call_fail(c, "more than 2^31 rows or columns");
  return CAB_OK;
}

static CabStatus matmul_apply(CabCall *c) {
  Product p = product_of(c);
  int64_t lda = cab_ld(c->in[0]), ldb = cab_ld(c->in[1]);
  const void *a = CAB_DATA(c->in[0]), *b = CAB_DATA(c->in[1]);
  if (p.b_shared) RUN(c, gemm, false, false, p.batch * p.M, p.N, p.K, 1.0, a, lda, b, ldb, 0.0, CAB_DATA(c->out[0]), p.N);
  else RUN(c, gemm_batched, false, false, p.M, p.N, p.K, 1.0, a, lda, p.a_shared ? 0 : p.M * lda, b, ldb, p.K * ldb, 0.0,
           CAB_DATA(c->out[0]), p.N, p.M * p.N, p.batch);
  return CAB_OK;
}

/* ga = gy b^T, summed over the batch where a is shared */
static CabStatus matmul_gradient_a(CabCall *c, Product p) {
  const void *b = CAB_DATA(c->in[1]), *gy = CAB_DATA(c->gout[0]);
  int64_t ldb = cab_ld(c->in[1]);
  void *ga = CAB_DATA(c->gin[0]);
  if (p.a_shared) RUN(c, fill, p.M * p.K, 0.0, ga);
  if (p.b_shared) RUN(c, gemm, false, true, p.batch * p.M, p.K, p.N, 1.0, gy, p.N, b, ldb, 0.0, ga, p.K);
  else RUN(c, gemm_batched, false, true, p.M, p.K, p.N, 1.0, gy, p.N, p.M * p.N, b, ldb, p.K * ldb, p.a_shared ? 1.0 : 0.0, ga,
           p.K, p.a_shared ? 0 : p.M * p.K, p.batch);
  return CAB_OK;
}

/* gb = a^T gy, summed over the batch where b is shared */
static CabStatus matmul_gradient_b(CabCall *c, Product p) {
  const void *a = CAB_DATA(c->in[0]), *gy = CAB_DATA(c->gout[0]);
  int64_t lda = cab_ld(c->in[0]);
  void *gb = CAB_DATA(c->gin[1]);
  if (p.b_shared) RUN(c, gemm, true, false, p.K, p.N, p.batch * p.M, 1.0, a, lda, gy, p.N, 0.0, gb, p.N);
  else RUN(c, gemm_batched, true, false, p.K, p.N, p.M, 1.0, a, lda, p.a_shared ? 0 : p.M * lda, gy, p.N, p.M * p.N, 0.0, gb,
           p.N, p.K * p.N, p.batch);
  return CAB_OK;
}

static CabStatus matmul_gradient(CabCall *c) {
  Product p = product_of(c);
  if (c->gin[0]) CAB_TRY(matmul_gradient_a(c, p));
  if (c->gin[1]) CAB_TRY(matmul_gradient_b(c, p));
  return CAB_OK;
}

/* ---- along a dim ---------------------------------------------------------------------------- */

typedef struct {
  int64_t outer, middle, inner;
} Split;

/* Option 0 counts from 1, negative from the end; 0: all dims. */
static int dim_index(const CabCall *c) {
  int dim = (int)c->option[0];
  return dim < 0 ? dim + c->lead_rank : dim - 1; /* -1: all */
}
static Split split_at(const CabCall *c) {
  int at = dim_index(c);
  Split s = {1, 1, 1};
  for (int i = 0; i < c->lead_rank; i++) *(at < 0 || i == at ? &s.middle : i < at ? &s.outer : &s.inner) *= c->lead[i];
  return s;
}

static CabStatus check_dim(CabCall *c, bool all) {
  double dim = c->option[0];
  char text[160];
  if (dim == (int)dim && (dim != 0 || all) && dim <= c->lead_rank && dim >= -c->lead_rank) return CAB_OK;
  return cab_call_fail(c, "dim %g does not exist in %s", dim, cab_shape_text(c->in[0], text));
}
static CabStatus sum_check(CabCall *c) { return check_dim(c, true); }
static CabStatus softmax_check(CabCall *c) { return check_dim(c, false); }

static void sum_shape(const CabCall *c, int output, int *rank, int64_t *shape) {
  int at = dim_index(c);
  (void)output;
  *rank = 0;
  for (int i = 0; i < c->lead_rank; i++)
    if (at >= 0 && i != at) shape[(*rank)++] = c->lead[i];
}

static CabStatus sum_scaled(CabCall *c, bool mean) {
  Split s = split_at(c);
  RUN(c, sum_middle, s.outer, s.middle, s.inner, mean ? 1.0 / (double)s.middle : 1.0, CAB_DATA(c->in[0]), CAB_DATA(c->out[0]));
  return CAB_OK;
}
static CabStatus sum_scaled_gradient(CabCall *c, bool mean) {
  Split s = split_at(c);
  RUN(c, sum_middle_backward, s.outer, s.middle, s.inner, mean ? 1.0 / (double)s.middle : 1.0, CAB_DATA(c->gout[0]),
      CAB_DATA(c->gin[0]));
  return CAB_OK;
}
static CabStatus sum_apply(CabCall *c) { return sum_scaled(c, false); }
static CabStatus sum_gradient_all(CabCall *c) { return sum_scaled_gradient(c, false); }
static CabStatus mean_apply(CabCall *c) { return sum_scaled(c, true); }
static CabStatus mean_gradient(CabCall *c) { return sum_scaled_gradient(c, true); }

static CabStatus softmax_apply(CabCall *c) {
  Split s = split_at(c);
  RUN(c, softmax_forward, s.outer, s.middle, s.inner, CAB_DATA(c->in[0]), CAB_DATA(c->out[0]));
  return CAB_OK;
}
static CabStatus softmax_gradient(CabCall *c) {
  Split s = split_at(c);
  RUN(c, softmax_backward, s.outer, s.middle, s.inner, CAB_DATA(c->out[0]), CAB_DATA(c->gout[0]), CAB_DATA(c->gin[0]));
  return CAB_OK;
}

/* y gets its dtype here: a row's outputs are like its inputs. */
static CabStatus cast_check(CabCall *c) {
  static const CabDtype to[] = {CAB_F32, CAB_F64, CAB_BF16};
  CabDtype dtype = to[(int)c->option[0]];
  c->out[0] = dtype == c->dtype ? cab_tensor_detach(c->in[0]) : cab_tensor_new(c->device, dtype, c->lead_rank, c->lead);
  return c->out[0] ? CAB_OK : cab_error()->code;
}
static CabStatus cast_apply(CabCall *c) {
  return c->out[0]->storage == c->in[0]->storage ? CAB_OK : cab_tensor_copy(c->out[0], c->in[0]);
}
static CabStatus cast_gradient(CabCall *c) { return cab_tensor_copy(c->gin[0], c->gout[0]); }

#define BINARY(name, source, saves, gradient) \
  {name, "a[&] b[&] -> y[&]", binary_apply, gradient, saves, source, NULL, NULL}
#define UNARY(name, source) {name, "x[*] -> y[*]", unary_apply, unary_gradient, "x", source, NULL, NULL}

const CabOp cab_ops_math[] = {
  BINARY("add", "y = a + b, broadcast", "", sum_gradient),
  BINARY("sub", "y = a - b, broadcast", "", sum_gradient),
  BINARY("mul", "y = a b elementwise, broadcast", "a b", binary_gradient),
  BINARY("div", "y = a / b elementwise, broadcast", "a b", binary_gradient),
  UNARY("neg", "y = -x"),
  UNARY("exp", "y = e^x"),
  UNARY("log", "y = ln x"),
  UNARY("sqrt", "y = sqrt(x)"),
  UNARY("square", "y = x^2"),
  UNARY("abs", "y = |x|, gradient 0 at 0"),
  UNARY("reciprocal", "y = 1 / x"),
  UNARY("relu", "y = max(x, 0), gradient 0 at 0"),
  UNARY("sigmoid", "y = 1 / (1 + e^-x)"),
  UNARY("tanh", "y = tanh x"),
  UNARY("softplus", "y = ln(1 + e^x)"),
  UNARY("silu", "y = x sigmoid(x) (arXiv 1702.03118)"),
  {"gelu", "x[*] | approx=none|tanh -> y[*]", unary_apply, unary_gradient, "x", "y = x Phi(x), exact or by tanh (arXiv 1606.08415)",
   NULL, NULL},
  {"cast", "x[*] | to=f32|f64|bf16 -> y[*]", cast_apply, cast_gradient, "", "y = x in another real dtype; so is the gradient",
   cast_check, NULL},
  {"affine", "x[*] | scale=1 shift=0 -> y[*]", affine_apply, affine_gradient, "", "y = scale x + shift", NULL, NULL},
  {"matmul", "a~[*?,M,K] b~[*?,K,N] -> y[*,M,N]", matmul_apply, matmul_gradient, "a b",
   "y = a b; one of them may have no leading dims and is then shared", matmul_check, NULL},
  {"sum", "x[*] | dim=0 -> y", sum_apply, sum_gradient_all, "", "sum over dim (from 1; negative from the end), 0: over all",
   sum_check, sum_shape},
  {"mean", "x[*] | dim=0 -> y", mean_apply, mean_gradient, "", "mean over dim (from 1; negative from the end), 0: over all",
   sum_check, sum_shape},
  {"softmax", "x[*] | dim=-1 -> y[*]", softmax_apply, softmax_gradient, "y", "y = e^x / sum e^x along dim", softmax_check, NULL},
  {0},
};
