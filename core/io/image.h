/* image.h - PNG and JPEG in memory to 8-bit pixels, and a PNG writer. */
#ifndef CAB_IMAGE_H
#define CAB_IMAGE_H
#include "file.h"

#define CAB_IMAGE_MAX_SIDE 16384
#define CAB_IMAGE_MAX_PIXELS (64u << 20)
#define CAB_JPEG_MAX_SCANS 100
#define CAB_IMAGE_MAX_FILE (256u << 20)

/* [height, width, channels], channels 1 (grey) or 3 (RGB). `owned` is NULL where the pixels belong to someone else. */
typedef struct {
  int width, height, channels;
  const uint8_t *pixels;
  uint8_t *owned;
  int full_width, full_height; /* of the whole image; 0: the pixels are all of it */
  int x, y, scale;             /* of a part: its first pixel in the whole image shrunk `scale` times in each direction */
} CabImage;
void cab_image_free(CabImage *image);

typedef struct {
  int x, y, width, height;
} CabWindow;
/* Which part of an image is wanted, told once its size is known: a window inside it, shrunk 1, 2, 4 or 8 times. What comes is
 * at least the window, may be more, and is the same pixels that the whole image has there (or the whole image shrunk). */
typedef struct {
  CabWindow window;
  int scale;
} CabPart;
typedef struct {
  CabPart (*choose)(const void *ctx, int width, int height);
  const void *ctx;
  bool known; /* the file was read to its end before and was good: what follows the part may be left unread */
} CabWish;

/* The kind is told by the first bytes. Alpha is dropped, 16 bits become 8, palettes RGB, CMYK RGB. A warning of the
 * decoder is an error, unless `warnings` is not NULL: then they are counted and the image is what could be read.
 * Errors 65: image-kind, image-size, png, jpeg, jpeg-scans. Pure and thread-safe. */
CabStatus cab_image_decode(const uint8_t *bytes, size_t length, const char *file, int *warnings, CabImage *out);
/* The same for a part, where the format can do it: JPEG. All of the file is looked at, unless it is known. wish NULL: everything. */
CabStatus cab_image_decode_part(const uint8_t *bytes, size_t length, const char *file, const CabWish *wish, int *warnings, CabImage *out);
CabStatus cab_png_encode(const CabImage *image, CabBytes *out);

/* Shared by the decoders: limits first, then the pixels. `per_byte`: pixels that one byte of file can stand for. */
CabStatus cab_image_check(uint64_t width, uint64_t height, size_t length, uint64_t per_byte, const char *file);
CabStatus cab_image_alloc(uint64_t width, uint64_t height, int channels, CabImage *out);
CabStatus cab_png_decode(const uint8_t *bytes, size_t length, const char *file, int *warnings, CabImage *out);
CabStatus cab_jpeg_decode(const uint8_t *bytes, size_t length, const char *file, const CabWish *wish, int *warnings, CabImage *out);

#endif
