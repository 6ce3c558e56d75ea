/* ssm.c - the selective scan, the gate that joins its directions, its implicit attention, and the scan of Mamba-2. */
#include "gate.h"
#include "op.h"
#include "scan_pair.h"
#include "ssd.h"

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

/* ---- scan_pair: in u dt A B C D bias, then the same of the direction back; out y y_b h h_b --------- */

enum { PAIR_U, PAIR_DT, PAIR_A, PAIR_B, PAIR_C, PAIR_D, PAIR_BIAS, PAIR_INPUTS };

static ScanInputs pair_inputs(const CabCall *c, int i, ScanShape *s) {
  CabTensor *const *in = c->in + i * PAIR_INPUTS;
  *s = scan_shape(c, in[PAIR_B], in[PAIR_C], NULL);
  s->reverse = i;
  return (ScanInputs){.u = CAB_DATA(in[PAIR_U]), .dt = CAB_DATA(in[PAIR_DT]), .A = CAB_DATA(in[PAIR_A]), .b = CAB_DATA(in[PAIR_B]),
                      .c = CAB_DATA(in[PAIR_C]), .D = CAB_DATA(in[PAIR_D]), .bias = CAB_DATA(in[PAIR_BIAS])};
}

static CabStatus pair_apply(CabCall *c) {
  ScanShape s[SCAN_PAIR];
  ScanInputs in[SCAN_PAIR];
  void *y[SCAN_PAIR], *h[SCAN_PAIR];
  for (int i = 0; i < SCAN_PAIR; i++) {
    in[i] = pair_inputs(c, i, &s[i]);
    y[i] = CAB_DATA(c->out[i]), h[i] = c->wants_grad ? CAB_DATA(c->out[SCAN_PAIR + i]) : NULL;
  }
  RUN(c, scan_pair_forward, s, in, y, h);
  return CAB_OK;
}

static CabStatus pair_gradient(CabCall *c) {
  ScanShape s[SCAN_PAIR];
  ScanInputs in[SCAN_PAIR];
  ScanGradients to[SCAN_PAIR];
  const void *h[SCAN_PAIR], *gy[SCAN_PAIR];
  for (int i = 0; i < SCAN_PAIR; i++) {
    CabTensor **g = c->gin + i * PAIR_INPUTS, *gout;
    in[i] = pair_inputs(c, i, &s[i]);
    if (!(gout = cab_gout(c, i, s[i].B * s[i].L * s[i].E))) return cab_error()->code;
    gy[i] = CAB_DATA(gout), h[i] = CAB_DATA(c->out[SCAN_PAIR + i]);
    to[i] = (ScanGradients){.u = CAB_DATA(g[PAIR_U]), .dt = CAB_DATA(g[PAIR_DT]), .A = CAB_DATA(g[PAIR_A]), .b = CAB_DATA(g[PAIR_B]),
                            .c = CAB_DATA(g[PAIR_C]), .D = CAB_DATA(g[PAIR_D]), .bias = CAB_DATA(g[PAIR_BIAS])};
  }
  CabTensor *partial = cab_scratch(c, cab_wide(c->dtype), scan_partial(&s[0]));
  if (!partial) return cab_error()->code;
  RUN(c, scan_pair_backward, s, in, h, gy, to, CAB_DATA(partial));
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
      cab_ld(c->in[1]), CAB_DATA(c->gout[0]), CAB_DATA(ga), CAB_DATA(c->gin[1]), cab_ld(c->gin[1]));
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

/* ---- ssd: in x a B C dt D start segment, out y state h; options groups chunk decay --------------------------------- */

enum { SSD_X, SSD_A, SSD_B, SSD_C, SSD_DT, SSD_D, SSD_START, SSD_SEGMENT };
enum { SSD_GROUPS, SSD_CHUNK, SSD_DECAY };

static CabStatus ssd_whole(const CabCall *c, const char *option, double value, int64_t most) {
  if (value == (double)(int64_t)value && value >= 1 && value <= (double)most) return CAB_OK;
  return cab_call_fail(c, "'%s' is %g, expected a whole number from 1 to %lld", option, value, (long long)most);
}

/* Sets P channels and N states of a head, G groups, K chunks whose first states are kept: a GPU keeps none. */
static CabStatus ssd_check(CabCall *c) {
  const int64_t E = cab_dim(c, 'E'), H = cab_dim(c, 'H'), M = cab_dim(c, 'M'), L = cab_dim(c, 'L');
  const CabTensor *start = c->in[SSD_START];
  CAB_TRY(ssd_whole(c, "chunk", c->option[SSD_CHUNK], SSD_MOST));
  CAB_TRY(ssd_whole(c, "groups", c->option[SSD_GROUPS], INT32_MAX));
  const int64_t G = (int64_t)c->option[SSD_GROUPS], chunk = (int64_t)c->option[SSD_CHUNK];
  if (H < 1 || H % G) return cab_call_fail(c, "%lld heads do not share %lld groups evenly", (long long)H, (long long)G);
  if (E % H || M % G)
    return cab_call_fail(c, "E=%lld is not a multiple of %lld heads, or M=%lld not of %lld groups", (long long)E, (long long)H,
                         (long long)M, (long long)G);
  const int64_t P = E / H, N = M / G;
  if (P < 1 || P > SSD_MOST || N < 1 || N > SSD_MOST)
    return cab_call_fail(c, "a head has %lld channels and %lld states, expected 1 to %d of each", (long long)P, (long long)N, SSD_MOST);
  if (start && (cab_dim(c, 'P') != P || cab_dim(c, 'N') != N))
    return cab_call_fail(c, "'start' has %lld channels and %lld states a head, expected %lld and %lld", (long long)cab_dim(c, 'P'),
                         (long long)cab_dim(c, 'N'), (long long)P, (long long)N);
  cab_call_set_dim(c, 'P', P);
  cab_call_set_dim(c, 'N', N);
  cab_call_set_dim(c, 'G', G);
  cab_call_set_dim(c, 'K', c->wants_grad && c->device == cab_cpu() ? (L + chunk - 1) / chunk : 0);
  return CAB_OK;
}

static SsdShape ssd_shape(const CabCall *c) {
  return (SsdShape){.B = cab_dim(c, 'B'), .L = cab_dim(c, 'L'), .H = cab_dim(c, 'H'), .P = cab_dim(c, 'P'), .G = cab_dim(c, 'G'),
                    .N = cab_dim(c, 'N'), .chunk = (int64_t)c->option[SSD_CHUNK], .log = c->option[SSD_DECAY] != 0,
                    .ldx = cab_ld(c->in[SSD_X]), .ldb = cab_ld(c->in[SSD_B]), .ldc = cab_ld(c->in[SSD_C])};
}

static CabStatus ssd_apply(CabCall *c) {
  CabTensor **in = c->in;
  SsdShape s = ssd_shape(c);
  RUN(c, ssd_forward, &s, CAB_DATA(in[SSD_X]), CAB_DATA(in[SSD_A]), CAB_DATA(in[SSD_B]), CAB_DATA(in[SSD_C]), CAB_DATA(in[SSD_DT]),
      CAB_DATA(in[SSD_D]), CAB_DATA(in[SSD_START]), CAB_DATA(in[SSD_SEGMENT]), CAB_DATA(c->out[0]), CAB_DATA(c->out[1]),
      c->wants_grad ? CAB_DATA(c->out[2]) : NULL);
  return CAB_OK;
}

/* gin[input], or a buffer in its place: one gradient is a step on the way to another. */
static CabTensor *ssd_gin(CabCall *c, int input, int64_t count) {
  return c->gin[input] ? c->gin[input] : cab_scratch(c, c->dtype, count);
}

/* carry = the gradient of the last state, zeros if none arrived. */
static CabStatus ssd_seed(CabTensor *carry, CabTensor *from, int64_t count) {
  if (!from) return cab_tensor_fill(carry, 0);
  CabTensor *to = cab_reshape(carry, 1, &count), *flat = cab_reshape(from, 1, &count);
  CabStatus status = to && flat ? cab_tensor_copy(to, flat) : cab_error()->code;
  cab_tensor_release(to);
  cab_tensor_release(flat);
  return status;
}

static CabStatus ssd_gradient(CabCall *c) {
  CabTensor **in = c->in, **g = c->gin;
  SsdShape s = ssd_shape(c);
  const int64_t rows = s.B * s.L, states = s.B * s.H * s.P * s.N;
  CabTensor *gy = cab_gout(c, 0, rows * s.H * s.P), *carry = g[SSD_START];
  CabTensor *gx = ssd_gin(c, SSD_X, rows * s.H * s.P), *ga = ssd_gin(c, SSD_A, rows * s.H);
  CabTensor *gb = ssd_gin(c, SSD_B, rows * s.G * s.N), *gc = ssd_gin(c, SSD_C, rows * s.G * s.N);
  CabTensor *partial = cab_scratch(c, cab_wide(c->dtype), s.B * s.H);
  if (!carry) carry = cab_scratch(c, cab_wide(c->dtype), states);
  if (!gy || !gx || !ga || !gb || !gc || !partial || !carry) return cab_error()->code;
  CAB_TRY(ssd_seed(carry, c->gout[1], states));
  RUN(c, ssd_backward, &s, CAB_DATA(in[SSD_X]), CAB_DATA(in[SSD_A]), CAB_DATA(in[SSD_B]), CAB_DATA(in[SSD_C]), CAB_DATA(in[SSD_DT]),
      CAB_DATA(in[SSD_D]), CAB_DATA(in[SSD_START]), CAB_DATA(in[SSD_SEGMENT]), CAB_DATA(c->out[2]), CAB_DATA(gy), CAB_DATA(carry),
      CAB_DATA(gx), CAB_DATA(ga), CAB_DATA(gb), CAB_DATA(gc), CAB_DATA(g[SSD_DT]), CAB_DATA(g[SSD_D]), CAB_DATA(partial));
  return CAB_OK;
}

const CabOp cab_ops_ssm[] = {
  {"selective_scan",
   "u[B,L,E] dt[B,L,E] A^[E,N] B~[B,L,N] C~[B,L,N] D^[E]? z~[B,L,E]? bias^[E]? | softplus=true reverse=false -> y[B,L,E] ~h^[B,K,N,E]",
   scan_apply, scan_gradient, "u dt A B C D z bias h",
   "h_t = exp(d_t A) h_t-1 + d_t u_t B_t, y_t = (C_t h_t + D u_t) silu(z_t), d = softplus(dt + bias) (arXiv 2312.00752, alg. 2)",
   scan_check, NULL},
  {"scan_pair",
   "u[B,L,E] dt[B,L,E] A^[E,N] B~[B,L,N] C~[B,L,N] D^[E]? bias^[E]? u_b[B,L,E] dt_b[B,L,E] A_b^[E,N] B_b~[B,L,N] C_b~[B,L,N] "
   "D_b^[E]? bias_b^[E]? | softplus=true -> y[B,L,E] y_b[B,L,E] ~h^[B,K,N,E] ~h_b^[B,K,N,E]",
   pair_apply, pair_gradient, "u dt A B C D bias u_b dt_b A_b B_b C_b D_b bias_b h h_b",
   "two selective scans at once, the second from the last token to the first (arXiv 2401.09417, alg. 1)", scan_check, NULL},
  {"gate", "a[*,E] z~[*,E] b[*,E]? | scale=1 -> y[*,E]", gate_apply, gate_gradient, "a z b",
   "y = scale (a + b) silu(z): joins both scan directions (arXiv 2401.09417, alg. 1)", NULL, NULL, NULL, "z"},
  {"scan_matrix", "dt[B,L,E] A^[E,N] B~[B,L,N] C~[B,L,N] bias^[E]? | softplus=true reverse=false -> m[B,L,L]", matrix_apply, NULL,
   "", "implicit attention of a scan, mean over channels; no gradient (arXiv 2403.01590)", matrix_check, NULL},
  {"ssd",
   "x~[B,L,E] a[B,L,H] B~[B,L,M] C~[B,L,M] dt[B,L,H]? D^[H]? start^[B,H,P,N]? segment:i32[B,L]? | groups=1 chunk=64 "
   "decay=softplus|log -> y[B,L,E] state^[B,H,P,N] ~h^[B,K,H,P,N]",
   ssd_apply, ssd_gradient, "x a B C dt D start segment h",
   "per head S_t = exp(l_t) S_t-1 + dt_t x_t (outer) B_t, y_t = S_t C_t + D x_t, l = -softplus(a) or a; a new segment begins with "
   "S = 0 (arXiv 2405.21060, section 6)",
   ssd_check, NULL},
  {0},
};
