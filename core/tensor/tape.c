/* tape.c - nodes record what made a tensor, edges where the gradients of its inputs go. */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

/* What only this file sees of a node. */
typedef struct Box {
  CabNode node; /* first, so that a node is its box */
  struct Box *next_dead;
  uint64_t visit;       /* the walk that collected it last */
  bool busy;            /* that walk is not over */
  CabTensor *pending[]; /* during a walk: the gradient of each output so far */
} Box;

static bool enabled = true;
static uint64_t sequence, visits;
static char line[48];
static CabLeafHook *leaf_hook;
static void *leaf_hook_ctx;

void cab_set_leaf_hook(CabLeafHook *hook, void *ctx) { leaf_hook = hook, leaf_hook_ctx = ctx; }

bool cab_grad_enabled(void) { return enabled; }

bool cab_set_grad_enabled(bool on) {
  bool old = enabled;
  enabled = on;
  return old;
}

void cab_set_current_line(const char *where) { cab_note_place(line, where ? where : ""); }
const char *cab_current_line(void) { return line; }

/* ---- nodes ---------------------------------------------------------------------------------------------------- */

CabNode *cab_node_new(const char *name, int inputs, CabTensor **in, int outputs) {
  bool wanted = false;
  cab_error()->code = CAB_OK;
  if (inputs > CAB_MAX_ARGS) return cab_fail(CAB_E_BUG, "%s: a node of %d inputs", name, inputs), NULL;
  for (int i = 0; i < inputs; i++) wanted |= in[i] && in[i]->requires_grad;
  if (!enabled || !wanted) return NULL;
  Box *box = cab_calloc(1, sizeof *box + sizeof(CabTensor *) * (size_t)outputs);
  if (!box) return NULL;
  CabNode *node = &box->node;
  sequence++;
  *node = (CabNode){.name = name, .sequence = sequence, .refs = 1, .inputs = inputs, .outputs = outputs};
  cab_note_place(node->where, NULL);
  for (int i = 0; i < inputs; i++) {
    CabTensor *t = in[i];
    CabEdge *edge = &node->in[i];
    if (!t || !t->storage) continue;
    edge->device = t->storage->device;
    edge->dtype = t->dtype;
    edge->rank = t->rank;
    memcpy(edge->shape, t->shape, sizeof edge->shape);
    if (!t->requires_grad) continue;
    edge->output = t->output;
    edge->node = t->node;
    if (t->node) t->node->refs++;
    else edge->leaf = cab_tensor_retain(t);
  }
  return node;
}

int cab_node_save(CabNode *node, CabTensor *t) {
  int slot = node->saved_count;
  if (slot == CAB_MAX_ARGS * 2) return cab_fail(CAB_E_BUG, "%s: more than %d saved tensors", node->name, slot), -1;
  if (t) {
    if (cab_check_open(node->name, t)) return -1;
    node->saved[slot] = cab_tensor_alias(t);
    if (!node->saved[slot]) return -1;
    node->saved_version[slot] = t->storage->version;
  }
  return node->saved_count++;
}

void cab_node_attach(CabNode *node, int output, CabTensor *t) {
  CabNode *old = t->node;
  node->refs++;
  t->node = node;
  t->output = output;
  t->requires_grad = true;
  if (output < CAB_MAX_ARGS) node->out_rank[output] = t->rank;
  cab_node_release(old);
}

/* Nobody can read the gradient of a closed leaf. */
bool cab_node_wants(const CabNode *node, int input) {
  const CabEdge *edge = &node->in[input];
  return edge->node || (edge->leaf && edge->leaf->storage);
}

/* Drops what backward needed: saved values, ctx and edges. */
static void spend(CabNode *node) {
  node->spent = true;
  if (node->destroy) node->destroy(node);
  node->destroy = NULL;
  node->ctx = NULL;
  cab_tensor_release(node->joint);
  node->joint = NULL;
  for (int i = 0; i < node->saved_count; i++) {
    CabTensor *saved = node->saved[i];
    node->saved[i] = NULL;
    cab_tensor_release(saved);
  }
  for (int i = 0; i < node->inputs; i++) {
    CabTensor *leaf = node->in[i].leaf;
    CabNode *from = node->in[i].node;
    node->in[i].leaf = NULL;
    node->in[i].node = NULL;
    cab_tensor_release(leaf);
    cab_node_release(from);
  }
}

/* A chain of a million nodes frees itself from this list, not from the stack. */
void cab_node_release(CabNode *node) {
  static Box *dead;
  static bool draining;
  if (!node || --node->refs) return;
  Box *box = (Box *)node;
  box->next_dead = dead;
  dead = box;
  if (draining) return;
  draining = true;
  while ((box = dead)) {
    dead = box->next_dead;
    spend(&box->node);
    cab_free(box);
  }
  draining = false;
}

/* ---- gradients ------------------------------------------------------------------------------------------------ */

/* Takes g; gives a gradient that has no history and that no scope closes. */
static CabTensor *settle(CabTensor *g) {
  if (g->refs == 1 && !g->node && !g->requires_grad) {
    cab_scope_unlink(g);
    return g;
  }
  CabTensor *alias = cab_tensor_alias(g);
  cab_tensor_release(g);
  return alias;
}

/* It may be written to and does not keep a larger storage alive. */
static bool is_own(const CabTensor *g) {
  bool alone = g->refs == 1 && g->storage->refs == 1;
  bool whole = g->storage->bytes == (size_t)cab_tensor_count(g) * cab_dtype_size(g->dtype);
  return alone && whole && cab_tensor_contiguous(g);
}

/* Takes g; gives one of which that is true. */
static CabTensor *make_own(CabTensor *g) {
  if (is_own(g)) return g;
  CabTensor *own = cab_tensor_to(g, g->storage->device, g->dtype);
  if (own) cab_scope_unlink(own);
  cab_tensor_release(g);
  return own;
}

static bool is_placed(const CabNode *node, const CabTensor *g) { return node->joint && node->joint->storage == g->storage; }

CabTensor *cab_node_gradient(CabNode *node, int input, bool adds, bool rows, bool *add) {
  const CabEdge *edge = &node->in[input];
  CabNode *to = edge->node;
  CabTensor **sum = to ? &((Box *)to)->pending[edge->output] : NULL, *g = sum ? *sum : NULL;
  *add = g && adds && (is_own(g) || (rows && is_placed(to, g)));
  if (*add) return *sum = NULL, g;
  if (to && to->place && !g && rows) {
    cab_error()->code = CAB_OK;
    g = to->place(to, edge->output);
    if (g || cab_error()->code) return g;
  }
  return cab_tensor_new(edge->device, edge->dtype, edge->rank, edge->shape);
}

/* Takes g. *sum += g; the first one is stolen. */
static CabStatus accumulate(CabTensor **sum, CabTensor *g) {
  if (!*sum) return *sum = g, CAB_OK;
  CabStatus status = CAB_OK;
  *sum = make_own(*sum);
  if (!*sum) status = cab_error()->code;
  else status = cab_tensor_add(*sum, 1, g);
  cab_tensor_release(g);
  return status;
}

/* Takes g. What Lua holds as leaf.grad is added to in place. */
static CabStatus into_leaf(CabTensor *leaf, CabTensor *g) {
  if (leaf->grad && !leaf->grad->storage) { /* closed by hand */
    cab_tensor_release(leaf->grad);
    leaf->grad = NULL;
  }
  if (leaf->grad) {
    CabStatus status = cab_tensor_add(leaf->grad, 1, g);
    cab_tensor_release(g);
    CAB_TRY(status);
  } else if (!(leaf->grad = make_own(g))) {
    return cab_error()->code;
  }
  return leaf_hook ? leaf_hook(leaf_hook_ctx, leaf) : CAB_OK;
}

static CabStatus check_gradient(const CabNode *node, int input, const CabTensor *g) {
  const CabEdge *edge = &node->in[input];
  char a[160], b[160], what[80];
  snprintf(what, sizeof what, "backward: %s: gradient %d", node->name, input + 1);
  CAB_TRY(cab_check_open(what, g));
  bool fits = g->dtype == edge->dtype && g->rank == edge->rank && g->storage->device == edge->device;
  for (int d = 0; fits && d < g->rank; d++) fits = g->shape[d] == edge->shape[d];
  if (fits) return CAB_OK;
  return cab_fail(CAB_E_LUA, "backward: %s gave a gradient %s for input %d, which is %s%s", node->name, cab_shape_text(g, a),
                  input + 1, cab_dtype_name(edge->dtype), cab_dims_text(edge->rank, edge->shape, b));
}

/* Takes g. */
static CabStatus deliver(CabNode *node, int input, CabTensor *g) {
  const CabEdge *edge = &node->in[input];
  CabStatus status = check_gradient(node, input, g);
  if (status || !cab_node_wants(node, input)) return cab_tensor_release(g), status;
  g = settle(g);
  if (!g) return cab_error()->code;
  if (edge->leaf) return into_leaf(edge->leaf, g);
  return accumulate(&((Box *)edge->node)->pending[edge->output], g);
}

/* ---- the walk ------------------------------------------------------------------------------------------------- */

typedef struct {
  Box **list;
  size_t count, room;
} Walk;

static CabStatus collect_one(Walk *walk, CabNode *node) {
  Box *box = (Box *)node;
  if (box->visit == visits) return CAB_OK;
  if (box->busy)
    return cab_fail(CAB_E_LUA, "backward: '%s' belongs to the backward that runs: detach what comes from outside", node->name);
  if (node->spent)
    return cab_fail(CAB_E_LUA, "backward: '%s'%s%s%s ran backward before and its saved values are gone: run forward again",
                    node->name, node->where[0] ? " (" : "", node->where, node->where[0] ? ")" : "");
  if (walk->count == walk->room) {
    size_t room = walk->room ? walk->room * 2 : 64;
    Box **list = cab_realloc(walk->list, room, sizeof *list);
    if (!list) return cab_error()->code;
    walk->list = list;
    walk->room = room;
  }
  box->visit = visits, box->busy = true;
  node->refs++;
  walk->list[walk->count++] = box;
  return CAB_OK;
}

static int newest_first(const void *a, const void *b) {
  uint64_t x = (*(Box *const *)a)->node.sequence, y = (*(Box *const *)b)->node.sequence;
  return (x < y) - (x > y);
}

/* All nodes that the roots depend on, consumers before producers: a node is newer than what it reads. */
static CabStatus collect(Walk *walk, int count, CabTensor **roots) {
  visits++;
  for (int i = 0; i < count; i++)
    if (roots[i]->node) CAB_TRY(collect_one(walk, roots[i]->node));
  for (size_t at = 0; at < walk->count; at++) {
    CabNode *node = &walk->list[at]->node;
    for (int i = 0; i < node->inputs; i++)
      if (node->in[i].node) CAB_TRY(collect_one(walk, node->in[i].node));
  }
  qsort(walk->list, walk->count, sizeof *walk->list, newest_first);
  return CAB_OK;
}

static CabStatus check_saved(const CabNode *node) {
  char what[80];
  snprintf(what, sizeof what, "backward: %s: a saved tensor", node->name);
  for (int i = 0; i < node->saved_count; i++) {
    const CabTensor *saved = node->saved[i];
    if (!saved) continue;
    CAB_TRY(cab_check_open(what, saved));
    const CabStorage *s = saved->storage;
    if (s->version == node->saved_version[i]) continue;
    return cab_fail(CAB_E_LUA, "backward: %s saved a tensor at version %u, it is at version %u%s%s%s", node->name,
                    node->saved_version[i], s->version, s->written_at[0] ? " (written at " : "", s->written_at,
                    s->written_at[0] ? ")" : "");
  }
  return CAB_OK;
}

/* Whether a gradient arrived; makes those that did contiguous, unless they are in their place. */
static CabStatus take_pending(Box *box, bool *any) {
  for (int i = 0; i < box->node.outputs; i++) {
    if (!box->pending[i]) continue;
    *any = true;
    if (cab_tensor_contiguous(box->pending[i]) || is_placed(&box->node, box->pending[i])) continue;
    box->pending[i] = make_own(box->pending[i]);
    if (!box->pending[i]) return cab_error()->code;
  }
  return CAB_OK;
}

static void drop_pending(Box *box) {
  for (int i = 0; i < box->node.outputs; i++) {
    cab_tensor_release(box->pending[i]);
    box->pending[i] = NULL;
  }
}

static CabStatus step(Box *box) {
  CabNode *node = &box->node;
  CabTensor *gin[CAB_MAX_ARGS] = {0};
  bool any = false;
  CAB_TRY(take_pending(box, &any));
  if (!any) return CAB_OK;
  CAB_TRY(check_saved(node));
  CabStatus status = node->backward(node, box->pending, gin);
  drop_pending(box); /* before delivery: a gin that shares its memory can then be stolen */
  for (int i = 0; i < CAB_MAX_ARGS; i++) {
    if (!gin[i]) continue;
    if (status == CAB_OK && i < node->inputs) status = deliver(node, i, gin[i]);
    else cab_tensor_release(gin[i]);
  }
  return status;
}

static CabTensor *first_gradient(CabTensor *t, CabTensor *seed) {
  if (seed) return cab_tensor_alias(seed);
  CabTensor *one = cab_tensor_new(t->storage->device, t->dtype, t->rank, t->shape);
  if (!one) return NULL;
  cab_scope_unlink(one);
  if (cab_tensor_fill(one, 1)) return cab_tensor_release(one), NULL;
  return one;
}

/* Takes g, the gradient of a root. */
static CabStatus begin_at(CabTensor *root, CabTensor *g) {
  if (!g) return cab_error()->code;
  return root->node ? accumulate(&((Box *)root->node)->pending[root->output], g) : into_leaf(root, g);
}

/* All saved versions are checked before any leaf is written to. */
static CabStatus walk_from(int count, CabTensor **roots, CabTensor **seeds) {
  Walk walk = {0};
  CabStatus status = collect(&walk, count, roots);
  for (size_t i = 0; status == CAB_OK && i < walk.count; i++) status = check_saved(&walk.list[i]->node);
  bool old = cab_set_grad_enabled(false);
  for (int i = 0; status == CAB_OK && i < count; i++) status = begin_at(roots[i], first_gradient(roots[i], seeds[i]));
  for (size_t i = 0; i < walk.count; i++) {
    if (status == CAB_OK) {
      status = step(walk.list[i]);
      if (status == CAB_OK) spend(&walk.list[i]->node);
    }
    drop_pending(walk.list[i]);
  }
  /* Only now: until here a pending gradient may sit in any node of the list. */
  for (size_t i = 0; i < walk.count; i++) {
    walk.list[i]->busy = false;
    cab_node_release(&walk.list[i]->node);
  }
  cab_set_grad_enabled(old);
  cab_free(walk.list);
  return status;
}

static CabStatus check_root(CabTensor *t, CabTensor *seed) {
  char a[160], b[160];
  cab_shape_text(t, a);
  CAB_TRY(cab_check_open("backward", t));
  if (!enabled) return cab_fail(CAB_E_LUA, "backward: called inside no_grad");
  if (!t->requires_grad) return cab_fail(CAB_E_LUA, "backward: %s has no history: nothing it depends on requires a gradient", a);
  if (!seed && cab_tensor_count(t) != 1) return cab_fail(CAB_E_LUA, "backward: %s is not a scalar: give a seed gradient", a);
  if (!seed) return CAB_OK;
  CAB_TRY(cab_check_open("backward: the seed", seed));
  bool fits = seed->rank == t->rank && seed->dtype == t->dtype && seed->storage->device == t->storage->device;
  for (int d = 0; fits && d < t->rank; d++) fits = seed->shape[d] == t->shape[d];
  return fits ? CAB_OK : cab_fail(CAB_E_LUA, "backward: the seed is %s, expected %s", cab_shape_text(seed, b), a);
}

CabStatus cab_backward(int count, CabTensor **roots, CabTensor **seeds) {
  for (int i = 0; i < count; i++) CAB_TRY(check_root(roots[i], seeds[i]));
  return walk_from(count, roots, seeds);
}
