/* pixels.h - the operations on a canvas, each with one value. Rounding is Pillow's throughout, bit by bit. */
#ifndef CAB_PIXELS_H
#define CAB_PIXELS_H
#include "augment.h"

typedef struct {
  CabFilter filter; /* of what is moved */
  uint8_t fill[3];  /* of what comes in from outside */
} CabPaint;
typedef void CabPixelsFn(CabCanvas *c, double value, const CabPaint *paint);

/* pixels_table.c: each channel of each pixel through a table. */
CabPixelsFn pixels_auto_contrast; /* darkest to 0, brightest to 255, each channel alone */
CabPixelsFn pixels_equalize;      /* histogram of each channel made flat */
CabPixelsFn pixels_invert;
CabPixelsFn pixels_posterize;     /* value: upper bits kept, 8: all */
CabPixelsFn pixels_solarize;      /* inverted from the value on */
CabPixelsFn pixels_solarize_add;  /* the value added below 128 */

/* pixels_blend.c: degenerate + value (image - degenerate), cut to 0..255. */
CabPixelsFn pixels_color;         /* degenerate: grey */
CabPixelsFn pixels_contrast;      /* its mean grey */
CabPixelsFn pixels_brightness;    /* black */
CabPixelsFn pixels_sharpness;     /* smoothed by (1 1 1; 1 5 1; 1 1 1) / 13, border as it is */
CabPixelsFn pixels_grey;          /* ITU-R 601 luma, no value */
CabPixelsFn pixels_blur;          /* three box blurs each way; value: the Gaussian's deviation in pixels */

/* pixels_move.c: out(x, y) = in(A (x, y)), cubic with a = -1 or linear, not antialiased. */
CabPixelsFn pixels_rotate;        /* degrees, counter-clockwise about the centre */
CabPixelsFn pixels_shear_x;       /* x + value y */
CabPixelsFn pixels_shear_y;
CabPixelsFn pixels_translate_x;   /* x + value * size */
CabPixelsFn pixels_translate_y;

#endif
