/* pickle_globals.h - the globals that a pickle may name, and what each stands for. Private to the pickle machine. */
#ifndef CAB_PICKLE_GLOBALS_H
#define CAB_PICKLE_GLOBALS_H
#include "pickle.h"

typedef enum {
  ROLE_STORAGE,      /* a storage type: first part of a persistent id */
  ROLE_DTYPE,        /* torch.float32 */
  ROLE_TENSOR,       /* rebuilds a tensor in the storage's dtype */
  ROLE_TENSOR_DTYPE, /* the same, with a dtype among its arguments */
  ROLE_FIRST_TENSOR, /* a parameter: its first argument */
  ROLE_TYPED,        /* calls its first argument */
  ROLE_SIZE, ROLE_DICT,
  ROLE_OPAQUE,       /* harmless, of no use here: options, numbers, dates, paths */
} Role;

typedef struct {
  const char *module, *name;
  Role role;
  int stored;
} PickleGlobal;
extern const PickleGlobal cab_pickle_globals[];

/* Row of MODULE.NAME, -1 if it is not on the list. */
int cab_pickle_global(const uint8_t *module, uint64_t module_length, const uint8_t *name, uint64_t name_length);

#endif
