/* places.h - the place of each token in its document, from 0: documents are runs of one number in segment [B,L]. */
#ifndef CAB_KERNELS_PLACES_H
#define CAB_KERNELS_PLACES_H
#include "kernel.h"
TWIN(places, int64_t B, int64_t L, const int32_t *segment, int32_t *place);
#endif
