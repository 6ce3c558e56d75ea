/* pth.c - PyTorch checkpoints (torch.save since 1.6): a zip of NAME/data.pkl and storages NAME/data/KEY.
 * Which state dict is read: the one at `key` ("model_ema", "a.b"). Without a key: the first of the entries model, state_dict,
 * model_state_dict, module, net, network, params, weights that holds tensors; else the root if it does; else the only entry that does.
 * model_ema and the like are read when asked for. Dicts within the state dict are joined with dots.
 * Errors 65: pth-archive, pth-torchscript, pth-byteorder, pth-key, pth-name, pth-duplicate, pth-dtype, pth-storage, pth-view,
 * pth-limit, and those of zip.h and pickle.h. */
#include <stdlib.h>
#include <string.h>

#include "pickle.h"
#include "rd.h"
#include "weights.h"

enum { MAX_NESTING = 16 };
#define SPARE (64ull << 20) /* what views may need beyond twice the file */
#define REFUSE(id, at, ...) cab_fail_file(CAB_E_INPUT, id, f->w->file.path, (int64_t)(at), __VA_ARGS__)
typedef unsigned long long ull;

typedef struct {
  CabWeights *w;
  CabPickle pickle;
  const char *prefix; /* "archive/" */
  size_t prefix_length;
  uint64_t weight_room, names_used, names_room, bytes;
  char path[1024];    /* of the dict being read: "a.b." */
  char chosen[64];
  char others[512];   /* what is not read, for the metadata */
  size_t others_used, others_count;
} Pth;

static const CabPickleValue *at(const Pth *f, uint32_t cell) { return &f->pickle.value[f->pickle.cell[cell].value]; }
static uint32_t next(const Pth *f, uint32_t cell) { return f->pickle.cell[cell].next; }
static uint64_t place(const Pth *f, const CabPickleValue *v) { return sz_add(f->pickle.shift, v->at); }

static bool is_text(const Pth *f, const CabPickleValue *v, const char *text, size_t length) {
  return v->kind == CAB_P_TEXT && v->count == length && !memcmp(f->pickle.bytes + v->text, text, length);
}

/* ---- the archive --------------------------------------------------------------------------- */

static int find(const Pth *f, const char *name, size_t length) {
  char path[600];
  if (f->prefix_length + length >= sizeof path) return -1;
  memcpy(path, f->prefix, f->prefix_length);
  memcpy(path + f->prefix_length, name, length);
  path[f->prefix_length + length] = 0;
  return cab_zip_find(&f->w->zip, path);
}

static CabStatus find_pickle(Pth *f, int *out) {
  const CabZip *zip = &f->w->zip;
  *out = -1;
  for (int i = 0; i < zip->count; i++) {
    const char *name = zip->entry[i].name, *slash = strchr(name, '/');
    if (!slash || strcmp(slash, "/data.pkl")) continue;
    if (*out >= 0) return REFUSE("pth-archive", zip->entry[i].at, "two checkpoints in one archive");
    *out = i;
    f->prefix = name, f->prefix_length = (size_t)(slash - name) + 1;
  }
  if (*out < 0) return REFUSE("pth-archive", 0, "no data.pkl in it: a zip archive, but no PyTorch checkpoint");
  if (find(f, "constants.pkl", 13) >= 0)
    return REFUSE("pth-torchscript", zip->entry[*out].at, "legacy format: a TorchScript program; re-save its state_dict with torch >= 1.6");
  int order = find(f, "byteorder", 9);
  if (order < 0) return CAB_OK;
  uint8_t text[8];
  uint64_t got = 0;
  CAB_TRY(cab_zip_head(&f->w->file, &zip->entry[order], text, sizeof text, &got));
  if (got != 6 || memcmp(text, "little", 6)) return REFUSE("pth-byteorder", zip->entry[order].data_at, "the byte order is not little");
  return CAB_OK;
}

/* ---- which dict ---------------------------------------------------------------------------- */

/* A dict with string keys and a tensor among its values. The answer is kept in the dict, as many entries may share one. */
static bool has_tensors(const Pth *f, const CabPickleValue *dict) {
  enum { UNKNOWN, NO, YES };
  uint8_t *answer = &f->pickle.value[dict - f->pickle.value].stored;
  if (dict->kind != CAB_P_DICT) return false;
  if (*answer == UNKNOWN) {
    *answer = NO;
    for (uint32_t c = dict->items.first; c && *answer == NO; c = next(f, next(f, c)))
      if (at(f, c)->kind == CAB_P_TEXT && at(f, next(f, c))->kind == CAB_P_TENSOR) *answer = YES;
  }
  return *answer == YES;
}

static const CabPickleValue *entry(const Pth *f, const CabPickleValue *dict, const char *key, size_t length) {
  for (uint32_t c = dict->items.first; c; c = next(f, next(f, c)))
    if (is_text(f, at(f, c), key, length)) return at(f, next(f, c));
  return NULL;
}

/* "model, model_ema": the entries of `dict` that may be state dicts, or all with a text key. */
static void list_entries(const Pth *f, const CabPickleValue *dict, bool all, char *out, size_t room) {
  size_t used = 0;
  *out = 0;
  for (uint32_t c = dict->kind == CAB_P_DICT ? dict->items.first : 0; c && used + 60 < room; c = next(f, next(f, c))) {
    char name[340];
    if (at(f, c)->kind != CAB_P_TEXT || (!all && !has_tensors(f, at(f, next(f, c))))) continue;
    used += (size_t)snprintf(out + used, room - used, "%s%.50s", used ? ", " : "", cab_pickle_text(&f->pickle, at(f, c), name));
  }
}

static CabStatus choose_key(Pth *f, const char *key, const CabPickleValue **dict) {
  char list[400], shown[340];
  for (const char *part = key; *part;) {
    size_t length = strcspn(part, ".");
    const CabPickleValue *inner = (*dict)->kind == CAB_P_DICT ? entry(f, *dict, part, length) : NULL;
    list_entries(f, *dict, true, list, sizeof list);
    if (!inner)
      return REFUSE("pth-key", place(f, *dict), "no key '%s' in it (there are: %s)", cab_escape(part, length, shown), *list ? list : "none");
    *dict = inner;
    part += length + (part[length] == '.');
  }
  if ((*dict)->kind == CAB_P_DICT) return CAB_OK;
  return REFUSE("pth-key", place(f, *dict), "'%s' is no dict", cab_escape(key, strlen(key), shown));
}

/* *name: what was chosen, "" for the root. */
static CabStatus choose(Pth *f, const char *key, const CabPickleValue **dict, const char **name) {
  static const char *const known[] = {"model", "state_dict", "model_state_dict", "module", "net", "network", "params", "weights"};
  const CabPickleValue *root = *dict;
  *name = key ? key : "";
  if (key) return choose_key(f, key, dict);
  if (root->kind != CAB_P_DICT) return CAB_OK;
  for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
    const CabPickleValue *inner = entry(f, root, known[i], strlen(known[i]));
    if (inner && has_tensors(f, inner)) return *dict = inner, *name = known[i], CAB_OK;
  }
  if (has_tensors(f, root)) return CAB_OK;
  char list[400], text[340];
  int found = 0;
  for (uint32_t c = root->items.first; c; c = next(f, next(f, c)))
    if (at(f, c)->kind == CAB_P_TEXT && has_tensors(f, at(f, next(f, c)))) {
      found++, *dict = at(f, next(f, c));
      snprintf(f->chosen, sizeof f->chosen, "%.60s", cab_pickle_text(&f->pickle, at(f, c), text));
      *name = f->chosen;
    }
  if (found == 1) return CAB_OK;
  list_entries(f, root, found == 0, list, sizeof list);
  return REFUSE("pth-key", place(f, root), found ? "several state dicts in it, choose one with key: %s" : "no state dict in it (entries: %s)",
                *list ? list : "none");
}

/* ---- tensors ------------------------------------------------------------------------------- */

static CabStatus storage_of(Pth *f, const CabPickleValue *storage, const char *name, CabWeight *v, uint64_t *elements) {
  const CabPickleValue *key = cab_pickle_item(&f->pickle, &f->pickle.value[storage->call], 2);
  const CabPickleValue *count = cab_pickle_item(&f->pickle, &f->pickle.value[storage->call], 4);
  char path[300], shown[340];
  v->entry = -1;
  if (key->count < sizeof path - 5 && !memchr(f->pickle.bytes + key->text, 0, key->count)) {
    int length = snprintf(path, sizeof path, "data/%.*s", (int)key->count, (const char *)f->pickle.bytes + key->text);
    v->entry = find(f, path, (size_t)length);
  }
  cab_pickle_text(&f->pickle, key, shown);
  if (v->entry < 0) return REFUSE("pth-storage", place(f, storage), "tensor \"%s\": storage \"%.80s\" is not in the archive", name, shown);
  uint64_t size = storage->stored == CAB_S_NONE ? 0 : cab_stored[storage->stored].size, have = f->w->zip.entry[v->entry].bytes;
  if (!size) return REFUSE("pth-dtype", place(f, storage), "tensor \"%s\": complex or quantized numbers are not read", name);
  if (count->whole < 0 || sz_mul((uint64_t)count->whole, size) != have)
    return REFUSE("pth-storage", place(f, storage), "tensor \"%s\": storage \"%.80s\" of %lld x %llu bytes has %llu bytes in the archive", name, shown,
                  (long long)count->whole, (ull)size, (ull)have);
  *elements = (uint64_t)count->whole;
  return CAB_OK;
}

/* v->name is set. Arguments: storage, offset, sizes, strides, ... with kinds that the pickle machine has checked. */
static CabStatus describe(Pth *f, const CabPickleValue *t, CabWeight *v) {
  const CabPickleValue *args = &f->pickle.value[t->call], *storage = cab_pickle_item(&f->pickle, args, 0), *item[3];
  char name[340];
  uint64_t elements = 0;
  cab_escape(v->name, strlen(v->name), name);
  for (uint32_t i = 0; i < 3; i++) item[i] = cab_pickle_item(&f->pickle, args, i + 1);
  CAB_TRY(storage_of(f, storage, name, v, &elements));
  const CabPickleValue *dtype = cab_pickle_item(&f->pickle, args, 6); /* of version 3; else metadata */
  bool typed = dtype && dtype->kind == CAB_P_GLOBAL;
  if (typed && t->stored == CAB_S_NONE) return REFUSE("pth-dtype", place(f, t), "tensor \"%s\": complex numbers are not read", name);
  v->stored = typed ? t->stored : storage->stored;
  uint64_t size = cab_stored[v->stored].size;
  if (typed) elements = elements * cab_stored[storage->stored].size / size;
  if (item[1]->count != item[2]->count)
    return REFUSE("pth-view", place(f, t), "tensor \"%s\": %u sizes, %u strides", name, item[1]->count, item[2]->count);
  v->rank = (int)item[1]->count;
  uint32_t s = item[1]->items.first, d = item[2]->items.first;
  for (int i = 0; i < v->rank; i++, s = next(f, s), d = next(f, d)) {
    v->shape[i] = at(f, s)->whole, v->stride[i] = at(f, d)->whole;
    if (v->shape[i] < 0 || v->stride[i] < 0)
      return REFUSE("pth-view", place(f, t), "tensor \"%s\": size %lld, stride %lld of dimension %d", name, (long long)v->shape[i], (long long)v->stride[i], i + 1);
  }
  uint64_t count = cab_shape_count(v->rank, v->shape);
  if (item[0]->whole < 0 || count == SZ_BAD || !cab_view_fits(v->rank, v->shape, v->stride, (uint64_t)item[0]->whole, elements))
    return REFUSE("pth-view", place(f, t), "tensor \"%s\": a view from element %lld on passes the %llu elements of its storage", name,
                  (long long)item[0]->whole, (ull)elements);
  v->offset = (uint64_t)item[0]->whole * size;
  f->bytes = sz_add(f->bytes, sz_mul(count, size));
  if (f->bytes > sz_add(sz_mul(f->w->file.size, 2), SPARE))
    return REFUSE("pth-limit", place(f, t), "tensor \"%s\": views up to here need %llu bytes, too many for a file of this size", name, (ull)f->bytes);
  return CAB_OK;
}

/* ---- walking the dict ---------------------------------------------------------------------- */

static CabStatus check_name(const Pth *f, const CabPickleValue *key) {
  const uint8_t *text = f->pickle.bytes + key->text;
  if (!memchr(text, 0, key->count) && rd_is_utf8(text, key->count)) return CAB_OK;
  return REFUSE("pth-name", place(f, key), "a name holds NUL or is not UTF-8");
}

/* path + key as a string in w->names. Their room is fixed: a tensor takes more of the pickle than a name of usual length. */
static CabStatus store_name(Pth *f, size_t prefix, const CabPickleValue *key, const char **out) {
  uint64_t want = sz_add(f->names_used + prefix + 1, key->count);
  const uint8_t *text = f->pickle.bytes + key->text;
  CAB_TRY(check_name(f, key));
  if (want > f->names_room) return REFUSE("pth-limit", place(f, key), "names of more than %llu bytes", (ull)f->names_room);
  char *to = f->w->names + f->names_used;
  memcpy(to, f->path, prefix);
  memcpy(to + prefix, text, key->count);
  to[prefix + key->count] = 0;
  *out = to;
  f->names_used = want;
  return CAB_OK;
}

static CabStatus add_tensor(Pth *f, size_t prefix, const CabPickleValue *key, const CabPickleValue *value) {
  CabWeights *w = f->w;
  if (w->count == CAB_WEIGHTS_MAX) return REFUSE("pth-limit", place(f, value), "more than %d tensors", CAB_WEIGHTS_MAX);
  if ((uint64_t)w->count == f->weight_room) {
    uint64_t room = f->weight_room ? f->weight_room * 2 : 64;
    CabWeight *grown = cab_realloc(w->weight, room, sizeof *grown);
    if (!grown) return CAB_E_MEMORY;
    w->weight = grown, f->weight_room = room;
  }
  CabWeight *v = &w->weight[w->count];
  *v = (CabWeight){.entry = -1};
  CAB_TRY(store_name(f, prefix, key, &v->name));
  CAB_TRY(describe(f, value, v));
  w->count++;
  return CAB_OK;
}

static void note_other(Pth *f, size_t prefix, const CabPickleValue *key) {
  char name[340];
  size_t room = sizeof f->others - f->others_used;
  if (key->kind == CAB_P_TEXT) cab_pickle_text(&f->pickle, key, name);
  else snprintf(name, sizeof name, "%s", "?");
  int n = snprintf(f->others + f->others_used, room, "%s%.*s%.80s", f->others_count++ ? ", " : "", (int)prefix, f->path, name);
  if ((size_t)n < room) f->others_used += (size_t)n;
  else f->others[f->others_used] = 0; /* the list is cut */
}

typedef struct {
  uint32_t cell; /* next key */
  size_t prefix;
} Level;

/* Depth first without recursion: every tensor below `dict`, with its path. Work is bounded, as one dict may be below many. */
static CabStatus walk(Pth *f, const CabPickleValue *dict) {
  Level level[MAX_NESTING + 1] = {{dict->items.first, 0}};
  uint32_t steps = 0;
  for (int depth = 0; depth >= 0;) {
    Level *l = &level[depth];
    if (!l->cell) {
      depth--;
      continue;
    }
    const CabPickleValue *key = at(f, l->cell), *value = at(f, next(f, l->cell));
    l->cell = next(f, next(f, l->cell));
    if (++steps > CAB_PICKLE_MAX_VALUES) return REFUSE("pth-limit", place(f, dict), "more than %u entries", CAB_PICKLE_MAX_VALUES);
    if (value->kind == CAB_P_TENSOR && key->kind == CAB_P_TEXT) CAB_TRY(add_tensor(f, l->prefix, key, value));
    else if (value->kind == CAB_P_DICT && key->kind == CAB_P_TEXT && value->count) {
      size_t prefix = l->prefix + key->count + 1;
      if (depth == MAX_NESTING || prefix >= sizeof f->path) return REFUSE("pth-limit", place(f, value), "dicts nested deeper than %d", MAX_NESTING);
      CAB_TRY(check_name(f, key));
      memcpy(f->path + l->prefix, f->pickle.bytes + key->text, key->count);
      f->path[prefix - 1] = '.';
      level[++depth] = (Level){value->items.first, prefix};
    } else note_other(f, l->prefix, key);
  }
  return CAB_OK;
}

static int by_name(const void *a, const void *b) { return strcmp(((const CabWeight *)a)->name, ((const CabWeight *)b)->name); }

static CabStatus finish(Pth *f, const char *key) {
  CabWeights *w = f->w;
  if (w->count) qsort(w->weight, (size_t)w->count, sizeof *w->weight, by_name);
  for (int i = 1; i < w->count; i++)
    if (!strcmp(w->weight[i - 1].name, w->weight[i].name))
      return REFUSE("pth-duplicate", f->pickle.shift, "tensor \"%s\" twice", cab_escape(w->weight[i].name, strlen(w->weight[i].name), (char[340]){0}));
  size_t length = strlen(key) + 1;
  char *text = cab_malloc(length + sizeof f->others, 1);
  if (!text) return CAB_E_MEMORY;
  memcpy(text, key, length);
  memcpy(text + length, f->others, f->others_used + 1);
  w->extra = text;
  w->own[0] = (CabStMeta){"format", "pytorch", 0}, w->own[1] = (CabStMeta){"key", text, 0}, w->own[2] = (CabStMeta){"not read", text + length, 0};
  w->metadata = w->own, w->metadata_count = f->others_count ? 3 : 2;
  return CAB_OK;
}

/* A tensor saved by itself is named "tensor". */
static CabStatus read_root(Pth *f, const char *key) {
  const CabPickleValue *dict = &f->pickle.value[f->pickle.root], *root = dict;
  const char *name = "";
  if (root->kind == CAB_P_TENSOR && !key) {
    if (!(f->w->weight = cab_calloc(1, sizeof *f->w->weight))) return CAB_E_MEMORY;
    f->w->weight[0].name = "tensor";
    CAB_TRY(describe(f, root, f->w->weight));
    f->w->count = 1;
    return finish(f, "");
  }
  CAB_TRY(choose(f, key, &dict, &name));
  if (dict->kind != CAB_P_DICT) return REFUSE("pth-key", place(f, dict), "no state dict: expected a dict of tensors (save model.state_dict())");
  if (dict != root)
    for (uint32_t c = root->items.first; c; c = next(f, next(f, c)))
      if (at(f, next(f, c)) != dict) note_other(f, 0, at(f, c));
  CAB_TRY(walk(f, dict));
  return finish(f, name);
}

CabStatus cab_pth_open(CabWeights *w, const char *key) {
  Pth f = {.w = w};
  int index;
  CabBytes bytes = {0};
  CAB_TRY(find_pickle(&f, &index));
  const CabZipEntry *e = &w->zip.entry[index];
  if (e->bytes > CAB_PICKLE_MAX)
    return cab_fail_file(CAB_E_INPUT, "pickle-limit", w->file.path, (int64_t)e->at, "a pickle of %llu bytes, at most %u are read", (ull)e->bytes, CAB_PICKLE_MAX);
  CAB_TRY(cab_zip_read(&w->file, e, &bytes));
  f.names_room = bytes.length * 2 + 4096;
  CabStatus status = (w->names = cab_malloc(f.names_room, 1)) ? CAB_OK : CAB_E_MEMORY;
  if (status == CAB_OK) status = cab_pickle_parse(bytes.data, bytes.length, w->file.path, e->deflated ? 0 : e->data_at, &f.pickle);
  if (status == CAB_OK) status = read_root(&f, key);
  cab_pickle_free(&f.pickle);
  cab_bytes_free(&bytes);
  return status;
}
