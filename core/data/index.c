/* index.c - a listing as a file. All numbers little-endian:
 *   magic[12] hash:u64 (of what follows) read_at:i64 root:stamp ignored:u64 folders:u32, then for each folder
 *   stamp ignored:u64 files:u32 name\0 and its files' names, each \0;     stamp = device:u64 inode:u64 modified:i64 changed:i64 */
#include <string.h>
#include <xxhash.h>

#include "listing.h"
#include "rd.h"

static const char MAGIC[12] = {'c', 'a', 'b', ' ', 'i', 'n', 'd', 'e', 'x', ' ', '1', '\n'};
enum { HEAD = sizeof MAGIC + 8, STAMP = 32 };

/* ---- writing: room is counted first ------------------------------------------------------------ */

static uint8_t *put(uint8_t *to, uint64_t v, int bytes) {
  for (int i = 0; i < bytes; i++) *to++ = (uint8_t)(v >> (8 * i));
  return to;
}
static uint8_t *put_stamp(uint8_t *to, const CabStamp *s) {
  to = put(put(to, s->device, 8), s->inode, 8);
  return put(put(to, (uint64_t)s->modified, 8), (uint64_t)s->changed, 8);
}
static uint8_t *put_text(uint8_t *to, const char *text) {
  size_t n = strlen(text) + 1;
  memcpy(to, text, n);
  return to + n;
}

CabStatus cab_index_encode(const CabListing *l, CabBytes *out) {
  /* files.used counts "CLASS/" before each name too, so it is enough */
  uint64_t room = HEAD + 8 + STAMP + 8 + 4 + l->folders.count * (STAMP + 8 + 4) + l->folders.used + l->files.used;
  uint8_t *data = cab_malloc(room, 1), *to = data;
  if (!data) return CAB_E_MEMORY;
  memcpy(to, MAGIC, sizeof MAGIC);
  to = put(data + HEAD, (uint64_t)l->read_at, 8);
  to = put(put(put_stamp(to, &l->root), l->ignored, 8), l->folders.count, 4);
  size_t file = 0;
  for (size_t i = 0; i < l->folders.count; i++) {
    const CabListed *f = &l->folder[i];
    const char *name = cab_name_at(&l->folders, i);
    to = put_text(put(put(put_stamp(to, &f->stamp), f->ignored, 8), f->end - file, 4), name);
    for (; file < f->end; file++) to = put_text(to, cab_name_at(&l->files, file) + strlen(name) + 1);
  }
  *out = (CabBytes){data, (size_t)(to - data)};
  put(data + sizeof MAGIC, XXH64(data + HEAD, out->length - HEAD, 0), 8);
  return CAB_OK;
}

/* ---- reading ------------------------------------------------------------------------------------ */

static CabStamp rd_stamp(CabRd *rd) {
  CabStamp s = {.device = rd_u64le(rd)};
  s.inode = rd_u64le(rd);
  s.modified = (int64_t)rd_u64le(rd);
  s.changed = (int64_t)rd_u64le(rd);
  return s;
}

/* A name up to its NUL, greater than `last`; NULL if that is not what follows. */
static const char *rd_name(CabRd *rd, const char *last) {
  const uint8_t *from = rd->base + rd->position, *end = rd_left(rd) ? memchr(from, 0, rd_left(rd)) : NULL;
  if (!end || end == from || *from == '.' || memchr(from, '/', (size_t)(end - from))) return NULL;
  rd_slice(rd, (uint64_t)(end - from) + 1);
  const char *name = (const char *)from;
  return !last || strcmp(last, name) < 0 ? name : NULL;
}

static bool decode_folder(CabRd *rd, CabListing *l, const char **last) {
  CabListed f = {.stamp = rd_stamp(rd)};
  f.ignored = rd_u64le(rd);
  uint32_t files = rd_u32le(rd);
  const char *name = rd_name(rd, *last), *file = NULL;
  if (!name || cab_names_add(&l->folders, NULL, name) != CAB_OK) return false;
  for (uint32_t i = 0; i < files; i++) {
    file = rd_name(rd, file);
    if (!file || !cab_names_image(file) || cab_names_add(&l->files, name, file) != CAB_OK) return false;
  }
  f.end = l->files.count;
  l->folder[l->folders.count - 1] = f;
  *last = name;
  return !rd->bad;
}

bool cab_index_decode(const uint8_t *bytes, size_t length, CabListing *out) {
  CabRd rd = rd_open(bytes, length);
  *out = (CabListing){0};
  const uint8_t *magic = rd_slice(&rd, sizeof MAGIC);
  uint64_t hash = rd_u64le(&rd);
  if (rd.bad || memcmp(magic, MAGIC, sizeof MAGIC) || hash != XXH64(bytes + HEAD, length - HEAD, 0)) return false;
  out->read_at = (int64_t)rd_u64le(&rd);
  out->root = rd_stamp(&rd);
  out->ignored = rd_u64le(&rd);
  uint32_t folders = rd_u32le(&rd);
  bool ok = !rd.bad && sz_mul(folders, STAMP) <= rd_left(&rd) && (out->folder = cab_calloc(folders, sizeof *out->folder));
  const char *last = NULL;
  for (uint32_t i = 0; ok && i < folders; i++) ok = decode_folder(&rd, out, &last);
  if (ok && rd_left(&rd) == 0) return true;
  cab_listing_free(out);
  *out = (CabListing){0};
  return false;
}
