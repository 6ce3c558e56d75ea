/* optim.c - AdamW, moving averages, gradient norm, top-k. */
#include "optim.h"

#include <math.h>
#include <string.h>

#include "op.h"
#include "update.h"

/* RUN without a call: the twin for one tensor. */
#define TWIN_FOR(t, name) name##_fn *name##_twin = (name##_fn *)cab_twin((t)->storage->device, (t)->dtype, #name)

static CabStatus check_written(const char *op, const char *what, int index, const CabTensor *t) {
  char text[160];
  if (!t->storage)
    return cab_fail(CAB_E_LUA, "%s: %s %d: tensor is closed (closed at %s)", op, what, index + 1, t->closed_at[0] ? t->closed_at : "?");
  if ((t->dtype == CAB_F32 || t->dtype == CAB_F64) && cab_tensor_contiguous(t)) return CAB_OK;
  return cab_fail(CAB_E_LUA, "%s: %s %d is %s, expected f32 or f64 and contiguous", op, what, index + 1, cab_shape_text(t, text));
}

/* `other` must be shaped like `t`. */
static CabStatus check_pair(const char *op, const char *what, int index, const CabTensor *other, const CabTensor *t) {
  char have[160], want[160];
  CAB_TRY(check_written(op, what, index, other));
  bool same = other->dtype == t->dtype && other->rank == t->rank && other->storage->device == t->storage->device &&
              !memcmp(other->shape, t->shape, (size_t)t->rank * sizeof *t->shape);
  if (same) return CAB_OK;
  return cab_fail(CAB_E_LUA, "%s: %s %d is %s, expected %s", op, what, index + 1, cab_shape_text(other, have), cab_shape_text(t, want));
}

static CabStatus check_grad(const char *op, int index, const CabTensor *p) {
  char text[160];
  if (!p->grad) return CAB_OK;
  if (!p->grad->storage) return cab_fail(CAB_E_LUA, "%s: the gradient of parameter %d is closed (closed at %s)", op, index + 1, p->grad->closed_at);
  if (p->grad->dtype == p->dtype && cab_tensor_count(p->grad) == cab_tensor_count(p)) return CAB_OK;
  return cab_fail(CAB_E_LUA, "%s: the gradient of parameter %d is %s", op, index + 1, cab_shape_text(p->grad, text));
}

/* ---- updates ---------------------------------------------------------------------------------- */

static CabStatus adamw_one(CabTensor *p, CabTensor *m, CabTensor *v, const CabAdamw *o) {
  TWIN_FOR(p, adamw);
  CabTensor *g = adamw_twin ? cab_tensor_contiguous_copy(p->grad) : NULL;
  if (!g) return cab_error()->code;
  adamw_twin(p->storage->device->stream, cab_tensor_count(p), o->lr, o->beta1, o->beta2, o->eps, o->decay, o->step, o->scale,
             cab_tensor_data(g), cab_tensor_data(p), cab_tensor_data(m), cab_tensor_data(v));
  cab_tensor_release(g);
  cab_tensor_touch(p, NULL);
  cab_tensor_touch(m, NULL);
  cab_tensor_touch(v, NULL);
  return CAB_OK;
}

CabStatus cab_adamw(int count, CabTensor **params, CabTensor **m, CabTensor **v, const CabAdamw *options) {
  if (options->step < 1) return cab_fail(CAB_E_LUA, "adamw: 'step' is %lld, expected 1 or more", (long long)options->step);
  for (int i = 0; i < count; i++) {
    CAB_TRY(check_written("adamw", "parameter", i, params[i]));
    CAB_TRY(check_pair("adamw", "first moment", i, m[i], params[i]));
    CAB_TRY(check_pair("adamw", "second moment", i, v[i], params[i]));
    CAB_TRY(check_grad("adamw", i, params[i]));
  }
  for (int i = 0; i < count; i++)
    if (params[i]->grad) CAB_TRY(adamw_one(params[i], m[i], v[i], options));
  return CAB_OK;
}

CabStatus cab_ema(int count, CabTensor **averages, CabTensor **params, double keep) {
  for (int i = 0; i < count; i++) {
    CAB_TRY(check_written("ema", "parameter", i, params[i]));
    CAB_TRY(check_pair("ema", "average", i, averages[i], params[i]));
  }
  for (int i = 0; i < count; i++) {
    TWIN_FOR(params[i], ema);
    if (!ema_twin) return cab_error()->code;
    ema_twin(params[i]->storage->device->stream, cab_tensor_count(params[i]), keep, cab_tensor_data(params[i]), cab_tensor_data(averages[i]));
    cab_tensor_touch(averages[i], NULL);
  }
  return CAB_OK;
}

/* ---- numbers ---------------------------------------------------------------------------------- */

/* sums[slot] = sum of squares of p's gradient, on p's device */
static CabStatus grad_squares(CabTensor *p, CabTensor *sums, int slot) {
  TWIN_FOR(p, sum_squares);
  CabTensor *g = sum_squares_twin ? cab_tensor_contiguous_copy(p->grad) : NULL;
  if (!g) return cab_error()->code;
  sum_squares_twin(p->storage->device->stream, cab_tensor_count(g), cab_tensor_data(g), (double *)cab_tensor_data(sums) + slot);
  cab_tensor_release(g);
  return CAB_OK;
}

CabStatus cab_grad_norm(int count, CabTensor **params, double *norm) {
  int64_t used = 0;
  *norm = 0;
  for (int i = 0; i < count; i++) {
    CAB_TRY(check_written("grad_norm", "parameter", i, params[i]));
    CAB_TRY(check_grad("grad_norm", i, params[i]));
    if (params[i]->storage->device != params[0]->storage->device) return cab_fail(CAB_E_LUA, "grad_norm: parameters on two devices");
    used += params[i]->grad != NULL;
  }
  if (!used) return CAB_OK;
  CabTensor *sums = cab_tensor_new(params[0]->storage->device, CAB_F64, 1, &used), *host = NULL;
  CabStatus status = sums ? CAB_OK : cab_error()->code;
  for (int i = 0, slot = 0; i < count && status == CAB_OK; i++)
    if (params[i]->grad) status = grad_squares(params[i], sums, slot++);
  if (status == CAB_OK && !(host = cab_tensor_to(sums, cab_cpu(), CAB_F64))) status = cab_error()->code;
  for (int64_t i = 0; status == CAB_OK && i < used; i++) *norm += ((double *)cab_tensor_data(host))[i];
  *norm = sqrt(*norm);
  cab_tensor_release(sums);
  cab_tensor_release(host);
  return status;
}

static int64_t count_hits(int64_t rows, int64_t classes, int64_t k, const double *x, const int32_t *label) {
  int64_t hits = 0;
  for (int64_t r = 0; r < rows; r++) {
    const double *row = x + r * classes;
    int64_t above = 0, own = label[r];
    if (own < 0) continue;
    for (int64_t j = 0; j < classes; j++) above += !(row[j] <= row[own]) || (row[j] == row[own] && j < own); /* NaN is no hit */
    hits += above < k;
  }
  return hits;
}

CabStatus cab_top_k(CabTensor *logits, CabTensor *labels, int64_t k, int64_t *hits) {
  char text[160];
  if (!logits->storage || !labels->storage) {
    const char *at = logits->storage ? labels->closed_at : logits->closed_at;
    return cab_fail(CAB_E_LUA, "top_k: tensor is closed (closed at %s)", at[0] ? at : "?");
  }
  if (logits->rank != 2) return cab_fail(CAB_E_LUA, "top_k: 'logits' is %s, expected [R,C]", cab_shape_text(logits, text));
  int64_t R = logits->shape[0], C = logits->shape[1];
  if (labels->dtype != CAB_I32 || labels->rank != 1 || labels->shape[0] != R)
    return cab_fail(CAB_E_LUA, "top_k: 'labels' is %s, expected i32[R=%lld]", cab_shape_text(labels, text), (long long)R);
  if (k < 1) return cab_fail(CAB_E_LUA, "top_k: 'k' is %lld, expected 1 or more", (long long)k);
  CabTensor *x = cab_tensor_to(logits, cab_cpu(), CAB_F64), *ids = x ? cab_tensor_to(labels, cab_cpu(), CAB_I32) : NULL;
  CabStatus status = ids ? CAB_OK : cab_error()->code;
  const int32_t *label = ids ? cab_tensor_data(ids) : NULL;
  for (int64_t r = 0; status == CAB_OK && r < R; r++)
    if (label[r] < -1 || label[r] >= C) status = cab_fail(CAB_E_LUA, "top_k: label %d at row %lld, expected -1 to %lld", label[r], (long long)r + 1, (long long)C - 1);
  if (status == CAB_OK) *hits = count_hits(R, C, k, cab_tensor_data(x), label);
  cab_tensor_release(x);
  cab_tensor_release(ids);
  return status;
}

const CabOp cab_ops_optim[] = {{0}};
