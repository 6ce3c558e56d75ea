/* rows.h - files of rows of one size: f32[tokens, width] each, stored as f32, f16, bf16, or int8 with a scale a token, and a checksum. */
#ifndef CAB_ROWS_H
#define CAB_ROWS_H
#include "base.h"

typedef enum { CAB_ROWS_F32, CAB_ROWS_F16, CAB_ROWS_BF16, CAB_ROWS_INT8, CAB_ROWS_CODINGS } CabRowCoding;
extern const char *const cab_row_codings[]; /* "f32", "f16", "bf16", "int8", NULL */

typedef struct {
  int64_t tokens, width;
  CabRowCoding coding;
} CabRowForm;

uint64_t cab_row_bytes(const CabRowForm *form); /* of a row with its checksum; SZ_BAD where that overflows */
/* Row `number` (its place in the file, part of the checksum) of x[tokens, width] to out[cab_row_bytes]. To nearest, ties to even; int8:
 * x / s, s = the token's largest magnitude / 127. 76 where x is not finite, or not in f16. */
CabStatus cab_row_encode(const CabRowForm *form, uint64_t number, const float *x, uint8_t *out);
/* Back; false where the checksum says that this is not what was written there. */
bool cab_row_decode(const CabRowForm *form, uint64_t number, const uint8_t *row, float *x);

#endif
