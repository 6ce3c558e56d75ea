/* internal.h - what the files of core/tensor share and nobody else includes. */
#ifndef CAB_TENSOR_INTERNAL_H
#define CAB_TENSOR_INTERNAL_H
#include "op.h" /* cab_twin */
#include "tensor.h"

/* A view of `storage` (its reference is added). scoped: born in the current scope; aliases and gradients are not. */
CabTensor *cab_tensor_make(CabStorage *storage, CabDtype dtype, int rank, const int64_t *shape, const int64_t *stride,
                           int64_t offset, bool scoped);
CabStatus cab_check_open(const char *what, const CabTensor *t);
void cab_strides(int rank, const int64_t *shape, int64_t *stride); /* contiguous ones */
const char *cab_dims_text(int rank, const int64_t *shape, char out[160]); /* "[2,3]" */
void cab_note_place(char out[48], const char *where); /* keeps the end of a long one; NULL: the current line */

void cab_scope_link(CabTensor *t); /* into the current scope, if any */
void cab_scope_unlink(CabTensor *t);

/* The CPU's cast. */
CabStatus cab_cast_elements(CabDevice *device, int rank, const int64_t *shape, CabDtype from, const void *src,
                            const int64_t *stride_src, CabDtype to, void *dst, const int64_t *stride_dst);
/* dst = src over shape on one device, casting where the dtypes differ. */
CabStatus cab_copy_elements(CabDevice *device, int rank, const int64_t *shape, CabDtype from, const void *src,
                            const int64_t *stride_src, CabDtype to, void *dst, const int64_t *stride_dst);
#endif
