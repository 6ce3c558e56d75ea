/* ssm.c - the selective scan, the gate that joins its directions, and its implicit attention. */
#include "gate.h"
#include "op.h"
#include "selective_scan.h"

/* ---- selective_scan: in u dt A B C D z bias, out y h; options softplus reverse ------------------ */

static ScanShape scan_shape(const CabCall *c, const CabTensor *b, const CabTensor *cc, const CabTensor *z) {
  return (ScanShape){.B = cab_dim(c, 'B'), .L = cab_dim(c, 'L'), .E = cab_dim(c, 'E'), .N = cab_dim(c, 'N'),
                     .softplus = c->option[0] != 0, .reverse = c->option[1] != 0,
                     .ldb = cab_ld(b), .ldc = cab_ld(cc), .ldz = cab_ld(z)};
}

static CabStatus check_states(const CabCall *c) {
  int64_t N = cab_dim(c, 'N');
  return N <= 256 ? CAB_OK : cab_call_fail(c, "%lld states, expected at most 256", (long long)N);
}

/* K: states kept for backward, one for each chunk; none where nobody will ask. */
static CabStatus scan_check(CabCall *c) {
  cab_call_set_dim(c, 'K', c->wants_grad ? (cab_dim(c, 'L') + SCAN_CHUNK - 1) / SCAN_CHUNK : 0);
  return check_states(c);
}

static CabStatus scan_apply(CabCall *c) {
  CabTensor **in = c->in;
  ScanShape s = scan_shape(c, in[3], in[4], in[6]);
  RUN(c, scan_forward, &s, CAB_DATA(in[0]), CAB_DATA(in[1]), CAB_DATA(in[2]), CAB_DATA(in[3]), CAB_DATA(in[4]), CAB_DATA(in[5]),
      CAB_DATA(in[6]), CAB_DATA(in[7]), CAB_DATA(c->out[0]), c->wants_grad ? CAB_DATA(c->out[1]) : NULL);
  return CAB_OK;
}

static CabStatus scan_gradient(CabCall *c) {
  CabTensor **in = c->in, **g = c->gin;
  ScanShape s = scan_shape(c, in[3], in[4], in[6]);
  CabTensor *partial = cab_scratch(c, cab_wide(c->dtype), scan_partial(&s));
  if (!partial) return cab_error()->code;
  RUN(c, scan_backward, &s, CAB_DATA(in[0]), CAB_DATA(in[1]), CAB_DATA(in[2]), CAB_DATA(in[3]), CAB_DATA(in[4]), CAB_DATA(in[5]),
      CAB_DATA(in[6]), CAB_DATA(in[7]), CAB_DATA(c->out[1]), CAB_DATA(c->gout[0]), CAB_DATA(g[0]), CAB_DATA(g[1]), CAB_DATA(g[2]),
      CAB_DATA(g[3]), CAB_DATA(g[4]), CAB_DATA(g[5]), CAB_DATA(g[6]), CAB_DATA(g[7]), CAB_DATA(partial));
  return CAB_OK;
}

/* ---- gate: in a z b -------------------------------------------------------------------------- */

static CabStatus gate_apply(CabCall *c) {
  RUN(c, gate_forward, c->rows, cab_dim(c, 'E'), c->option[0], CAB_DATA(c->in[0]), CAB_DATA(c->in[2]), CAB_DATA(c->in[1]),
      cab_ld(c->in[1]), CAB_DATA(c->out[0]));
  return CAB_OK;
}

static CabStatus gate_gradient(CabCall *c) {
  CabTensor *ga = c->gin[0] ? c->gin[0] : c->gin[2];
  RUN(c, gate_backward, c->rows, cab_dim(c, 'E'), c->option[0], CAB_DATA(c->in[0]), CAB_DATA(c->in[2]), CAB_DATA(c->in[1]),
      cab_ld(c->in[1]), CAB_DATA(c->gout[0]), CAB_DATA(ga), CAB_DATA(c->gin[1]));
  if (c->gin[0] && c->gin[2]) cab_share_gin(c, 2, ga);
  return CAB_OK;
}

/* ---- scan_matrix: in dt A B C bias; options softplus reverse ----------------------------------- */

static CabStatus matrix_check(CabCall *c) { return check_states(c); }

static CabStatus matrix_apply(CabCall *c) {
  CabTensor **in = c->in;
  ScanShape s = scan_shape(c, in[2], in[3], NULL);
  RUN(c, scan_matrix, &s, CAB_DATA(in[0]), CAB_DATA(in[1]), CAB_DATA(in[2]), CAB_DATA(in[3]), CAB_DATA(in[4]), CAB_DATA(c->out[0]));
  return CAB_OK;
}

const CabOp cab_ops_ssm[] = {
  {"selective_scan",
   "u[B,L,E] dt[B,L,E] A^[E,N] B~[B,L,N] C~[B,L,N] D^[E]? z~[B,L,E]? bias^[E]? | softplus=true reverse=false -> y[B,L,E] ~h^[B,K,N,E]",
   scan_apply, scan_gradient, "u dt A B C D z bias h",
   "h_t = exp(d_t A) h_t-1 + d_t u_t B_t, y_t = (C_t h_t + D u_t) silu(z_t), d = softplus(dt + bias) (arXiv 2312.00752, alg. 2)",
   scan_check, NULL},
  {"gate", "a[*,E] z~[*,E] b[*,E]? | scale=1 -> y[*,E]", gate_apply, gate_gradient, "a z b",
   "y = scale (a + b) silu(z): joins both scan directions (arXiv 2401.09417, alg. 1)", NULL, NULL},
  {"scan_matrix", "dt[B,L,E] A^[E,N] B~[B,L,N] C~[B,L,N] bias^[E]? | softplus=true reverse=false -> m[B,L,L]", matrix_apply, NULL,
   "", "implicit attention of a scan, mean over channels; no gradient (arXiv 2403.01590)", matrix_check, NULL},
  {0},
};
