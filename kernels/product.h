/* product.h - the matrix product of CPU kernels whose operands are long and narrow: tokens times a layer's widths. Not a twin:
 * K(product) runs on its caller's thread, and other kernel files call it on parts of their rows or columns.
 *   C[m,n] = (add ? C : bias) + op(A)[m,k] op(B)[k,n], row-major, bias [n] or NULL for 0
 * Each element is a sum over k in order, in blocks at fixed places of k: its bits depend on k alone, not on how C is cut. */
#ifndef CAB_KERNELS_PRODUCT_H
#define CAB_KERNELS_PRODUCT_H
#include "kernel.h"
typedef enum { PRODUCT_NN, PRODUCT_NT, PRODUCT_TN } ProductForm; /* op(A), op(B): N as it is, T transposed */
void K(product)(ProductForm form, int64_t m, int64_t n, int64_t k, const real *a, int64_t lda, const real *b, int64_t ldb,
                const real *bias, bool add, real *c, int64_t ldc);
#endif
