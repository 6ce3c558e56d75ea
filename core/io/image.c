/* image.c - which decoder, and the limits they share. */
#include <string.h>

#include "image.h"

void cab_image_free(CabImage *image) {
  cab_free(image->owned);
  *image = (CabImage){0};
}

/* Limits hold before anything is allocated; the last one keeps a file of 400 bytes from asking for 192 MiB. */
CabStatus cab_image_check(uint64_t width, uint64_t height, size_t length, uint64_t per_byte, const char *file) {
  unsigned long long w = width, h = height;
  if (w == 0 || h == 0) return cab_fail_file(CAB_E_INPUT, "image-size", file, -1, "%llu x %llu pixels: no image", w, h);
  if (w > CAB_IMAGE_MAX_SIDE || h > CAB_IMAGE_MAX_SIDE)
    return cab_fail_file(CAB_E_INPUT, "image-size", file, -1, "%llu x %llu pixels, at most %d a side", w, h, CAB_IMAGE_MAX_SIDE);
  if (w * h > CAB_IMAGE_MAX_PIXELS)
    return cab_fail_file(CAB_E_INPUT, "image-size", file, -1, "%llu x %llu pixels, at most %u in all", w, h, CAB_IMAGE_MAX_PIXELS);
  if (w * h > sz_mul(sz_add(length, 64), per_byte))
    return cab_fail_file(CAB_E_INPUT, "image-size", file, -1, "%llu x %llu pixels cannot come from %zu bytes", w, h, length);
  return CAB_OK;
}

CabStatus cab_image_alloc(uint64_t width, uint64_t height, int channels, CabImage *out) {
  uint8_t *pixels = cab_malloc(width * height, (size_t)channels); /* a decoder that succeeds has written them all */
  if (!pixels) return CAB_E_MEMORY;
  *out = (CabImage){.width = (int)width, .height = (int)height, .channels = channels, .pixels = pixels, .owned = pixels};
  return CAB_OK;
}

CabStatus cab_image_decode(const uint8_t *bytes, size_t length, const char *file, int *warnings, CabImage *out) {
  return cab_image_decode_part(bytes, length, file, NULL, warnings, out);
}

CabStatus cab_image_decode_part(const uint8_t *bytes, size_t length, const char *file, const CabWish *wish, int *warnings, CabImage *out) {
  static const uint8_t png[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
  *out = (CabImage){0};
  CabStatus status;
  if (length >= 8 && !memcmp(bytes, png, 8)) status = cab_png_decode(bytes, length, file, warnings, out);
  else if (length >= 3 && bytes[0] == 0xff && bytes[1] == 0xd8 && bytes[2] == 0xff)
    status = cab_jpeg_decode(bytes, length, file, wish, warnings, out);
  else return cab_fail_file(CAB_E_INPUT, "image-kind", file, 0, "neither PNG nor JPEG");
  if (status != CAB_OK) cab_image_free(out);
  return status;
}
