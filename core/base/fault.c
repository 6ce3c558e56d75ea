/* fault.c - failures on demand, for tests. CAB_FAULT="name:nth[:sticky|abort|exit]" makes call nth (from 1) of the
 * point `name` fail: once, from then on (sticky), or by ending the process there (abort, exit: status 99, nothing
 * flushed, as if the machine had stopped). CAB_FAULT_COUNTS set: calls of each point go to stderr at exit, so a test
 * can learn how many there are and try each one. */
#ifdef CAB_FAULTS
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base.h"

enum { MAX_POINTS = 128, MAX_NAME = 48 };
enum { ONCE, STICKY, ABORT, EXIT };

static struct {
  const char *name;
  uint64_t calls;
} points[MAX_POINTS];
static int point_count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static char wanted[MAX_NAME];
static uint64_t wanted_nth;
static int wanted_mode;
static bool ready;

static void print_counts(void) {
  for (int i = 0; i < point_count; i++)
    fprintf(stderr, "fault %s %llu\n", points[i].name, (unsigned long long)points[i].calls);
}

static void setup(void) {
  ready = true;
  if (getenv("CAB_FAULT_COUNTS")) atexit(print_counts);
  const char *spec = getenv("CAB_FAULT");
  if (!spec) return;
  const char *colon = strchr(spec, ':');
  char *end = NULL;
  if (colon && colon > spec && colon - spec < MAX_NAME) {
    wanted_nth = strtoull(colon + 1, &end, 10);
    memcpy(wanted, spec, (size_t)(colon - spec));
  }
  if (end && !strcmp(end, ":sticky")) wanted_mode = STICKY;
  else if (end && !strcmp(end, ":abort")) wanted_mode = ABORT;
  else if (end && !strcmp(end, ":exit")) wanted_mode = EXIT;
  else if (!end || *end) wanted_nth = 0;
  if (!wanted_nth) { /* a test with a mistyped point must not pass */
    fprintf(stderr, "CAB_FAULT: want name:nth[:sticky|abort|exit], got '%s'\n", spec);
    _exit(CAB_E_USAGE);
  }
}

bool cab_fault(const char *name) {
  pthread_mutex_lock(&lock);
  if (!ready) setup();
  int i = 0;
  while (i < point_count && strcmp(points[i].name, name)) i++;
  if (i == MAX_POINTS) abort();
  if (i == point_count) points[point_count++].name = name;
  uint64_t call = ++points[i].calls;
  bool due = call == wanted_nth || (wanted_mode == STICKY && call > wanted_nth);
  bool fails = wanted_nth && due && !strcmp(name, wanted);
  pthread_mutex_unlock(&lock);
  if (fails && wanted_mode == ABORT) abort();
  if (fails && wanted_mode == EXIT) _exit(99);
  return fails;
}

uint64_t cab_fault_set(const char *name, uint64_t nth, bool sticky) {
  uint64_t calls = 0;
  pthread_mutex_lock(&lock);
  if (!ready) setup();
  for (int i = 0; i < point_count; i++)
    if (!strcmp(points[i].name, name)) calls = points[i].calls, points[i].calls = 0;
  snprintf(wanted, sizeof wanted, "%s", name);
  wanted_nth = nth, wanted_mode = sticky ? STICKY : ONCE;
  pthread_mutex_unlock(&lock);
  return calls;
}
#else
typedef int cab_no_faults; /* C wants one declaration in a file */
#endif
