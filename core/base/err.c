/* err.c - one error slot for each thread. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include "base.h"

static _Thread_local CabError slot = {.offset = -1};

CabError *cab_error(void) { return &slot; }

/* Length of the well-formed UTF-8 sequence at p (1..4), 0 if it is a control character or not UTF-8. */
static size_t printable(const unsigned char *p, size_t left) {
  if (p[0] < 0x80) return p[0] >= 0x20 && p[0] != 0x7f;
  size_t n = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
  if (p[0] < 0xc2 || p[0] > 0xf4 || left < n) return 0;
  for (size_t i = 1; i < n; i++)
    if ((p[i] & 0xc0) != 0x80) return 0;
  if (p[0] == 0xc2 && p[1] < 0xa0) return 0;                                      /* C1 controls */
  if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xf0 && p[1] < 0x90)) return 0;   /* overlong */
  if ((p[0] == 0xed && p[1] > 0x9f) || (p[0] == 0xf4 && p[1] > 0x8f)) return 0;   /* surrogates, > U+10FFFF */
  return n;
}

/* Bad bytes become \xHH. Cut with "..." after `characters` or where `capacity` ends. */
static void escape(const char *name, size_t length, size_t characters, char *out, size_t capacity) {
  static const char hex[] = "0123456789abcdef";
  const unsigned char *p = (const unsigned char *)name;
  size_t used = 0, written = 0;
  while (used < length) {
    size_t n = printable(p + used, length - used), need = n ? n : 4;
    if (characters-- == 0 || written + need + 4 > capacity) {
      memcpy(out + written, "...", 3), written += 3;
      break;
    }
    if (n) memcpy(out + written, p + used, n);
    else {
      char code[4] = {'\\', 'x', hex[p[used] >> 4], hex[p[used] & 15]};
      memcpy(out + written, code, 4);
    }
    written += need;
    used += n ? n : 1;
  }
  out[written] = 0;
}

const char *cab_escape(const char *name, size_t length, char out[340]) {
  escape(name, length, 80, out, 340);
  return out;
}

/* Arguments may point into the slot (a message that wraps the last one), so all text is made before it is changed. */
static CabStatus fill(CabStatus code, const char *id, const char *file, int64_t offset, const char *fmt, va_list args) {
  char name[sizeof slot.file] = "", text[sizeof slot.message], head[sizeof slot.file + 40] = "", kept[sizeof slot.id];
  snprintf(kept, sizeof kept, "%s", id ? id : "");
  vsnprintf(text, sizeof text, fmt, args);
  if (file) {
    escape(file, strlen(file), SIZE_MAX, name, sizeof name);
    if (offset >= 0) snprintf(head, sizeof head, "%s: byte %lld: ", name, (long long)offset);
    else snprintf(head, sizeof head, "%s: ", name);
  }
  size_t start = strlen(head);
  memcpy(slot.message, head, start);
  snprintf(slot.message + start, sizeof slot.message - start, "%s", text);
  for (char *p = slot.message; *p; p++)
    if (*p == '\n' || *p == '\r') *p = ' ';
  memcpy(slot.id, kept, sizeof kept);
  memcpy(slot.file, name, sizeof name);
  slot.offset = file ? offset : -1;
  return slot.code = code;
}

CabStatus cab_fail(CabStatus code, const char *fmt, ...) {
  va_list args;
  va_start(args, fmt);
  fill(code, NULL, NULL, -1, fmt, args);
  va_end(args);
  return code;
}

CabStatus cab_fail_file(CabStatus code, const char *id, const char *file, int64_t offset, const char *fmt, ...) {
  va_list args;
  va_start(args, fmt);
  fill(code, id, file, offset, fmt, args);
  va_end(args);
  return code;
}

CabStatus cab_fail_errno(const char *file, const char *verb) {
  char reason[128];
  int number = errno;
  return cab_fail_file(CAB_E_IO, "", file, -1, "%s: %s", verb, strerror_r(number, reason, sizeof reason)); /* GNU form */
}
