/* places.cu - a warp to a row, 32 tokens at a time: the last beginning up to each is a maximum over the lanes before. */
#include "places.h"

#include "cuda.cuh"

static __global__ void __launch_bounds__(32) find_places(int64_t L, const int32_t *segment, int32_t *place) {
  const int lane = threadIdx.x;
  int64_t begun = 0;
  segment += blockIdx.x * L, place += blockIdx.x * L;
  for (int64_t first = 0; first < L; first += 32) {
    const int64_t t = first + lane;
    int64_t at = t > 0 && t < L && segment[t] != segment[t - 1] ? t : 0;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const int64_t other = __shfl_up_sync(0xffffffffu, at, d);
      if (lane >= d && other > at) at = other;
    }
    if (at < begun) at = begun;
    if (t < L) place[t] = (int32_t)(t - at);
    begun = __shfl_sync(0xffffffffu, at, 31);
  }
}

template <class T> static void places(CabStream *s, int64_t B, int64_t L, const int32_t *segment, int32_t *place) {
  if (B > 0 && L > 0) find_places<<<(unsigned)B, 32, 0, s->stream>>>(L, segment, place);
}

EXPORT(places)
