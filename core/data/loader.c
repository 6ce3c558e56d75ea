/* loader.c - workers fill whole batches into a ring of slots; batch n goes to slot n mod slots, so batches leave in order
 * and every bit is a function of (seed, epoch, sample), whatever the number of threads. */
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>

#include "dataset.h"

enum { MAX_THREADS = 256 };

typedef struct {
  void *images;    /* [batch, C, S, S], bytes or floats */
  uint8_t *bytes;  /* the same before it is normalised, where records are mixed */
  int32_t *labels; /* [batch] */
  int64_t ready;   /* batch number + 1 once filled */
  int count, skipped, warnings;
  float *targets;  /* [batch, classes], where records are mixed */
  CabStatus status;
  CabError error;  /* status != OK: what failed; otherwise of the last skipped record */
} Slot;

struct CabLoader {
  CabLoaderOptions o;
  int32_t *order; /* [count] dataset indices in the order of this epoch */
  int64_t batches, claimed, taken; /* next batch to fill, next batch to hand out */
  int slots, started;
  Slot *slot;
  pthread_t thread[MAX_THREADS];
  pthread_mutex_t lock;
  pthread_cond_t filled, freed;
  bool threaded; /* lock and conditions exist */
  atomic_bool stop;
  double wait;
  int64_t skipped, warnings;
  CabStatus failed;
  CabError error;
};

/* ---- one batch ------------------------------------------------------------------------------ */

/* "record 7: FILE: byte N: TEXT"; an error without a file gets the record's. */
static void name_record(const CabDataset *ds, int64_t index) {
  CabError *e = cab_error(), old = *e;
  char path[PATH_MAX];
  if (old.code != CAB_E_INPUT) return;
  if (!old.file[0]) cab_fail_file(CAB_E_INPUT, old.id[0] ? old.id : "image-size", ds->kind->path(ds, index, path), -1, "%s", old.message);
  old = *e;
  snprintf(e->message, sizeof e->message, "record %lld: %.960s", (long long)index + 1, old.message);
}

static bool mixes(const CabLoader *l) { return l->o.mix.mixup > 0 || l->o.mix.cutmix > 0; }

/* The rows of a batch that are this part's: low .. high - 1 and, where records are mixed with those as far from the other end, their
 * partners again .. last - 1. */
typedef struct { int64_t low, high, again, last; } Rows;
static Rows rows_of(const CabLoader *l, int64_t batch) {
  const CabLoaderOptions *o = &l->o;
  int64_t first = batch * o->batch, n = first + o->batch < o->count ? o->batch : o->count - first;
  if (o->parts < 2 || !o->drop_last) return (Rows){first, first + n, 0, 0};
  int64_t units = mixes(l) ? (n + 1) / 2 : n, low = units * o->part / o->parts, high = units * (o->part + 1) / o->parts;
  if (!mixes(l)) return (Rows){first + low, first + high, 0, 0};
  return (Rows){first + low, first + high, first + (n - high < high ? high : n - high), first + n - low};
}

/* Record at place i of the order. */
static CabStatus load_one(CabLoader *l, int64_t i, const CabTransform *how, void *to, int *warnings) {
  CabImage image;
  int64_t index = l->order[i];
  CabTransformCall call = {how, {l->o.seed, l->o.epoch, (uint64_t)index, (uint64_t)(i % l->o.repeats)}};
  CabWish wish = {cab_transform_part, &call, false};
  CAB_TRY(l->o.dataset->kind->fetch(l->o.dataset, index, &wish, l->o.tolerant ? warnings : NULL, &image));
  CabStatus status = cab_transform_apply(how, call.draw, &image, to);
  cab_image_free(&image);
  return status;
}

/* Mixed as bytes, so that the pixels are the same whoever normalises them. */
static void mix(CabLoader *l, Slot *s, int64_t batch) {
  const CabTransform *t = &l->o.transform;
  CabDraw draw = {l->o.seed, l->o.epoch, (uint64_t)batch, 0};
  CabMixing how = cab_mix_draw(&l->o.mix, draw, t->size);
  size_t size = (size_t)t->channels * (size_t)t->size * (size_t)t->size;
  size_t classes = (size_t)l->o.dataset->classes;
  memset(s->targets, 0, (size_t)s->count * classes * sizeof *s->targets);
  for (int i = 0; i < s->count; i++) {
    float *target = s->targets + (size_t)i * classes;
    target[s->labels[i]] += (float)how.share;
    target[s->labels[s->count - 1 - i]] += (float)(1 - how.share);
  }
  for (int i = 0; i < s->count / 2; i++)
    cab_mix_pair(&how, t->channels, t->size, s->bytes + (size_t)i * size, s->bytes + (size_t)(s->count - 1 - i) * size);
  float *floats = t->bytes ? NULL : s->images;
  for (int i = 0; floats && i < s->count; i++) cab_transform_normalise(t, s->bytes + (size_t)i * size, floats + (size_t)i * size);
}

static void fill(CabLoader *l, Slot *s, int64_t number) {
  int64_t batch = l->o.parts > 1 && !l->o.drop_last ? number * l->o.parts + l->o.part : number;
  CabTransform how = l->o.transform;
  if (mixes(l)) how.bytes = true;
  uint8_t *to = mixes(l) ? s->bytes : s->images;
  size_t size = cab_transform_size(&how);
  Rows rows = rows_of(l, batch);
  s->count = s->skipped = s->warnings = 0;
  s->status = CAB_OK;
  int64_t here = rows.high - rows.low, count = here + rows.last - rows.again;
  for (int64_t k = 0; k < count && !atomic_load_explicit(&l->stop, memory_order_relaxed); k++) {
    int64_t i = k < here ? rows.low + k : rows.again + k - here;
    CabStatus status = load_one(l, i, &how, to + (size_t)s->count * size, &s->warnings);
    if (status == CAB_OK) {
      s->labels[s->count++] = l->o.dataset->labels[l->order[i]];
      continue;
    }
    name_record(l->o.dataset, l->order[i]);
    s->error = *cab_error();
    if (l->o.skip_bad && status == CAB_E_INPUT) s->skipped++;
    else {
      s->status = status;
      return;
    }
  }
  if (mixes(l)) mix(l, s, batch);
}

static void *work(void *arg) {
  CabLoader *l = arg;
  pthread_mutex_lock(&l->lock);
  for (;;) {
    while (!atomic_load(&l->stop) && l->claimed < l->batches && l->claimed >= l->taken + l->slots) pthread_cond_wait(&l->freed, &l->lock);
    if (atomic_load(&l->stop) || l->claimed >= l->batches) break;
    int64_t batch = l->claimed++;
    Slot *s = &l->slot[batch % l->slots];
    pthread_mutex_unlock(&l->lock);
    fill(l, s, batch);
    pthread_mutex_lock(&l->lock);
    s->ready = batch + 1;
    pthread_cond_signal(&l->filled);
  }
  pthread_mutex_unlock(&l->lock);
  return NULL;
}

/* ---- opening and closing -------------------------------------------------------------------- */

static CabStatus check(const CabLoaderOptions *o) {
  if (o->batch < 1 || o->batch > 1 << 20) return cab_fail(CAB_E_LUA, "loader: batch is %d", o->batch);
  if (o->threads < 0 || o->threads > MAX_THREADS) return cab_fail(CAB_E_LUA, "loader: threads is %d, expected 0 to %d", o->threads, MAX_THREADS);
  if (o->start < 0) return cab_fail(CAB_E_LUA, "loader: start is %lld", (long long)o->start);
  for (int64_t i = 0; o->indices && i < o->count; i++)
    if (o->indices[i] < 0 || o->indices[i] >= o->dataset->count)
      return cab_fail(CAB_E_LUA, "loader: index %d, the dataset has %lld records", o->indices[i], (long long)o->dataset->count);
  const CabDataset *ds = o->dataset;
  const CabTransform *t = &o->transform;
  if (o->repeats < 1 || o->repeats > 64) return cab_fail(CAB_E_LUA, "loader: repeats is %d, expected 1 to 64", o->repeats);
  if (o->repeats > 1 && !o->shuffle) return cab_fail(CAB_E_LUA, "loader: repeats need shuffle: an epoch has only some of the records");
  if (o->parts < 0 || o->part < 0 || (o->parts && o->part >= o->parts))
    return cab_fail(CAB_E_LUA, "loader: part %d of %d, expected 0 to %d", o->part, o->parts, o->parts - 1);
  CAB_TRY(cab_mix_check(&o->mix));
  CAB_TRY(cab_transform_check(t));
  if (ds->width && t->crop == CAB_CROP_NONE && !t->resize && (ds->width != t->size || ds->height != t->size))
    return cab_fail(CAB_E_LUA, "loader: images of %d x %d pixels, size is %d: set resize or crop", ds->width, ds->height, t->size);
  return CAB_OK;
}

/* Epoch order: a permutation keyed by (seed, epoch). */
static CabStatus make_order(CabLoader *l) {
  size_t n = (size_t)l->o.count;
  l->order = cab_malloc(n, sizeof *l->order);
  uint32_t *place = l->o.shuffle ? cab_malloc(n, sizeof *place) : NULL;
  if (!l->order || (l->o.shuffle && !place)) {
    cab_free(place);
    return CAB_E_MEMORY;
  }
  if (place) cab_permutation((CabRng){l->o.seed, cab_hash_name("order") + l->o.epoch * 0x9e3779b97f4a7c15u}, place, (uint32_t)n);
  for (size_t i = 0; i < n; i++) {
    size_t from = place ? place[i / (size_t)l->o.repeats] : i;
    l->order[i] = l->o.indices ? l->o.indices[from] : (int32_t)from;
  }
  cab_free(place);
  l->o.indices = NULL; /* the caller's */
  return CAB_OK;
}

static CabStatus make_slots(CabLoader *l) {
  uint64_t batch = l->o.batch < l->o.count ? (uint64_t)l->o.batch : (uint64_t)(l->o.count ? l->o.count : 1);
  if (!(l->slot = cab_calloc((size_t)l->slots, sizeof *l->slot))) return CAB_E_MEMORY;
  for (int i = 0; i < l->slots; i++) {
    l->slot[i].images = cab_malloc(batch, cab_transform_size(&l->o.transform));
    l->slot[i].labels = cab_malloc(batch, sizeof(int32_t));
    if (!l->slot[i].images || !l->slot[i].labels) return CAB_E_MEMORY;
    if (!mixes(l)) continue;
    l->slot[i].targets = cab_malloc(sz_mul(batch, (uint64_t)l->o.dataset->classes), sizeof(float));
    if (!l->slot[i].targets) return CAB_E_MEMORY;
    if (l->o.transform.bytes) l->slot[i].bytes = l->slot[i].images;
    else if (!(l->slot[i].bytes = cab_malloc(batch, cab_transform_size(&l->o.transform) / sizeof(float)))) return CAB_E_MEMORY;
  }
  return CAB_OK;
}

/* Workers take no signals: those are the main thread's. */
static CabStatus start_threads(CabLoader *l) {
  sigset_t all, old;
  pthread_mutex_init(&l->lock, NULL);
  pthread_cond_init(&l->filled, NULL);
  pthread_cond_init(&l->freed, NULL);
  l->threaded = true;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  int code = 0;
  while (!code && l->started < l->o.threads) {
    code = cab_fault("thread") ? EAGAIN : pthread_create(&l->thread[l->started], NULL, work, l);
    if (!code) l->started++;
  }
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  return code ? cab_fail(CAB_E_MEMORY, "loader: thread %d of %d could not be started", l->started + 1, l->o.threads) : CAB_OK;
}

CabLoader *cab_loader_open(const CabLoaderOptions *options) {
  if (check(options) != CAB_OK) return NULL;
  CabLoader *l = cab_calloc(1, sizeof *l);
  if (!l) return NULL;
  l->o = *options;
  if (!l->o.indices) l->o.count = l->o.dataset->count;
  cab_dataset_retain(l->o.dataset);
  l->batches = l->o.drop_last ? l->o.count / l->o.batch : (l->o.count + l->o.batch - 1) / l->o.batch;
  if (l->o.parts > 1 && !l->o.drop_last) l->batches = (l->batches - l->o.part + l->o.parts - 1) / l->o.parts;
  l->claimed = l->taken = l->o.start;
  l->slots = l->o.threads ? l->o.threads + 2 : 1;
  CabStatus status = make_order(l);
  if (status == CAB_OK) status = make_slots(l);
  if (status == CAB_OK && l->o.threads) status = start_threads(l);
  if (status == CAB_OK) return l;
  CabError kept = *cab_error();
  cab_loader_close(l);
  *cab_error() = kept;
  return NULL;
}

void cab_loader_close(CabLoader *l) {
  if (!l) return;
  if (l->threaded) {
    pthread_mutex_lock(&l->lock);
    atomic_store(&l->stop, true);
    pthread_cond_broadcast(&l->freed);
    pthread_mutex_unlock(&l->lock);
    for (int i = 0; i < l->started; i++) pthread_join(l->thread[i], NULL);
    pthread_mutex_destroy(&l->lock);
    pthread_cond_destroy(&l->filled);
    pthread_cond_destroy(&l->freed);
  }
  for (int i = 0; l->slot && i < l->slots; i++) {
    if (l->slot[i].bytes != l->slot[i].images) cab_free(l->slot[i].bytes);
    cab_free(l->slot[i].images), cab_free(l->slot[i].labels), cab_free(l->slot[i].targets);
  }
  cab_free(l->slot);
  cab_free(l->order);
  cab_dataset_release(l->o.dataset);
  cab_free(l);
}

/* ---- handing out ---------------------------------------------------------------------------- */

/* The filled slot of batch number l->taken. What the caller held before is free from now on. */
static Slot *await(CabLoader *l, int64_t batch) {
  Slot *s = &l->slot[batch % l->slots];
  double since = cab_now();
  if (!l->threaded) {
    fill(l, s, batch);
    l->wait += cab_now() - since;
    return s;
  }
  pthread_mutex_lock(&l->lock);
  l->taken = batch;
  pthread_cond_broadcast(&l->freed);
  while (s->ready != batch + 1) pthread_cond_wait(&l->filled, &l->lock);
  pthread_mutex_unlock(&l->lock);
  l->wait += cab_now() - since;
  return s;
}

static CabStatus fail(CabLoader *l, CabStatus status, const CabError *error) {
  l->error = *error;
  *cab_error() = *error;
  return l->failed = status;
}

/* More than 1 % of the epoch's records skipped is no accident. */
static CabStatus count_bad(CabLoader *l, const Slot *s) {
  l->skipped += s->skipped;
  l->warnings += s->warnings;
  if (s->skipped == 0 || l->skipped * 100 <= l->o.count) return CAB_OK;
  CabError e = s->error;
  int n = snprintf(e.message, sizeof e.message, "%lld of %lld records are bad, more than 1%%; the last: ", (long long)l->skipped, (long long)l->o.count);
  snprintf(e.message + n, sizeof e.message - (size_t)n, "%.900s", s->error.message);
  return fail(l, CAB_E_INPUT, &e);
}

CabStatus cab_loader_next(CabLoader *l, CabBatch *out) {
  *out = (CabBatch){0};
  if (l->failed != CAB_OK) {
    *cab_error() = l->error;
    return l->failed;
  }
  while (l->o.start < l->batches) { /* o.start: the next batch of the caller */
    Slot *s = await(l, l->o.start++);
    if (s->status != CAB_OK) return fail(l, s->status, &s->error);
    CAB_TRY(count_bad(l, s));
    if (s->count == 0 && l->o.drop_last) return fail(l, CAB_E_INPUT, &s->error); /* no batch of an epoch may be missing */
    if (s->count == 0) continue;
    *out = (CabBatch){s->count, s->images, s->labels, mixes(l) ? s->targets : NULL};
    return CAB_OK;
  }
  return CAB_OK;
}

const int32_t *cab_loader_order(const CabLoader *l, int64_t *count) {
  *count = l->o.count;
  return l->order;
}
int64_t cab_loader_batches(const CabLoader *l) { return l->batches; }
double cab_loader_wait(const CabLoader *l) { return l->wait; }
int64_t cab_loader_skipped(const CabLoader *l) { return l->skipped; }
int64_t cab_loader_warnings(const CabLoader *l) { return l->warnings; }
