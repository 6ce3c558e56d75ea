/* stubs.c - what core/io and core/base link against and no parser calls. */
#include <stdlib.h>

#include "tensor.h"

void openblas_set_num_threads(int count) { (void)count; }
const char *openblas_get_corename(void) { return ""; }
CabDevice *cab_cpu(void) { abort(); }
size_t cab_dtype_size(CabDtype dtype) { (void)dtype, abort(); }
CabTensor *cab_tensor_new(CabDevice *d, CabDtype t, int r, const int64_t *s) { (void)d, (void)t, (void)r, (void)s, abort(); }
CabTensor *cab_tensor_retain(CabTensor *t) { (void)t, abort(); }
void cab_tensor_release(CabTensor *t) { (void)t, abort(); }
int64_t cab_tensor_count(const CabTensor *t) { (void)t, abort(); }
void *cab_tensor_data(const CabTensor *t) { (void)t, abort(); }
CabTensor *cab_tensor_contiguous_copy(CabTensor *t) { (void)t, abort(); }
CabTensor *cab_tensor_to(CabTensor *t, CabDevice *d, CabDtype n) { (void)t, (void)d, (void)n, abort(); }
