/* stored.h - number formats of weight files, and the dtype each becomes here. Half and quarter floats become f32; integers
 * become i32 where every value fits and are refused otherwise; BOOL becomes u8. */
#ifndef CAB_STORED_H
#define CAB_STORED_H
#include "tensor.h"

typedef enum {
  CAB_S_F32, CAB_S_F64, CAB_S_I32, CAB_S_U8, CAB_S_BF16, /* in the order of CabDtype */
  CAB_S_F16, CAB_S_F8_E4M3, CAB_S_F8_E5M2, CAB_S_BOOL, CAB_S_I8, CAB_S_I16, CAB_S_I64, CAB_S_U16, CAB_S_U32, CAB_S_U64,
  CAB_STORED,
  CAB_S_NONE = CAB_STORED /* a format that is known and not read: complex numbers, packed bits */
} CabStored;

typedef struct {
  const char *safetensors, *torch, *numpy; /* "F32", the torch dtype "float32", "f4" */
  uint8_t size;
  CabDtype dtype;
} CabStoredRow;
extern const CabStoredRow cab_stored[CAB_STORED];

double cab_stored_value(CabStored stored, const uint8_t *p);
/* count values to cab_stored[stored].dtype; the index of the first that does not fit, or `count`. */
uint64_t cab_stored_convert(CabStored stored, const uint8_t *from, void *to, uint64_t count);

#endif
