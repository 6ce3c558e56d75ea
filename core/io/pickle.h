/* pickle.h - pickle bytes (protocols 2 to 5) to plain values. Nothing is ever executed: a closed list of globals is known, each
 * with a role, and calling one makes a value that describes the call. Values lie in one array and refer to each other by index,
 * so shared values cost nothing, cycles are harmless and freeing is one call.
 * Errors 65: pickle-end, pickle-proto, pickle-opcode, pickle-operand, pickle-stack, pickle-memo, pickle-global, pickle-limit. */
#ifndef CAB_PICKLE_H
#define CAB_PICKLE_H
#include "stored.h"

#define CAB_PICKLE_MAX (64u << 20)      /* bytes */
#define CAB_PICKLE_MAX_VALUES (1u << 20)
#define CAB_PICKLE_MAX_OPCODES (1u << 22)

typedef enum {
  CAB_P_NONE, CAB_P_BOOL, CAB_P_INT, CAB_P_FLOAT, CAB_P_TEXT, CAB_P_BYTES, CAB_P_TUPLE, CAB_P_LIST, CAB_P_DICT, CAB_P_GLOBAL,
  CAB_P_STORAGE, /* a persistent id: items is the tuple ("storage", type, key, place, count) */
  CAB_P_TENSOR,  /* a call that rebuilds a tensor: items is its arguments, stored tells the dtype for version 3 */
  CAB_P_OPAQUE,  /* an object of the list that is of no use here */
} CabPickleKind;

typedef struct {
  uint8_t kind, stored; /* GLOBAL of a storage type or dtype: its CabStored */
  uint16_t global;      /* GLOBAL: its row */
  uint32_t at;          /* of its opcode */
  uint32_t count;       /* items; bytes of text */
  union {
    int64_t whole;      /* BOOL, INT */
    double real;
    uint32_t text;      /* position of the bytes in the pickle */
    struct { uint32_t first, last; } items; /* cells; in a DICT keys and values in turn */
    uint32_t call;      /* STORAGE, TENSOR: the tuple */
  };
} CabPickleValue;

typedef struct { uint32_t value, next; } CabPickleCell;

typedef struct {
  const uint8_t *bytes; /* the caller's */
  uint64_t shift;       /* file offset of bytes, for messages */
  const char *file;
  CabPickleValue *value;
  CabPickleCell *cell;  /* cell 0 ends every list */
  uint32_t values, cells, root;
} CabPickle;

/* Pure. `out` keeps `bytes` and `file`. */
CabStatus cab_pickle_parse(const uint8_t *bytes, uint64_t length, const char *file, uint64_t shift, CabPickle *out);
void cab_pickle_free(CabPickle *p);
/* Value of the item at `index` of a list or tuple, NULL past the end. */
const CabPickleValue *cab_pickle_item(const CabPickle *p, const CabPickleValue *list, uint32_t index);
/* A TEXT as an escaped string for messages. */
const char *cab_pickle_text(const CabPickle *p, const CabPickleValue *text, char out[340]);

#endif
