/* inside.c - LD_PRELOAD: ends the process with SIGKILL inside its n-th call of write, fsync, rename or unlink on files; a write is cut in
 * half first. CAB_KILL_AT=n; CAB_KILL_COUNT=FILE: how many calls there were, written at the end. */
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static long at = -1, calls;

static int due(void) {
  if (at < 0) at = getenv("CAB_KILL_AT") ? atol(getenv("CAB_KILL_AT")) : 0;
  return __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST) == at;
}
static void end(void) { kill(getpid(), SIGKILL); }
static int regular(int fd) {
  struct stat info;
  return fd > 2 && fstat(fd, &info) == 0 && (S_ISREG(info.st_mode) || S_ISDIR(info.st_mode));
}

ssize_t write(int fd, const void *bytes, size_t count) {
  ssize_t (*next)(int, const void *, size_t) = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
  if (regular(fd) && due()) {
    if (count > 1) next(fd, bytes, count / 2);
    end();
  }
  return next(fd, bytes, count);
}
int fsync(int fd) {
  int (*next)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
  if (regular(fd) && due()) end();
  return next(fd);
}
int rename(const char *from, const char *to) {
  int (*next)(const char *, const char *) = (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename");
  if (due()) end();
  return next(from, to);
}
int unlink(const char *path) {
  int (*next)(const char *) = (int (*)(const char *))dlsym(RTLD_NEXT, "unlink");
  if (due()) end();
  return next(path);
}

__attribute__((destructor)) static void count(void) {
  const char *path = getenv("CAB_KILL_COUNT");
  FILE *f = path ? fopen(path, "w") : NULL;
  if (f) fprintf(f, "%ld\n", calls), fclose(f);
}
