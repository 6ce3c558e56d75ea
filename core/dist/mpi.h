/* mpi.h - the few calls of MPI that are used, found at run time in Open MPI or in a library of MPICH's ABI. */
#ifndef CAB_DIST_MPI_H
#define CAB_DIST_MPI_H
#include "base.h"

/* A handle is a pointer in Open MPI and an int in MPICH: either fits, and either arrives in a register of 64 bits. */
typedef intptr_t MpiHandle;
typedef struct {
  int (*init)(int *, char ***);
  int (*finalize)(void);
  int (*rank)(MpiHandle, int *);
  int (*size)(MpiHandle, int *);
  int (*isend)(const void *, int, MpiHandle, int, int, MpiHandle, MpiHandle *);
  int (*irecv)(void *, int, MpiHandle, int, int, MpiHandle, MpiHandle *);
  int (*iallreduce)(const void *, void *, int, MpiHandle, MpiHandle, MpiHandle, MpiHandle *);
  int (*ibcast)(void *, int, MpiHandle, int, MpiHandle, MpiHandle *);
  int (*test)(MpiHandle *, int *, void *);
  int (*errhandler)(MpiHandle, MpiHandle);
  int (*error)(int, char *, int *);
  int (*version)(char *, int *);
  MpiHandle world, byte, f32, f64, sum, errors_return;
  void *in_place, *no_status;
} Mpi;

CabStatus cab_mpi_load(Mpi *mpi); /* 69 with what was looked for where there is none */

#endif
