/* mpi.c - opens MPI. No header of it is needed to build: the functions are the standard's, and what differs between the two
 * families of libraries, the handles, are addresses of variables in Open MPI and fixed numbers in MPICH's ABI. */
#include "mpi.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

static void *open_library(char *why, size_t size) {
  static const char *const open_mpi[] = {"libmpi.so.40", "libmpi.so", "libmpi.so.12", "libmpich.so.12", NULL};
  static const char *const mpich[] = {"libmpi.so.12", "libmpich.so.12", "libmpi.so", "libmpi.so.40", NULL};
  const char *const *names = getenv("OMPI_COMM_WORLD_SIZE") || !getenv("PMI_SIZE") ? open_mpi : mpich;
  for (int i = 0; names[i]; i++) {
    void *library = dlopen(names[i], RTLD_NOW | RTLD_GLOBAL); /* its plugins look for its symbols */
    if (library) return library;
    const char *text = dlerror();
    if (i == 0) snprintf(why, size, "%s", text ? text : "?");
  }
  return NULL;
}

static bool find(void *library, const char *name, void *slot) {
  void *symbol = dlsym(library, name);
  memcpy(slot, &symbol, sizeof symbol);
  if (!symbol) cab_fail(CAB_E_DEVICE, "the MPI library has no %s", name);
  return symbol;
}

static bool find_functions(void *library, Mpi *m) {
  return find(library, "MPI_Init", &m->init) && find(library, "MPI_Finalize", &m->finalize) && find(library, "MPI_Comm_rank", &m->rank) &&
         find(library, "MPI_Comm_size", &m->size) && find(library, "MPI_Isend", &m->isend) && find(library, "MPI_Irecv", &m->irecv) &&
         find(library, "MPI_Iallreduce", &m->iallreduce) && find(library, "MPI_Ibcast", &m->ibcast) && find(library, "MPI_Test", &m->test) &&
         find(library, "MPI_Comm_set_errhandler", &m->errhandler) && find(library, "MPI_Error_string", &m->error) &&
         find(library, "MPI_Get_library_version", &m->version);
}

CabStatus cab_mpi_load(Mpi *m) {
  char why[300] = "";
  void *library = open_library(why, sizeof why);
  if (!library)
    return cab_fail(CAB_E_DEVICE, "this process is one of several, but there is no MPI library (libmpi.so.40 of Open MPI 4, or "
                    "libmpi.so.12 of MPICH's ABI): %s; install openmpi-bin, or set LD_LIBRARY_PATH", why);
  if (!find_functions(library, m)) return CAB_E_DEVICE;
  if (!dlsym(library, "ompi_mpi_comm_world")) { /* numbers of the MPICH ABI */
    m->world = 0x44000000, m->byte = 0x4c00010d, m->f32 = 0x4c00040a, m->f64 = 0x4c00080b, m->sum = 0x58000003;
    m->errors_return = 0x54000001, m->in_place = (void *)-1, m->no_status = (void *)1;
    return CAB_OK;
  }
  m->in_place = (void *)1, m->no_status = NULL;
  const struct { const char *name; MpiHandle *slot; } handles[] = {
      {"ompi_mpi_comm_world", &m->world}, {"ompi_mpi_byte", &m->byte}, {"ompi_mpi_float", &m->f32}, {"ompi_mpi_double", &m->f64},
      {"ompi_mpi_op_sum", &m->sum}, {"ompi_mpi_errors_return", &m->errors_return}};
  for (size_t i = 0; i < sizeof handles / sizeof *handles; i++) {
    *handles[i].slot = (MpiHandle)dlsym(library, handles[i].name);
    if (!*handles[i].slot) return cab_fail(CAB_E_DEVICE, "the MPI library has no %s", handles[i].name);
  }
  return CAB_OK;
}
