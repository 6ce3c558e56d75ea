/* file.h - whole files: reading with limits, writing so that a crash leaves the old or the new one. */
#ifndef CAB_FILE_H
#define CAB_FILE_H
#include "base.h"

typedef struct {
  uint8_t *data; /* cab_free */
  size_t length;
} CabBytes;
void cab_bytes_free(CabBytes *bytes);

/* An open regular file and what it was when opened. */
typedef struct {
  int fd; /* -1: not open */
  uint64_t size;
  const char *path; /* the caller's */
  uint64_t device, inode;
  int64_t changed_sec, changed_nsec;
} CabFile;
/* 74 where it cannot be opened, 65 (file-kind) where it is no regular file; never blocks on a FIFO. */
CabStatus cab_file_open(const char *path, CabFile *out);
/* Exactly `count` bytes at `offset`; 65 (file-changed) if the file ends early. */
CabStatus cab_file_read(const CabFile *file, void *to, uint64_t count, uint64_t offset);
CabStatus cab_file_unchanged(const CabFile *file); /* 65 (file-changed) if size or times moved since open */
void cab_file_close(CabFile *file);

CabStatus cab_read_file(const char *path, uint64_t limit, CabBytes *out);
/* Plain or gzip, told apart by the first two bytes; `limit` bounds the bytes that come out. */
CabStatus cab_read_maybe_gz(const char *path, uint64_t limit, CabBytes *out);
/* One or more gzip members and nothing else. Errors 65: gz-data, gz-truncated, gz-trailing, gz-limit. */
CabStatus cab_gunzip(const uint8_t *bytes, size_t length, const char *file, uint64_t limit, CabBytes *out);

/* PATH.tmp (exclusive, locked) -> writer -> fsync -> close -> rename -> fsync of the directory. On failure the temp is
 * removed and the old file is as before; a temp left by a killed process is replaced. After a failed fsync the file is
 * abandoned and written once more from the start, so `write` may be called twice. */
typedef struct CabSink CabSink;
CabStatus cab_sink_write(CabSink *sink, const void *bytes, uint64_t count);
typedef CabStatus (*CabFileWriter)(void *ctx, CabSink *sink);
CabStatus cab_write_atomic(const char *path, CabFileWriter write, void *ctx);
/* The same for a file that comes bit by bit: appears with commit. Both ends free the sink; a failed fsync is not retried. */
CabSink *cab_sink_open(const char *path); /* NULL + error slot */
CabStatus cab_sink_patch(CabSink *sink, const void *bytes, uint64_t count, uint64_t offset); /* over what was written */
CabStatus cab_sink_commit(CabSink *sink);
void cab_sink_abort(CabSink *sink); /* NULL allowed */
CabStatus cab_write_file(const char *path, const void *bytes, size_t count); /* cab_write_atomic of one block */

/* Append in one go; on failure the file is cut back to its old length. `sync`: fsync before returning. */
CabStatus cab_append_file(const char *path, const void *bytes, size_t count, bool sync);

/* Exclusive lock DIR/lock for the life of *fd; 74 "locked by pid N on host H". */
CabStatus cab_lock_dir(const char *dir, int *fd);
void cab_unlock_dir(const char *dir, int fd);

#endif
