/* signal.c - handlers only count. Training asks core.interrupted() after each step; the REPL stops endless loops with
 * a hook. A second SIGINT within 2 s ends the process at once with 130. */
#include "bind.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t stops, interrupts, last_signal;
static volatile sig_atomic_t terminal_saved;
static struct termios terminal;
static struct timespec last_interrupt;

static void on_signal(int number) {
  int saved = errno;
  stops++;
  last_signal = number;
  if (number == SIGINT) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    double since = (double)(t.tv_sec - last_interrupt.tv_sec) + 1e-9 * (double)(t.tv_nsec - last_interrupt.tv_nsec);
    if (interrupts && since < 2) {
      if (terminal_saved) tcsetattr(0, TCSANOW, &terminal);
      _exit(130);
    }
    last_interrupt = t;
    interrupts++;
  }
  errno = saved;
}

int bind_stops(void) { return (int)stops; }

static const int caught[] = {SIGINT, SIGTERM, SIGUSR1};

/* core.catch_signals(on): on starts counting at 0, off gives the default actions back. */
static int catch_signals(lua_State *L) {
  bool on = bind_check_bool(L, 1);
  struct sigaction action = {.sa_flags = SA_RESTART};
  action.sa_handler = on ? on_signal : SIG_DFL;
  sigemptyset(&action.sa_mask);
  stops = interrupts = last_signal = 0;
  if (on && tcgetattr(0, &terminal) == 0) terminal_saved = 1;
  for (size_t i = 0; i < sizeof caught / sizeof *caught; i++) sigaction(caught[i], &action, NULL);
  return 0;
}

/* core.interrupted() -> number of stop signals since catch_signals(true), name of the last one or nil */
static int interrupted(lua_State *L) {
  int last = last_signal;
  lua_pushinteger(L, stops);
  lua_pushstring(L, last == SIGINT ? "SIGINT" : last == SIGTERM ? "SIGTERM" : last == SIGUSR1 ? "SIGUSR1" : NULL);
  return 2;
}

/* ---- endless loops ------------------------------------------------------------------------------------ */

enum { EVERY = 10000, PATIENCE = 20 };
static int seen, raised, depth;

/* A loop around pcall would swallow the error, so it is raised again: soon, and at each instruction in the end. */
static void hook(lua_State *L, lua_Debug *ar) {
  (void)ar;
  if (!depth) {
    lua_sethook(L, NULL, 0, 0); /* a coroutine that outlived its interruptible */
    return;
  }
  if (interrupts == seen) {
    if (lua_gethookcount(L) != EVERY) lua_sethook(L, hook, LUA_MASKCOUNT, EVERY); /* it was impatient last time */
    return;
  }
  lua_sethook(L, hook, LUA_MASKCOUNT, ++raised > PATIENCE ? 1 : 1000);
  cab_fail(CAB_E_STOPPED, "interrupted");
  snprintf(cab_error()->id, sizeof cab_error()->id, "interrupted");
  bind_raise(L, CAB_E_STOPPED);
}

/* core.interruptible(f, ...) -> what f returns; SIGINT raises "interrupted" in its Lua code. */
static int interruptible(lua_State *L) {
  if (lua_type(L, 1) != LUA_TFUNCTION) bind_arg_error(L, 1, "function expected, got %s", bind_type_name(L, 1));
  struct sigaction action = {.sa_flags = SA_RESTART}, old;
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  if (!depth) seen = interrupts, raised = 0, last_interrupt = (struct timespec){0}; /* a new line: its first SIGINT is a first one */
  depth++;
  sigaction(SIGINT, &action, &old);
  lua_sethook(L, hook, LUA_MASKCOUNT, EVERY);
  int failed = lua_pcall(L, lua_gettop(L) - 1, LUA_MULTRET, 0);
  if (!--depth) lua_sethook(L, NULL, 0, 0);
  sigaction(SIGINT, &old, NULL);
  if (failed) lua_error(L);
  return lua_gettop(L);
}

/* core.whole(f, ...) -> what f returns. Inside interruptible: SIGINT waits until f is done, so that no step stops half way. */
static int whole(lua_State *L) {
  if (lua_type(L, 1) != LUA_TFUNCTION) bind_arg_error(L, 1, "function expected, got %s", bind_type_name(L, 1));
  lua_Hook held = lua_gethook(L);
  int mask = lua_gethookmask(L), count = lua_gethookcount(L);
  lua_sethook(L, NULL, 0, 0);
  int failed = lua_pcall(L, lua_gettop(L) - 1, LUA_MULTRET, 0);
  if (held) lua_sethook(L, held, mask, count);
  if (failed) lua_error(L);
  return lua_gettop(L);
}

void bind_signal(lua_State *L) {
  static const luaL_Reg functions[] = {
      {"catch_signals", catch_signals}, {"interrupted", interrupted}, {"interruptible", interruptible}, {"whole", whole}, {NULL, NULL}};
  luaL_setfuncs(L, functions, 0);
}
