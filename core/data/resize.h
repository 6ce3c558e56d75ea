/* resize.h - resampling of a window of an image, as far as a result needs it. */
#ifndef CAB_RESIZE_H
#define CAB_RESIZE_H
#include "image.h"

typedef enum { CAB_BICUBIC, CAB_BILINEAR } CabFilter;

/* One direction. Pixels base .. base + limit - 1 of a line stand for the samples that may be read, and the stretch that begins
 * at `start` and is `length` long (in pixels, from base on) becomes `total` samples, of which `count` from `first` on are made;
 * in reverse order where `mirror` is set. */
typedef struct {
  int base, limit;
  double start, length;
  int total, first, count;
  bool mirror;
} CabAxis;

/* First pixel read (from base on) and the one after the last. */
void cab_axis_reach(const CabAxis *axis, CabFilter filter, int *first, int *last);
/* Antialiased: a filter widened by the scale, with a = -0.5 where bicubic. Bit-equal to Pillow's resize of the stretch cut out
 * first. out: [y->count, x->count, channels], lines `stride` bytes apart. */
CabStatus cab_resize(const CabImage *image, const CabAxis *x, const CabAxis *y, CabFilter filter, uint8_t *out, size_t stride);

#endif
