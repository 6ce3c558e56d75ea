/* op.h - an op is one row: its signature is shape rule, allocator, error text, documentation, binding and test seed.
 *
 * signature := args [| options] -> outputs        e.g. "x[*,I] w[O,I] b[O]? -> y[*,O]"
 *   arg    := name[:dtype] [dims] [?]             dtype: i32, u8; default: the call's real dtype (all alike)
 *   name ending in '~' before '[' (as "B~[B,L,N]"): may be row-strided (cab_tensor_rows); others are made contiguous
 *   name ending in '^' (as "w^[O,I]"): a parameter, statistic, state or loss: f32 in a bf16 call, else like the others
 *   dims   := LETTERS | numbers | '*' (leading dims, bound once) | '*?' (those or none) | '&' (broadcast together; strides
 *             are left as they are) | nothing: scalar "[]"
 *   '?'    optional argument
 *   option := name=default                        number, true/false, or word (a|b|c lists the choices, first is default)
 *   outputs like args; a '~' in front ("~h[B,K,N,E]") is kept for backward and hidden from Lua
 *             without brackets: the row's `shape` decides rank and sizes
 * Dims that only outputs use are set by `check` (cab_call_set_dim). */
#ifndef CAB_OP_H
#define CAB_OP_H
#include "tensor.h"

typedef struct CabCall {
  const struct CabOp *op;
  CabDevice *device;
  CabDtype dtype;                       /* real dtype of the call: f32, f64, bf16 */
  CabTensor *in[CAB_MAX_ARGS];          /* NULL where optional and absent, or (backward) not saved */
  CabTensor *out[CAB_MAX_ARGS];         /* visible then kept outputs; in backward the saved ones */
  CabTensor *gout[CAB_MAX_ARGS];        /* backward: contiguous, NULL if none arrived */
  CabTensor *gin[CAB_MAX_ARGS];         /* backward: contiguous (but see the row's `strided`), uninitialised, NULL if not wanted: overwrite */
  bool add[CAB_MAX_ARGS];               /* backward: gin[i] holds a sum already, add to it (see the row's `adds`) */
  double option[CAB_MAX_ARGS];          /* numbers, booleans as 0/1, words as their index */
  int64_t dim[26];                      /* by letter: cab_dim */
  int lead_rank; int64_t lead[CAB_MAX_RANK], rows; /* '*' or '&' dims and their product */
  bool wants_grad;                      /* forward: a gradient will be asked for */
  CabTensor *scratch[8]; int scratches; /* cab_scratch */
} CabCall;

typedef struct CabOp {
  const char *name, *signature;
  CabStatus (*forward)(CabCall *);
  CabStatus (*backward)(CabCall *);     /* NULL: not differentiable */
  const char *saves;                    /* names of inputs and outputs backward reads: "x w" */
  const char *source;                   /* one line: what it computes, and the paper or equation */
  CabStatus (*check)(CabCall *);        /* optional: extra conditions, output dims; may replace in[i] (the call owns one
                                           reference of each) and preset out[i] with an alias that needs no buffer */
  void (*shape)(const CabCall *, int output, int *rank, int64_t *shape); /* for outputs without brackets */
  const char *adds;                     /* names of inputs whose gradient backward can add to what there is; saves a pass */
  const char *strided;                  /* names of inputs whose gradient backward can write in rows of stride cab_ld(gin[i]) */
} CabOp;

/* Families: each core/ops/FILE.c exports one array ended by a row without a name. */
extern const CabOp cab_ops_math[], cab_ops_nn[], cab_ops_ssm[], cab_ops_bridge[], cab_ops_loss[], cab_ops_optim[];

typedef enum { CAB_OPTION_NUMBER, CAB_OPTION_BOOL, CAB_OPTION_WORD } CabOptionKind;
typedef struct { char name[24]; CabOptionKind kind; double initial; int words; char word[8][16]; } CabOptionSpec;
typedef struct { char name[24]; bool optional, rows, wide, kept, integer; CabDtype dtype; int rank; char dims[CAB_MAX_RANK][8];
  bool lead, lead_optional, broadcast, inferred; /* rank and dims are those after '*' */ } CabArgSpec;
typedef struct {
  const CabOp *op;
  int inputs, outputs, kept, options;   /* outputs counts the visible ones; kept ones follow */
  CabArgSpec in[CAB_MAX_ARGS], out[CAB_MAX_ARGS];
  CabOptionSpec option[CAB_MAX_ARGS];
  uint32_t saves_in, saves_out, adds_in, strided_in; /* bit masks */
} CabSignature;
/* Into *out (zeroed first); a malformed row fills the error slot. The table below aborts on one: it is a bug. */
CabStatus cab_signature_parse(const CabOp *op, CabSignature *out);
int cab_op_count(void);
const CabSignature *cab_op_at(int index);        /* parsed once, all families */
const CabSignature *cab_op_find(const char *name);
/* Checks, allocates, runs, records. in[] has sig->inputs entries (NULL: absent), option[] sig->options values. Fills out[]
 * (visible outputs, one reference each). Message: "selective_scan: 'C' is f32[4,3,5], expected [B=4,L=3,N=4]". */
CabStatus cab_apply(const CabSignature *sig, CabTensor **in, const double *option, CabTensor **out);

/* For rows. */
int64_t cab_dim(const CabCall *c, char letter);
void cab_call_set_dim(CabCall *c, char letter, int64_t size);
CabStatus cab_call_fail(const CabCall *c, const char *fmt, ...) __attribute__((format(printf, 2, 3))); /* "op: TEXT" */
CabStatus cab_call_constant(const CabCall *c, int input); /* refuses a gradient to in[input] */
CabStatus cab_call_copy_input(CabCall *c, int input);     /* in[input] becomes contiguous; for `check` */
CabStatus cab_call_check_ids(const CabCall *c, int input, int64_t least, int64_t end); /* i32 in [least, end) */
void cab_share_gin(CabCall *c, int input, CabTensor *gradient); /* gin[input] = gradient; the tape never writes to a shared one */
/* Row stride of an argument marked '~'; of one that is absent or was not saved: 0. At least the row length. */
int64_t cab_ld(const CabTensor *t);
CabDtype cab_wide(CabDtype real); /* f32 for bf16, else the same */
CabTensor *cab_scratch(CabCall *c, CabDtype dtype, int64_t count); /* freed when the call ends; NULL: error slot */
CabTensor *cab_gout(CabCall *c, int output, int64_t count); /* gout[output], zeros if none arrived; NULL: error slot */
#define CAB_DATA(t) ((t) ? cab_tensor_data(t) : NULL)
/* RUN(c, scan_forward, args...): the twin for this call's device and dtype, type-checked by its header. A missing twin
 * is an error naming it. CPU variants are found through a table that the build makes from the kernel headers. */
void *cab_twin(CabDevice *device, CabDtype dtype, const char *name); /* NULL + error slot */
CabStatus cab_launched(CabDevice *device, const char *name); /* after a twin ran: launch errors of asynchronous devices */
#define RUN(c, name, ...)                                                                   \
  do {                                                                                      \
    name##_fn *twin_ = (name##_fn *)cab_twin((c)->device, (c)->dtype, #name);               \
    if (!twin_) return cab_error()->code;                                                   \
    twin_((c)->device->stream, __VA_ARGS__);                                                \
    CAB_TRY(cab_launched((c)->device, #name));                                              \
  } while (0)
#endif
