/* gemm.c - matrix products (OpenBLAS) and the row sums that go with a bias. Sizes and leading dimensions fit in 32
 * bits: a tensor dimension beyond that is refused before any kernel runs. */
#include "gemm.h"

#include <cblas.h>
#include <omp.h>

#include "product.h"

#define CBLAS_f32 cblas_sgemm
#define CBLAS_f64 cblas_dgemm
#define CBLAS CAB_CAT(CBLAS_, REAL)

/* C = beta C; beta = 0 overwrites, so that an unset C (NaN) does not survive. */
static void scale_rows(int64_t m, int64_t n, real beta, real *c, int64_t ldc) {
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) c[i * ldc + j] = beta == 0 ? 0 : beta * c[i * ldc + j];
}

static void product(bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, double alpha, const real *a,
                    int64_t lda, const real *b, int64_t ldb, double beta, real *c, int64_t ldc) {
  if (m == 0 || n == 0) return;
  if (k == 0) { /* A and B are empty: their leading dimensions may be 0, which BLAS would refuse */
    scale_rows(m, n, (real)beta, c, ldc);
    return;
  }
  CBLAS(CblasRowMajor, trans_a ? CblasTrans : CblasNoTrans, trans_b ? CblasTrans : CblasNoTrans, (blasint)m, (blasint)n,
        (blasint)k, (real)alpha, a, (blasint)lda, b, (blasint)ldb, (real)beta, c, (blasint)ldc);
}

/* A product is cut into slabs of C's longer side, one thread each: OpenBLAS stays on its caller's thread inside a parallel
 * region. Its own threading of the flat products of a small model costs more than it brings: the 18 kinds of products in a
 * step of the demo student take 155 ms on one thread, 160 with OpenBLAS on two, 75 in slabs. The slabs depend on the sizes
 * alone, so the bits do not depend on the number of threads. */
enum { SLABS = 8, SLAB_WIDTH = 64, SLAB_WORK = 1 << 18 };

void K(gemm)(CabStream *stream, bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, double alpha,
             const real *a, int64_t lda, const real *b, int64_t ldb, double beta, real *c, int64_t ldc) {
  (void)stream;
  bool rows = m >= n;
  int64_t side = rows ? m : n, work = m * n * k / SLAB_WORK, slabs = side / SLAB_WIDTH;
  if (slabs > work) slabs = work;
  if (slabs > SLABS) slabs = SLABS;
  if (slabs < 2) {
    product(trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    return;
  }
  int64_t width = ((side + slabs - 1) / slabs + 15) / 16 * 16;
#pragma omp parallel for schedule(static)
  for (int64_t first = 0; first < side; first += width) {
    int64_t size = first + width < side ? width : side - first;
    if (rows)
      product(trans_a, trans_b, size, n, k, alpha, a + first * (trans_a ? 1 : lda), lda, b, ldb, beta, c + first * ldc, ldc);
    else
      product(trans_a, trans_b, m, size, k, alpha, a, lda, b + first * (trans_b ? ldb : 1), ldb, beta, c + first, ldc);
  }
}

/* Many small products: one thread each (OpenBLAS stays on its caller's thread in a parallel region). Few large ones:
 * one after the other, each on all threads; also where they share C and so depend on each other. */
enum { SMALL = 128 * 128 * 128 };

void K(gemm_wide)(CabStream *stream, bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, double alpha,
                  const real *a, int64_t lda, const real *b, int64_t ldb, double beta, real *c, int64_t ldc) {
  K(gemm)(stream, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

void K(gemm_batched)(CabStream *stream, bool trans_a, bool trans_b, int64_t m, int64_t n, int64_t k, double alpha,
                     const real *a, int64_t lda, int64_t stride_a, const real *b, int64_t ldb, int64_t stride_b,
                     double beta, real *c, int64_t ldc, int64_t stride_c, int64_t batch) {
  if (batch == 1) {
    K(gemm)(stream, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    return;
  }
  bool spread = stride_c != 0 && batch > 1 && (double)m * (double)n * (double)k <= SMALL;
#pragma omp parallel for schedule(static) if (spread)
  for (int64_t i = 0; i < batch; i++)
    product(trans_a, trans_b, m, n, k, alpha, a + i * stride_a, lda, b + i * stride_b, ldb, beta, c + i * stride_c,
            ldc);
}

/* A layer's product, each thread a share of C's longer side: its bits do not depend on where it is cut. Not OpenBLAS, which spends
 * a quarter of these products on copies of both operands and on clearing C: the products of a Vim-Tiny step (18 shapes, batch 8,
 * operands not in the cache) take 787 ms instead of 959 on one core. */
static void layer_product(ProductForm form, int64_t m, int64_t n, int64_t k, const real *a, int64_t lda, const real *b,
                          int64_t ldb, const real *bias, bool add, real *c, int64_t ldc) {
  const bool rows = m >= n;
  const int64_t side = rows ? m : n, unit = 32; /* elements of C, two cache lines */
#pragma omp parallel if (m * n * k > SLAB_WORK)
  {
    const int64_t units = (side + unit - 1) / unit, parts = omp_get_num_threads(), own = omp_get_thread_num();
    const int64_t first = own * units / parts * unit, stop = (own + 1) * units / parts * unit, end = stop < side ? stop : side;
    if (first < end && rows)
      K(product)(form, end - first, n, k, a + first * (form == PRODUCT_TN ? 1 : lda), lda, b, ldb, bias, add, c + first * ldc, ldc);
    else if (first < end)
      K(product)(form, m, end - first, k, a, lda, b + first * (form == PRODUCT_NT ? ldb : 1), ldb, bias ? bias + first : NULL,
                 add, c + first, ldc);
  }
}

void K(linear_forward)(CabStream *stream, int64_t rows, int64_t outs, int64_t ins, const real *x, int64_t ldx, const real *w,
                       const real *b, real *y) {
  (void)stream;
  layer_product(PRODUCT_NT, rows, outs, ins, x, ldx, w, ins, b, false, y, outs);
}

/* Rows are cut into ROW_BLOCKS whatever the number of threads; a block sums GROUP rows at a time in `real` and the
 * groups in double, and the blocks are added in order. */
enum { ROW_BLOCKS = 16, GROUP = 64, TILE = 64, COLUMNS = 1024 };

static void block_sum(int64_t from, int64_t to, int64_t width, const real *x, int64_t ld, double *out) {
  for (int64_t j = 0; j < width; j++) out[j] = 0;
  for (int64_t r = from; r < to; r += GROUP) {
    real group[TILE] = {0};
    for (int64_t i = r; i < to && i < r + GROUP; i++)
      for (int64_t j = 0; j < width; j++) group[j] += x[i * ld + j];
    for (int64_t j = 0; j < width; j++) out[j] += (double)group[j];
  }
}

void K(column_sum)(CabStream *stream, int64_t rows, int64_t n, const real *x, int64_t ld, real *out) {
  (void)stream;
  double partial[ROW_BLOCKS][COLUMNS];
  int64_t per_block = (rows + ROW_BLOCKS - 1) / ROW_BLOCKS;
  for (int64_t first = 0; first < n; first += COLUMNS) {
    int64_t width = n - first < COLUMNS ? n - first : COLUMNS, tiles = (width + TILE - 1) / TILE;
#pragma omp parallel for collapse(2) schedule(static) if (rows * width > 16384)
    for (int block = 0; block < ROW_BLOCKS; block++)
      for (int64_t tile = 0; tile < tiles; tile++) {
        int64_t from = block * per_block, to = from + per_block < rows ? from + per_block : rows, j = tile * TILE;
        block_sum(from, to, width - j < TILE ? width - j : TILE, x + first + j, ld, partial[block] + j);
      }
    for (int64_t j = 0; j < width; j++) {
      double sum = 0;
      for (int block = 0; block < ROW_BLOCKS; block++) sum += partial[block][j];
      out[first + j] = (real)sum;
    }
  }
}

void K(linear_backward)(CabStream *stream, int64_t rows, int64_t outs, int64_t ins, const real *gy, const real *x, int64_t ldx,
                        const real *w, real *gx, bool add_gx, real *gw, real *gb) {
  if (gx) layer_product(PRODUCT_NN, rows, ins, outs, gy, outs, w, ins, NULL, add_gx, gx, ins);
  if (gw) layer_product(PRODUCT_TN, outs, ins, rows, gy, outs, x, ldx, NULL, false, gw, ins);
  if (gb) K(column_sum)(stream, rows, outs, gy, outs, gb);
}
