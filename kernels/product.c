/* product.c - a tile of up to ROWS x (COLUMNS registers) of C stays in registers over a block of k. One element of A is broadcast
 * to a row of B: A is read where it lies, without the copy that OpenBLAS makes of both operands; only what is strided along
 * the tile is copied, to the stack. */
#include "product.h"

#include "simd.h"

/* Registers: the tile, a row of B, a broadcast. */
#if VEC_BYTES == 64
enum { ROWS = 14, COLUMNS = 2 };
#elif VEC_BYTES == 32
enum { ROWS = 6, COLUMNS = 2 };
#else
enum { ROWS = 4, COLUMNS = 2 };
#endif
enum {
  WIDTH = COLUMNS * LANES,               /* at least ROWS */
  DEPTH = 1536 / sizeof(real),           /* block of k: a panel of B is 48 KB with AVX-512, 24 KB with AVX2 */
  BAND = 1280 * 1024 / (int)sizeof(real) /* reals of A that stay in the cache while all panels of B pass */
};

typedef struct {
  int64_t k, row, step; /* of A: element (i, p) at a[i row + p step] */
  const real *b;        /* row p at b[p ldb], whole registers */
  int64_t ldb;
  const real *bias;
  bool add;
  int64_t n, ldc; /* valid columns */
} Panel;

SIMD void tile(const int rows, const int columns, const Panel *p, const real *a, real *c) {
  vec sum[ROWS][COLUMNS];
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < columns; j++) {
      __builtin_prefetch(c + i * p->ldc + j * LANES, 1);
      sum[i][j] = vec_set(0);
    }
  }
  const real *b = p->b;
  for (const real *end = b + p->k * p->ldb; b != end; b += p->ldb, a += p->step) {
    vec row[COLUMNS];
#pragma GCC unroll 4
    for (int j = 0; j < columns; j++) row[j] = vec_load(b + j * LANES);
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
      const vec x = vec_set(a[i * p->row]);
#pragma GCC unroll 4
      for (int j = 0; j < columns; j++) sum[i][j] += x * row[j];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (int j = 0; j < columns; j++) {
      const int64_t n = p->n - j * LANES;
      real *to = c + i * p->ldc + j * LANES;
      vec v = sum[i][j];
      if (p->add) v += vec_load_n(to, n);
      else if (p->bias) v += vec_load_n(p->bias + j * LANES, n);
      vec_store_n(to, v, n);
    }
}

static void tile_of(int64_t rows, int columns, const Panel *p, const real *a, real *c) {
#define TILE(r)                                \
  case r:                                      \
    if (columns == 1) tile(r, 1, p, a, c);     \
    else tile(r, COLUMNS, p, a, c);            \
    break;
  switch (rows) {
    TILE(1) TILE(2) TILE(3) TILE(4)
#if VEC_BYTES >= 32
    TILE(5) TILE(6)
#endif
#if VEC_BYTES == 64
    TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) TILE(12) TILE(13) TILE(14)
#endif
  }
#undef TILE
}

/* to[p WIDTH + j] = b[p ldb + j], or b[j ldb + p] where transposed; p < k, j < n <= WIDTH, zeros up to whole registers. */
static void copy_panel(bool transposed, int64_t k, int64_t n, const real *b, int64_t ldb, real *to) {
  for (int64_t j = 0; j < n; j += LANES)
    for (int64_t p = 0; p < k; p += LANES) {
      const int64_t m = n - j < LANES ? n - j : LANES, depth = k - p < LANES ? k - p : LANES;
      vec r[LANES];
      if (transposed) {
        for (int64_t i = 0; i < LANES; i++) r[i] = i < m ? vec_load_n(b + (j + i) * ldb + p, depth) : vec_set(0);
        vec_transpose(r);
      } else {
        for (int64_t i = 0; i < depth; i++) r[i] = vec_load_n(b + (p + i) * ldb + j, m);
      }
      for (int64_t i = 0; i < depth; i++) vec_store(to + (p + i) * WIDTH + j, r[i]);
    }
}

static void fetch(int64_t rows, int64_t n, const real *x, int64_t ld) {
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < n; j += 64 / (int)sizeof(real)) __builtin_prefetch(x + i * ld + j);
}

/* Rows of C in tiles of nearly the same height; `fresh`: A has not been read before. */
static void column_of_tiles(int64_t m, int columns, const Panel *p, bool fresh, const real *a, real *c) {
  const int64_t tiles = (m + ROWS - 1) / ROWS;
  for (int64_t t = 0; t < tiles; t++) {
    const int64_t i = t * m / tiles, end = (t + 1) * m / tiles;
    if (fresh) fetch((t + 2) * m / tiles - end, p->k, a + end * p->row, p->row);
    tile_of(end - i, columns, p, a + i * p->row, c + i * p->ldc);
  }
}

/* A by rows: a band of them meets each panel of B. */
static void product_rows(bool trans_b, int64_t m, int64_t n, int64_t k, int64_t depth, const real *a, int64_t lda,
                         const real *b, int64_t ldb, const real *bias, bool add, real *c, int64_t ldc) {
  _Alignas(64) real panel[DEPTH * WIDTH];
  const int64_t band = BAND / k > ROWS ? BAND / k : ROWS;
  for (int64_t i = 0; i < m; i += band)
    for (int64_t j = 0; j < n; j += WIDTH)
      for (int64_t q = 0; q < k; q += depth) {
        Panel p = {.k = k - q < depth ? k - q : depth, .row = lda, .step = 1, .b = panel, .ldb = WIDTH,
                   .bias = bias && q == 0 ? bias + j : NULL, .add = add || q > 0, .n = n - j < WIDTH ? n - j : WIDTH, .ldc = ldc};
        copy_panel(trans_b, p.k, p.n, b + (trans_b ? j * ldb + q : q * ldb + j), ldb, panel);
        column_of_tiles(m - i < band ? m - i : band, p.n <= LANES ? 1 : COLUMNS, &p, j == 0, a + i * lda + q, c + i * ldc + j);
      }
}

/* A by columns, B not transposed: ROWS of A's columns are copied and meet each panel of B, which is read where it lies; only
 * the last panel is copied, if its registers are not full. */
static void product_columns(int64_t m, int64_t n, int64_t k, int64_t depth, const real *a, int64_t lda, const real *b,
                            int64_t ldb, const real *bias, bool add, real *c, int64_t ldc) {
  _Alignas(64) real last[DEPTH * WIDTH], columns[DEPTH * WIDTH];
  const int64_t whole = n % LANES ? n / WIDTH * WIDTH : n;
  for (int64_t q = 0; q < k; q += depth) {
    Panel p = {.k = k - q < depth ? k - q : depth, .row = 1, .step = WIDTH, .add = add || q > 0, .ldc = ldc};
    if (whole < n) copy_panel(false, p.k, n - whole, b + q * ldb + whole, ldb, last);
    for (int64_t i = 0; i < m; i += ROWS) {
      const int64_t height = m - i < ROWS ? m - i : ROWS;
      copy_panel(false, p.k, height, a + q * lda + i, lda, columns);
      const int64_t from = q + depth + i * depth / m, rows = q + depth + (i + height) * depth / m - from; /* of the next block */
      if (q + depth < k) fetch(rows, m, a + from * lda, lda), fetch(rows, n, b + from * ldb, ldb);
      for (int64_t j = 0; j < n; j += WIDTH) {
        p.n = n - j < WIDTH ? n - j : WIDTH;
        p.b = j < whole ? b + q * ldb + j : last;
        p.ldb = j < whole ? ldb : WIDTH;
        p.bias = bias && q == 0 ? bias + j : NULL;
        tile_of(height, p.n <= LANES ? 1 : COLUMNS, &p, columns, c + i * ldc + j);
      }
    }
  }
}

void K(product)(ProductForm form, int64_t m, int64_t n, int64_t k, const real *a, int64_t lda, const real *b, int64_t ldb,
                const real *bias, bool add, real *c, int64_t ldc) {
  if (k == 0) {
    for (int64_t i = 0; i < m && !add; i++)
      for (int64_t j = 0; j < n; j++) c[i * ldc + j] = bias ? bias[j] : 0;
    return;
  }
  const int64_t blocks = (k + DEPTH - 1) / DEPTH, depth = (k + blocks - 1) / blocks;
  if (form == PRODUCT_TN)
    product_columns(m, n, k, depth, a, lda, b, ldb, bias, add, c, ldc);
  else
    product_rows(form == PRODUCT_NT, m, n, k, depth, a, lda, b, ldb, bias, add, c, ldc);
}
