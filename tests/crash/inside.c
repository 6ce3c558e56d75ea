/* inside.c - LD_PRELOAD: ends the process with SIGKILL inside its n-th call of write, fsync, rename or unlink on files; a write is cut in
 * half first. CAB_KILL_AT=n; CAB_KILL_COUNT=FILE: how many calls there were, written at the end.
 * CAB_FAIL=CALL:ERRNO:FROM:COUNT lets COUNT calls (0: all) of write, fsync or rename fail from the FROM-th on. CAB_JUMP=1: each look at
 * the calendar finds it days ahead or behind. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static long at = -1, calls;

static int due(void) {
  if (at < 0) at = getenv("CAB_KILL_AT") ? atol(getenv("CAB_KILL_AT")) : 0;
  return __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST) == at;
}
static void end(void) { kill(getpid(), SIGKILL); }
/* True with errno set if this call is to fail. */
static int fails(const char *call) {
  static char name[16];
  static int number, from, count, seen, read;
  if (!read) read = getenv("CAB_FAIL") && sscanf(getenv("CAB_FAIL"), "%15[^:]:%d:%d:%d", name, &number, &from, &count) == 4 ? 1 : -1;
  if (read < 0 || strcmp(call, name)) return 0;
  seen++;
  if (seen < from || (count && seen >= from + count)) return 0;
  return errno = number, 1;
}
static int regular(int fd) {
  struct stat info;
  return fd > 2 && fstat(fd, &info) == 0 && (S_ISREG(info.st_mode) || S_ISDIR(info.st_mode));
}

ssize_t write(int fd, const void *bytes, size_t count) {
  ssize_t (*next)(int, const void *, size_t) = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
  if (regular(fd) && fails("write")) return -1;
  if (regular(fd) && due()) {
    if (count > 1) next(fd, bytes, count / 2);
    end();
  }
  return next(fd, bytes, count);
}
int fsync(int fd) {
  int (*next)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
  if (regular(fd) && fails("fsync")) return -1;
  if (regular(fd) && due()) end();
  return next(fd);
}
int rename(const char *from, const char *to) {
  int (*next)(const char *, const char *) = (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename");
  if (fails("rename")) return -1;
  if (due()) end();
  return next(from, to);
}
int unlink(const char *path) {
  int (*next)(const char *) = (int (*)(const char *))dlsym(RTLD_NEXT, "unlink");
  if (due()) end();
  return next(path);
}

int clock_gettime(clockid_t clock, struct timespec *t) {
  static int jump = -1, sign;
  int (*next)(clockid_t, struct timespec *) = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  if (jump < 0) jump = getenv("CAB_JUMP") != NULL;
  int failed = next(clock, t);
  if (jump && clock == CLOCK_REALTIME) t->tv_sec += (++sign & 1 ? 3 : -5) * 86400;
  return failed;
}
time_t time(time_t *out) {
  struct timespec t = {0};
  clock_gettime(CLOCK_REALTIME, &t);
  return out ? *out = t.tv_sec : t.tv_sec;
}

__attribute__((destructor)) static void count(void) {
  const char *path = getenv("CAB_KILL_COUNT");
  FILE *f = path ? fopen(path, "w") : NULL;
  if (f) fprintf(f, "%ld\n", calls), fclose(f);
}
