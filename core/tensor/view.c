/* view.c - views of a tensor and concat, with their gradients. Only concat, and reshape of a view that needs it, copy. */
#include <string.h>

#include "elementwise.h"
#include "internal.h"

typedef struct {
  int dim, order[CAB_MAX_RANK];
  int64_t start;
  int64_t sizes[]; /* split, concat: one for each part */
} View;

static void destroy(CabNode *node) { cab_free(node->ctx); }

typedef CabStatus Backward(CabNode *, CabTensor **gout, CabTensor **gin);

/* A node for `inputs`, with a View of `parts` sizes as its ctx. *node stays NULL where no gradient is wanted. */
static CabStatus open_node(const char *name, int inputs, CabTensor **in, int outputs, int parts, Backward *backward, CabNode **node) {
  *node = cab_node_new(name, inputs, in, outputs);
  if (!*node) return cab_error()->code;
  (*node)->ctx = cab_calloc(1, sizeof(View) + sizeof(int64_t) * (size_t)parts);
  if (!(*node)->ctx) return cab_node_release(*node), *node = NULL, cab_error()->code;
  (*node)->backward = backward;
  (*node)->destroy = destroy;
  return CAB_OK;
}

/* The view out (NULL: failed) becomes the output of a node on t. */
static CabTensor *record(const char *name, CabTensor *t, CabTensor *out, Backward *backward, const View *view) {
  CabNode *node;
  if (!out) return NULL;
  if (open_node(name, 1, &t, 1, 0, backward, &node)) return cab_tensor_release(out), NULL;
  if (!node) return out;
  if (view) memcpy(node->ctx, view, sizeof *view);
  cab_node_attach(node, 0, out);
  cab_node_release(node);
  return out;
}

static CabTensor *view_of(CabTensor *t, int rank, const int64_t *shape, const int64_t *stride, int64_t offset) {
  return cab_tensor_make(t->storage, t->dtype, rank, shape, stride, offset, true);
}

static CabStatus check_dim(const char *what, const CabTensor *t, int dim) {
  char text[160];
  CAB_TRY(cab_check_open(what, t));
  if (dim >= 0 && dim < t->rank) return CAB_OK;
  return cab_fail(CAB_E_LUA, "%s: %s has no dimension %d", what, cab_shape_text(t, text), dim + 1);
}

/* ---- reshape -------------------------------------------------------------------------------------------------- */

/* Strides of the same memory seen with another shape: each group of old dims that is one run of memory must cover a
 * group of new dims. False if there are none. */
static bool reshape_strides(const CabTensor *t, int rank, const int64_t *shape, int64_t *stride) {
  cab_strides(rank, shape, stride);
  if (cab_tensor_contiguous(t)) return true;
  int64_t old_shape[CAB_MAX_RANK], old_stride[CAB_MAX_RANK];
  int olds = 0, to = 0;
  for (int d = 0; d < t->rank; d++)
    if (t->shape[d] != 1) old_shape[olds] = t->shape[d], old_stride[olds++] = t->stride[d];
  for (int from = 0; from < olds;) {
    int first = from, start = to;
    int64_t have = old_shape[from++], want = 1;
    while (have != want) {
      if (want < have) want *= shape[to++];
      else have *= old_shape[from++];
    }
    for (int d = first; d + 1 < from; d++)
      if (old_stride[d] != old_stride[d + 1] * old_shape[d + 1]) return false;
    int64_t step = old_stride[from - 1];
    for (int d = to - 1; d >= start; d--) stride[d] = step, step *= shape[d];
  }
  return true;
}

static CabStatus resolve_shape(const CabTensor *t, int rank, const int64_t *shape, int64_t *out) {
  char a[160], b[160];
  int free_dim = -1, frees = 0;
  uint64_t known = 1, count = (uint64_t)cab_tensor_count(t);
  bool bad = rank < 0 || rank > CAB_MAX_RANK;
  for (int d = 0; !bad && d < rank; d++) {
    out[d] = shape[d];
    if (shape[d] == -1) free_dim = d, frees++;
    else if (shape[d] < 0) bad = true;
    else known = sz_mul(known, (uint64_t)shape[d]);
  }
  if (!bad && frees == 1 && known && known != SZ_BAD && count % known == 0) out[free_dim] = (int64_t)(count / known);
  else if (bad || frees || known != count)
    return cab_fail(CAB_E_LUA, "reshape: %s, %lld elements, does not fit %s", cab_shape_text(t, a), (long long)count,
                    bad && (rank < 0 || rank > CAB_MAX_RANK) ? "more than 8 dimensions" : cab_dims_text(rank, shape, b));
  return CAB_OK;
}

static CabStatus reshape_backward(CabNode *node, CabTensor **gout, CabTensor **gin) {
  gin[0] = cab_reshape(gout[0], node->in[0].rank, node->in[0].shape);
  return gin[0] ? CAB_OK : cab_error()->code;
}

CabTensor *cab_reshape(CabTensor *t, int rank, const int64_t *shape) {
  int64_t resolved[CAB_MAX_RANK], stride[CAB_MAX_RANK];
  if (cab_check_open("reshape", t) || resolve_shape(t, rank, shape, resolved)) return NULL;
  bool fits = reshape_strides(t, rank, resolved, stride);
  CabTensor *from = fits ? cab_tensor_retain(t) : cab_tensor_to(t, t->storage->device, t->dtype);
  if (!from) return NULL;
  if (!fits) cab_strides(rank, resolved, stride);
  CabTensor *out = view_of(from, rank, resolved, stride, from->offset);
  cab_tensor_release(from);
  return record("reshape", t, out, reshape_backward, NULL);
}

/* ---- permute, flip -------------------------------------------------------------------------------------------- */

static CabStatus permute_backward(CabNode *node, CabTensor **gout, CabTensor **gin) {
  const View *view = node->ctx;
  int inverse[CAB_MAX_RANK] = {0};
  for (int d = 0; d < gout[0]->rank; d++) inverse[view->order[d]] = d;
  gin[0] = cab_permute(gout[0], inverse);
  return gin[0] ? CAB_OK : cab_error()->code;
}

CabTensor *cab_permute(CabTensor *t, const int *order) {
  View view = {0};
  int64_t shape[CAB_MAX_RANK], stride[CAB_MAX_RANK];
  unsigned seen = 0;
  if (cab_check_open("permute", t)) return NULL;
  for (int d = 0; d < t->rank; d++) {
    if (check_dim("permute", t, order[d])) return NULL;
    if (seen >> order[d] & 1) return cab_fail(CAB_E_LUA, "permute: dimension %d is given twice", order[d] + 1), NULL;
    seen |= 1u << order[d];
    view.order[d] = order[d];
    shape[d] = t->shape[order[d]];
    stride[d] = t->stride[order[d]];
  }
  return record("permute", t, view_of(t, t->rank, shape, stride, t->offset), permute_backward, &view);
}

static CabStatus flip_backward(CabNode *node, CabTensor **gout, CabTensor **gin) {
  gin[0] = cab_flip(gout[0], ((const View *)node->ctx)->dim);
  return gin[0] ? CAB_OK : cab_error()->code;
}

CabTensor *cab_flip(CabTensor *t, int dim) {
  View view = {.dim = dim};
  int64_t stride[CAB_MAX_RANK], offset = t->offset;
  if (check_dim("flip", t, dim)) return NULL;
  memcpy(stride, t->stride, sizeof stride);
  if (t->shape[dim] > 1) {
    offset += (t->shape[dim] - 1) * stride[dim];
    stride[dim] = -stride[dim];
  }
  return record("flip", t, view_of(t, t->rank, t->shape, stride, offset), flip_backward, &view);
}

/* ---- slice, split, concat ------------------------------------------------------------------------------------- */

static CabTensor *part_of(CabTensor *t, int dim, int64_t start, int64_t size) {
  int64_t shape[CAB_MAX_RANK];
  memcpy(shape, t->shape, sizeof shape);
  shape[dim] = size;
  return view_of(t, t->rank, shape, t->stride, size ? t->offset + start * t->stride[dim] : t->offset);
}

static CabStatus write_part(CabTensor *whole, int dim, int64_t start, CabTensor *part) {
  CabTensor *place = part_of(whole, dim, start, part->shape[dim]);
  CabStatus status = place ? cab_tensor_copy(place, part) : cab_error()->code;
  cab_tensor_release(place);
  return status;
}

static CabTensor *gradient_for(const CabEdge *edge, bool zeros) {
  return (zeros ? cab_tensor_zeros : cab_tensor_new)(edge->device, edge->dtype, edge->rank, edge->shape);
}

static CabStatus slice_backward(CabNode *node, CabTensor **gout, CabTensor **gin) {
  const View *view = node->ctx;
  gin[0] = gradient_for(&node->in[0], true);
  return gin[0] ? write_part(gin[0], view->dim, view->start, gout[0]) : cab_error()->code;
}

CabTensor *cab_slice(CabTensor *t, int dim, int64_t start, int64_t stop) {
  char text[160];
  View view = {.dim = dim, .start = start};
  if (check_dim("slice", t, dim)) return NULL;
  if (start < 0 || stop < start || stop > t->shape[dim]) /* in Lua's count: from 1, both ends included */
    return cab_fail(CAB_E_LUA, "slice: elements %lld to %lld of dimension %d are not in %s", (long long)start + 1,
                    (long long)stop, dim + 1, cab_shape_text(t, text)), NULL;
  return record("slice", t, part_of(t, dim, start, stop - start), slice_backward, &view);
}

/* Columns of one buffer for all parts. */
static CabTensor *split_place(CabNode *node, int output) {
  const View *view = node->ctx;
  int64_t start = 0;
  if (view->dim != node->in[0].rank - 1) return NULL;
  if (!node->joint && !(node->joint = gradient_for(&node->in[0], false))) return NULL;
  cab_scope_unlink(node->joint);
  for (int i = 0; i < output; i++) start += view->sizes[i];
  return part_of(node->joint, view->dim, start, view->sizes[output]);
}

/* Nothing is left to do where every part was written to its place. Else one buffer for all, too: as many bytes as t, whatever
 * their number. */
static CabStatus split_backward(CabNode *node, CabTensor **gout, CabTensor **gin) {
  const View *view = node->ctx;
  bool gaps = false, placed = node->joint;
  int64_t start = 0;
  for (int i = 0; i < node->outputs; i++) gaps |= !gout[i], placed = placed && gout[i] && gout[i]->storage == node->joint->storage;
  if (placed) return gin[0] = node->joint, node->joint = NULL, CAB_OK;
  gin[0] = gradient_for(&node->in[0], gaps);
  if (!gin[0]) return cab_error()->code;
  for (int i = 0; i < node->outputs; start += view->sizes[i++])
    if (gout[i]) CAB_TRY(write_part(gin[0], view->dim, start, gout[i]));
  return CAB_OK;
}

static CabStatus check_split(CabTensor *t, int dim, int count, const int64_t *sizes) {
  char text[160];
  uint64_t total = 0;
  CAB_TRY(check_dim("split", t, dim));
  for (int i = 0; i < count; i++) total = sizes[i] < 0 ? SZ_BAD : sz_add(total, (uint64_t)sizes[i]);
  if (count > 0 && total == (uint64_t)t->shape[dim]) return CAB_OK;
  return cab_fail(CAB_E_LUA, "split: the sizes do not add up to dimension %d of %s", dim + 1, cab_shape_text(t, text));
}

CabStatus cab_split(CabTensor *t, int dim, int count, const int64_t *sizes, CabTensor **out) {
  CabNode *node = NULL;
  int64_t start = 0;
  CAB_TRY(check_split(t, dim, count, sizes));
  CabStatus status = open_node("split", 1, &t, count, count, split_backward, &node);
  if (status) return status;
  if (node) {
    View *view = node->ctx;
    view->dim = dim;
    node->place = split_place;
    memcpy(view->sizes, sizes, sizeof *sizes * (size_t)count);
  }
  int made = 0;
  for (; made < count; start += sizes[made++]) {
    out[made] = part_of(t, dim, start, sizes[made]);
    if (!out[made]) break;
    if (node) cab_node_attach(node, made, out[made]);
  }
  cab_node_release(node);
  if (made == count) return CAB_OK;
  while (made > 0) cab_tensor_release(out[--made]);
  return cab_error()->code;
}

static CabStatus concat_backward(CabNode *node, CabTensor **gout, CabTensor **gin) {
  const View *view = node->ctx;
  int64_t start = 0;
  for (int i = 0; i < node->inputs; start += view->sizes[i++]) {
    if (!cab_node_wants(node, i)) continue;
    gin[i] = part_of(gout[0], view->dim, start, view->sizes[i]);
    if (!gin[i]) return cab_error()->code;
  }
  return CAB_OK;
}

static CabStatus joined_shape(int count, CabTensor **parts, int dim, int64_t *shape) {
  char a[160], b[160];
  if (count < 1) return cab_fail(CAB_E_LUA, "concat: no tensors");
  CAB_TRY(check_dim("concat", parts[0], dim));
  memcpy(shape, parts[0]->shape, sizeof *shape * CAB_MAX_RANK);
  for (int i = 1; i < count; i++) {
    CAB_TRY(cab_check_open("concat", parts[i]));
    bool fits = parts[i]->rank == parts[0]->rank && parts[i]->dtype == parts[0]->dtype &&
                parts[i]->storage->device == parts[0]->storage->device;
    for (int d = 0; fits && d < parts[0]->rank; d++) fits = d == dim || parts[i]->shape[d] == shape[d];
    if (!fits)
      return cab_fail(CAB_E_LUA, "concat: tensor %d is %s, which does not join %s along dimension %d", i + 1,
                      cab_shape_text(parts[i], a), cab_shape_text(parts[0], b), dim + 1);
    if (__builtin_add_overflow(shape[dim], parts[i]->shape[dim], &shape[dim]))
      return cab_fail(CAB_E_MEMORY, "concat: too large");
  }
  return CAB_OK;
}

/* A node has CAB_MAX_ARGS inputs, so more parts are joined in groups. */
static CabTensor *concat_groups(int count, CabTensor **parts, int dim) {
  int groups = (count + CAB_MAX_ARGS - 1) / CAB_MAX_ARGS, made = 0;
  CabTensor *out = NULL, **joined = cab_calloc((size_t)groups, sizeof *joined);
  if (!joined) return NULL;
  for (; made < groups; made++) {
    int first = made * CAB_MAX_ARGS, left = count - first;
    joined[made] = cab_concat(left < CAB_MAX_ARGS ? left : CAB_MAX_ARGS, parts + first, dim);
    if (!joined[made]) break;
  }
  if (made == groups) out = cab_concat(groups, joined, dim);
  while (made > 0) cab_tensor_release(joined[--made]);
  cab_free(joined);
  return out;
}

static CabStatus fill_parts(CabTensor *out, int count, CabTensor **parts, int dim) {
  CabNode *node;
  int64_t start = 0;
  for (int i = 0; i < count; start += parts[i++]->shape[dim]) CAB_TRY(write_part(out, dim, start, parts[i]));
  out->storage->version = 0;
  CAB_TRY(open_node("concat", count, parts, 1, count, concat_backward, &node));
  if (!node) return CAB_OK;
  View *view = node->ctx;
  view->dim = dim;
  for (int i = 0; i < count; i++) view->sizes[i] = parts[i]->shape[dim];
  cab_node_attach(node, 0, out);
  cab_node_release(node);
  return CAB_OK;
}

CabTensor *cab_concat(int count, CabTensor **parts, int dim) {
  int64_t shape[CAB_MAX_RANK];
  if (joined_shape(count, parts, dim, shape)) return NULL;
  if (count > CAB_MAX_ARGS) return concat_groups(count, parts, dim);
  CabTensor *out = cab_tensor_new(parts[0]->storage->device, parts[0]->dtype, parts[0]->rank, shape);
  if (out && fill_parts(out, count, parts, dim)) return cab_tensor_release(out), NULL;
  return out;
}

/* ---- expand --------------------------------------------------------------------------------------------------- */

/* x[outer,middle,inner] -> the sum over middle, as a tensor of one dim; takes x's reference. */
static CabTensor *sum_middle_of(CabTensor *x, int64_t outer, int64_t middle, int64_t inner) {
  int64_t count = outer * inner;
  CabTensor *y = cab_tensor_new(x->storage->device, x->dtype, 1, &count);
  sum_middle_fn *sum = y ? (sum_middle_fn *)cab_twin(x->storage->device, x->dtype, "sum_middle") : NULL;
  if (sum) sum(x->storage->device->stream, outer, middle, inner, 1.0, cab_tensor_data(x), cab_tensor_data(y));
  if (!sum || cab_launched(x->storage->device, "sum_middle")) cab_tensor_release(y), y = NULL;
  cab_tensor_release(x);
  return y;
}

/* Sums over the dims that expand repeated, neighbouring ones at once. */
static CabStatus expand_backward(CabNode *node, CabTensor **gout, CabTensor **gin) {
  const CabEdge *to = &node->in[0];
  CabTensor *g = cab_tensor_retain(gout[0]);
  int rank = g->rank, extra = rank - to->rank;
  int64_t shape[CAB_MAX_RANK];
  bool repeated[CAB_MAX_RANK];
  if (cab_tensor_count(g) == 0) {
    cab_tensor_release(g);
    gin[0] = gradient_for(to, true);
    return gin[0] ? CAB_OK : cab_error()->code;
  }
  memcpy(shape, g->shape, sizeof shape);
  for (int d = 0; d < rank; d++) repeated[d] = shape[d] != 1 && (d < extra || to->shape[d - extra] == 1);
  for (int d = 0; g && d < rank; d++) {
    int64_t outer = 1, middle = 1, inner = 1;
    int end = d;
    for (; end < rank && (repeated[end] || shape[end] == 1); end++) middle *= shape[end];
    if (middle == 1) continue;
    for (int i = 0; i < d; i++) outer *= shape[i];
    for (int i = end; i < rank; i++) inner *= shape[i];
    for (int i = d; i < end; i++) shape[i] = 1;
    g = sum_middle_of(g, outer, middle, inner);
  }
  gin[0] = g ? cab_reshape(g, to->rank, to->shape) : NULL;
  cab_tensor_release(g);
  return gin[0] ? CAB_OK : cab_error()->code;
}

CabTensor *cab_expand(CabTensor *t, int rank, const int64_t *shape) {
  char a[160], b[160];
  int64_t stride[CAB_MAX_RANK], count = 1;
  int extra = rank - t->rank;
  if (cab_check_open("expand", t)) return NULL;
  bool fits = rank <= CAB_MAX_RANK && extra >= 0;
  for (int d = 0; fits && d < rank; d++) {
    int64_t size = d < extra ? 1 : t->shape[d - extra];
    fits = shape[d] >= 0 && (size == 1 || size == shape[d]) && !__builtin_mul_overflow(count, shape[d] ? shape[d] : 1, &count);
    stride[d] = size == 1 ? 0 : t->stride[fits ? d - extra : 0];
  }
  if (!fits)
    return cab_fail(CAB_E_LUA, "expand: %s does not broadcast to %s", cab_shape_text(t, a), cab_dims_text(rank, shape, b)), NULL;
  return record("expand", t, view_of(t, rank, shape, stride, t->offset), expand_backward, NULL);
}
