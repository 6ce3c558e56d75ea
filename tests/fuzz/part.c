/* A part of a JPEG or PNG: the first 6 bytes choose the window and how far it is shrunk, the rest is the file. What comes must
 * hold the window. */
#include <stdlib.h>

#include "image.h"

static CabPart choose(const void *ctx, int width, int height) {
  const uint8_t *d = ctx;
  CabWindow w = {.x = d[0] * width / 256, .y = d[1] * height / 256};
  w.width = 1 + d[2] * (width - w.x - 1) / 255, w.height = 1 + d[3] * (height - w.y - 1) / 255;
  return (CabPart){w, 1 << d[4] % 4};
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  CabImage image;
  int warnings = 0;
  if (size < 9) return 0;
  CabWish wish = {choose, data, data[5] & 1};
  if (cab_image_decode_part(data + 6, size - 6, "fuzz", &wish, data[5] & 2 ? &warnings : NULL, &image) != CAB_OK) return 0;
  if (image.full_width) {
    CabPart p = choose(data, image.full_width, image.full_height);
    int s = image.scale;
    if (s != p.scale || image.x > p.window.x / s || image.y > p.window.y / s ||
        image.x + image.width < (p.window.x + p.window.width + s - 1) / s || image.y + image.height < (p.window.y + p.window.height + s - 1) / s)
      abort();
  }
  volatile unsigned sum = 0;
  for (size_t i = 0, n = (size_t)image.width * (size_t)image.height * (size_t)image.channels; i < n; i += 97) sum += image.pixels[i];
  cab_image_free(&image);
  return 0;
}
