/* loss.c - scalar losses. */
#include "loss.h"

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
  {0},
};
