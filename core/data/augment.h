/* augment.h - colour, geometry and erasing on square 8-bit images. */
#ifndef CAB_AUGMENT_H
#define CAB_AUGMENT_H
#include "resize.h"

/* All randomness is a function of these: draw k of a stream is number sample * 64 + k of (seed, name, epoch, repeat). */
typedef struct {
  uint64_t seed, epoch, sample;
  uint64_t repeat; /* the same sample again in one epoch: 0, 1, .. */
} CabDraw;
enum { CAB_DRAWS = 64 };
CabRng cab_draw_key(CabDraw d, const char *stream);
double cab_draw(CabDraw d, const char *stream, int k);           /* [0, 1) */
int cab_draw_below(CabDraw d, const char *stream, int k, int n); /* 0..n-1 */

typedef struct {
  int layers;                     /* RandAugment: operations drawn for an image, 0: none; at most 4 */
  double magnitude, spread;       /* of an operation: normal, cut to 0..10 */
  double chance;                  /* that a drawn operation is done */
  bool three;                     /* 3-Augment: grey, solarized or blurred */
  double jitter[3];               /* brightness, contrast, saturation: factors 1 - j .. 1 + j */
  double erase;                   /* chance that a rectangle becomes noise */
} CabAugment;
CabStatus cab_augment_check(const CabAugment *a);

/* size x size pixels, interleaved; `pixels` and `spare` have 4 bytes more than that and may change places. */
typedef struct {
  int size, channels;
  uint8_t *pixels, *spare;
} CabCanvas;

/* Everything of `a` in its order; mean, deviation: of the normalisation, in 0..1 (fill of what moves in, scale of noise). */
void cab_augment_apply(const CabAugment *a, CabDraw d, CabFilter filter, const float *mean, const float *deviation, CabCanvas *canvas);

/* One operation by its name, with its value: degrees, shear, share of the side, factor, threshold, bits, radius. */
CabStatus cab_augment_one(const char *name, double value, CabFilter filter, const float *mean, CabCanvas *canvas);

#endif
