/* unicode.h - what a pretokenizer asks of text: UTF-8, classes of code points, NFC. */
#ifndef CAB_UNICODE_H
#define CAB_UNICODE_H
#include "file.h"
#include "rd.h"

/* \p{L}, \p{N}, \s (White_Space) of Unicode 16.0. */
enum { CAB_CHAR_OTHER, CAB_CHAR_LETTER, CAB_CHAR_NUMBER, CAB_CHAR_SPACE };
enum { CAB_CHAR_TABLE = 0x40000 }; /* code points from here on are CAB_CHAR_OTHER */

/* Position of the first byte that is not well-formed UTF-8; n if there is none. */
size_t cab_utf8_bad(const uint8_t *text, size_t n);
/* Class of the character at p and its length; p is well-formed UTF-8. cab_unicode_init was called. */
int cab_char_class(const uint8_t *p, int *length);
void cab_unicode_init(void); /* idempotent, thread-safe; 3 ms the first time */

/* Length of the first word of well-formed text, n > 0. The words are what GPT-2's pattern finds one after another:
 * 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
size_t cab_gpt2_word(const uint8_t *p, size_t n);

/* NFC (Unicode 15.0, utf8proc's) of well-formed text; n log n in the worst case. out->data NULL: the text is its own NFC. */
CabStatus cab_nfc(const uint8_t *text, size_t n, CabBytes *out);

#endif
