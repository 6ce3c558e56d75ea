/* zip.c - the archive of zip.h. Format: PKWARE APPNOTE 6.3.10, sections 4.3 and 4.5.3. */
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "rd.h"
#include "zip.h"

enum { END = 22, LOCATOR = 20, END64 = 56, LOCAL = 30, MAX_ENTRIES = 1 << 20, BLOCK = 1 << 16 };
#define MAX_DIRECTORY 100000000u
#define SPARE (64ull << 20) /* what an archive may unpack to beyond 16 times its size */
#define REFUSE(id, at, ...) cab_fail_file(CAB_E_INPUT, id, z->file->path, (int64_t)(at), __VA_ARGS__)
#define NAME(text) cab_escape((text), strlen(text), (char[340]){0})
typedef unsigned long long ull;

typedef struct {
  const CabFile *file;
  CabZip *zip;
  uint64_t directory_at, directory_bytes, entries;
} Zip;

/* ---- end records: where the directory is --------------------------------------------------- */

static CabStatus read_end64(Zip *z, uint64_t end_at, uint64_t *directory_end) {
  uint8_t bytes[END64];
  if (end_at < LOCATOR) return CAB_OK;
  CAB_TRY(cab_file_read(z->file, bytes, LOCATOR, end_at - LOCATOR));
  CabRd r = rd_open(bytes, LOCATOR);
  if (rd_u32le(&r) != 0x07064b50) return CAB_OK;
  uint64_t disk = rd_u32le(&r), at = rd_u64le(&r), disks = rd_u32le(&r), locator_at = end_at - LOCATOR;
  if (disk != 0 || disks > 1) return REFUSE("zip-zip64", locator_at, "the archive is split over %llu files", (ull)disks);
  if (sz_add(at, END64) != locator_at)
    return REFUSE("zip-zip64", locator_at, "the locator says byte %llu, the zip64 end record must be the %d bytes before it", (ull)at, END64);
  CAB_TRY(cab_file_read(z->file, bytes, END64, at));
  r = rd_open(bytes, END64);
  if (rd_u32le(&r) != 0x06064b50) return REFUSE("zip-zip64", at, "no zip64 end record where the locator points");
  if (rd_u64le(&r) != END64 - 12) return REFUSE("zip-zip64", at, "the zip64 end record has another size than %d", END64);
  rd_slice(&r, 4); /* versions */
  uint64_t here = rd_u32le(&r), first = rd_u32le(&r), count_here = rd_u64le(&r), count = rd_u64le(&r), size = rd_u64le(&r), start = rd_u64le(&r);
  if (here || first || count_here != count) return REFUSE("zip-zip64", at, "the archive is split over several files");
  bool differs = (z->entries != 0xffff && z->entries != count) || (z->directory_bytes != UINT32_MAX && z->directory_bytes != size) ||
                 (z->directory_at != UINT32_MAX && z->directory_at != start);
  if (differs) return REFUSE("zip-zip64", at, "the two end records disagree");
  z->entries = count, z->directory_bytes = size, z->directory_at = start;
  *directory_end = at;
  return CAB_OK;
}

static CabStatus read_end(Zip *z) {
  uint8_t bytes[END];
  if (z->file->size < END) return REFUSE("zip-end", 0, "the end record needs %d bytes, the file has %llu", END, (ull)z->file->size);
  uint64_t end_at = z->file->size - END, directory_end = end_at;
  CAB_TRY(cab_file_read(z->file, bytes, END, end_at));
  CabRd r = rd_open(bytes, END);
  if (rd_u32le(&r) != 0x06054b50)
    return REFUSE("zip-end", end_at, "no end record in the last %d bytes: cut off, or something follows the archive", END);
  uint64_t disk = rd_u16le(&r), first = rd_u16le(&r), here = rd_u16le(&r);
  z->entries = rd_u16le(&r), z->directory_bytes = rd_u32le(&r), z->directory_at = rd_u32le(&r);
  uint64_t comment = rd_u16le(&r);
  if (disk || first || here != z->entries) return REFUSE("zip-end", end_at, "the archive is split over several files");
  if (comment) return REFUSE("zip-end", end_at, "the end record promises a comment of %llu bytes, the file ends here", (ull)comment);
  CAB_TRY(read_end64(z, end_at, &directory_end));
  if (sz_add(z->directory_at, z->directory_bytes) != directory_end)
    return REFUSE("zip-end", end_at, "the directory is at [%llu,%llu), it must end at %llu", (ull)z->directory_at,
                  (ull)sz_add(z->directory_at, z->directory_bytes), (ull)directory_end);
  if (z->entries > MAX_ENTRIES || z->directory_bytes > MAX_DIRECTORY || sz_mul(z->entries, 46) > z->directory_bytes)
    return REFUSE("zip-end", end_at, "%llu entries in a directory of %llu bytes, at most %d in %u", (ull)z->entries,
                  (ull)z->directory_bytes, MAX_ENTRIES, MAX_DIRECTORY);
  return CAB_OK;
}

/* ---- the directory ------------------------------------------------------------------------- */

/* Sizes of 2^32 - 1 stand for 8-byte values in the extra field 1, in the order of `value`. */
static CabStatus wide_sizes(Zip *z, uint64_t at, const uint8_t *extra, uint64_t length, int count, uint64_t **value) {
  CabRd r = rd_open(extra, length), in = rd_open(NULL, 0);
  bool wanted = false;
  for (int i = 0; i < count; i++) wanted = wanted || *value[i] == UINT32_MAX;
  if (!wanted) return CAB_OK;
  while (rd_left(&r) >= 4) {
    uint16_t id = rd_u16le(&r), size = rd_u16le(&r);
    const uint8_t *p = rd_slice(&r, size);
    if (p && id == 1) in = rd_open(p, size);
  }
  for (int i = 0; i < count; i++)
    if (*value[i] == UINT32_MAX) *value[i] = rd_u64le(&in);
  return in.bad || r.bad ? REFUSE("zip-zip64", at, "an 8-byte size is missing in the extra field") : CAB_OK;
}

static CabStatus check_kind(Zip *z, uint64_t at, const CabZipEntry *e, int method) {
  if (e->flags & 0x2041) return REFUSE("zip-encrypted", at, "\"%s\" is encrypted", NAME(e->name));
  if (e->flags & ~0x80e) return REFUSE("zip-flags", at, "\"%s\" has unknown flags 0x%04x", NAME(e->name), e->flags);
  if (method != 0 && method != 8) return REFUSE("zip-method", at, "\"%s\": compression %d, only 0 (none) and 8 (deflate) are read", NAME(e->name), method);
  if (!e->deflated && e->packed != e->bytes)
    return REFUSE("zip-central", at, "\"%s\" is not compressed, but %llu bytes become %llu", NAME(e->name), (ull)e->packed, (ull)e->bytes);
  return CAB_OK;
}

static CabStatus parse_entry(Zip *z, CabRd *r, CabZipEntry *e, char **arena) {
  uint64_t at = z->directory_at + r->position;
  if (rd_u32le(r) != 0x02014b50) return REFUSE("zip-central", at, "no directory entry where one must be");
  rd_slice(r, 4); /* versions */
  e->flags = rd_u16le(r);
  int method = rd_u16le(r);
  rd_slice(r, 4); /* time */
  e->crc = rd_u32le(r), e->packed = rd_u32le(r), e->bytes = rd_u32le(r), e->deflated = method == 8;
  uint64_t name_length = rd_u16le(r), extra_length = rd_u16le(r), comment_length = rd_u16le(r), disk = rd_u16le(r);
  rd_slice(r, 6); /* attributes */
  e->at = rd_u32le(r);
  const uint8_t *name = rd_slice(r, name_length), *extra = rd_slice(r, extra_length);
  rd_slice(r, comment_length);
  if (r->bad) return REFUSE("zip-central", at, "the directory ends within an entry");
  if (!name_length || memchr(name, 0, name_length)) return REFUSE("zip-name", at, "a name is empty or holds NUL");
  memcpy(*arena, name, name_length);
  e->name = *arena;
  *arena += name_length;
  *(*arena)++ = 0;
  CAB_TRY(wide_sizes(z, at, extra, extra_length, 3, (uint64_t *[]){&e->bytes, &e->packed, &e->at}));
  if (disk != 0) return REFUSE("zip-central", at, "\"%s\" is in another file of a split archive", NAME(e->name));
  return check_kind(z, at, e, method);
}

static int by_name(const void *a, const void *b) { return strcmp(((const CabZipEntry *)a)->name, ((const CabZipEntry *)b)->name); }
static int by_place(const void *a, const void *b) {
  const CabZipEntry *x = a, *y = b;
  return x->at < y->at ? -1 : x->at > y->at;
}

static CabStatus parse_directory(Zip *z, const uint8_t *bytes) {
  CabZip *zip = z->zip;
  CabRd r = rd_open(bytes, z->directory_bytes);
  char *arena = zip->names;
  uint64_t unpacked = 0, limit = sz_add(sz_mul(z->file->size, 16), SPARE);
  while ((uint64_t)zip->count < z->entries) {
    CabZipEntry *e = &zip->entry[zip->count];
    CAB_TRY(parse_entry(z, &r, e, &arena));
    zip->count++;
    unpacked = sz_add(unpacked, e->bytes);
    if (unpacked > limit)
      return REFUSE("zip-bomb", z->directory_at, "entries up to \"%s\" unpack to %llu bytes, at most %llu from a file of this size",
                    NAME(e->name), (ull)unpacked, (ull)limit);
  }
  if (rd_left(&r)) return REFUSE("zip-central", z->directory_at + r.position, "%llu bytes after the last directory entry", (ull)rd_left(&r));
  return CAB_OK;
}

/* ---- local headers ------------------------------------------------------------------------- */

/* The local header agrees with the directory. Where a descriptor follows the bytes (flag 8), its sizes may be 0. */
static CabStatus check_local(Zip *z, CabZipEntry *e, uint8_t *buffer) {
  uint8_t fixed[LOCAL];
  if (sz_add(e->at, LOCAL) > z->directory_at)
    return REFUSE("zip-local", e->at, "\"%s\": no room for a local header before the directory", NAME(e->name));
  CAB_TRY(cab_file_read(z->file, fixed, LOCAL, e->at));
  CabRd r = rd_open(fixed, LOCAL);
  if (rd_u32le(&r) != 0x04034b50) return REFUSE("zip-local", e->at, "\"%s\": no local header here", NAME(e->name));
  rd_slice(&r, 2);
  uint16_t flags = rd_u16le(&r), method = rd_u16le(&r);
  rd_slice(&r, 4);
  uint64_t crc = rd_u32le(&r), packed = rd_u32le(&r), bytes = rd_u32le(&r), name_length = rd_u16le(&r), extra_length = rd_u16le(&r);
  e->data_at = e->at + LOCAL + name_length + extra_length;
  if (name_length != strlen(e->name) || flags != e->flags || method != (e->deflated ? 8 : 0))
    return REFUSE("zip-local", e->at, "\"%s\": name, flags or method differ from the directory", NAME(e->name));
  if (e->data_at > z->directory_at) return REFUSE("zip-local", e->at, "\"%s\": the local header runs into the directory", NAME(e->name));
  CAB_TRY(cab_file_read(z->file, buffer, name_length + extra_length, e->at + LOCAL));
  if (memcmp(buffer, e->name, name_length)) return REFUSE("zip-local", e->at, "\"%s\": the local header has another name", NAME(e->name));
  CAB_TRY(wide_sizes(z, e->at, buffer + name_length, extra_length, 2, (uint64_t *[]){&bytes, &packed}));
  bool later = (e->flags & 8) && !crc && !packed && !bytes;
  if (!later && (crc != e->crc || packed != e->packed || bytes != e->bytes))
    return REFUSE("zip-local", e->at, "\"%s\": CRC or sizes differ from the directory", NAME(e->name));
  return CAB_OK;
}

/* From the end of the bytes to the next entry: nothing, or a data descriptor (flag 8) of 4-byte or 8-byte sizes. */
static CabStatus check_gap(Zip *z, const CabZipEntry *e, uint64_t next) {
  uint64_t end = sz_add(e->data_at, e->packed), gap = next - end;
  if (end > next) return REFUSE("zip-overlap", e->at, "\"%s\" [%llu,%llu) overlaps what starts at %llu", NAME(e->name), (ull)e->at, (ull)end, (ull)next);
  if (!(e->flags & 8)) return gap ? REFUSE("zip-hole", end, "%llu bytes after \"%s\" belong to no entry", (ull)gap, NAME(e->name)) : CAB_OK;
  uint8_t bytes[24];
  if (gap != 12 && gap != 16 && gap != 20 && gap != 24)
    return REFUSE("zip-hole", end, "%llu bytes after \"%s\" are no data descriptor", (ull)gap, NAME(e->name));
  CAB_TRY(cab_file_read(z->file, bytes, gap, end));
  CabRd r = rd_open(bytes, gap);
  bool mark = gap % 8 == 0, differs = mark && rd_u32le(&r) != 0x08074b50;
  int size = gap >= 20 ? 8 : 4;
  uint32_t crc = rd_u32le(&r);
  uint64_t packed = rd_le(&r, size), unpacked = rd_le(&r, size);
  if (differs || crc != e->crc || packed != e->packed || unpacked != e->bytes)
    return REFUSE("zip-local", end, "\"%s\": the data descriptor differs from the directory", NAME(e->name));
  return CAB_OK;
}

static CabStatus check_places(Zip *z, uint8_t *buffer) {
  CabZip *zip = z->zip;
  if (zip->count) qsort(zip->entry, (size_t)zip->count, sizeof *zip->entry, by_place);
  uint64_t first = zip->count ? zip->entry[0].at : z->directory_at;
  if (first) return REFUSE("zip-hole", 0, "the first %llu bytes belong to no entry", (ull)first);
  for (int i = 0; i < zip->count; i++) {
    CAB_TRY(check_local(z, &zip->entry[i], buffer));
    CAB_TRY(check_gap(z, &zip->entry[i], i + 1 < zip->count ? zip->entry[i + 1].at : z->directory_at));
  }
  if (zip->count) qsort(zip->entry, (size_t)zip->count, sizeof *zip->entry, by_name);
  for (int i = 1; i < zip->count; i++)
    if (!strcmp(zip->entry[i - 1].name, zip->entry[i].name))
      return REFUSE("zip-duplicate", zip->entry[i].at, "two entries are named \"%s\"", NAME(zip->entry[i].name));
  return CAB_OK;
}

CabStatus cab_zip_open(const CabFile *file, CabZip *out) {
  Zip z = {.file = file, .zip = out};
  *out = (CabZip){0};
  CAB_TRY(read_end(&z));
  uint8_t *directory = cab_malloc(z.directory_bytes, 1), *buffer = cab_malloc(2, 1 << 16);
  out->names = cab_malloc(z.directory_bytes, 1); /* an entry has 46 bytes beside its name */
  out->entry = cab_calloc(z.entries, sizeof *out->entry);
  CabStatus status = directory && buffer && out->names && out->entry ? CAB_OK : CAB_E_MEMORY;
  if (status == CAB_OK) status = cab_file_read(file, directory, z.directory_bytes, z.directory_at);
  if (status == CAB_OK) status = parse_directory(&z, directory);
  if (status == CAB_OK) status = check_places(&z, buffer);
  cab_free(directory);
  cab_free(buffer);
  if (status != CAB_OK) cab_zip_free(out);
  return status;
}

void cab_zip_free(CabZip *zip) {
  cab_free(zip->entry);
  cab_free(zip->names);
  *zip = (CabZip){0};
}

int cab_zip_find(const CabZip *zip, const char *name) {
  CabZipEntry key = {.name = name};
  const CabZipEntry *e = zip->count ? bsearch(&key, zip->entry, (size_t)zip->count, sizeof key, by_name) : NULL;
  return e ? (int)(e - zip->entry) : -1;
}

/* ---- bytes --------------------------------------------------------------------------------- */

#define BAD_DATA(...) cab_fail_file(CAB_E_INPUT, "zip-data", file->path, (int64_t)e->data_at, __VA_ARGS__)

/* Unpacks until `count` bytes are out. With `whole` the data must end exactly there. */
static CabStatus unpack(const CabFile *file, const CabZipEntry *e, z_stream *s, uint8_t *in, uint8_t *to, uint64_t count, bool whole) {
  uint64_t taken = 0, out = 0;
  int code = Z_OK;
  while (code != Z_STREAM_END && (out < count || whole)) {
    if (!s->avail_in && taken < e->packed) {
      uint64_t n = e->packed - taken < BLOCK ? e->packed - taken : BLOCK;
      CAB_TRY(cab_file_read(file, in, n, e->data_at + taken));
      taken += n;
      s->next_in = in, s->avail_in = (uInt)n;
    }
    uint8_t more = 0; /* one byte past the end shows that the size is a lie */
    uint64_t room = count - out < 1u << 30 ? count - out : 1u << 30;
    s->next_out = room ? to + out : &more, s->avail_out = room ? (uInt)room : 1;
    code = inflate(s, Z_NO_FLUSH);
    uint64_t made = room ? room - s->avail_out : 1 - s->avail_out;
    if (code == Z_MEM_ERROR) return cab_fail(CAB_E_MEMORY, "out of memory in inflate");
    if (code == Z_BUF_ERROR && taken == e->packed) return BAD_DATA("\"%s\": the deflate data is cut off", NAME(e->name));
    if (code != Z_OK && code != Z_STREAM_END && code != Z_BUF_ERROR)
      return BAD_DATA("\"%s\": bad deflate data: %s", NAME(e->name), s->msg ? s->msg : "unknown");
    if (!room && made) return BAD_DATA("\"%s\" unpacks to more than the %llu bytes it says", NAME(e->name), (ull)e->bytes);
    out += made;
  }
  if (out != count || (whole && (taken != e->packed || s->avail_in)))
    return BAD_DATA("\"%s\": %llu bytes unpack to %llu, expected %llu to %llu", NAME(e->name), (ull)(taken - s->avail_in), (ull)out,
                    (ull)e->packed, (ull)e->bytes);
  return CAB_OK;
}

static CabStatus read_bytes(const CabFile *file, const CabZipEntry *e, uint8_t *to, uint64_t count, bool whole) {
  if (!e->deflated) return cab_file_read(file, to, count, e->data_at);
  z_stream s = {0};
  uint8_t *in = cab_malloc(BLOCK, 1);
  if (!in) return CAB_E_MEMORY;
  CabStatus status = inflateInit2(&s, -15) == Z_OK ? CAB_OK : cab_fail(CAB_E_MEMORY, "out of memory in inflate");
  if (status == CAB_OK) {
    status = unpack(file, e, &s, in, to, count, whole);
    inflateEnd(&s);
  }
  cab_free(in);
  return status;
}

CabStatus cab_zip_head(const CabFile *file, const CabZipEntry *e, uint8_t *to, uint64_t count, uint64_t *got) {
  *got = count < e->bytes ? count : e->bytes;
  return read_bytes(file, e, to, *got, false);
}

CabStatus cab_zip_read(const CabFile *file, const CabZipEntry *e, CabBytes *out) {
  *out = (CabBytes){0};
  uint8_t *data = cab_malloc(e->bytes, 1);
  if (!data) return CAB_E_MEMORY;
  CabStatus status = read_bytes(file, e, data, e->bytes, true);
  if (status == CAB_OK) {
    uint32_t crc = (uint32_t)crc32_z(0, data, e->bytes);
    if (crc != e->crc)
      status = cab_fail_file(CAB_E_INPUT, "zip-crc", file->path, (int64_t)e->data_at, "\"%s\": CRC is %08x, the directory says %08x",
                             NAME(e->name), crc, e->crc);
  }
  if (status != CAB_OK) {
    cab_free(data);
    return status;
  }
  *out = (CabBytes){data, e->bytes};
  return CAB_OK;
}
