/* pixels_table.c - operations that are one table a channel. */
#include <string.h>

#include "pixels.h"

typedef uint8_t Table[256];

static size_t bytes_of(const CabCanvas *c) { return (size_t)c->size * (size_t)c->size * (size_t)c->channels; }

static void apply_tables(CabCanvas *c, const Table *table) {
  size_t n = bytes_of(c);
  if (c->channels == 1)
    for (size_t i = 0; i < n; i++) c->pixels[i] = table[0][c->pixels[i]];
  else
    for (size_t i = 0; i < n; i += 3)
      for (size_t k = 0; k < 3; k++) c->pixels[i + k] = table[k][c->pixels[i + k]];
}

static void apply_table(CabCanvas *c, const Table table) {
  for (uint8_t *p = c->pixels, *end = p + bytes_of(c); p < end; p++) *p = table[*p];
}

static void count_values(const CabCanvas *c, uint32_t histogram[3][256]) {
  size_t n = bytes_of(c), channels = (size_t)c->channels;
  memset(histogram, 0, sizeof(uint32_t[3][256]));
  for (size_t i = 0; i < n; i += channels)
    for (size_t k = 0; k < channels; k++) histogram[k][c->pixels[i + k]]++;
}

static uint8_t cut(double v) { return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v); }

void pixels_auto_contrast(CabCanvas *c, double value, const CabPaint *paint) {
  uint32_t histogram[3][256];
  Table table[3];
  (void)value, (void)paint;
  count_values(c, histogram);
  for (int k = 0; k < c->channels; k++) {
    int low = 0, high = 255;
    while (low < 255 && !histogram[k][low]) low++;
    while (high > 0 && !histogram[k][high]) high--;
    double scale = high > low ? 255.0 / (high - low) : 1, offset = high > low ? -low * scale : 0;
    for (int v = 0; v < 256; v++) table[k][v] = cut(v * scale + offset);
  }
  apply_tables(c, table);
}

/* v becomes the number of pixels below it, plus half a step, over the step: a 255th of all but those of the highest value. */
void pixels_equalize(CabCanvas *c, double value, const CabPaint *paint) {
  uint32_t histogram[3][256];
  Table table[3];
  (void)value, (void)paint;
  count_values(c, histogram);
  for (int k = 0; k < c->channels; k++) {
    int top = 255;
    while (top > 0 && !histogram[k][top]) top--;
    uint32_t all = (uint32_t)c->size * (uint32_t)c->size - histogram[k][top], step = all / 255, n = step / 2;
    for (int v = 0; v < 256; v++) {
      table[k][v] = step ? cut(n / step) : (uint8_t)v;
      n += histogram[k][v];
    }
  }
  apply_tables(c, table);
}

void pixels_invert(CabCanvas *c, double value, const CabPaint *paint) {
  pixels_solarize(c, 0, paint);
  (void)value;
}

void pixels_posterize(CabCanvas *c, double value, const CabPaint *paint) {
  Table table;
  int bits = value >= 8 ? 8 : value <= 0 ? 0 : (int)value;
  (void)paint;
  for (int v = 0; v < 256; v++) table[v] = (uint8_t)(v & ~((1 << (8 - bits)) - 1));
  apply_table(c, table);
}

void pixels_solarize(CabCanvas *c, double value, const CabPaint *paint) {
  Table table;
  (void)paint;
  for (int v = 0; v < 256; v++) table[v] = (uint8_t)(v < value ? v : 255 - v);
  apply_table(c, table);
}

void pixels_solarize_add(CabCanvas *c, double value, const CabPaint *paint) {
  Table table;
  (void)paint;
  for (int v = 0; v < 256; v++) table[v] = v < 128 ? cut(v + value) : (uint8_t)v;
  apply_table(c, table);
}
