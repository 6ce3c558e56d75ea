/* embed.c - token embedding and image patches. */
#include "embed.h"

#include <string.h>

void K(embedding_forward)(CabStream *stream, int64_t count, int64_t dim, int64_t vocab, const int32_t *ids, const real *w,
                          real *y) {
  (void)stream, (void)vocab; /* on the CPU the caller has looked */
#pragma omp parallel for schedule(static) if (count * dim > 16384)
  for (int64_t i = 0; i < count; i++)
    memcpy(y + i * dim, w + ids[i] * dim, (size_t)dim * sizeof(real));
}

/* A thread owns columns, not rows: each sum then runs in index order without any lock. */
enum { TILE = 32 };

void K(embedding_backward)(CabStream *stream, int64_t count, int64_t dim, int64_t vocab, const int32_t *ids,
                           const real *gy, real *gw) {
  (void)stream;
  int64_t tiles = (dim + TILE - 1) / TILE;
#pragma omp parallel if ((count + vocab) * dim > 16384)
  {
#pragma omp for schedule(static)
    for (int64_t v = 0; v < vocab; v++) memset(gw + v * dim, 0, (size_t)dim * sizeof(real));
#pragma omp for schedule(static)
    for (int64_t tile = 0; tile < tiles; tile++) {
      int64_t j = tile * TILE, width = dim - j < TILE ? dim - j : TILE;
      for (int64_t i = 0; i < count; i++) {
        real *restrict sum = gw + ids[i] * dim + j;
        const real *g = gy + i * dim + j;
        for (int64_t p = 0; p < width; p++) sum[p] += g[p];
      }
    }
  }
}

/* Patches along one side. */
static int64_t patches(int64_t size, int64_t P, int64_t stride) { return size < P ? 0 : (size - P) / stride + 1; }

void K(patch_gather)(CabStream *stream, int64_t B, int64_t C, int64_t H, int64_t W, int64_t P, int64_t stride,
                     const real *x, real *col) {
  (void)stream;
  int64_t th = patches(H, P, stride), tw = patches(W, P, stride);
#pragma omp parallel for schedule(static) if (B * th * tw * C * P * P > 16384)
  for (int64_t r = 0; r < B * th; r++) {
    int64_t b = r / th, ty = r % th;
    real *to = col + r * tw * C * P * P;
    for (int64_t tx = 0; tx < tw; tx++)
      for (int64_t c = 0; c < C; c++)
        for (int64_t py = 0; py < P; py++, to += P)
          memcpy(to, x + ((b * C + c) * H + ty * stride + py) * W + tx * stride, (size_t)P * sizeof(real));
  }
}

void K(patch_scatter)(CabStream *stream, int64_t B, int64_t C, int64_t H, int64_t W, int64_t P, int64_t stride,
                      const real *col, real *gx) {
  (void)stream;
  int64_t th = patches(H, P, stride), tw = patches(W, P, stride);
#pragma omp parallel for schedule(static) if (B * C * H * W > 16384)
  for (int64_t plane = 0; plane < B * C; plane++) {
    int64_t b = plane / C, c = plane % C;
    real *image = gx + plane * H * W;
    memset(image, 0, (size_t)(H * W) * sizeof(real));
    for (int64_t ty = 0; ty < th; ty++)
      for (int64_t tx = 0; tx < tw; tx++)
        for (int64_t py = 0; py < P; py++) {
          real *restrict to = image + (ty * stride + py) * W + tx * stride;
          const real *from = col + ((((b * th + ty) * tw + tx) * C + c) * P + py) * P;
          for (int64_t px = 0; px < P; px++) to[px] += from[px];
        }
  }
}
