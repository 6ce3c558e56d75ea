/* json.h - a strict pull lexer for JSON headers from outside: exact byte positions, no recursion, no tree. */
#ifndef CAB_JSON_H
#define CAB_JSON_H
#include "rd.h"

typedef struct {
  CabRd rd;
  uint64_t shift; /* file offset of rd.base, for messages */
  const char *file, *id;
  char *arena; /* decoded strings, each ended by a NUL; as large as the text is enough */
  uint64_t used;
} CabJson;

typedef struct {
  const char *text;
  uint64_t length, at; /* `at`: file offset of its opening quote */
} CabJsonString;

uint64_t cab_json_at(const CabJson *j);  /* file offset of the next byte */
int cab_json_peek(CabJson *j);           /* next byte after white space, -1 at the end */
CabStatus cab_json_fail(CabJson *j, const char *expected); /* "expected X, got 'c'" at the next byte */
CabStatus cab_json_expect(CabJson *j, char wanted);
CabStatus cab_json_string(CabJson *j, CabJsonString *out); /* escapes decoded, UTF-8 checked, no NUL */
/* After '{' or '[' and after each element: *more is false once the closing byte was taken. first: no comma yet. */
CabStatus cab_json_next(CabJson *j, char close, bool first, bool *more);
/* A non-negative integer without sign, fraction or exponent. *whole: it is one; *fits: below 2^64. */
CabStatus cab_json_integer(CabJson *j, bool *whole, bool *fits, uint64_t *out);

#endif
