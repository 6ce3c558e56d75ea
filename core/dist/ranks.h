/* ranks.h - what dist.c lends to reduce.c. */
#ifndef CAB_DIST_RANKS_H
#define CAB_DIST_RANKS_H
#include "dist.h"
#include "mpi.h"

extern Mpi cab_mpi;
/* Waits for requests of the collective begun last; *requests are done or the rank is lost. */
CabStatus cab_dist_wait(int count, MpiHandle *requests, const char *name, int64_t bytes);
void cab_dist_progress(int count, MpiHandle *requests);   /* lets MPI work on them */
CabStatus cab_dist_check(int code, const char *name, int64_t bytes);
CabWire *cab_dist_wire(CabDevice *device);  /* NULL + error; opened by all ranks together */

#endif
