/* ssm.c - the selective scan, the gate that joins its directions, its implicit attention, and the scan of Mamba-2. */
#include "gate.h"
#include "op.h"
#include "scan_pair.h"
#include "ssd.h"

/* ---- selective_scan: in u dt A B C D z bias weight, out y h; options softplus reverse -------------- */
/* ---- scan_pair: in u dt A B C D bias weight, then the same of the direction back; out y y_b h h_b --- */

/* Where the inputs of a scan stand; z -1: nowhere. */
typedef struct { int u, dt, A, b, c, D, z, bias, weight; } ScanPlaces;
static const ScanPlaces scan_places[] = {{0, 1, 2, 3, 4, 5, 6, 7, 8}};
static const ScanPlaces pair_places[] = {{0, 1, 2, 3, 4, 5, -1, 6, 7}, {8, 9, 10, 11, 12, 13, -1, 14, 15}};

/* A gradient of dt in rows of another stride than its width, which kernels write where there is a weight, is made beside. */
typedef struct {
  ScanShape s;
  ScanInputs in;
  ScanGradients to;
  const void *gy;
  CabTensor *beside;
} ScanCall;

static ScanCall scan_call(const CabCall *c, const ScanPlaces *at, bool reverse) {
  CabTensor *const *in = c->in, *z = at->z < 0 ? NULL : in[at->z], *weight = in[at->weight];
  return (ScanCall){
    .s = {.B = cab_dim(c, 'B'), .L = cab_dim(c, 'L'), .E = cab_dim(c, 'E'), .N = cab_dim(c, 'N'), .R = weight ? cab_dim(c, 'R') : 0,
          .softplus = c->option[0] != 0, .reverse = reverse, .ldt = cab_ld(in[at->dt]), .ldb = cab_ld(in[at->b]),
          .ldc = cab_ld(in[at->c]), .ldz = cab_ld(z)},
    .in = {.u = CAB_DATA(in[at->u]), .dt = CAB_DATA(in[at->dt]), .A = CAB_DATA(in[at->A]), .b = CAB_DATA(in[at->b]),
           .c = CAB_DATA(in[at->c]), .D = CAB_DATA(in[at->D]), .z = CAB_DATA(z), .bias = CAB_DATA(in[at->bias]),
           .weight = CAB_DATA(weight)}};
}

/* The same with gradients. output: whose gradient is gy. */
static CabStatus scan_back(CabCall *c, const ScanPlaces *at, bool reverse, int output, ScanCall *to) {
  CabTensor **g = c->gin, *gy, *gdt = g[at->dt];
  *to = scan_call(c, at, reverse);
  const ScanShape *s = &to->s;
  const int64_t count = s->B * s->L * s->E;
  if (!(gy = cab_gout(c, output, count))) return cab_error()->code;
  if (gdt && !s->R && !cab_tensor_contiguous(gdt) && !(gdt = to->beside = cab_scratch(c, c->dtype, count))) return cab_error()->code;
  to->gy = CAB_DATA(gy);
  to->to = (ScanGradients){.u = CAB_DATA(g[at->u]), .dt = CAB_DATA(gdt), .A = CAB_DATA(g[at->A]), .b = CAB_DATA(g[at->b]),
                           .c = CAB_DATA(g[at->c]), .D = CAB_DATA(g[at->D]), .z = at->z < 0 ? NULL : CAB_DATA(g[at->z]),
                           .bias = CAB_DATA(g[at->bias]), .weight = CAB_DATA(g[at->weight]), .ldt = s->R ? cab_ld(gdt) : s->E,
                           .ldb = cab_ld(g[at->b]), .ldc = cab_ld(g[at->c]), .add_b = c->add[at->b], .add_c = c->add[at->c]};
  return CAB_OK;
}

/* Takes what was made beside to its place. */
static CabStatus scan_settle(CabCall *c, const ScanPlaces *at, const ScanCall *from) {
  CabTensor *to = c->gin[at->dt];
  if (!from->beside) return CAB_OK;
  CabTensor *same = cab_reshape(from->beside, to->rank, to->shape);
  const CabStatus status = same ? cab_tensor_copy(to, same) : cab_error()->code;
  cab_tensor_release(same);
  return status;
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

/* dt has a column for each channel, or for each of the weight's. */
static CabStatus check_steps(CabCall *c, const ScanPlaces *at) {
  const int64_t R = cab_dim(c, 'R'), E = cab_dim(c, 'E');
  if (c->in[at->weight])
    return R >= 1 && R <= SCAN_RANK ? CAB_OK : cab_call_fail(c, "'weight' has %lld columns, expected 1 to %d (else: dt = linear(dt, weight))",
                                                             (long long)R, SCAN_RANK);
  if (R != E)
    return cab_call_fail(c, "'dt' has %lld columns, expected E=%lld, or a weight [E=%lld,R=%lld]", (long long)R, (long long)E, (long long)E,
                         (long long)R);
  return cab_tensor_contiguous(c->in[at->dt]) ? CAB_OK : cab_call_copy_input(c, at->dt);
}

static CabStatus selective_check(CabCall *c) {
  CAB_TRY(check_steps(c, scan_places));
  return scan_check(c);
}

static CabStatus pair_check(CabCall *c) {
  if (!c->in[pair_places[0].weight] != !c->in[pair_places[1].weight])
    return cab_call_fail(c, "'weight' and 'weight_b': give both or neither");
  for (int i = 0; i < SCAN_PAIR; i++) CAB_TRY(check_steps(c, &pair_places[i]));
  return scan_check(c);
}

static CabStatus scan_apply(CabCall *c) {
  const ScanCall scan = scan_call(c, scan_places, c->option[1] != 0);
  RUN(c, scan_forward, &scan.s, &scan.in, CAB_DATA(c->out[0]), c->wants_grad ? CAB_DATA(c->out[1]) : NULL);
  return CAB_OK;
}

static CabStatus scan_gradient(CabCall *c) {
  ScanCall scan;
  CAB_TRY(scan_back(c, scan_places, c->option[1] != 0, 0, &scan));
  CabTensor *partial = cab_scratch(c, cab_wide(c->dtype), scan_partial(&scan.s));
  if (!partial) return cab_error()->code;
  RUN(c, scan_backward, &scan.s, &scan.in, CAB_DATA(c->out[1]), scan.gy, &scan.to, CAB_DATA(partial));
  return scan_settle(c, scan_places, &scan);
}

static CabStatus pair_apply(CabCall *c) {
  ScanShape s[SCAN_PAIR];
  ScanInputs in[SCAN_PAIR];
  void *y[SCAN_PAIR], *h[SCAN_PAIR];
  for (int i = 0; i < SCAN_PAIR; i++) {
    const ScanCall scan = scan_call(c, &pair_places[i], i);
    s[i] = scan.s, in[i] = scan.in;
    y[i] = CAB_DATA(c->out[i]), h[i] = c->wants_grad ? CAB_DATA(c->out[SCAN_PAIR + i]) : NULL;
  }
  RUN(c, scan_pair_forward, s, in, y, h);
  return CAB_OK;
}

static CabStatus pair_gradient(CabCall *c) {
  ScanCall scan[SCAN_PAIR];
  ScanShape s[SCAN_PAIR];
  ScanInputs in[SCAN_PAIR];
  ScanGradients to[SCAN_PAIR];
  const void *h[SCAN_PAIR], *gy[SCAN_PAIR];
  for (int i = 0; i < SCAN_PAIR; i++) {
    CAB_TRY(scan_back(c, &pair_places[i], i, i, &scan[i]));
    s[i] = scan[i].s, in[i] = scan[i].in, to[i] = scan[i].to, gy[i] = scan[i].gy;
    h[i] = CAB_DATA(c->out[SCAN_PAIR + i]);
  }
  CabTensor *partial = cab_scratch(c, cab_wide(c->dtype), scan_partial(&s[0]));
  if (!partial) return cab_error()->code;
  RUN(c, scan_pair_backward, s, in, h, gy, to, CAB_DATA(partial));
  for (int i = 0; i < SCAN_PAIR; i++) CAB_TRY(scan_settle(c, &pair_places[i], &scan[i]));
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
  ScanShape s = {.B = cab_dim(c, 'B'), .L = cab_dim(c, 'L'), .E = cab_dim(c, 'E'), .N = cab_dim(c, 'N'), .softplus = c->option[0] != 0,
                 .reverse = c->option[1] != 0, .ldt = cab_dim(c, 'E'), .ldb = cab_ld(in[2]), .ldc = cab_ld(in[3])};
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
   "u[B,L,E] dt~[B,L,R] A^[E,N] B~[B,L,N] C~[B,L,N] D^[E]? z~[B,L,E]? bias^[E]? weight^[E,R]? | softplus=true reverse=false -> "
   "y[B,L,E] ~h^[B,K,N,E]",
   scan_apply, scan_gradient, "u dt A B C D z bias weight h",
   "h_t = exp(d_t A) h_t-1 + d_t u_t B_t, y_t = (C_t h_t + D u_t) silu(z_t), d = softplus(dt + bias); with a weight of 1 to 64 columns "
   "d = softplus(weight dt + bias), without one R = E (arXiv 2312.00752, alg. 2)",
   selective_check, NULL, "B C", "dt B C"},
  {"scan_pair",
   "u[B,L,E] dt~[B,L,R] A^[E,N] B~[B,L,N] C~[B,L,N] D^[E]? bias^[E]? weight^[E,R]? u_b[B,L,E] dt_b~[B,L,R] A_b^[E,N] B_b~[B,L,N] "
   "C_b~[B,L,N] D_b^[E]? bias_b^[E]? weight_b^[E,R]? | softplus=true -> y[B,L,E] y_b[B,L,E] ~h^[B,K,N,E] ~h_b^[B,K,N,E]",
   pair_apply, pair_gradient, "u dt A B C D bias weight u_b dt_b A_b B_b C_b D_b bias_b weight_b h h_b",
   "two selective scans at once, the second from the last token to the first; weights as for selective_scan (arXiv 2401.09417, alg. 1)",
   pair_check, NULL, "B C B_b C_b", "dt B C dt_b B_b C_b"},
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
