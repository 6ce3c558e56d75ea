/* png.c - libpng. Its errors end in one longjmp of decode or encode, which hold nothing but libpng's state in a struct. */
#include <png.h>
#include <setjmp.h>
#include <string.h>

#include "image.h"
#include "rd.h"

/* Deflate gives at most 1032 bytes for one; with one bit for a pixel that is 8256 pixels. */
enum { PIXELS_PER_BYTE = 8256 };

typedef struct {
  png_structp png;
  png_infop info;
  CabRd rd;
  CabBytes *out;
  size_t room;
  const char *file;
  int *warnings;
  bool armed; /* decode or encode has its setjmp; before that libpng catches its own errors */
  CabStatus status;
  CabImage *image;
} Png;

/* png_longjmp, not longjmp(png_jmpbuf): the macro raises an error itself where libpng's own buffer is in place. */
static void on_error(png_structp png, png_const_charp text) {
  Png *p = png_get_error_ptr(png);
  if (p->status == CAB_OK) p->status = cab_fail_file(CAB_E_INPUT, "png", p->file, p->rd.base ? (int64_t)p->rd.position : -1, "bad PNG: %s", text);
  png_longjmp(png, 1);
}

static void on_warning(png_structp png, png_const_charp text) {
  Png *p = png_get_error_ptr(png);
  if (!p->armed) return; /* out of memory while libpng sets itself up: on_malloc noted it */
  if (!p->warnings) on_error(png, text);
  else ++*p->warnings;
}

static void on_read(png_structp png, png_bytep to, size_t count) {
  Png *p = png_get_io_ptr(png);
  const uint8_t *from = rd_slice(&p->rd, count);
  if (!from) png_error(png, "the file ends too early");
  memcpy(to, from, count);
}

static void *on_malloc(png_structp png, png_alloc_size_t size) {
  Png *p = png_get_mem_ptr(png);
  void *memory = cab_malloc(size, 1);
  if (!memory && p->status == CAB_OK) p->status = CAB_E_MEMORY; /* what libpng says next is no fault of the file */
  return memory;
}
static void on_free(png_structp png, void *p) {
  (void)png;
  cab_free(p);
}

/* Width and height are the first fields of the first chunk; they are checked before libpng sees the file. */
static CabStatus check_header(Png *p, const uint8_t *bytes, size_t length) {
  CabRd rd = rd_open(bytes, length);
  rd_slice(&rd, 8);
  uint32_t size = rd_u32be(&rd);
  const uint8_t *type = rd_slice(&rd, 4);
  uint64_t width = rd_u32be(&rd), height = rd_u32be(&rd);
  rd_u8(&rd);
  int colour = rd_u8(&rd);
  if (rd.bad || size != 13 || memcmp(type, "IHDR", 4))
    return cab_fail_file(CAB_E_INPUT, "png", p->file, 8, "bad PNG: the first chunk is no IHDR of 13 bytes");
  CAB_TRY(cab_image_check(width, height, length, PIXELS_PER_BYTE, p->file));
  return cab_image_alloc(width, height, colour & 2 ? 3 : 1, p->image);
}

static void decode(Png *p) {
  if (setjmp(png_jmpbuf(p->png))) return;
  p->armed = true;
  png_set_read_fn(p->png, p, on_read);
  png_set_user_limits(p->png, CAB_IMAGE_MAX_SIDE, CAB_IMAGE_MAX_SIDE);
  png_set_chunk_malloc_max(p->png, 1u << 20);
  png_set_chunk_cache_max(p->png, 64);
  png_set_crc_action(p->png, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
  png_set_keep_unknown_chunks(p->png, PNG_HANDLE_CHUNK_NEVER, NULL, -1); /* text, profiles: not even unpacked */
  png_read_info(p->png, p->info);
  png_set_palette_to_rgb(p->png);
  png_set_expand_gray_1_2_4_to_8(p->png);
  png_set_scale_16(p->png);
  png_set_strip_alpha(p->png);
  int passes = png_set_interlace_handling(p->png);
  png_read_update_info(p->png, p->info);
  size_t row = (size_t)p->image->width * (size_t)p->image->channels;
  if (png_get_rowbytes(p->png, p->info) != row) png_error(p->png, "unexpected layout of a row");
  for (int pass = 0; pass < passes; pass++)
    for (int y = 0; y < p->image->height; y++) png_read_row(p->png, p->image->owned + (size_t)y * row, NULL);
  png_read_end(p->png, NULL);
}

CabStatus cab_png_decode(const uint8_t *bytes, size_t length, const char *file, int *warnings, CabImage *out) {
  Png p = {.rd = rd_open(bytes, length), .file = file, .warnings = warnings, .image = out};
  CAB_TRY(check_header(&p, bytes, length));
  p.png = png_create_read_struct_2(PNG_LIBPNG_VER_STRING, &p, on_error, on_warning, &p, on_malloc, on_free);
  p.info = p.png ? png_create_info_struct(p.png) : NULL;
  if (p.info) decode(&p);
  else p.status = cab_fail(CAB_E_MEMORY, "out of memory in libpng");
  png_destroy_read_struct(&p.png, &p.info, NULL);
  return p.status;
}

static void on_write(png_structp png, png_bytep from, size_t count) {
  Png *p = png_get_io_ptr(png);
  if (p->room - p->out->length < count) {
    uint64_t room = sz_add(sz_mul(p->room, 2), sz_add(count, 4096));
    uint8_t *grown = cab_realloc(p->out->data, room, 1);
    if (!grown) p->status = CAB_E_MEMORY, png_error(png, "out of memory");
    p->out->data = grown;
    p->room = room;
  }
  memcpy(p->out->data + p->out->length, from, count);
  p->out->length += count;
}
static void on_flush(png_structp png) { (void)png; }

static void encode(Png *p) {
  const CabImage *i = p->image;
  if (setjmp(png_jmpbuf(p->png))) return;
  p->armed = true;
  png_set_write_fn(p->png, p, on_write, on_flush);
  png_set_IHDR(p->png, p->info, (png_uint_32)i->width, (png_uint_32)i->height, 8, i->channels == 3 ? PNG_COLOR_TYPE_RGB : PNG_COLOR_TYPE_GRAY,
               PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  png_write_info(p->png, p->info);
  for (int y = 0; y < i->height; y++)
    png_write_row(p->png, i->pixels + (size_t)y * (size_t)i->width * (size_t)i->channels);
  png_write_end(p->png, NULL);
}

CabStatus cab_png_encode(const CabImage *image, CabBytes *out) {
  CabImage copy = *image;
  int warnings = 0;
  *out = (CabBytes){0};
  Png p = {.out = out, .image = &copy, .warnings = &warnings};
  p.png = png_create_write_struct_2(PNG_LIBPNG_VER_STRING, &p, on_error, on_warning, &p, on_malloc, on_free);
  p.info = p.png ? png_create_info_struct(p.png) : NULL;
  if (p.info) encode(&p);
  else p.status = cab_fail(CAB_E_MEMORY, "out of memory in libpng");
  png_destroy_write_struct(&p.png, &p.info);
  if (p.status != CAB_OK) cab_bytes_free(out);
  return p.status;
}
