/* jpeg.c - libjpeg-turbo. Its errors end in one longjmp of decode, which holds nothing but libjpeg's state in a struct. */
#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

#include "image.h"

/* A block of 64 pixels takes a bit or more of its first scan. MARGIN: smoothing between chroma samples reaches two pixels
 * past a window; they are decoded too, so that a part is what the whole image has there. */
enum { PIXELS_PER_BYTE = 8 * 64, MARGIN = 4 };

typedef struct {
  struct jpeg_decompress_struct jpeg;
  struct jpeg_error_mgr errors;
  struct jpeg_progress_mgr progress;
  jmp_buf failed;
  const uint8_t *bytes;
  size_t length;
  const char *file;
  const CabWish *wish;
  int *warnings;
  CabStatus status;
  CabImage *image;
  CabWindow part; /* of the image as it comes out */
  uint8_t *row; /* one of CMYK, or not wanted */
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

/* CMYK as Adobe writes it is inverted: 255 is no ink. As Pillow: white less black, less the product with the ink, rounded. */
static void from_cmyk(const uint8_t *from, uint8_t *to, int width, bool inverted) {
  for (int x = 0; x < width; x++, from += 4, to += 3)
    for (int c = 0; c < 3; c++) {
      int ink = inverted ? 255 - from[c] : from[c], white = inverted ? from[3] : 255 - from[3];
      to[c] = (uint8_t)(white - (ink * white + 127) / 255);
    }
}

/* The window asked for, in pixels as they come out, with its margin; everything if nothing was asked for. */
static CabWindow choose_part(const Jpeg *j, CabPart wanted) {
  int s = wanted.scale, width = (int)j->jpeg.output_width, height = (int)j->jpeg.output_height;
  CabWindow w = wanted.window;
  int left = w.x / s - MARGIN, top = w.y / s - MARGIN, right = (w.x + w.width + s - 1) / s + MARGIN, bottom = (w.y + w.height + s - 1) / s + MARGIN;
  if (left < 0) left = 0;
  if (top < 0) top = 0;
  if (right > width) right = width;
  if (bottom > height) bottom = height;
  return (CabWindow){left, top, right - left, bottom - top};
}

/* Size checks, the part, room for it. The columns that libjpeg decodes begin at a block. */
static void begin(Jpeg *j, int channels) {
  struct jpeg_decompress_struct *d = &j->jpeg;
  int width = (int)d->image_width, height = (int)d->image_height;
  if ((j->status = cab_image_check(d->image_width, d->image_height, j->length, PIXELS_PER_BYTE, j->file)) != CAB_OK) return;
  CabPart wanted = {{0, 0, width, height}, 1};
  if (j->wish) wanted = j->wish->choose(j->wish->ctx, width, height);
  d->scale_num = 1, d->scale_denom = (unsigned)wanted.scale;
  jpeg_start_decompress(d);
  j->part = choose_part(j, wanted);
  JDIMENSION x = (JDIMENSION)j->part.x, wide = (JDIMENSION)j->part.width;
  if (wide < d->output_width) {
    jpeg_crop_scanline(d, &x, &wide);
    j->part.x = (int)x, j->part.width = (int)wide;
  }
  j->status = cab_image_alloc(wide, (uint64_t)j->part.height, channels, j->image);
  j->image->full_width = width, j->image->full_height = height;
  j->image->x = j->part.x, j->image->y = j->part.y, j->image->scale = wanted.scale;
  if (j->status == CAB_OK && !(j->row = cab_malloc(wide, 4))) j->status = CAB_E_MEMORY;
}

/* Skipping to the end would leave the rest unread: the last row is decoded, so that damage anywhere is seen. */
static void check_rest(Jpeg *j) {
  struct jpeg_decompress_struct *d = &j->jpeg;
  if (d->output_scanline + 1 < d->output_height) jpeg_skip_scanlines(d, d->output_height - 1 - d->output_scanline);
  JSAMPROW row = j->row;
  while (d->output_scanline < d->output_height) jpeg_read_scanlines(d, &row, 1);
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
  begin(j, grey ? 1 : 3);
  if (j->status != CAB_OK) return;
  if (j->part.y) jpeg_skip_scanlines(d, (JDIMENSION)j->part.y);
  size_t stride = (size_t)j->part.width * (size_t)j->image->channels;
  for (int y = 0; y < j->part.height;) {
    uint8_t *to = j->image->owned + (size_t)y * stride;
    JSAMPROW row = cmyk ? j->row : to;
    if (jpeg_read_scanlines(d, &row, 1) != 1) continue;
    if (cmyk) from_cmyk(j->row, to, j->part.width, d->saw_Adobe_marker);
    y++;
  }
  if (j->wish && j->wish->known) return;
  check_rest(j);
  jpeg_finish_decompress(d);
}

CabStatus cab_jpeg_decode(const uint8_t *bytes, size_t length, const char *file, const CabWish *wish, int *warnings, CabImage *out) {
  Jpeg j = {.bytes = bytes, .length = length, .file = file, .wish = wish, .warnings = warnings, .image = out};
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
