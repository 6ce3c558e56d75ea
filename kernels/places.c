/* places.c - row by row. */
#include "places.h"

void K(places)(CabStream *stream, int64_t B, int64_t L, const int32_t *segment, int32_t *place) {
  (void)stream;
  for (int64_t b = 0; b < B; b++)
    for (int64_t t = 0; t < L; t++) {
      const int64_t at = b * L + t;
      place[at] = t > 0 && segment[at] == segment[at - 1] ? place[at - 1] + 1 : 0;
    }
}
