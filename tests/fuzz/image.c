/* PNG and JPEG, strict and tolerant. */
#include "image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  CabImage image;
  int warnings = 0;
  if (size < 3) return 0;
  if (cab_image_decode(data, size, "fuzz", size & 1 ? &warnings : NULL, &image) == CAB_OK) {
    volatile unsigned sum = 0;
    size_t count = (size_t)image.width * (size_t)image.height * (size_t)image.channels;
    for (size_t i = 0; i < count; i += 97) sum += image.pixels[i];
    cab_image_free(&image);
  }
  return 0;
}
