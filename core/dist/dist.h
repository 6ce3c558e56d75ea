/* dist.h - data parallelism over the ranks of an MPI job. MPI launches, meets and moves CPU tensors; NCCL moves GPU tensors. Both
 * are opened when a job asks for them: nothing is linked. Knows tensors, no op and no Lua. Single-threaded like they are.
 *
 * Every collective has a name and a number. Before it ranks exchange what they are about to do (`meet`), so a rank that does
 * another thing is named, and so is one that does not come within the timeout; a rank of this host that died is seen at once. After
 * a failure the process must end: a thread sees to it that it does, within 3 s. */
#ifndef CAB_DIST_H
#define CAB_DIST_H
#include "tensor.h"

/* Joins the job that the environment tells of; without one this is rank 0 of 1 and MPI is not opened. */
CabStatus cab_dist_open(double timeout);
int cab_dist_rank(void);
int cab_dist_size(void);
int cab_dist_local(void);             /* number among the ranks of this host */
const char *cab_dist_about(void);     /* "Open MPI v4.1.4", "" of one rank */
CabStatus cab_dist_close(void);       /* all ranks, at the end; waits for the others */
void cab_dist_on_stop(int (*stops)(void)); /* signals caught so far: the launcher may have ended the job */

/* All ranks must give the same name and bytes; *sum of their values, in rank order; *flags of all together. */
CabStatus cab_dist_meet(const char *name, int64_t bytes, double value, int flags, double *sum, int *all);
CabStatus cab_dist_sum(const char *name, int count, double *values);              /* in place, f64 */
CabStatus cab_dist_bytes(const char *name, void *data, size_t bytes, int root);   /* from root to all, host memory */
CabStatus cab_dist_send_tensor(const char *name, CabTensor *t, int root);         /* in place, contiguous, from root to all */
/* The same value of all ranks, or 69 naming those whose value is not rank 0's (or not that of most). */
CabStatus cab_dist_same(const char *name, const char *what, double value);
/* What the main thread waits for on a GPU from now on; NULL: for nothing. */
void cab_dist_watch(const char *name, int64_t bytes);

/* ---- gradients: summed over all ranks in buckets, in the order in which backward finishes them --------------- */
typedef struct CabReducer CabReducer;
CabReducer *cab_reducer_new(int count, CabTensor **params, size_t bucket_bytes);
void cab_reducer_free(CabReducer *r);
CabStatus cab_reducer_begin(CabReducer *r);   /* before backward: buckets leave as they fill, once one backward has shown their order */
CabStatus cab_reducer_finish(CabReducer *r);  /* after it: each param->grad is the sum, a part of one buffer */
void cab_reducer_forget(CabReducer *r);       /* the next backward is another one */
int cab_reducer_buckets(const CabReducer *r);

/* ---- parameters of which each rank updates a part ------------------------------------------------------------------ */
typedef struct CabShard CabShard;
/* Moves the parameters, alike on all ranks, into one buffer and cuts it for so many ranks. */
CabShard *cab_shard_new(int count, CabTensor **params, int ranks);
void cab_shard_free(CabShard *s);
int64_t cab_shard_border(const CabShard *s, int rank); /* rank r owns elements border(r) .. border(r + 1) of the buffer */
int64_t cab_shard_place(const CabShard *s, int param); /* where a parameter begins in it */
int cab_shard_ranks(const CabShard *s);
int cab_shard_count(const CabShard *s);
CabStatus cab_shard_gather(CabShard *s);               /* each rank's part, on all; launches only on a GPU */

/* ---- what moves GPU tensors: filled by libcab_cuda.so from NCCL ------------------------------------------------ */
typedef struct { const void *from; int64_t at, n; } CabPiece; /* n elements to place `at`; from NULL: zeros */
typedef struct CabWire {
  void *self;
  CabStatus (*unique)(char id[128]);
  CabStatus (*open)(struct CabWire *, CabDevice *, const char id[128], int rank, int size);
  /* Gathers the pieces into flat[0..n) and sums it over all ranks, behind what the device was told so far and beside what comes. */
  CabStatus (*reduce)(struct CabWire *, int count, const CabPiece *pieces, void *flat, int64_t n, CabDtype dtype);
  /* Elements border[r] .. border[r+1] of rank r, on all ranks, in place; behind the device likewise. */
  CabStatus (*share)(struct CabWire *, void *flat, int ranks, const int64_t *border, CabDtype dtype);
  CabStatus (*join)(struct CabWire *);          /* what comes on the device waits for the reductions */
  char about[40];
} CabWire;
typedef CabStatus CabOpenWire(CabWire *out);    /* cab_open_wire of libcab_cuda.so */

#endif
