/* weights.h - a file of named tensors, told apart by its first bytes: safetensors, a PyTorch checkpoint (zip of a pickle and
 * storages), NumPy's .npy and .npz. A description is read and checked first, then one tensor at a time. */
#ifndef CAB_WEIGHTS_H
#define CAB_WEIGHTS_H
#include "safetensors.h"
#include "zip.h"

#define CAB_WEIGHTS_MAX 100000 /* tensors of a PyTorch or NumPy file */

typedef struct {
  const char *name;
  CabStored stored;
  int rank;
  int64_t shape[CAB_MAX_RANK], stride[CAB_MAX_RANK]; /* in elements, not negative */
  int entry;       /* of the zip; -1: the bytes lie in the file itself */
  uint64_t offset; /* in bytes, in the unpacked entry or the file */
} CabWeight;

typedef struct {
  CabFile file;
  int count, metadata_count;
  CabWeight *weight; /* by name */
  int *order;        /* indices by place in the file: entries are unpacked once */
  CabStMeta *metadata;
  CabSafetensors st; /* owns names and metadata of safetensors */
  CabZip zip;
  char *names, *extra; /* own the others */
  CabStMeta own[3];
  int cached;        /* entry in `cache`, -1: none */
  CabBytes cache;
} CabWeights;

/* key: path of the state dict within a PyTorch file ("model_ema", "a.b"), NULL for the rule of pth.c; elsewhere an error. */
CabStatus cab_weights_open(const char *path, const char *key, CabWeights *out);
void cab_weights_close(CabWeights *w);
/* On the CPU, in cab_stored[stored].dtype. 65 (weights-value): an integer that does not fit i32. */
CabTensor *cab_weights_read(CabWeights *w, int index);

typedef struct {
  double min, max; /* over finite values; 0 if there are none */
  uint64_t nan, infinite;
} CabRange;
CabStatus cab_weights_range(CabWeights *w, int index, CabRange *out); /* of the values as stored */

/* Readers of one format each: w->file is open. */
CabStatus cab_pth_open(CabWeights *w, const char *key);
CabStatus cab_npz_open(CabWeights *w);
CabStatus cab_npy_open(CabWeights *w);

/* sizes x strides from `offset` (in elements) within `elements`; all checked for overflow. */
bool cab_view_fits(int rank, const int64_t *shape, const int64_t *stride, uint64_t offset, uint64_t elements);
uint64_t cab_shape_count(int rank, const int64_t *shape); /* SZ_BAD: overflow, also beside a 0 */

#endif
