/* bind_text.h - what bind_text.c and bind_tokens.c share. */
#ifndef CAB_BIND_TEXT_H
#define CAB_BIND_TEXT_H
#include "bind_data.h"
#include "text.h"

#define BIND_TOKENIZER "cab.tokenizer"

/* Results lie here while Lua may raise; ids are reused from call to call. */
typedef struct {
  CabTokenizer *t; /* NULL: closed */
  CabEncoder *e;
  CabIds ids;
  CabBytes bytes;
} BindTokenizer;
BindTokenizer *bind_check_tokenizer(lua_State *L, int idx); /* open */
void bind_tokens(lua_State *L);                             /* bind_tokens.c: adds to the core table on top */

#endif
