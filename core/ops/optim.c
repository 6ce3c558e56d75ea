/* optim.c - AdamW, moving averages, gradient norm, top-k. */
#include "optim.h"

#include <math.h>
#include <string.h>

#include "op.h"
#include "update.h"

/* ---- checks ----------------------------------------------------------------------------------- */

static CabStatus check_written(const char *op, const char *what, int index, const CabTensor *t) {
  char text[160];
  if (!t->storage)
    return cab_fail(CAB_E_LUA, "%s: %s %d: tensor is closed (closed at %s)", op, what, index + 1, t->closed_at[0] ? t->closed_at : "?");
  if ((t->dtype == CAB_F32 || t->dtype == CAB_F64) && cab_tensor_contiguous(t)) return CAB_OK;
  return cab_fail(CAB_E_LUA, "%s: %s %d is %s, expected f32 or f64 and contiguous", op, what, index + 1, cab_shape_text(t, text));
}

/* A parameter of the type and device of the first. */
static CabStatus check_param(const char *op, int index, const CabTensor *p, const CabTensor *first) {
  CAB_TRY(check_written(op, "parameter", index, p));
  if (p->dtype != first->dtype)
    return cab_fail(CAB_E_LUA, "%s: parameter %d is %s, parameter 1 %s", op, index + 1, cab_dtype_name(p->dtype), cab_dtype_name(first->dtype));
  if (p->storage->device == first->storage->device) return CAB_OK;
  return cab_fail(CAB_E_LUA, "%s: parameter %d is on %s, parameter 1 on %s", op, index + 1, p->storage->device->name, first->storage->device->name);
}

/* `other` must be shaped like `t`. */
static CabStatus check_pair(const char *op, const char *what, int index, const CabTensor *other, const CabTensor *t) {
  char have[160], want[160];
  CAB_TRY(check_written(op, what, index, other));
  if (other->storage->device != t->storage->device)
    return cab_fail(CAB_E_LUA, "%s: %s %d is on %s, its parameter on %s", op, what, index + 1, other->storage->device->name, t->storage->device->name);
  bool same = other->dtype == t->dtype && other->rank == t->rank && !memcmp(other->shape, t->shape, (size_t)t->rank * sizeof *t->shape);
  if (same) return CAB_OK;
  return cab_fail(CAB_E_LUA, "%s: %s %d is %s, expected %s", op, what, index + 1, cab_shape_text(other, have), cab_shape_text(t, want));
}

static CabStatus check_grad(const char *op, int index, const CabTensor *p) {
  char text[160];
  if (!p->grad) return CAB_OK;
  if (!p->grad->storage) return cab_fail(CAB_E_LUA, "%s: the gradient of parameter %d is closed (closed at %s)", op, index + 1, p->grad->closed_at);
  bool fits = p->grad->dtype == p->dtype && cab_tensor_count(p->grad) == cab_tensor_count(p) && p->grad->storage->device == p->storage->device;
  if (fits) return CAB_OK;
  return cab_fail(CAB_E_LUA, "%s: the gradient of parameter %d is %s on %s", op, index + 1, cab_shape_text(p->grad, text), p->grad->storage->device->name);
}

/* ---- slices ----------------------------------------------------------------------------------- */

/* What a call hands to a kernel. A gradient that is not contiguous is copied for its time. */
typedef struct {
  int count;
  UpdateSlice *list;
  CabTensor **copies;
} Slices;

static CabStatus slices_new(Slices *s, int count) {
  s->count = count;
  s->list = cab_calloc((size_t)count + 1, sizeof *s->list);
  s->copies = s->list ? cab_calloc((size_t)count + 1, sizeof *s->copies) : NULL;
  return s->copies ? CAB_OK : cab_error()->code;
}

static void slices_drop_copies(Slices *s) {
  for (int i = 0; s->copies && i < s->count; i++) {
    cab_tensor_release(s->copies[i]);
    s->copies[i] = NULL;
  }
}

static void slices_free(Slices *s) {
  slices_drop_copies(s);
  cab_free(s->list);
  cab_free(s->copies);
}

static CabStatus slices_take_grads(Slices *s, CabTensor **params) {
  for (int i = 0; i < s->count; i++) {
    s->list[i].n = cab_tensor_count(params[i]);
    s->list[i].g = NULL;
    if (!params[i]->grad) continue;
    if (!(s->copies[i] = cab_tensor_contiguous_copy(params[i]->grad))) return cab_error()->code;
    s->list[i].g = cab_tensor_data(s->copies[i]);
  }
  return CAB_OK;
}

/* m, v and averages may be NULL, as may single averages. */
static void slices_take_state(Slices *s, CabTensor **params, CabTensor **m, CabTensor **v, CabTensor **averages) {
  for (int i = 0; i < s->count; i++) {
    UpdateSlice *slice = &s->list[i];
    slice->n = cab_tensor_count(params[i]);
    slice->w = cab_tensor_data(params[i]);
    slice->m = m && m[i] ? cab_tensor_data(m[i]) : NULL;
    slice->v = v && v[i] ? cab_tensor_data(v[i]) : NULL;
    slice->average = averages && averages[i] ? cab_tensor_data(averages[i]) : NULL;
  }
}

/* ---- launches --------------------------------------------------------------------------------- */

/* RUN for a tensor: the twin for its device and type. */
#define RUN_FOR(t, name, ...)                                                               \
  do {                                                                                      \
    CabDevice *device_ = (t)->storage->device;                                              \
    name##_fn *twin_ = (name##_fn *)cab_twin(device_, (t)->dtype, #name);                   \
    if (!twin_) return cab_error()->code;                                                   \
    twin_(device_->stream, __VA_ARGS__);                                                    \
    CAB_TRY(cab_launched(device_, #name));                                                  \
  } while (0)

static CabStatus run_norm(const Slices *s, const CabTensor *like, double *now) {
  RUN_FOR(like, grad_norm, s->count, s->list, now);
  return CAB_OK;
}

static CabStatus run_update(const Slices *s, CabTensor **params, CabTensor **m, CabTensor **v, CabTensor **averages, const double *now) {
  RUN_FOR(params[0], adamw_average, s->count, s->list, now);
  for (int i = 0; i < s->count; i++) {
    if (s->list[i].g) cab_tensor_touch(params[i], NULL), cab_tensor_touch(m[i], NULL), cab_tensor_touch(v[i], NULL);
    if (s->list[i].average) cab_tensor_touch(averages[i], NULL);
  }
  return CAB_OK;
}

/* now[] where the tensors are; NULL: error slot. */
static double *numbers_on(CabDevice *device, const double *host, int64_t count) {
  size_t bytes = (size_t)count * sizeof *host;
  double *now = device->alloc(device, bytes);
  if (!now || device->copy(device, now, host, bytes, 1) == CAB_OK) return now;
  device->release(device, now, bytes);
  return NULL;
}

/* lr / (1 - beta1^t), 1 / (1 - beta2^t) */
static void set_age(double *now, int64_t age, int64_t t) {
  now[NOW_AGES + 2 * age] = now[NOW_LR] / (1 - pow(now[NOW_BETA1], (double)t));
  now[NOW_AGES + 2 * age + 1] = 1 / (1 - pow(now[NOW_BETA2], (double)t));
}

/* ---- single updates --------------------------------------------------------------------------- */

enum { ONE_AGE = NOW_AGES + 2 }; /* numbers of a call where all parameters began together */

CabStatus cab_adamw(int count, CabTensor **params, CabTensor **m, CabTensor **v, const CabAdamw *options) {
  if (options->step < 1) return cab_fail(CAB_E_LUA, "adamw: 'step' is %lld, expected 1 or more", (long long)options->step);
  for (int i = 0; i < count; i++) {
    CAB_TRY(check_param("adamw", i, params[i], params[0]));
    CAB_TRY(check_pair("adamw", "first moment", i, m[i], params[i]));
    CAB_TRY(check_pair("adamw", "second moment", i, v[i], params[i]));
    CAB_TRY(check_grad("adamw", i, params[i]));
  }
  if (!count) return CAB_OK;
  CabDevice *device = params[0]->storage->device;
  double host[ONE_AGE] = {[NOW_SCALE] = options->scale, [NOW_LR] = options->lr, [NOW_BETA1] = options->beta1,
                          [NOW_BETA2] = options->beta2, [NOW_EPS] = options->eps};
  set_age(host, 0, options->step);
  Slices s = {0};
  CabStatus status = slices_new(&s, count);
  if (status == CAB_OK) status = slices_take_grads(&s, params);
  if (status == CAB_OK) slices_take_state(&s, params, m, v, NULL);
  for (int i = 0; status == CAB_OK && i < count; i++) s.list[i].decay = options->decay;
  double *now = status == CAB_OK ? numbers_on(device, host, ONE_AGE) : NULL;
  if (status == CAB_OK) status = now ? run_update(&s, params, m, v, NULL, now) : cab_error()->code;
  device->release(device, now, sizeof host);
  slices_free(&s);
  return status;
}

CabStatus cab_ema(int count, CabTensor **averages, CabTensor **params, double keep) {
  for (int i = 0; i < count; i++) {
    CAB_TRY(check_param("ema", i, params[i], params[0]));
    CAB_TRY(check_pair("ema", "average", i, averages[i], params[i]));
  }
  if (!count) return CAB_OK;
  CabDevice *device = params[0]->storage->device;
  double host[NOW_AGES] = {[NOW_SCALE] = 1, [NOW_KEEP] = keep};
  Slices s = {0};
  CabStatus status = slices_new(&s, count);
  if (status == CAB_OK) slices_take_state(&s, params, NULL, NULL, averages);
  double *now = status == CAB_OK ? numbers_on(device, host, NOW_AGES) : NULL;
  if (status == CAB_OK) status = now ? run_update(&s, params, NULL, NULL, averages, now) : cab_error()->code;
  device->release(device, now, sizeof host);
  slices_free(&s);
  return status;
}

CabStatus cab_grad_norm(int count, CabTensor **params, double *norm) {
  *norm = 0;
  for (int i = 0; i < count; i++) {
    CAB_TRY(check_param("grad_norm", i, params[i], params[0]));
    CAB_TRY(check_grad("grad_norm", i, params[i]));
  }
  if (!count) return CAB_OK;
  CabDevice *device = params[0]->storage->device;
  double host[NOW_AGES] = {0};
  Slices s = {0};
  CabStatus status = slices_new(&s, count);
  if (status == CAB_OK) status = slices_take_grads(&s, params);
  double *now = status == CAB_OK ? numbers_on(device, host, NOW_AGES) : NULL;
  if (status == CAB_OK) status = now ? run_norm(&s, params[0], now) : cab_error()->code;
  if (status == CAB_OK) status = device->copy(device, norm, now + NOW_NORM, sizeof *norm, 2);
  device->release(device, now, sizeof host);
  slices_free(&s);
  return status;
}

/* ---- the optimizer ---------------------------------------------------------------------------- */

struct CabOptimizer {
  int count, ages;
  CabTensor **params, **m, **v, **averages; /* in one block, params first */
  int64_t *born;
  int64_t *from;     /* NULL: parameters are updated whole */
  int64_t *age;      /* step in which the parameters of age i began; one more is kept ready for the next to begin */
  int64_t step;
  int64_t began;     /* the step if parameters began in it as it ran: taken back if it turns out to be skipped */
  Slices slices;
  CabDevice *device;
  double *host, *now;
  size_t bytes;      /* of each */
};

static int age_of(const CabOptimizer *o, int64_t born) {
  for (int i = 0; i < o->ages; i++)
    if (o->age[i] == born) return i;
  return o->ages;
}

static void begin_at(CabOptimizer *o, int parameter, int64_t step) {
  int age = age_of(o, step);
  if (age == o->ages) o->age[o->ages++] = step;
  o->born[parameter] = step;
  o->slices.list[parameter].age = age;
}

/* `other` must fit behind element `from` of t. */
static CabStatus check_piece(const char *what, int index, const CabTensor *other, const CabTensor *t, int64_t n, int64_t from) {
  char have[160], want[160];
  CAB_TRY(check_written("optimizer", what, index, other));
  if (other->dtype == t->dtype && other->storage->device == t->storage->device && other->rank == 1 && other->shape[0] == n && from >= 0 &&
      from + n <= cab_tensor_count(t))
    return CAB_OK;
  return cab_fail(CAB_E_LUA, "optimizer: %s %d is %s, no piece of %s from element %lld on", what, index + 1, cab_shape_text(other, have),
                  cab_shape_text(t, want), (long long)from);
}

static CabStatus check_optimizer(CabTensor **params, CabTensor **m, CabTensor **v, CabTensor **averages, const int64_t *from, int count) {
  for (int i = 0; i < count; i++) {
    CAB_TRY(check_param("optimizer", i, params[i], params[0]));
    if (from && !m[i] && !v[i] && !averages[i]) continue;
    if (!m[i] || !v[i]) return cab_fail(CAB_E_LUA, "optimizer: parameter %d has no moments", i + 1);
    if (from) {
      const int64_t n = cab_tensor_count(m[i]);
      CAB_TRY(check_piece("first moment", i, m[i], params[i], n, from[i]));
      CAB_TRY(check_piece("second moment", i, v[i], params[i], n, from[i]));
      if (averages[i]) CAB_TRY(check_piece("average", i, averages[i], params[i], n, from[i]));
      continue;
    }
    CAB_TRY(check_pair("optimizer", "first moment", i, m[i], params[i]));
    CAB_TRY(check_pair("optimizer", "second moment", i, v[i], params[i]));
    if (averages[i]) CAB_TRY(check_pair("optimizer", "average", i, averages[i], params[i]));
  }
  return CAB_OK;
}

static CabStatus optimizer_fill(CabOptimizer *o, const CabOptimizerSpec *spec) {
  size_t count = (size_t)spec->count;
  o->bytes = (NOW_AGES + 2 * (count + 1)) * sizeof *o->host; /* no more ages than parameters */
  o->params = cab_calloc(4 * count + 1, sizeof *o->params);
  o->born = cab_calloc(count + 1, sizeof *o->born);
  o->age = cab_calloc(count + 1, sizeof *o->age);
  o->host = cab_calloc(1, o->bytes);
  if (spec->from && !(o->from = cab_calloc(count + 1, sizeof *o->from))) return cab_error()->code;
  CAB_TRY(slices_new(&o->slices, spec->count));
  if (!o->params || !o->born || !o->age || !o->host) return cab_error()->code;
  o->m = o->params + count, o->v = o->m + count, o->averages = o->v + count;
  o->count = spec->count;
  for (int i = 0; i < o->count; i++) {
    o->params[i] = cab_tensor_retain(spec->params[i]);
    o->m[i] = cab_tensor_retain(spec->m[i]);
    o->v[i] = cab_tensor_retain(spec->v[i]);
    o->averages[i] = cab_tensor_retain(spec->averages[i]);
    if (spec->from) o->from[i] = spec->from[i];
    o->slices.list[i].decay = spec->decay[i];
    if (spec->born[i] < 0) return cab_fail(CAB_E_LUA, "optimizer: 'born' of parameter %d is %lld, expected 0 or a step", i + 1, (long long)spec->born[i]);
    if (spec->born[i]) begin_at(o, i, spec->born[i]);
  }
  o->host[NOW_BETA1] = spec->beta1, o->host[NOW_BETA2] = spec->beta2, o->host[NOW_EPS] = spec->eps;
  o->device = o->count ? o->params[0]->storage->device : cab_cpu();
  o->now = numbers_on(o->device, o->host, (int64_t)(o->bytes / sizeof *o->host));
  return o->now ? CAB_OK : cab_error()->code;
}

CabOptimizer *cab_optimizer_new(const CabOptimizerSpec *spec) {
  if (check_optimizer(spec->params, spec->m, spec->v, spec->averages, spec->from, spec->count)) return NULL;
  CabOptimizer *o = cab_calloc(1, sizeof *o);
  if (!o || optimizer_fill(o, spec) == CAB_OK) return o;
  CabError error = *cab_error();
  cab_optimizer_free(o);
  *cab_error() = error;
  return NULL;
}

void cab_optimizer_free(CabOptimizer *o) {
  if (!o) return;
  if (o->now) o->device->release(o->device, o->now, o->bytes);
  for (int i = 0; i < 4 * o->count; i++) cab_tensor_release(o->params[i]);
  slices_free(&o->slices);
  cab_free(o->params);
  cab_free(o->born);
  cab_free(o->from);
  cab_free(o->age);
  cab_free(o->host);
  cab_free(o);
}

CabStatus cab_optimizer_set(CabOptimizer *o, int64_t step, double lr, double clip, double keep) {
  if (step < 1) return cab_fail(CAB_E_LUA, "optimizer: 'step' is %lld, expected 1 or more", (long long)step);
  for (int i = 0; i < o->ages; i++)
    if (o->age[i] > step)
      return cab_fail(CAB_E_LUA, "optimizer: 'step' is %lld, but parameters began in step %lld", (long long)step, (long long)o->age[i]);
  o->host[NOW_STEP] = (double)step, o->host[NOW_LR] = lr, o->host[NOW_CLIP] = clip, o->host[NOW_KEEP] = keep;
  for (int i = 0; i < o->ages; i++) set_age(o->host, i, step - o->age[i] + 1);
  set_age(o->host, o->ages, 1);
  size_t numbers = (size_t)(NOW_AGES - NOW_STEP + 2 * (o->ages + 1));
  CAB_TRY(o->device->copy(o->device, o->now + NOW_STEP, o->host + NOW_STEP, numbers * sizeof *o->host, 1));
  o->step = step;
  return CAB_OK;
}

/* The slices are whole parameters; now what is updated here. */
static void take_pieces(CabOptimizer *o) {
  for (int i = 0; i < o->count; i++) {
    UpdateSlice *s = &o->slices.list[i];
    const int64_t skipped = o->from[i] * (int64_t)cab_dtype_size(o->params[i]->dtype);
    s->n = o->m[i] ? cab_tensor_count(o->m[i]) : 0;
    s->w = (char *)s->w + skipped;
    s->g = s->g && s->n ? (const char *)s->g + skipped : NULL;
  }
}

CabStatus cab_optimizer_step(CabOptimizer *o) {
  if (!o->step) return cab_fail(CAB_E_LUA, "optimizer: step before set");
  CAB_TRY(check_optimizer(o->params, o->m, o->v, o->averages, o->from, o->count));
  for (int i = 0; i < o->count; i++) CAB_TRY(check_grad("optimizer", i, o->params[i]));
  if (!o->count) return CAB_OK;
  CabStatus status = slices_take_grads(&o->slices, o->params);
  slices_take_state(&o->slices, o->params, o->m, o->v, o->averages);
  if (status == CAB_OK) status = run_norm(&o->slices, o->params[0], o->now);
  for (int i = 0; status == CAB_OK && i < o->count; i++) {
    if (!o->params[i]->grad || o->born[i]) continue;
    begin_at(o, i, o->step);
    o->began = o->device->capturing ? 0 : o->step; /* a captured update has the age for good */
  }
  if (o->from) take_pieces(o);
  if (status == CAB_OK) status = run_update(&o->slices, o->params, o->m, o->v, o->averages, o->now);
  slices_drop_copies(&o->slices);
  return status;
}

/* The last step changed nothing: parameters that began in it have yet to begin. */
static void take_back(CabOptimizer *o) {
  if (!o->began || o->began != o->step || o->age[o->ages - 1] != o->step) return;
  for (int i = 0; i < o->count; i++)
    if (o->born[i] == o->step) o->born[i] = 0;
  o->ages--;
  o->began = 0;
}

CabStatus cab_optimizer_report(CabOptimizer *o, CabOptimizerReport *out) {
  const double none = 0;
  double now[NOW_STEP];
  CAB_TRY(o->device->copy(o->device, now, o->now, sizeof now, 2));
  *out = (CabOptimizerReport){now[NOW_NORM], (int64_t)now[NOW_SKIPPED], (int64_t)now[NOW_BAD_STEP], (int)now[NOW_BAD_SLICE]};
  if (!out->skipped) return CAB_OK;
  if (now[NOW_SCALE] != now[NOW_SCALE]) take_back(o);
  return o->device->copy(o->device, o->now + NOW_SKIPPED, &none, sizeof none, 1);
}

const int64_t *cab_optimizer_born(const CabOptimizer *o, int *count) {
  *count = o->count;
  return o->born;
}

/* ---- top k ------------------------------------------------------------------------------------ */

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
