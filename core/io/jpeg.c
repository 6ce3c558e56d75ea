/* jpeg.c - libjpeg-turbo. Its errors end in one longjmp of decode, which holds nothing but libjpeg's state in a struct. */
#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

#include "image.h"

/* A block of 64 pixels takes a bit or more of its first scan. */
enum { PIXELS_PER_BYTE = 8 * 64 };

typedef struct {
  struct jpeg_decompress_struct jpeg;
  struct jpeg_error_mgr errors;
  struct jpeg_progress_mgr progress;
  jmp_buf failed;
  const uint8_t *bytes;
  size_t length;
  const char *file;
  int *warnings;
  CabStatus status;
  CabImage *image;
  uint8_t *row; /* CMYK */
} Jpeg;

static int64_t position(const Jpeg *j) {
  return j->jpeg.src ? (int64_t)(j->length - j->jpeg.src->bytes_in_buffer) : 0;
}

static _Noreturn void give_up(Jpeg *j, const char *id, const char *text) {
  if (j->status == CAB_OK) j->status = cab_fail_file(CAB_E_INPUT, id, j->file, position(j), "bad JPEG: %s", text);
  longjmp(j->failed, 1);
}

static void on_error(j_common_ptr common) {
  Jpeg *j = common->client_data;
  char text[JMSG_LENGTH_MAX];
  common->err->format_message(common, text);
  if (common->err->msg_code == JERR_OUT_OF_MEMORY) j->status = cab_fail(CAB_E_MEMORY, "out of memory in libjpeg");
  give_up(j, "jpeg", text);
}

/* level < 0: a warning, the data is damaged. */
static void on_message(j_common_ptr common, int level) {
  Jpeg *j = common->client_data;
  if (level >= 0) return;
  if (!j->warnings) on_error(common);
  (*j->warnings)++;
}

static void on_output(j_common_ptr common) { (void)common; }

static void on_progress(j_common_ptr common) {
  Jpeg *j = common->client_data;
  if (j->jpeg.input_scan_number > CAB_JPEG_MAX_SCANS) give_up(j, "jpeg-scans", "more than 100 scans");
}

/* CMYK as Adobe writes it is inverted: 255 is no ink. */
static void from_cmyk(const uint8_t *from, uint8_t *to, int width, bool inverted) {
  for (int x = 0; x < width; x++, from += 4, to += 3)
    for (int c = 0; c < 3; c++) {
      int ink = inverted ? from[c] : 255 - from[c], black = inverted ? from[3] : 255 - from[3];
      to[c] = (uint8_t)((ink * black + 127) / 255);
    }
}

static void decode(Jpeg *j) {
  struct jpeg_decompress_struct *d = &j->jpeg;
  if (setjmp(j->failed)) return;
  jpeg_create_decompress(d);
  d->mem->max_memory_to_use = 768L << 20;
  jpeg_mem_src(d, j->bytes, j->length);
  jpeg_read_header(d, TRUE);
  if (d->arith_code) give_up(j, "jpeg", "arithmetic coding is not supported");
  bool grey = d->jpeg_color_space == JCS_GRAYSCALE, cmyk = d->jpeg_color_space == JCS_CMYK || d->jpeg_color_space == JCS_YCCK;
  d->out_color_space = grey ? JCS_GRAYSCALE : cmyk ? JCS_CMYK : JCS_RGB;
  d->dct_method = JDCT_ISLOW;
  d->progress = &j->progress;
  j->status = cab_image_alloc(d->image_width, d->image_height, grey ? 1 : 3, j->length, PIXELS_PER_BYTE, j->file, j->image);
  if (j->status == CAB_OK && cmyk && !(j->row = cab_malloc(d->image_width, 4))) j->status = CAB_E_MEMORY;
  if (j->status != CAB_OK) return;
  jpeg_start_decompress(d);
  size_t stride = (size_t)d->output_width * (size_t)j->image->channels;
  while (d->output_scanline < d->output_height) {
    uint8_t *to = j->image->owned + d->output_scanline * stride;
    JSAMPROW row = cmyk ? j->row : to;
    if (jpeg_read_scanlines(d, &row, 1) == 1 && cmyk) from_cmyk(j->row, to, (int)d->output_width, d->saw_Adobe_marker);
  }
  jpeg_finish_decompress(d);
}

CabStatus cab_jpeg_decode(const uint8_t *bytes, size_t length, const char *file, int *warnings, CabImage *out) {
  Jpeg j = {.bytes = bytes, .length = length, .file = file, .warnings = warnings, .image = out};
  j.jpeg.err = jpeg_std_error(&j.errors);
  j.jpeg.client_data = &j;
  j.errors.error_exit = on_error;
  j.errors.emit_message = on_message;
  j.errors.output_message = on_output;
  j.progress.progress_monitor = on_progress;
  decode(&j);
  jpeg_destroy_decompress(&j.jpeg);
  cab_free(j.row);
  return j.status;
}
