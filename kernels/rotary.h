/* rotary.h - rotary position embedding (arXiv 2104.09864): of the first W of a head's P elements, i and i + W/2 (i < W/2) are
 * the two coordinates of a point that turns by the angle (start + l) base^(-2i/W) at token l; the others stay as they are.
 * x: rows of ldx, head h at h*P; y [B,L,H*P]. turn: 1, or -1 to turn back (the gradient). W is even. */
#ifndef CAB_KERNELS_ROTARY_H
#define CAB_KERNELS_ROTARY_H
#include "kernel.h"
TWIN(rotary, int64_t B, int64_t L, int64_t H, int64_t P, int64_t W, double base, double start, double turn, const real *x,
     int64_t ldx, real *y);
#endif
