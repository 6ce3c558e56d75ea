/* The first byte chooses text or JSONL; the rest is the file, through a memory file, as files are read by position. Parts of a text
 * must make up the text again. */
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define BLOCK 23 /* parts, lines and gzip data are cut everywhere */
#include "../../core/data/docs.c"
#include "../../core/data/unicode.c"

static bool failed(void) {
  const CabError *e = cab_error();
  return e->code == CAB_E_INPUT && e->id[0] && e->message[0];
}

static void read_all(const char *path, bool lines, const uint8_t *data, size_t size) {
  CabDocs *d = cab_docs_open(path, lines ? "text" : NULL);
  const char *text;
  size_t n, at = 0;
  bool last, plain = size < 2 || data[0] != 0x1f || data[1] != 0x8b;
  if (!d) abort();
  for (;;) {
    if (cab_docs_next(d, &text, &n, &last) != CAB_OK) {
      if (!failed()) abort();
      break;
    }
    if (!text) {
      if (!lines && plain && at != size) abort();
      break;
    }
    if (memchr(text, 0, n) || cab_utf8_bad((const uint8_t *)text, n) != n) abort();
    if (!lines && plain && (at + n > size || memcmp(data + at, text, n))) abort();
    at += n;
  }
  cab_docs_close(d);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static int fd = -1;
  static char path[40];
  if (!size) return 0;
  if (fd < 0) {
    fd = memfd_create("fuzz", 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  }
  if (ftruncate(fd, 0) || pwrite(fd, data + 1, size - 1, 0) != (ssize_t)(size - 1)) abort();
  read_all(path, data[0] & 1, data + 1, size - 1);
  return 0;
}
