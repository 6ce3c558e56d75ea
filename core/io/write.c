/* write.c - atomic replacement, appending, and the lock of a run directory. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "file.h"

struct CabSink {
  int fd;
  const char *path; /* the target, for messages */
  char own[];       /* of an open sink: target, NUL, temp */
};

/* True with errno set if a test wants this call to fail. */
#define FAULT(name, number) (cab_fault(name) && (errno = (number), true))

static CabStatus write_all(int fd, const char *path, const void *bytes, uint64_t count) {
  for (uint64_t done = 0; done < count;) {
    uint64_t want = count - done < (1u << 30) ? count - done : 1u << 30;
    ssize_t n = FAULT("file.write", ENOSPC) ? -1 : write(fd, (const char *)bytes + done, want);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return cab_fail_errno(path, "write");
    done += (uint64_t)n;
  }
  return CAB_OK;
}

CabStatus cab_sink_write(CabSink *sink, const void *bytes, uint64_t count) {
  return write_all(sink->fd, sink->path, bytes, count);
}

/* The temp exists. True if its writer is gone: nobody holds its lock, so it was removed. */
static bool remove_stale(const char *temp) {
  int fd = open(temp, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0) return errno == ENOENT;
  struct stat held, named;
  bool gone = flock(fd, LOCK_EX | LOCK_NB) == 0 && !fstat(fd, &held) && !stat(temp, &named) &&
              held.st_ino == named.st_ino && S_ISREG(held.st_mode) && unlink(temp) == 0;
  close(fd);
  return gone;
}

static CabStatus open_temp(const char *path, const char *temp, int *out) {
  for (int attempt = 0; attempt < 4; attempt++) {
    int fd = FAULT("file.open", EMFILE) ? -1
             : open(temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd < 0 && errno == EINTR) continue;
    if (fd < 0 && errno == EEXIST) {
      if (remove_stale(temp)) continue;
      return cab_fail_file(CAB_E_IO, "file-busy", temp, -1, "exists: another process is writing %s", path);
    }
    if (fd < 0) return cab_fail_errno(temp, "create");
    if (flock(fd, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK) { /* taken for stale before it was locked */
      close(fd);
      continue;
    }
    *out = fd;
    return CAB_OK;
  }
  return cab_fail_file(CAB_E_IO, "file-busy", temp, -1, "another process is writing %s", path);
}

static CabStatus sync_directory(const char *path) {
  char dir[PATH_MAX];
  const char *slash = strrchr(path, '/');
  size_t n = slash ? (size_t)(slash - path) : 0;
  if (n >= sizeof dir) return cab_fail_file(CAB_E_IO, "", path, -1, "name too long");
  memcpy(dir, path, n);
  memcpy(dir + n, slash ? n ? "" : "/" : ".", slash && n ? 1 : 2);
  int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return cab_fail_errno(dir, "open");
  CabStatus status = CAB_OK;
  if (FAULT("file.dirsync", EIO) || (fsync(fd) && errno != EINVAL && errno != ENOTSUP)) status = cab_fail_errno(dir, "fsync");
  close(fd);
  return status;
}

/* The end of a temp that was written with `status`: it gets its name or goes. *again: fsync failed, so what the kernel holds of
 * this file is not to be trusted. */
static CabStatus finish(CabSink *sink, const char *temp, CabStatus status, bool *again) {
  if (status == CAB_OK && (FAULT("file.fsync", EIO) || fsync(sink->fd))) {
    status = cab_fail_errno(sink->path, "fsync");
    *again = true;
  }
  bool renamed = false;
  if (status == CAB_OK && (FAULT("file.rename", EIO) || rename(temp, sink->path))) status = cab_fail_errno(sink->path, "rename");
  else renamed = status == CAB_OK;
  if (!renamed) unlink(temp);
  /* Closed last: the lock says that a temp of this name has a writer. Its data is on disk already. */
  if (close(sink->fd) && errno != EINTR && status == CAB_OK) status = cab_fail_errno(sink->path, "close");
  return status == CAB_OK ? sync_directory(sink->path) : status;
}

static CabStatus write_once(const char *path, const char *temp, CabFileWriter write, void *ctx, bool *again) {
  CabSink sink = {.fd = -1, .path = path};
  CAB_TRY(open_temp(path, temp, &sink.fd));
  return finish(&sink, temp, write(ctx, &sink), again);
}

/* PATH.tmp in `temp`. */
static CabStatus name_temp(const char *path, char *temp, size_t room) {
  size_t n = strlen(path);
  if (n + 5 > room) return cab_fail_file(CAB_E_IO, "", path, -1, "name too long");
  struct stat s;
  if (!stat(path, &s) && !S_ISREG(s.st_mode))
    return cab_fail_file(CAB_E_IO, "file-kind", path, -1, "exists and is no regular file");
  memcpy(temp, path, n);
  memcpy(temp + n, ".tmp", 5);
  return CAB_OK;
}

CabStatus cab_write_atomic(const char *path, CabFileWriter write, void *ctx) {
  char temp[PATH_MAX];
  CAB_TRY(name_temp(path, temp, sizeof temp));
  bool again = false;
  CabStatus status = write_once(path, temp, write, ctx, &again);
  if (again) status = write_once(path, temp, write, ctx, &again);
  return status;
}

CabSink *cab_sink_open(const char *path) {
  size_t n = strlen(path) + 1;
  CabSink *sink = cab_calloc(1, sizeof *sink + 2 * n + 4);
  if (!sink) return NULL;
  memcpy(sink->own, path, n);
  sink->path = sink->own;
  if (name_temp(path, sink->own + n, PATH_MAX < n + 4 ? PATH_MAX : n + 4) == CAB_OK && open_temp(path, sink->own + n, &sink->fd) == CAB_OK) return sink;
  cab_free(sink);
  return NULL;
}

static CabStatus end_sink(CabSink *sink, CabStatus status) {
  bool ignored = false;
  status = finish(sink, sink->own + strlen(sink->own) + 1, status, &ignored);
  cab_free(sink);
  return status;
}

CabStatus cab_sink_patch(CabSink *sink, const void *bytes, uint64_t count, uint64_t offset) {
  ssize_t n = FAULT("file.write", ENOSPC) ? -1 : pwrite(sink->fd, bytes, count, (off_t)offset);
  if (n >= 0 && (uint64_t)n < count) errno = EIO;
  return n == (ssize_t)count ? CAB_OK : cab_fail_errno(sink->path, "write");
}

CabStatus cab_sink_commit(CabSink *sink) { return end_sink(sink, CAB_OK); }

void cab_sink_abort(CabSink *sink) {
  if (sink) end_sink(sink, CAB_E_IO);
}

static CabStatus write_block(void *ctx, CabSink *sink) {
  const CabBytes *bytes = ctx;
  return cab_sink_write(sink, bytes->data, bytes->length);
}

CabStatus cab_write_file(const char *path, const void *bytes, size_t count) {
  CabBytes block = {(uint8_t *)(uintptr_t)bytes, count};
  return cab_write_atomic(path, write_block, &block);
}

CabStatus cab_append_file(const char *path, const void *bytes, size_t count, bool sync) {
  int fd = FAULT("file.open", EMFILE) ? -1 : open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0666);
  if (fd < 0) return cab_fail_errno(path, "open");
  struct stat s;
  CabStatus status = CAB_OK;
  if (fstat(fd, &s)) status = cab_fail_errno(path, "stat");
  else if (!S_ISREG(s.st_mode)) status = cab_fail_file(CAB_E_IO, "file-kind", path, -1, "is no regular file");
  else {
    status = write_all(fd, path, bytes, count);
    if (status == CAB_OK && sync && (FAULT("file.fsync", EIO) || fdatasync(fd))) status = cab_fail_errno(path, "fsync");
    else if (status != CAB_OK && ftruncate(fd, s.st_size)) { /* the torn line is cut by the reader */ }
  }
  if (close(fd) && errno != EINTR && status == CAB_OK) status = cab_fail_errno(path, "close");
  return status;
}

static CabStatus lock_path(const char *dir, char out[PATH_MAX]) {
  size_t n = strlen(dir);
  if (n + 6 > PATH_MAX) return cab_fail_file(CAB_E_IO, "", dir, -1, "name too long");
  memcpy(out, dir, n);
  memcpy(out + n, "/lock", 6);
  return CAB_OK;
}

CabStatus cab_lock_dir(const char *dir, int *out) {
  char path[PATH_MAX], text[320] = "", host[256] = "?";
  CAB_TRY(lock_path(dir, path));
  int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW, 0666);
  if (fd < 0) return cab_fail_errno(path, "open");
  if (FAULT("file.lock", EWOULDBLOCK) || flock(fd, LOCK_EX | LOCK_NB)) {
    CabStatus status;
    if (errno == EWOULDBLOCK) {
      char shown[340];
      ssize_t n = pread(fd, text, sizeof text - 1, 0);
      status = cab_fail_file(CAB_E_IO, "locked", dir, -1, "locked by %s", n > 0 ? cab_escape(text, (size_t)n, shown) : "another process");
    } else status = cab_fail_errno(path, "lock");
    close(fd);
    return status;
  }
  gethostname(host, sizeof host - 1);
  int n = snprintf(text, sizeof text, "pid %ld on host %s", (long)getpid(), host);
  if (ftruncate(fd, 0) || pwrite(fd, text, (size_t)n, 0) != n) {
    CabStatus status = cab_fail_errno(path, "write");
    close(fd);
    return status;
  }
  *out = fd;
  return CAB_OK;
}

/* The file stays: removing it would let two processes hold locks on two files of one name. */
void cab_unlock_dir(const char *dir, int fd) {
  (void)dir;
  if (fd >= 0) close(fd);
}
