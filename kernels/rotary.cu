/* rotary.cu - a block has one token of all sequences: sines and cosines, in double, are found once for all heads. */
#include "rotary.h"

#include "cuda.cuh"

enum { THREADS = 256, HALF = 256 /* pairs at a time */ };

template <class T>
static __global__ void __launch_bounds__(THREADS)
    turn_heads(int64_t B, int64_t L, int64_t H, int64_t P, int64_t W, double base, double start, double turn, const T *x, int64_t ldx, T *y) {
  __shared__ Wide<T> c[HALF], s[HALF];
  for (int64_t l = blockIdx.x; l < L; l += gridDim.x) {
    for (int64_t i0 = 0; i0 < W / 2; i0 += HALF) {
      const int64_t n = W / 2 - i0 < HALF ? W / 2 - i0 : HALF;
      __syncthreads();
      for (int64_t i = threadIdx.x; i < n; i += THREADS) {
        double sine, cosine;
        sincos((start + (double)l) * pow(base, -2.0 * (double)(i0 + i) / (double)W), &sine, &cosine);
        c[i] = (Wide<T>)cosine, s[i] = (Wide<T>)(turn * sine);
      }
      __syncthreads();
      for (int64_t k = threadIdx.x; k < B * H * n; k += THREADS) {
        const int64_t i = k % n, h = k / n % H, b = k / n / H;
        const T *from = x + (b * L + l) * ldx + h * P + i0 + i;
        T *to = y + ((b * L + l) * H + h) * P + i0 + i;
        const Wide<T> near = wide_of(from[0]), far = wide_of(from[W / 2]);
        to[0] = narrow<T>(near * c[i] - far * s[i]);
        to[W / 2] = narrow<T>(far * c[i] + near * s[i]);
      }
    }
    const int64_t rest = P - W;
    for (int64_t k = threadIdx.x; k < B * H * rest; k += THREADS) {
      const int64_t i = W + k % rest, h = k / rest % H, b = k / rest / H;
      y[((b * L + l) * H + h) * P + i] = x[(b * L + l) * ldx + h * P + i];
    }
  }
}

template <class T>
static void rotary(CabStream *s, int64_t B, int64_t L, int64_t H, int64_t P, int64_t W, double base, double start, double turn, const void *x,
                   int64_t ldx, void *y) {
  if (B <= 0 || L <= 0 || H * P <= 0) return;
  turn_heads<T><<<(unsigned)(L < 65535 ? L : 65535), THREADS, 0, s->stream>>>(B, L, H, P, W, base, start, turn, (const T *)x, ldx, (T *)y);
}

EXPORT(rotary)
