/* scan_pair.h - two selective scans of the same sizes in one launch: the directions of a bidirectional Mamba
 * (arXiv 2401.09417, alg. 1). Each is the scan of selective_scan.h. B, L, E, N, R and softplus of their shapes are alike, so is
 * having a gate or a weight; direction and row strides are their own. On a GPU one direction alone fills the chip one and a half times, two of them three times. */
#ifndef CAB_KERNELS_SCAN_PAIR_H
#define CAB_KERNELS_SCAN_PAIR_H
#include "selective_scan.h"
#define SCAN_PAIR 2
/* All arrays have SCAN_PAIR entries; their members as the arguments of scan_forward and scan_backward. */
TWIN(scan_pair_forward, const ScanShape *s, const ScanInputs *in, void *const *y, void *const *h);
/* partial: scratch of scan_partial wides, used by one scan after the other; CUDA leaves it alone. */
TWIN(scan_pair_backward, const ScanShape *s, const ScanInputs *in, const void *const *h, const void *const *gy,
     const ScanGradients *to, wide *partial);
#endif
