/* PNG and JPEG, strict and tolerant. Most changed PNG chunks get their CRC back, or nothing behind that check is reached.
 * The libraries are as Debian built them, without counters: what they say of a file stands for where they got to in it. */
#include <string.h>
#include <zlib.h>

#include "image.h"
#include "rd.h"

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t room);

__attribute__((section("__libfuzzer_extra_counters"))) static uint8_t reached[4096];

/* Small letters alone: no numbers, no names of chunks. */
static void count(const char *text, unsigned hash) {
  for (; *text; text++)
    if (*text >= 'a' && *text <= 'z') hash = hash * 31 + (uint8_t)*text;
  reached[hash % sizeof reached]++;
}

static void repair(uint8_t *data, size_t size) {
  CabRd rd = rd_open(data, size);
  if (size < 8 || memcmp(rd_slice(&rd, 8), "\x89PNG\r\n\x1a\n", 8)) return;
  for (;;) {
    uint64_t length = rd_u32be(&rd), at = rd.position;
    const uint8_t *body = rd_slice(&rd, 4 + length), *crc = rd_slice(&rd, 4);
    if (!crc) return;
    uint32_t sum = (uint32_t)crc32(0, body, (uInt)(4 + length));
    for (int i = 0; i < 4; i++) data[at + 4 + length + (unsigned)i] = (uint8_t)(sum >> (24 - 8 * i));
  }
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed) {
  size = LLVMFuzzerMutate(data, size, room);
  if (seed % 8) repair(data, size);
  return size;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  CabImage image;
  int warnings = 0;
  if (size < 3) return 0;
  if (cab_image_decode(data, size, "fuzz", size & 1 ? &warnings : NULL, &image) == CAB_OK) {
    volatile unsigned sum = 0;
    size_t values = (size_t)image.width * (size_t)image.height * (size_t)image.channels;
    for (size_t i = 0; i < values; i += 97) sum += image.pixels[i];
    cab_image_free(&image);
    count("", warnings < 8 ? (unsigned)warnings : 8);
  } else count(cab_error()->message, 0);
  return 0;
}
