/* base.h - what every C file may use: the error slot, checked sizes, fault points, threads, Philox.
 * Nothing here knows tensors or Lua. Fallible functions fill the error slot and return its code. */
#ifndef CAB_BASE_H
#define CAB_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* ---- errors ------------------------------------------------------------------------------- */

/* A status is also the exit code of the program (README, "Exit codes"). */
typedef enum {
  CAB_OK = 0,
  CAB_E_LUA = 1,      /* misuse from Lua: shapes, dtypes, closed tensors */
  CAB_E_USAGE = 2,    /* command line or recipe */
  CAB_E_INPUT = 65,   /* input file refused */
  CAB_E_DEVICE = 69,
  CAB_E_BUG = 70,
  CAB_E_MEMORY = 71,
  CAB_E_IO = 74,
  CAB_E_STOPPED = 75, /* stopped on purpose, resumable */
  CAB_E_NUMERIC = 76,
} CabStatus;

typedef struct {
  CabStatus code;
  char id[32];        /* "st-overlap", empty where only the text matters */
  char message[1024];
  char file[256];     /* escaped; empty where no file is concerned */
  int64_t offset;     /* byte position in file, -1 if none */
} CabError;

CabError *cab_error(void); /* this thread's slot */

/* Fill the slot and return `code`. The text is one line without a trailing dot. */
CabStatus cab_fail(CabStatus code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The same for a file: message becomes "FILE: byte N: TEXT" (offset < 0: no byte part). */
CabStatus cab_fail_file(CabStatus code, const char *id, const char *file, int64_t offset,
                        const char *fmt, ...) __attribute__((format(printf, 5, 6)));
/* CAB_E_IO for errno: "FILE: VERB: No space left on device". */
CabStatus cab_fail_errno(const char *file, const char *verb);

/* Escape control bytes and bad UTF-8 of a name that came from outside; cut at 80 characters. */
const char *cab_escape(const char *name, size_t length, char out[340]);

#define CAB_TRY(call)                      \
  do {                                     \
    CabStatus status_ = (call);            \
    if (status_ != CAB_OK) return status_; \
  } while (0)

/* ---- checked sizes: SZ_BAD is sticky, like NaN -------------------------------------------- */

#define SZ_BAD UINT64_MAX
static inline uint64_t sz_add(uint64_t a, uint64_t b) {
  uint64_t r;
  return a == SZ_BAD || b == SZ_BAD || __builtin_add_overflow(a, b, &r) ? SZ_BAD : r;
}
static inline uint64_t sz_mul(uint64_t a, uint64_t b) {
  uint64_t r;
  return a == SZ_BAD || b == SZ_BAD || __builtin_mul_overflow(a, b, &r) ? SZ_BAD : r;
}

/* ---- host memory: counted, and failing on demand (tests) ----------------------------------- */

void *cab_malloc(size_t count, size_t size); /* NULL and error slot on overflow or no memory */
void *cab_calloc(size_t count, size_t size);
void *cab_realloc(void *old, size_t count, size_t size);
void cab_free(void *p);

/* ---- fault points: compiled in with -DCAB_FAULTS, nothing otherwise ------------------------ */
#ifdef CAB_FAULTS
/* True if the test asked this point to fail now: CAB_FAULT="name:nth[:sticky|abort|exit]". */
bool cab_fault(const char *name);
/* From here on as CAB_FAULT says, calls counted from 0; nth 0: none fails. -> calls of the point since it was last set. */
uint64_t cab_fault_set(const char *name, uint64_t nth, bool sticky);
#else
#define cab_fault(name) (false)
#endif

/* ---- threads ------------------------------------------------------------------------------ */
int cab_threads(void);           /* compute threads in use (OpenMP and OpenBLAS share them) */
void cab_set_threads(int count); /* clamped to [1, 256] */
double cab_now(void);            /* monotonic seconds */
/* The best kernel variant this processor can run: 4 AVX-512 (f, dq, bw, vl), 3 AVX2 and FMA, 2 neither. */
int cab_cpu_level(void);
bool cab_self(char out[4096]); /* path of the program, or of libcab.so in another one (self.c) */
void cab_tune_runtime(char **argv); /* first thing in main: may start the program anew (runtime.c) */

/* ---- Philox 4x32-10 (Salmon et al. 2011): counter-based, so state is a few integers -------- */
typedef struct {
  uint64_t seed, stream;
} CabRng;
void cab_philox(CabRng key, uint64_t counter, uint32_t out[4]);
double cab_uniform(CabRng key, uint64_t index);                   /* [0,1), 32 bits */
double cab_normal(CabRng key, uint64_t index);                    /* Box-Muller on one Philox block */
void cab_normals(CabRng key, uint64_t first, double *out, size_t count); /* cab_normal of first, first + 1, .. */
uint64_t cab_below(CabRng key, uint64_t index, uint64_t n);       /* unbiased enough: 64-bit multiply-shift */
void cab_permutation(CabRng key, uint32_t *order, uint32_t count);/* Fisher-Yates, the same everywhere */
uint64_t cab_hash_name(const char *name);                         /* FNV-1a: a stream for each name */

#endif
