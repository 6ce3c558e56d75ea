/* dist.c - ranks, the meeting before each collective, and how a rank that is lost ends all others. */
#include "dist.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "ranks.h"

enum { TAG = 7, NAME = 28, CHUNK = 1 << 28 };

typedef struct { /* what a rank is about to do */
  int64_t sequence, bytes;
  double value;
  int32_t flags, lost; /* lost: this one waited in vain */
  char name[NAME];
} Card;
typedef struct { char host[64]; int64_t pid; } Peer;

Mpi cab_mpi;
static struct {
  bool open, failed;
  int rank, size, local;
  int64_t sequence;
  double timeout;
  Peer *peer;
  Card *card;               /* received from each rank */
  Card own;
  MpiHandle *request;       /* receives, then sends */
  char about[64];
  int (*stops)(void);
  CabWire wire;
  char wire_device[24];
} here = {.size = 1};

/* What the watching thread reads. */
static struct {
  pthread_mutex_t lock;
  bool started, doomed;
  double since, limit;      /* since 0: nobody waits */
  char what[160], line[1200];
} watch = {.lock = PTHREAD_MUTEX_INITIALIZER};

int cab_dist_rank(void) { return here.rank; }
int cab_dist_size(void) { return here.size; }
int cab_dist_local(void) { return here.local; }
const char *cab_dist_about(void) { return here.about; }
void cab_dist_on_stop(int (*stops)(void)) { here.stops = stops; }

/* ---- ranks of this host -------------------------------------------------------------------------------------- */

/* State of a process as /proc has it: 'R', 'T', .. or 0 if it is gone. */
static char state_of(int64_t pid) {
  char path[64], text[400];
  snprintf(path, sizeof path, "/proc/%lld/stat", (long long)pid);
  FILE *f = fopen(path, "r");
  if (!f) return 0;
  size_t n = fread(text, 1, sizeof text - 1, f);
  fclose(f);
  text[n] = 0;
  const char *end = strrchr(text, ')');
  return end && end[1] ? end[2] : 0;
}

static bool beside(int rank) { return rank != here.rank && !strcmp(here.peer[rank].host, here.peer[here.rank].host); }

static bool has_died(int rank) {
  char s = beside(rank) ? state_of(here.peer[rank].pid) : 'R';
  return s == 0 || s == 'Z' || s == 'X';
}

/* The first rank of this host that died, or -1. */
static int dead_neighbour(void) {
  for (int i = 0; i < here.size; i++)
    if (has_died(i)) return i;
  return -1;
}

static const char *condition(int rank) {
  char s = beside(rank) ? state_of(here.peer[rank].pid) : '?';
  return s == 0 || s == 'Z' || s == 'X' ? ", has died" : s == 'T' || s == 't' ? ", is stopped" : "";
}

/* ---- ending -------------------------------------------------------------------------------------------------- */

static void say_and_leave(void) {
  fprintf(stderr, "cab: error[E69-dist]: %s\n", watch.line);
  fflush(stderr);
  _exit(CAB_E_DEVICE);
}

/* Ends the process where the main thread cannot: it waits on a GPU for a rank that is gone, or hangs while it ends. */
static void *watching(void *unused) {
  double doomed = 0, gone = 0;
  for (;;) {
    nanosleep(&(struct timespec){.tv_nsec = 200000000}, NULL);
    pthread_mutex_lock(&watch.lock);
    double since = watch.since, limit = watch.limit, now = cab_now();
    char what[sizeof watch.what];
    memcpy(what, watch.what, sizeof what);
    bool end = watch.doomed;
    pthread_mutex_unlock(&watch.lock);
    if (end && !doomed) doomed = now;
    if (end && now - doomed > 3) say_and_leave();
    if (end || since == 0) { gone = 0; continue; }
    int dead = dead_neighbour();
    if (dead < 0 && now - since < limit) { gone = 0; continue; }
    if (dead >= 0 && !gone) gone = now;
    if (dead >= 0 && now - gone < 1) continue;
    if (dead >= 0) snprintf(watch.line, sizeof watch.line, "rank %d: %s: rank %d (%s, pid %lld) has died", here.rank, what, dead,
                            here.peer[dead].host, (long long)here.peer[dead].pid);
    else snprintf(watch.line, sizeof watch.line, "rank %d: %s: the device was not done within %g s: a rank is missing or hangs", here.rank, what, limit);
    say_and_leave();
  }
  return unused;
}

static void watch_for(const char *name, int64_t bytes, double limit) {
  if (here.size == 1) return;
  pthread_mutex_lock(&watch.lock);
  watch.limit = limit;
  watch.since = name ? cab_now() : 0;
  if (name) snprintf(watch.what, sizeof watch.what, "collective '%s' #%lld, %lld bytes", name, (long long)here.sequence, (long long)bytes);
  pthread_mutex_unlock(&watch.lock);
}

void cab_dist_watch(const char *name, int64_t bytes) { watch_for(name, bytes, here.timeout); }

/* Fills the error slot; from here on the process has 3 s. */
static CabStatus lost(const char *name, int64_t bytes, const char *why) {
  here.failed = true;
  cab_fail(CAB_E_DEVICE, "rank %d: collective '%s' #%lld, %lld bytes: %.700s", here.rank, name, (long long)here.sequence, (long long)bytes, why);
  snprintf(cab_error()->id, sizeof cab_error()->id, "dist");
  pthread_mutex_lock(&watch.lock);
  snprintf(watch.line, sizeof watch.line, "%s", cab_error()->message);
  watch.doomed = true;
  pthread_mutex_unlock(&watch.lock);
  return CAB_E_DEVICE;
}

CabStatus cab_dist_check(int code, const char *name, int64_t bytes) {
  char text[512] = "?";
  int n = 0;
  if (!code) return CAB_OK;
  if (cab_mpi.error) cab_mpi.error(code, text, &n);
  return lost(name, bytes, text);
}
#define MPI_TRY(call, name, bytes) CAB_TRY(cab_dist_check(call, name, bytes))

/* ---- waiting --------------------------------------------------------------------------------------------------- */

static int done_of(int count, MpiHandle *requests, bool *done) {
  int left = 0;
  for (int i = 0; i < count; i++) {
    int flag = 1;
    if (done[i]) continue;
    if (cab_mpi.test(&requests[i], &flag, cab_mpi.no_status)) return -1 - i;
    done[i] = flag;
    left += !flag;
  }
  return left;
}

void cab_dist_progress(int count, MpiHandle *requests) {
  int flag;
  for (int i = 0; i < count; i++)
    if (requests[i] != 0) cab_mpi.test(&requests[i], &flag, cab_mpi.no_status);
}

static void pause_a_little(int turn) {
  if (turn < 200) sched_yield();
  else nanosleep(&(struct timespec){.tv_nsec = turn < 2000 ? 20000 : 500000}, NULL);
}

/* True once the launcher has told this rank to stop and nothing has come since: it ends the job, and will kill. */
static bool launcher_ends(double *asked) {
  static int seen;
  int now = here.stops ? here.stops() : 0;
  bool kills = getenv("OMPI_COMM_WORLD_SIZE") && !getenv("SLURM_STEP_NUM_TASKS") && !getenv("OMPI_MCA_odls_base_sigkill_timeout");
  if (now <= seen || !kills) return false;
  if (*asked == 0) *asked = cab_now();
  return cab_now() - *asked > 0.6;
}

/* 1: done; 0: time is over; -1 - rank: that neighbour died; -1000000: the launcher ends the job. */
enum { ENDS = -1000000, BROKEN = -2000000 };
static int wait_for(int count, MpiHandle *requests, bool *done, double seconds) {
  double begun = cab_now(), looked = begun, asked = 0, gone = 0;
  for (int turn = 0;; turn++) {
    int left = done_of(count, requests, done);
    if (left == 0) return 1;
    if (left < 0) return BROKEN;
    pause_a_little(turn);
    double now = cab_now();
    if (now - begun > seconds) return 0;
    if (now - looked < 0.1) continue;
    looked = now;
    int dead = dead_neighbour();
    if (dead >= 0 && gone == 0) gone = now;
    if (dead >= 0 && now - gone > 0.25) return -1 - dead; /* what it sent before may still be on its way */
    if (launcher_ends(&asked)) return ENDS;
  }
}

static size_t add_rank(char *text, size_t used, size_t size, int rank, const char *more) {
  if (used + 90 > size) return used;
  int n = snprintf(text + used, size - used, "%srank %d (%s, pid %lld%s)%s", used ? ", " : "", rank, here.peer[rank].host,
                   (long long)here.peer[rank].pid, condition(rank), more);
  return used + (size_t)(n > 0 ? n : 0);
}

static CabStatus post_cards(const char *name, int64_t bytes) {
  int n = here.size;
  for (int i = 0; i < n; i++) {
    here.request[i] = here.request[n + i] = 0;
    if (i == here.rank) continue;
    MPI_TRY(cab_mpi.irecv(&here.card[i], sizeof(Card), cab_mpi.byte, i, TAG, cab_mpi.world, &here.request[i]), name, bytes);
  }
  for (int k = 1; k < n; k++) { /* each begins with the next: no rank is flooded */
    int i = (here.rank + k) % n;
    MPI_TRY(cab_mpi.isend(&here.own, sizeof(Card), cab_mpi.byte, i, TAG, cab_mpi.world, &here.request[n + i]), name, bytes);
  }
  return CAB_OK;
}

/* A collective came to nothing: who is not in it? Ranks that wait answer with a card of their own. */
static CabStatus roll_call(const char *name, int64_t bytes, int outcome, bool posted, bool *done) {
  char text[600] = "", why[700];
  size_t used = 0;
  if (outcome == BROKEN) return lost(name, bytes, "MPI reports a failure of the connection");
  if (outcome == ENDS) return lost(name, bytes, "the launcher ends the job: a rank elsewhere has left it");
  if (outcome < 0) {
    for (int i = 0; i < here.size; i++)
      if (has_died(i)) used = add_rank(text, used, sizeof text, i, "");
    return lost(name, bytes, text);
  }
  if (!posted) {
    here.own.lost = 1;
    memset(done, 0, 2 * (size_t)here.size);
    done[here.rank] = done[here.size + here.rank] = true;
    if (post_cards(name, bytes)) return CAB_E_DEVICE;
    wait_for(here.size, here.request, done, 2);
  }
  for (int i = 0; i < here.size; i++) {
    char other[120];
    if (i == here.rank) continue;
    if (!done[i]) used = add_rank(text, used, sizeof text, i, "");
    else if (here.card[i].sequence != here.sequence || strncmp(here.card[i].name, name, NAME - 1)) {
      snprintf(other, sizeof other, " is in '%.*s' #%lld, %lld bytes", NAME, here.card[i].name, (long long)here.card[i].sequence, (long long)here.card[i].bytes);
      used = add_rank(text, used, sizeof text, i, other);
    }
  }
  snprintf(why, sizeof why, "not done within %g s: missing: %s", here.timeout, used ? text : "no rank; the connection is lost");
  return lost(name, bytes, why);
}

static CabStatus usable(const char *name, int64_t bytes) {
  return here.failed ? lost(name, bytes, "an earlier collective failed") : CAB_OK;
}

CabStatus cab_dist_wait(int count, MpiHandle *requests, const char *name, int64_t bytes) {
  bool *done = cab_calloc((size_t)(count > 2 * here.size ? count : 2 * here.size), 1);
  if (!done) return cab_error()->code;
  int outcome = wait_for(count, requests, done, here.timeout);
  CabStatus status = outcome == 1 ? CAB_OK : roll_call(name, bytes, outcome, false, done);
  cab_free(done);
  return status;
}

/* ---- the meeting ----------------------------------------------------------------------------------------------- */

static CabStatus compare_cards(const char *name, int64_t bytes) {
  char text[600] = "";
  size_t used = 0;
  for (int i = 0; i < here.size; i++) {
    const Card *c = &here.card[i];
    char other[140];
    if (i == here.rank || (!c->lost && c->sequence == here.sequence && c->bytes == bytes && !strncmp(c->name, here.own.name, NAME))) continue;
    snprintf(other, sizeof other, " is in '%.*s' #%lld, %lld bytes", NAME, c->name, (long long)c->sequence, (long long)c->bytes);
    used = add_rank(text, used, sizeof text, i, other);
  }
  return used ? lost(name, bytes, text) : CAB_OK;
}

CabStatus cab_dist_meet(const char *name, int64_t bytes, double value, int flags, double *sum, int *all) {
  if (sum) *sum = value;
  if (all) *all = flags;
  if (here.size == 1) return CAB_OK;
  CAB_TRY(usable(name, bytes));
  here.sequence++;
  here.own = (Card){.sequence = here.sequence, .bytes = bytes, .value = value, .flags = flags};
  snprintf(here.own.name, sizeof here.own.name, "%s", name);
  CAB_TRY(post_cards(name, bytes));
  int n = here.size;
  bool *done = cab_calloc(2 * (size_t)n, 1);
  if (!done) return cab_error()->code;
  done[here.rank] = done[n + here.rank] = true;
  int outcome = wait_for(2 * n, here.request, done, here.timeout);
  CabStatus status = outcome == 1 ? CAB_OK : roll_call(name, bytes, outcome, true, done);
  cab_free(done);
  CAB_TRY(status);
  here.card[here.rank] = here.own;
  CAB_TRY(compare_cards(name, bytes));
  double total = 0;
  int flag = 0;
  for (int i = 0; i < n; i++) total += here.card[i].value, flag |= here.card[i].flags;
  if (sum) *sum = total;
  if (all) *all = flag;
  return CAB_OK;
}

/* ---- opening and closing ----------------------------------------------------------------------------------------- */

static int number_in(const char *name) {
  const char *text = getenv(name);
  return text ? atoi(text) : 0;
}

static CabStatus know_peers(void) {
  size_t n = (size_t)here.size;
  here.peer = cab_calloc(n, sizeof *here.peer);
  here.card = cab_calloc(n, sizeof *here.card);
  here.request = cab_calloc(2 * n, sizeof *here.request);
  if (!here.peer || !here.card || !here.request) return cab_error()->code;
  for (int i = 0; i < here.size; i++) here.peer[i].pid = getpid(), snprintf(here.peer[i].host, sizeof here.peer[i].host, "?%d", i);
  Peer own = {.pid = getpid()}, *all = cab_calloc(n, sizeof *all);
  if (!all) return cab_error()->code;
  gethostname(own.host, sizeof own.host - 1);
  CabStatus status = CAB_OK;
  for (int i = 0; status == CAB_OK && i < here.size; i++) {
    all[i] = own;
    status = cab_dist_bytes("hosts", &all[i], sizeof *all, i);
  }
  if (status == CAB_OK) memcpy(here.peer, all, n * sizeof *all);
  cab_free(all);
  for (int i = 0; i < here.rank; i++) here.local += beside(i);
  return status;
}

static CabStatus start_watching(void) {
  pthread_t thread;
  if (watch.started) return CAB_OK;
  if (pthread_create(&thread, NULL, watching, NULL)) return cab_fail(CAB_E_MEMORY, "no thread to watch the ranks");
  pthread_detach(thread);
  watch.started = true;
  return CAB_OK;
}

CabStatus cab_dist_open(double timeout) {
  int tasks = number_in("OMPI_COMM_WORLD_SIZE"), flag = 0;
  if (!tasks) tasks = number_in("PMI_SIZE");
  if (!tasks) tasks = number_in("SLURM_STEP_NUM_TASKS");
  here.timeout = timeout;
  if (here.open || tasks <= 1) return CAB_OK;
  CAB_TRY(cab_mpi_load(&cab_mpi));
  if (cab_mpi.init(NULL, NULL)) return cab_fail(CAB_E_DEVICE, "MPI does not start");
  cab_mpi.errhandler(cab_mpi.world, cab_mpi.errors_return);
  cab_mpi.rank(cab_mpi.world, &here.rank);
  cab_mpi.size(cab_mpi.world, &here.size);
  here.open = true;
  if (here.size != tasks)
    return cab_fail(CAB_E_DEVICE, "the job has %d tasks, but MPI sees %d: launch with this MPI's mpirun, or srun --mpi=pmix (or pmi2)", tasks, here.size);
  char text[8192] = "";
  cab_mpi.version(text, &flag);
  snprintf(here.about, sizeof here.about, "%.*s", (int)strcspn(text, ",\n"), text);
  CAB_TRY(start_watching());
  return know_peers();
}

CabStatus cab_dist_close(void) {
  if (!here.open || here.failed) return CAB_OK;
  CAB_TRY(cab_dist_meet("end", 0, 0, 0, NULL, NULL));
  cab_mpi.finalize();
  here.open = false, here.size = 1, here.rank = here.local = 0;
  return CAB_OK;
}

/* ---- small collectives --------------------------------------------------------------------------------------------- */

CabStatus cab_dist_sum(const char *name, int count, double *values) {
  int64_t bytes = (int64_t)count * (int64_t)sizeof *values;
  if (here.size == 1) return CAB_OK;
  MpiHandle request = 0;
  CAB_TRY(cab_dist_meet(name, bytes, 0, 0, NULL, NULL));
  MPI_TRY(cab_mpi.iallreduce(cab_mpi.in_place, values, count, cab_mpi.f64, cab_mpi.sum, cab_mpi.world, &request), name, bytes);
  return cab_dist_wait(1, &request, name, bytes);
}

CabStatus cab_dist_bytes(const char *name, void *data, size_t bytes, int root) {
  if (here.size == 1) return CAB_OK;
  CAB_TRY(cab_dist_meet(name, (int64_t)bytes, 0, 0, NULL, NULL));
  for (size_t at = 0; at < bytes; at += CHUNK) {
    size_t part = bytes - at < CHUNK ? bytes - at : CHUNK;
    MpiHandle request = 0;
    MPI_TRY(cab_mpi.ibcast((char *)data + at, (int)part, cab_mpi.byte, root, cab_mpi.world, &request), name, (int64_t)bytes);
    CAB_TRY(cab_dist_wait(1, &request, name, (int64_t)bytes));
  }
  return CAB_OK;
}

CabStatus cab_dist_send_tensor(const char *name, CabTensor *t, int root) {
  if (here.size == 1) return CAB_OK;
  CabDevice *device = t->storage->device;
  size_t bytes = (size_t)cab_tensor_count(t) * cab_dtype_size(t->dtype);
  if (!cab_tensor_contiguous(t)) return cab_fail(CAB_E_LUA, "%s: the tensor is not contiguous", name);
  if (device == cab_cpu()) CAB_TRY(cab_dist_bytes(name, cab_tensor_data(t), bytes, root));
  else {
    void *host = cab_malloc(bytes ? bytes : 1, 1);
    if (!host) return cab_error()->code;
    CabStatus status = here.rank == root ? device->copy(device, host, cab_tensor_data(t), bytes, 2) : CAB_OK;
    if (status == CAB_OK) status = cab_dist_bytes(name, host, bytes, root);
    if (status == CAB_OK && here.rank != root) status = device->copy(device, cab_tensor_data(t), host, bytes, 1);
    cab_free(host);
    CAB_TRY(status);
  }
  if (here.rank != root) cab_tensor_touch(t, NULL);
  return CAB_OK;
}

CabStatus cab_dist_same(const char *name, const char *what, double value) {
  char text[600] = "", why[700];
  size_t used = 0;
  if (here.size == 1) return CAB_OK;
  CAB_TRY(cab_dist_meet(name, 8, value, 0, NULL, NULL));
  int best = 0, most = 0;
  for (int i = 0; i < here.size; i++) {
    int like = 0;
    for (int j = 0; j < here.size; j++) like += !memcmp(&here.card[i].value, &here.card[j].value, sizeof value);
    if (like > most) most = like, best = i;
  }
  if (most == here.size) return CAB_OK;
  for (int i = 0; i < here.size; i++)
    if (memcmp(&here.card[i].value, &here.card[best].value, sizeof value)) used = add_rank(text, used, sizeof text, i, "");
  snprintf(why, sizeof why, "%s differ: those of %s are not those of %s", what, text, most * 2 > here.size ? "most ranks" : "rank 0");
  return lost(name, 8, why);
}

/* ---- the wire of a GPU ------------------------------------------------------------------------------------------------ */

CabWire *cab_dist_wire(CabDevice *device) {
  char id[128] = "";
  if (here.wire.self && !strcmp(here.wire_device, device->name)) return &here.wire;
  if (here.wire.self) return cab_fail(CAB_E_DEVICE, "NCCL is open on %s, not on %s", here.wire_device, device->name), NULL;
  Dl_info library;
  union { void *p; CabStatus (*f)(struct CabDevice *); } of = {.f = device->sync}; /* a function of libcab_cuda.so */
  void *handle = dladdr(of.p, &library) ? dlopen(library.dli_fname, RTLD_NOW | RTLD_NOLOAD) : NULL;
  union { void *p; CabOpenWire *f; } open = {.p = handle ? dlsym(handle, "cab_open_wire") : NULL};
  if (!open.p) return cab_fail(CAB_E_DEVICE, "libcab_cuda.so has no cab_open_wire: it belongs to another version"), NULL;
  if (open.f(&here.wire)) return NULL;
  if (here.rank == 0 && here.wire.unique(id)) return NULL;
  if (cab_dist_bytes("NCCL id", id, sizeof id, 0)) return NULL;
  watch_for("NCCL start", 0, here.timeout < 60 ? 60 : here.timeout); /* seconds where all is well */
  CabStatus status = here.wire.open(&here.wire, device, id, here.rank, here.size);
  cab_dist_watch(NULL, 0);
  if (status) return NULL;
  snprintf(here.wire_device, sizeof here.wire_device, "%s", device->name);
  return &here.wire;
}
