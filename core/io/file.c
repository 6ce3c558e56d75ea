/* file.c - reading whole files, and gzip. Foreign files are never mapped: one that shrinks would be a SIGBUS. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "file.h"

void cab_bytes_free(CabBytes *bytes) {
  cab_free(bytes->data);
  *bytes = (CabBytes){0};
}

static const char *kind_of(mode_t mode) {
  return S_ISDIR(mode) ? "a directory" : S_ISFIFO(mode) ? "a FIFO" : S_ISSOCK(mode) ? "a socket" : "a device";
}

CabStatus cab_file_open(const char *path, CabFile *out) {
  *out = (CabFile){.fd = -1, .path = path};
  int fd = -1;
  if (cab_fault("file.open")) errno = EIO;
  else do fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    while (fd < 0 && errno == EINTR);
  if (fd < 0) return cab_fail_errno(path, "open");
  struct stat s;
  CabStatus status = CAB_OK;
  if (fstat(fd, &s)) status = cab_fail_errno(path, "stat");
  else if (!S_ISREG(s.st_mode))
    status = cab_fail_file(CAB_E_INPUT, "file-kind", path, -1, "expected a regular file, got %s", kind_of(s.st_mode));
  if (status != CAB_OK) {
    close(fd);
    return status;
  }
  *out = (CabFile){.fd = fd, .size = (uint64_t)s.st_size, .path = path, .device = s.st_dev, .inode = s.st_ino,
                   .changed_sec = s.st_mtim.tv_sec, .changed_nsec = s.st_mtim.tv_nsec};
  return CAB_OK;
}

CabStatus cab_file_read(const CabFile *file, void *to, uint64_t count, uint64_t offset) {
  for (uint64_t done = 0; done < count;) {
    uint64_t want = count - done < (1u << 30) ? count - done : 1u << 30;
    ssize_t n = -1;
    if (cab_fault("file.read")) errno = EIO;
    else n = pread(file->fd, (char *)to + done, want, (off_t)(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return cab_fail_errno(file->path, "read");
    if (n == 0)
      return cab_fail_file(CAB_E_INPUT, "file-changed", file->path, (int64_t)(offset + done),
                           "changed while reading: the file ends here, its size was %llu", (unsigned long long)file->size);
    done += (uint64_t)n;
  }
  return CAB_OK;
}

CabStatus cab_file_unchanged(const CabFile *file) {
  struct stat s;
  if (fstat(file->fd, &s)) return cab_fail_errno(file->path, "stat");
  if ((uint64_t)s.st_size != file->size)
    return cab_fail_file(CAB_E_INPUT, "file-changed", file->path, -1, "changed while reading: size was %llu, is %llu",
                         (unsigned long long)file->size, (unsigned long long)s.st_size);
  if (s.st_mtim.tv_sec != file->changed_sec || s.st_mtim.tv_nsec != file->changed_nsec)
    return cab_fail_file(CAB_E_INPUT, "file-changed", file->path, -1, "changed while reading: it was written to");
  return CAB_OK;
}

void cab_file_close(CabFile *file) {
  if (file->fd >= 0) close(file->fd);
  file->fd = -1;
}

static CabStatus read_open(const CabFile *file, uint64_t limit, CabBytes *out) {
  if (file->size > limit)
    return cab_fail_file(CAB_E_INPUT, "file-size", file->path, -1, "%llu bytes, at most %llu are read",
                         (unsigned long long)file->size, (unsigned long long)limit);
  uint8_t *data = cab_malloc(file->size, 1);
  if (!data) return CAB_E_MEMORY;
  CabStatus status = cab_file_read(file, data, file->size, 0);
  if (status == CAB_OK) status = cab_file_unchanged(file);
  if (status != CAB_OK) {
    cab_free(data);
    return status;
  }
  *out = (CabBytes){data, file->size};
  return CAB_OK;
}

CabStatus cab_read_file(const char *path, uint64_t limit, CabBytes *out) {
  *out = (CabBytes){0};
  CabFile file;
  CAB_TRY(cab_file_open(path, &file));
  CabStatus status = read_open(&file, limit, out);
  cab_file_close(&file);
  return status;
}

/* Room for more output: doubled, never past the limit. One byte over the limit is allowed, to see that it is passed. */
static CabStatus grow(CabBytes *out, size_t *capacity, uint64_t limit, const char *file) {
  if (*capacity > limit)
    return cab_fail_file(CAB_E_INPUT, "gz-limit", file, -1, "unpacks to more than %llu bytes", (unsigned long long)limit);
  uint64_t want = sz_mul(*capacity, 2);
  if (want > limit) want = limit + 1;
  uint8_t *data = cab_realloc(out->data, want, 1);
  if (!data) return CAB_E_MEMORY;
  out->data = data;
  *capacity = want;
  return CAB_OK;
}

static void *zlib_alloc(void *ud, unsigned count, unsigned size) { return (void)ud, cab_malloc(count, size); }
static void zlib_free(void *ud, void *p) { (void)ud, cab_free(p); }

static CabStatus inflate_all(z_stream *z, const uint8_t *bytes, size_t length, const char *file, uint64_t limit, CabBytes *out) {
  size_t capacity = length < limit ? length + 1 : limit + 1, used = 0;
  out->data = cab_malloc(capacity, 1);
  if (!out->data) return CAB_E_MEMORY;
  for (;;) {
    if (out->length == capacity) CAB_TRY(grow(out, &capacity, limit, file));
    size_t in = length - used < (1u << 30) ? length - used : 1u << 30;
    size_t room = capacity - out->length < (1u << 30) ? capacity - out->length : 1u << 30;
    z->next_in = (Bytef *)(uintptr_t)(bytes + used), z->avail_in = (uInt)in;
    z->next_out = out->data + out->length, z->avail_out = (uInt)room;
    int code = inflate(z, Z_NO_FLUSH);
    used += in - z->avail_in;
    out->length += room - z->avail_out;
    if (code == Z_STREAM_END) {
      if (used == length) break;
      if (bytes[used] != 0x1f)
        return cab_fail_file(CAB_E_INPUT, "gz-trailing", file, (int64_t)used, "%zu bytes after the gzip data", length - used);
      inflateReset(z);
    } else if (code == Z_MEM_ERROR) return cab_fail(CAB_E_MEMORY, "out of memory in inflate");
    else if (code != Z_OK && !(code == Z_BUF_ERROR && used < length && out->length == capacity)) {
      if (code == Z_BUF_ERROR && used == length)
        return cab_fail_file(CAB_E_INPUT, "gz-truncated", file, (int64_t)used, "the gzip data is cut off");
      return cab_fail_file(CAB_E_INPUT, "gz-data", file, (int64_t)used, "bad gzip data: %s", z->msg ? z->msg : "unknown");
    }
  }
  if (out->length > limit) return grow(out, &capacity, limit, file);
  return CAB_OK;
}

CabStatus cab_gunzip(const uint8_t *bytes, size_t length, const char *file, uint64_t limit, CabBytes *out) {
  *out = (CabBytes){0};
  z_stream z = {.zalloc = zlib_alloc, .zfree = zlib_free};
  if (inflateInit2(&z, 15 + 16) != Z_OK) return cab_fail(CAB_E_MEMORY, "out of memory in inflate");
  CabStatus status = inflate_all(&z, bytes, length, file, limit, out);
  inflateEnd(&z);
  if (status != CAB_OK) cab_bytes_free(out);
  return status;
}

CabStatus cab_read_maybe_gz(const char *path, uint64_t limit, CabBytes *out) {
  CabBytes raw;
  CAB_TRY(cab_read_file(path, limit, &raw));
  if (raw.length < 2 || raw.data[0] != 0x1f || raw.data[1] != 0x8b) {
    *out = raw;
    return CAB_OK;
  }
  CabStatus status = cab_gunzip(raw.data, raw.length, path, limit, out);
  cab_bytes_free(&raw);
  return status;
}
