/* op.c - applies op rows: checks arguments against the signature, allocates, runs, and records the node whose backward
 * builds the call again from what `saves` lists. */
#include <stdarg.h>
#include <string.h>

#include "elementwise.h"
#include "op.h"

/* ---- for rows ------------------------------------------------------------------------------- */

int64_t cab_dim(const CabCall *c, char letter) { return c->dim[letter - 'A']; }
void cab_call_set_dim(CabCall *c, char letter, int64_t size) { c->dim[letter - 'A'] = size; }

int64_t cab_ld(const CabTensor *t) {
  int64_t ld = 0;
  if (t) cab_tensor_rows(t, &ld);
  return ld;
}

CabStatus cab_call_fail(const CabCall *c, const char *fmt, ...) {
  char text[900];
  va_list args;
  va_start(args, fmt);
  vsnprintf(text, sizeof text, fmt, args);
  va_end(args);
  return cab_fail(CAB_E_LUA, "%s: %s", c->op->name, text);
}

CabStatus cab_call_constant(const CabCall *c, int input) {
  if (!c->in[input] || !c->in[input]->requires_grad || !cab_grad_enabled()) return CAB_OK;
  const CabSignature *sig = cab_op_find(c->op->name);
  return cab_call_fail(c, "no gradient reaches '%s': detach it", sig ? sig->in[input].name : "?");
}

static CabStatus replace_input(CabCall *c, int input, CabTensor *t) {
  if (!t) return cab_error()->code;
  cab_tensor_release(c->in[input]);
  c->in[input] = t;
  return CAB_OK;
}
CabStatus cab_call_copy_input(CabCall *c, int input) {
  return replace_input(c, input, cab_tensor_contiguous_copy(c->in[input]));
}

CabStatus cab_call_check_ids(const CabCall *c, int input, int64_t least, int64_t end) {
  CabTensor *ids = c->in[input];
  if (c->device->capturing) return CAB_OK; /* the steps before looked at them; the kernels stay in bounds */
  CabTensor *host = ids->storage->device == cab_cpu() ? cab_tensor_retain(ids) : cab_tensor_to(ids, cab_cpu(), CAB_I32);
  if (!host) return cab_error()->code;
  const int32_t *id = cab_tensor_data(host);
  int64_t n = cab_tensor_count(host), bad = 0;
  while (bad < n && id[bad] >= least && id[bad] < end) bad++;
  int32_t found = bad < n ? id[bad] : 0;
  cab_tensor_release(host);
  if (bad == n) return CAB_OK;
  return cab_call_fail(c, "'%s' holds %d at element %lld, expected %lld to %lld", cab_op_find(c->op->name)->in[input].name, found,
                       (long long)bad + 1, (long long)least, (long long)end - 1);
}

void cab_share_gin(CabCall *c, int input, CabTensor *gradient) {
  cab_tensor_release(c->gin[input]);
  c->gin[input] = cab_tensor_retain(gradient);
}

CabDtype cab_wide(CabDtype real) { return real == CAB_BF16 ? CAB_F32 : real; }

CabTensor *cab_scratch(CabCall *c, CabDtype dtype, int64_t count) {
  if (c->scratches == (int)(sizeof c->scratch / sizeof *c->scratch)) {
    cab_fail(CAB_E_BUG, "%s: too many scratch buffers", c->op->name);
    return NULL;
  }
  CabTensor *t = cab_tensor_new(c->device, dtype, 1, &count);
  if (t) c->scratch[c->scratches++] = t;
  return t;
}

static CabStatus fill_zero(CabCall *c, CabTensor *t) {
  RUN(c, fill, cab_tensor_count(t), 0.0, cab_tensor_data(t));
  return CAB_OK;
}

CabTensor *cab_gout(CabCall *c, int output, int64_t count) {
  if (c->gout[output]) return c->gout[output];
  CabTensor *t = cab_scratch(c, c->dtype, count);
  return t && fill_zero(c, t) == CAB_OK ? t : NULL;
}

/* ---- checks --------------------------------------------------------------------------------- */

typedef struct { /* which dims have a value so far */
  uint32_t letters;
  bool lead;
} Bound;

static size_t put(char *out, size_t at, size_t capacity, const char *fmt, ...) {
  va_list args;
  va_start(args, fmt);
  int n = at < capacity ? vsnprintf(out + at, capacity - at, fmt, args) : 0;
  va_end(args);
  return at + (n > 0 ? (size_t)n : 0);
}

/* "[B=4,L,3]": what is known of the dims an argument must have. */
static void expected_text(const CabCall *c, const CabArgSpec *spec, Bound bound, char *out, size_t capacity) {
  size_t at = put(out, 0, capacity, "%s[", spec->integer ? cab_dtype_name(spec->dtype) : "");
  const char *comma = "";
  if (spec->lead && !bound.lead) at = put(out, at, capacity, "*"), comma = ",";
  for (int i = 0; spec->lead && bound.lead && i < c->lead_rank; i++, comma = ",")
    at = put(out, at, capacity, "%s%lld", comma, (long long)c->lead[i]);
  for (int i = 0; i < spec->rank; i++, comma = ",") {
    int letter = spec->dims[i][0] - 'A';
    at = put(out, at, capacity, "%s%s", comma, spec->dims[i]);
    if (letter >= 0 && bound.letters >> letter & 1) at = put(out, at, capacity, "=%lld", (long long)c->dim[letter]);
  }
  put(out, at, capacity, "]");
}

static CabStatus wrong_shape(const CabCall *c, const CabArgSpec *spec, const CabTensor *t, Bound bound) {
  char have[160], want[256];
  expected_text(c, spec, bound, want, sizeof want);
  if (!t && spec->broadcast) return cab_call_fail(c, "'%s' is missing", spec->name);
  if (!t) return cab_call_fail(c, "'%s' is missing, expected %s", spec->name, want);
  return cab_call_fail(c, "'%s' is %s, expected %s", spec->name, cab_shape_text(t, have), want);
}

static CabStatus check_kind(CabCall *c, const CabArgSpec *spec, const CabTensor *t, const char **first) {
  if (!t->storage) return cab_call_fail(c, "'%s': tensor is closed (closed at %s)", spec->name, t->closed_at[0] ? t->closed_at : "?");
  if (!c->device) c->device = t->storage->device;
  if (t->storage->device != c->device)
    return cab_call_fail(c, "'%s' is on %s, the arguments before it on %s", spec->name, t->storage->device->name, c->device->name);
  if (spec->integer) {
    if (t->dtype == spec->dtype) return CAB_OK;
    return cab_call_fail(c, "'%s' is %s, expected %s", spec->name, cab_dtype_name(t->dtype), cab_dtype_name(spec->dtype));
  }
  if (t->dtype != CAB_F32 && t->dtype != CAB_F64 && t->dtype != CAB_BF16)
    return cab_call_fail(c, "'%s' is %s, expected f32, f64 or bf16", spec->name, cab_dtype_name(t->dtype));
  if (!*first) *first = spec->name, c->dtype = t->dtype;
  CabDtype want = spec->wide ? cab_wide(c->dtype) : c->dtype;
  if (t->dtype == want) return CAB_OK;
  if (want != c->dtype) return cab_call_fail(c, "'%s' is %s, expected %s", spec->name, cab_dtype_name(t->dtype), cab_dtype_name(want));
  return cab_call_fail(c, "'%s' is %s but '%s' is %s", spec->name, cab_dtype_name(t->dtype), *first, cab_dtype_name(c->dtype));
}

/* Joins t's shape with c->lead, aligned on the right: sizes are alike or 1. */
static CabStatus check_broadcast(CabCall *c, const CabArgSpec *spec, const CabTensor *t) {
  int rank = t->rank > c->lead_rank ? t->rank : c->lead_rank;
  int64_t joined[CAB_MAX_RANK] = {0};
  for (int i = 0; i < rank; i++) {
    int it = i - (rank - t->rank), ic = i - (rank - c->lead_rank);
    int64_t a = it >= 0 ? t->shape[it] : 1, b = ic >= 0 ? c->lead[ic] : 1;
    if (a != b && a != 1 && b != 1) {
      CabTensor other = {.dtype = c->dtype, .rank = c->lead_rank};
      char have[160], with[160];
      memcpy(other.shape, c->lead, sizeof other.shape);
      return cab_call_fail(c, "'%s' is %s and does not broadcast with %s", spec->name, cab_shape_text(t, have), cab_shape_text(&other, with));
    }
    joined[i] = a == 1 ? b : a;
  }
  memcpy(c->lead, joined, (size_t)rank * sizeof *joined);
  c->lead_rank = rank;
  return CAB_OK;
}

static CabStatus check_shape(CabCall *c, const CabArgSpec *spec, const CabTensor *t, Bound *bound) {
  Bound before = *bound;
  if (spec->broadcast) return check_broadcast(c, spec, t);
  int lead = t->rank - spec->rank;
  if (lead < 0 || (lead > 0 && !spec->lead)) return wrong_shape(c, spec, t, before);
  if (spec->lead && !(spec->lead_optional && lead == 0)) {
    if (!bound->lead) memcpy(c->lead, t->shape, (size_t)lead * sizeof *c->lead), c->lead_rank = lead, bound->lead = true;
    else if (lead != c->lead_rank || memcmp(c->lead, t->shape, (size_t)lead * sizeof *c->lead)) return wrong_shape(c, spec, t, before);
  }
  for (int i = 0; i < spec->rank; i++) {
    int letter = spec->dims[i][0] - 'A';
    int64_t size = t->shape[lead + i], want = size;
    if (letter < 0) {
      want = 0;
      for (const char *p = spec->dims[i]; *p; p++) want = want * 10 + (*p - '0');
    } else if (bound->letters >> letter & 1) {
      want = c->dim[letter];
    }
    if (size != want) return wrong_shape(c, spec, t, before);
    if (letter >= 0) c->dim[letter] = size, bound->letters |= 1u << letter;
  }
  return CAB_OK;
}

/* Fills c->in with one reference each, in a layout the row can read. */
static CabStatus take_inputs(CabCall *c, const CabSignature *sig, CabTensor **in) {
  Bound bound = {0};
  const char *first = NULL;
  for (int i = 0; i < sig->inputs; i++) {
    const CabArgSpec *spec = &sig->in[i];
    if (!in[i] && spec->optional) continue;
    if (!in[i]) return wrong_shape(c, spec, NULL, bound);
    CAB_TRY(check_kind(c, spec, in[i], &first));
    CAB_TRY(check_shape(c, spec, in[i], &bound));
  }
  c->rows = 1;
  for (int i = 0; i < c->lead_rank; i++) c->rows *= c->lead[i];
  for (int i = 0; i < sig->inputs; i++) {
    int64_t ld;
    if (!in[i]) continue;
    bool as_is = sig->in[i].broadcast || (sig->in[i].rows && cab_tensor_rows(in[i], &ld));
    CAB_TRY(replace_input(c, i, as_is ? cab_tensor_retain(in[i]) : cab_tensor_contiguous_copy(in[i])));
    c->in[i]->requires_grad = in[i]->requires_grad; /* also of a copy: cab_call_constant asks */
  }
  return CAB_OK;
}

/* ---- outputs -------------------------------------------------------------------------------- */

static CabTensor *new_output(CabCall *c, const CabSignature *sig, int output) {
  const CabArgSpec *spec = &sig->out[output];
  int64_t shape[CAB_MAX_RANK];
  int rank = 0;
  if (spec->inferred) {
    sig->op->shape(c, output, &rank, shape);
  } else {
    int lead = spec->lead || spec->broadcast ? c->lead_rank : 0;
    if (lead + spec->rank > CAB_MAX_RANK) {
      cab_call_fail(c, "'%s' would have more than %d dims", spec->name, CAB_MAX_RANK);
      return NULL;
    }
    for (; rank < lead; rank++) shape[rank] = c->lead[rank];
    for (int i = 0; i < spec->rank; i++) {
      char d = spec->dims[i][0];
      shape[rank++] = d >= 'A' ? c->dim[d - 'A'] : d - '0';
    }
  }
  CabDtype dtype = spec->integer ? spec->dtype : spec->wide ? cab_wide(c->dtype) : c->dtype;
  return cab_tensor_new(c->device, dtype, rank, shape);
}

static CabStatus make_outputs(CabCall *c, const CabSignature *sig) {
  for (int i = 0; i < sig->outputs + sig->kept; i++)
    if (!c->out[i] && !(c->out[i] = new_output(c, sig, i))) return cab_error()->code;
  return CAB_OK;
}

/* ---- backward ------------------------------------------------------------------------------- */

typedef struct { /* what is left of a call until its backward */
  const CabSignature *sig;
  CabDevice *device;
  CabDtype dtype;
  uint32_t in, out; /* which saved values the node holds, in the order of the bits */
  int lead_rank;
  int64_t lead[CAB_MAX_RANK], rows, dim[26];
  double option[CAB_MAX_ARGS];
} Record;

/* full: the gradient at the broadcast shape. Sums it down to the edge's shape, one run of dims at a time. */
static CabStatus reduce_broadcast(CabCall *c, const CabEdge *edge, CabTensor *full, CabTensor **out) {
  int rank = c->lead_rank, pad = rank - edge->rank;
  int64_t now[CAB_MAX_RANK], want[CAB_MAX_RANK];
  for (int i = 0; i < rank; i++) now[i] = c->lead[i], want[i] = i >= pad ? edge->shape[i - pad] : 1;
  CabTensor *t = cab_tensor_retain(full);
  while (true) {
    int stop = rank; /* the last run of dims to sum is [start, stop) */
    while (stop && now[stop - 1] == want[stop - 1]) stop--;
    if (!stop) break;
    int start = stop - 1;
    while (start && want[start - 1] == 1) start--;
    int64_t outer = 1, middle = 1, inner = 1, shape[CAB_MAX_RANK];
    for (int i = 0; i < rank; i++) *(i < start ? &outer : i < stop ? &middle : &inner) *= now[i];
    for (int i = start; i < stop; i++) now[i] = 1;
    memcpy(shape, now, sizeof shape);
    CabTensor *less = cab_tensor_new(c->device, full->dtype, rank, shape);
    sum_middle_fn *sum = less ? (sum_middle_fn *)cab_twin(c->device, full->dtype, "sum_middle") : NULL;
    if (sum) sum(c->device->stream, outer, middle, inner, 1.0, cab_tensor_data(t), cab_tensor_data(less));
    cab_tensor_release(t);
    t = less;
    if (!sum || cab_launched(c->device, "sum_middle")) return cab_tensor_release(t), cab_error()->code;
  }
  *out = t->rank == edge->rank ? t : cab_reshape(t, edge->rank, edge->shape);
  if (*out != t) cab_tensor_release(t);
  return *out ? CAB_OK : cab_error()->code;
}

static void restore_call(const CabNode *node, CabCall *c) {
  const Record *r = node->ctx;
  int slot = 0;
  c->op = r->sig->op, c->device = r->device, c->dtype = r->dtype;
  c->lead_rank = r->lead_rank, c->rows = r->rows;
  memcpy(c->lead, r->lead, sizeof c->lead);
  memcpy(c->dim, r->dim, sizeof c->dim);
  memcpy(c->option, r->option, sizeof c->option);
  for (int i = 0; i < CAB_MAX_ARGS; i++)
    if (r->in >> i & 1) c->in[i] = node->saved[slot++];
  for (int i = 0; i < CAB_MAX_ARGS; i++)
    if (r->out >> i & 1) c->out[i] = node->saved[slot++];
}

static CabStatus make_gradients(CabNode *node, CabCall *c, CabTensor **gout) {
  const CabSignature *sig = ((const Record *)node->ctx)->sig;
  for (int i = 0; i < node->outputs; i++) c->gout[i] = gout[i]; /* contiguous: the tape sees to it */
  for (int i = 0; i < node->inputs; i++) {
    const CabEdge *edge = &node->in[i];
    if (!cab_node_wants(node, i)) continue;
    if (sig->in[i].broadcast) c->gin[i] = cab_tensor_new(c->device, edge->dtype, c->lead_rank, c->lead);
    else c->gin[i] = cab_node_gradient(node, i, sig->adds_in >> i & 1, sig->strided_in >> i & 1, &c->add[i]);
    if (!c->gin[i]) return cab_error()->code;
  }
  return CAB_OK;
}

static void free_scratch(CabCall *c) {
  for (int i = 0; i < c->scratches; i++) cab_tensor_release(c->scratch[i]);
}

static CabStatus backward(CabNode *node, CabTensor **gout, CabTensor **gin) {
  const CabSignature *sig = ((const Record *)node->ctx)->sig;
  CabCall c = {0};
  restore_call(node, &c);
  CabStatus status = make_gradients(node, &c, gout);
  if (status == CAB_OK) status = sig->op->backward(&c);
  for (int i = 0; i < node->inputs; i++) {
    if (!c.gin[i]) continue;
    if (status == CAB_OK && sig->in[i].broadcast) status = reduce_broadcast(&c, &node->in[i], c.gin[i], &gin[i]);
    else if (status == CAB_OK) gin[i] = cab_tensor_retain(c.gin[i]);
    cab_tensor_release(c.gin[i]);
  }
  free_scratch(&c);
  return status;
}

static void destroy(CabNode *node) { cab_free(node->ctx); }

/* ---- apply ---------------------------------------------------------------------------------- */

static CabStatus open_node(const CabSignature *sig, CabTensor **in, CabNode **node) {
  bool wanted = false;
  for (int i = 0; i < sig->inputs; i++) wanted |= in[i] && in[i]->requires_grad;
  if (!wanted || !sig->op->backward || !cab_grad_enabled()) return CAB_OK;
  *node = cab_node_new(sig->op->name, sig->inputs, in, sig->outputs);
  return *node ? CAB_OK : cab_error()->code;
}

static CabStatus record(const CabSignature *sig, CabCall *c, CabNode *node) {
  Record *r = cab_malloc(1, sizeof *r);
  if (!r) return cab_error()->code;
  *r = (Record){.sig = sig, .device = c->device, .dtype = c->dtype, .lead_rank = c->lead_rank, .rows = c->rows};
  memcpy(r->lead, c->lead, sizeof r->lead);
  memcpy(r->dim, c->dim, sizeof r->dim);
  memcpy(r->option, c->option, sizeof r->option);
  node->ctx = r, node->backward = backward, node->destroy = destroy;
  for (int i = 0; i < sig->inputs; i++)
    if (sig->saves_in >> i & 1 && c->in[i]) {
      if (cab_node_save(node, c->in[i]) < 0) return cab_error()->code;
      r->in |= 1u << i;
    }
  for (int i = 0; i < sig->outputs + sig->kept; i++)
    if (sig->saves_out >> i & 1) {
      if (cab_node_save(node, c->out[i]) < 0) return cab_error()->code;
      r->out |= 1u << i;
    }
  for (int i = 0; i < sig->outputs; i++) cab_node_attach(node, i, c->out[i]);
  return CAB_OK;
}

static CabStatus run_forward(const CabSignature *sig, CabCall *c, CabTensor **in, CabNode **node) {
  CAB_TRY(take_inputs(c, sig, in));
  CAB_TRY(open_node(sig, in, node));
  c->wants_grad = *node != NULL;
  if (sig->op->check) CAB_TRY(sig->op->check(c));
  CAB_TRY(make_outputs(c, sig));
  CAB_TRY(sig->op->forward(c));
  return *node ? record(sig, c, *node) : CAB_OK;
}

CabStatus cab_apply(const CabSignature *sig, CabTensor **in, const double *option, CabTensor **out) {
  CabCall c = {.op = sig->op, .dtype = CAB_F32};
  CabNode *node = NULL;
  for (int i = 0; i < sig->options; i++) c.option[i] = option ? option[i] : sig->option[i].initial;
  CabStatus status = run_forward(sig, &c, in, &node);
  for (int i = 0; i < sig->outputs + sig->kept; i++) {
    if (i < sig->outputs) out[i] = NULL;
    if (status == CAB_OK && i < sig->outputs) out[i] = c.out[i];
    else cab_tensor_release(c.out[i]);
  }
  for (int i = 0; i < sig->inputs; i++) cab_tensor_release(c.in[i]);
  free_scratch(&c);
  cab_node_release(node);
  return status;
}
