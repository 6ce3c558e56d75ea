/* scope.c - a scope lists the tensors born while it was the current one, without holding references: a tensor whose
 * last reference goes leaves the list, closing the scope closes what is still there. */
#include "internal.h"

struct CabScope {
  struct CabScope *parent;
  CabTensor *first;
  bool open;
};
static CabScope *current;

CabScope *cab_scope_open(void) {
  CabScope *scope = cab_calloc(1, sizeof *scope);
  if (!scope) return NULL;
  scope->parent = current;
  scope->open = true;
  return current = scope;
}

static void link_to(CabScope *scope, CabTensor *t) {
  t->scope = scope;
  t->scope_prev = NULL;
  t->scope_next = scope ? scope->first : NULL;
  if (t->scope_next) t->scope_next->scope_prev = t;
  if (scope) scope->first = t;
}

void cab_scope_link(CabTensor *t) { link_to(current, t); }

void cab_scope_unlink(CabTensor *t) {
  if (!t->scope) return;
  if (t->scope_prev) t->scope_prev->scope_next = t->scope_next;
  else t->scope->first = t->scope_next;
  if (t->scope_next) t->scope_next->scope_prev = t->scope_prev;
  t->scope = NULL;
  t->scope_next = t->scope_prev = NULL;
}

void cab_scope_keep(CabTensor *t) {
  if (!t->scope) return;
  CabScope *outer = t->scope->parent;
  cab_scope_unlink(t);
  link_to(outer, t);
}

/* Closing one tensor may free others of the list, so always take the first that is left. */
static void close_current(const char *where) {
  CabScope *scope = current;
  while (scope->first) cab_tensor_close(scope->first, where);
  scope->open = false;
  current = scope->parent;
}

void cab_scope_close(CabScope *scope, const char *where) {
  while (scope && scope->open) close_current(where);
}

void cab_scope_free(CabScope *scope) {
  cab_scope_close(scope, NULL);
  cab_free(scope);
}
