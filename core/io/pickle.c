/* pickle.c - the machine of pickle.h: a stack of value indices, marks as heights of the stack, a memo. Opcodes are those of
 * Python's pickletools. Each opcode makes at most one value and moves each index at most once: work and memory are linear. */
#include <stdarg.h>
#include <string.h>

#include "pickle_globals.h"
#include "rd.h"

enum { MAX_MARKS = 1 << 16, MAX_STACK = 1 << 20 };

typedef struct {
  CabRd rd;
  CabPickle *p;
  uint32_t *stack, *mark, *memo; /* memo: index + 1, 0 for none */
  uint32_t height, marks, memo_size, memo_used, opcodes;
  uint64_t stack_room, mark_room, memo_room, value_room, cell_room;
  uint64_t at;      /* of the running opcode */
  const char *name; /* of it */
  uint64_t number;  /* its argument */
  uint32_t text, length;
} Vm;

#define REFUSE(id, ...) refuse(vm, id, __VA_ARGS__)
__attribute__((format(printf, 3, 4))) static CabStatus refuse(Vm *vm, const char *id, const char *fmt, ...) {
  char text[400];
  va_list args;
  va_start(args, fmt);
  vsnprintf(text, sizeof text, fmt, args);
  va_end(args);
  return cab_fail_file(CAB_E_INPUT, id, vm->p->file, (int64_t)sz_add(vm->p->shift, vm->at), "%s at byte %llu of the pickle: %s", vm->name,
                       (unsigned long long)vm->at, text);
}

static CabStatus room(Vm *vm, void *array, uint64_t *have, uint64_t want, size_t size, uint64_t limit, const char *what) {
  if (want <= *have) return CAB_OK;
  if (want > limit) return REFUSE("pickle-limit", "more than %llu %s", (unsigned long long)limit, what);
  uint64_t next = *have ? sz_mul(*have, 2) : 64;
  next = next < want ? want : next > limit ? limit : next;
  void *grown = cab_realloc(*(void **)array, next, size);
  if (!grown) return CAB_E_MEMORY;
  memset((char *)grown + *have * size, 0, (next - *have) * size);
  *(void **)array = grown;
  *have = next;
  return CAB_OK;
}

/* ---- stack and values ---------------------------------------------------------------------- */

static CabStatus push(Vm *vm, uint32_t value) {
  CAB_TRY(room(vm, &vm->stack, &vm->stack_room, (uint64_t)vm->height + 1, sizeof *vm->stack, MAX_STACK, "values on the stack"));
  vm->stack[vm->height++] = value;
  return CAB_OK;
}

static CabStatus make(Vm *vm, CabPickleValue value) {
  CabPickle *p = vm->p;
  CAB_TRY(room(vm, &p->value, &vm->value_room, (uint64_t)p->values + 1, sizeof *p->value, CAB_PICKLE_MAX_VALUES, "values"));
  value.at = (uint32_t)vm->at;
  p->value[p->values] = value;
  return push(vm, p->values++);
}

/* What lies above the last mark is all that an opcode may take. */
static uint32_t depth(const Vm *vm) { return vm->height - (vm->marks ? vm->mark[vm->marks - 1] : 0); }

static CabStatus need(Vm *vm, uint32_t count) {
  if (depth(vm) >= count) return CAB_OK;
  return REFUSE("pickle-stack", "needs %u values, the stack has %u%s", count, depth(vm), vm->marks ? " above the mark" : "");
}

/* Value `below` places under the top. The pointer is good until the next value is made. */
static CabPickleValue *top(Vm *vm, uint32_t below) { return &vm->p->value[vm->stack[vm->height - 1 - below]]; }

static CabStatus wrong(Vm *vm, const CabPickleValue *got, const char *expected) {
  static const char *const names[] = {"None", "a bool", "an integer", "a float", "a string", "bytes", "a tuple", "a list", "a dict",
                                      "a global", "a storage", "a tensor", "an object"};
  return REFUSE("pickle-operand", "expected %s, got %s", expected, names[got->kind]);
}

static CabStatus add_cell(Vm *vm, uint32_t container, uint32_t value) {
  CabPickle *p = vm->p;
  CAB_TRY(room(vm, &p->cell, &vm->cell_room, (uint64_t)p->cells + 1, sizeof *p->cell, 2 * CAB_PICKLE_MAX_OPCODES, "items"));
  CabPickleValue *c = &p->value[container];
  if (c->count == UINT32_MAX) return REFUSE("pickle-limit", "too many items");
  p->cell[p->cells] = (CabPickleCell){value, 0};
  if (c->items.last) p->cell[c->items.last].next = p->cells;
  else c->items.first = p->cells;
  c->items.last = p->cells++;
  c->count++;
  return CAB_OK;
}

/* Moves the values from stack[from] on into `container`, which lies below them or is the top. */
static CabStatus take(Vm *vm, uint32_t container, uint32_t from, uint32_t to) {
  for (uint32_t i = from; i < to; i++) CAB_TRY(add_cell(vm, container, vm->stack[i]));
  return CAB_OK;
}

static CabStatus pop_mark(Vm *vm, uint32_t *start) {
  if (!vm->marks) return REFUSE("pickle-stack", "no mark on the stack");
  *start = vm->mark[--vm->marks];
  return CAB_OK;
}

/* A new container with the `count` values on top. */
static CabStatus gather(Vm *vm, CabPickleKind kind, uint32_t count) {
  CAB_TRY(need(vm, count));
  CAB_TRY(make(vm, (CabPickleValue){.kind = (uint8_t)kind}));
  uint32_t index = vm->stack[--vm->height];
  CAB_TRY(take(vm, index, vm->height - count, vm->height));
  vm->height -= count;
  return push(vm, index);
}

static CabStatus gather_marked(Vm *vm, CabPickleKind kind) {
  uint32_t start = 0;
  CAB_TRY(pop_mark(vm, &start));
  uint32_t count = vm->height - start;
  if (kind == CAB_P_DICT && count % 2) return REFUSE("pickle-operand", "%u values after the mark, expected keys and values", count);
  return gather(vm, kind, count);
}

/* ---- opcodes ------------------------------------------------------------------------------- */

static CabStatus op_refuse(Vm *vm) { return REFUSE("pickle-opcode", "not read here; protocols 2 to 5 are"); }
static CabStatus op_instance(Vm *vm) { return REFUSE("pickle-global", "makes an instance of any class: not allowed"); }
static CabStatus op_extension(Vm *vm) { return REFUSE("pickle-global", "extension codes are not allowed"); }
static CabStatus op_proto(Vm *vm) {
  if (vm->at != 0 || vm->number < 2 || vm->number > 5)
    return REFUSE("pickle-proto", "protocol %u, expected 2 to 5 and at the start", (unsigned)vm->number);
  return CAB_OK;
}
static CabStatus op_frame(Vm *vm) {
  if (vm->number > rd_left(&vm->rd)) return REFUSE("pickle-end", "a frame of %llu bytes, %llu are left", (unsigned long long)vm->number,
                                                   (unsigned long long)rd_left(&vm->rd));
  return CAB_OK;
}

static CabStatus op_mark(Vm *vm) {
  CAB_TRY(room(vm, &vm->mark, &vm->mark_room, (uint64_t)vm->marks + 1, sizeof *vm->mark, MAX_MARKS, "marks"));
  vm->mark[vm->marks++] = vm->height;
  return CAB_OK;
}
static CabStatus op_pop(Vm *vm) {
  if (vm->marks && vm->mark[vm->marks - 1] == vm->height) return vm->marks--, CAB_OK;
  CAB_TRY(need(vm, 1));
  vm->height--;
  return CAB_OK;
}
static CabStatus op_pop_mark(Vm *vm) { return pop_mark(vm, &vm->height); }
static CabStatus op_dup(Vm *vm) {
  CAB_TRY(need(vm, 1));
  return push(vm, vm->stack[vm->height - 1]);
}

static CabStatus op_none(Vm *vm) { return make(vm, (CabPickleValue){.kind = CAB_P_NONE}); }
static CabStatus op_true(Vm *vm) { return make(vm, (CabPickleValue){.kind = CAB_P_BOOL, .whole = 1}); }
static CabStatus op_false(Vm *vm) { return make(vm, (CabPickleValue){.kind = CAB_P_BOOL}); }
static CabStatus op_int(Vm *vm) { return make(vm, (CabPickleValue){.kind = CAB_P_INT, .whole = (int64_t)vm->number}); }
static CabStatus op_int4(Vm *vm) { return make(vm, (CabPickleValue){.kind = CAB_P_INT, .whole = (int32_t)vm->number}); }
static CabStatus op_float(Vm *vm) {
  CabPickleValue v = {.kind = CAB_P_FLOAT};
  memcpy(&v.real, &vm->number, 8);
  return make(vm, v);
}
static CabStatus op_text(Vm *vm) { return make(vm, (CabPickleValue){.kind = CAB_P_TEXT, .text = vm->text, .count = vm->length}); }
static CabStatus op_bytes(Vm *vm) { return make(vm, (CabPickleValue){.kind = CAB_P_BYTES, .text = vm->text, .count = vm->length}); }

/* Two's complement, little-endian; more than 8 bytes are of no use to a shape. */
static CabStatus op_long(Vm *vm) {
  if (vm->length > 8) return make(vm, (CabPickleValue){.kind = CAB_P_OPAQUE});
  const uint8_t *p = vm->p->bytes + vm->text;
  uint64_t v = vm->length && p[vm->length - 1] & 0x80 ? UINT64_MAX : 0;
  for (uint32_t i = vm->length; i-- > 0;) v = v << 8 | p[i];
  return make(vm, (CabPickleValue){.kind = CAB_P_INT, .whole = (int64_t)v});
}

static CabStatus op_empty_list(Vm *vm) { return make(vm, (CabPickleValue){.kind = CAB_P_LIST}); }
static CabStatus op_empty_tuple(Vm *vm) { return make(vm, (CabPickleValue){.kind = CAB_P_TUPLE}); }
static CabStatus op_empty_dict(Vm *vm) { return make(vm, (CabPickleValue){.kind = CAB_P_DICT}); }
static CabStatus op_list(Vm *vm) { return gather_marked(vm, CAB_P_LIST); }
static CabStatus op_tuple(Vm *vm) { return gather_marked(vm, CAB_P_TUPLE); }
static CabStatus op_dict(Vm *vm) { return gather_marked(vm, CAB_P_DICT); }
static CabStatus op_tuple1(Vm *vm) { return gather(vm, CAB_P_TUPLE, 1); }
static CabStatus op_tuple2(Vm *vm) { return gather(vm, CAB_P_TUPLE, 2); }
static CabStatus op_tuple3(Vm *vm) { return gather(vm, CAB_P_TUPLE, 3); }

/* The values from stack[start] on go into the container below them. What goes into an opaque object is dropped. */
static CabStatus extend(Vm *vm, uint32_t start, CabPickleKind kind) {
  uint32_t count = vm->height - start;
  if (start <= (vm->marks ? vm->mark[vm->marks - 1] : 0)) return REFUSE("pickle-stack", "nothing below the items");
  const CabPickleValue *c = &vm->p->value[vm->stack[start - 1]];
  if (c->kind != kind && c->kind != CAB_P_OPAQUE) return wrong(vm, c, kind == CAB_P_LIST ? "a list" : "a dict");
  if (kind == CAB_P_DICT && count % 2) return REFUSE("pickle-operand", "%u values, expected keys and values", count);
  for (uint32_t i = start; kind == CAB_P_DICT && i < vm->height; i += 2) {
    const CabPickleValue *key = &vm->p->value[vm->stack[i]];
    if (key->kind == CAB_P_LIST || key->kind == CAB_P_DICT) return wrong(vm, key, "a key");
  }
  if (c->kind == kind) CAB_TRY(take(vm, vm->stack[start - 1], start, vm->height));
  vm->height = start;
  return CAB_OK;
}
static CabStatus op_append(Vm *vm) {
  CAB_TRY(need(vm, 2));
  return extend(vm, vm->height - 1, CAB_P_LIST);
}
static CabStatus op_setitem(Vm *vm) {
  CAB_TRY(need(vm, 3));
  return extend(vm, vm->height - 2, CAB_P_DICT);
}
static CabStatus extend_marked(Vm *vm, CabPickleKind kind) {
  uint32_t start = 0;
  CAB_TRY(pop_mark(vm, &start));
  return extend(vm, start, kind);
}
static CabStatus op_appends(Vm *vm) { return extend_marked(vm, CAB_P_LIST); }
static CabStatus op_setitems(Vm *vm) { return extend_marked(vm, CAB_P_DICT); }
static CabStatus op_empty_set(Vm *vm) { return make(vm, (CabPickleValue){.kind = CAB_P_OPAQUE}); }
static CabStatus op_frozenset(Vm *vm) {
  CAB_TRY(op_pop_mark(vm));
  return op_empty_set(vm);
}

static CabStatus put_memo(Vm *vm, uint64_t index) {
  CAB_TRY(need(vm, 1));
  if (index >= vm->opcodes) return REFUSE("pickle-memo", "memo index %llu after %u opcodes", (unsigned long long)index, vm->opcodes);
  CAB_TRY(room(vm, &vm->memo, &vm->memo_room, index + 1, sizeof *vm->memo, CAB_PICKLE_MAX_OPCODES, "memo entries"));
  if (!vm->memo[index]) vm->memo_used++;
  vm->memo[index] = vm->stack[vm->height - 1] + 1;
  return CAB_OK;
}
static CabStatus op_put(Vm *vm) { return put_memo(vm, vm->number); }
static CabStatus op_memoize(Vm *vm) { return put_memo(vm, vm->memo_used); }
static CabStatus op_get(Vm *vm) {
  if (vm->number >= vm->memo_room || !vm->memo[vm->number])
    return REFUSE("pickle-memo", "nothing is at memo index %llu", (unsigned long long)vm->number);
  return push(vm, vm->memo[vm->number] - 1);
}

/* ---- globals and calls --------------------------------------------------------------------- */

static CabStatus push_global(Vm *vm, const uint8_t *module, uint64_t m, const uint8_t *name, uint64_t n) {
  int row = cab_pickle_global(module, m, name, n);
  char a[340], b[340];
  if (row < 0)
    return REFUSE("pickle-global", "global %.120s.%.120s is not allowed; saving the state_dict alone avoids it", cab_escape((const char *)module, m, a), cab_escape((const char *)name, n, b));
  return make(vm, (CabPickleValue){.kind = CAB_P_GLOBAL, .global = (uint16_t)row, .stored = (uint8_t)cab_pickle_globals[row].stored});
}

/* GLOBAL "MODULE\nNAME\n"; INST has the same argument and ends here too. */
static CabStatus op_global(Vm *vm) {
  const uint8_t *line = vm->p->bytes + vm->text, *end = memchr(line, '\n', vm->length);
  uint64_t m = (uint64_t)(end - line);
  return push_global(vm, line, m, end + 1, vm->length - m - 1);
}
static CabStatus op_inst(Vm *vm) {
  CAB_TRY(op_global(vm));
  return op_instance(vm);
}
static CabStatus op_stack_global(Vm *vm) {
  CAB_TRY(need(vm, 2));
  const CabPickleValue module = *top(vm, 1), name = *top(vm, 0);
  if (module.kind != CAB_P_TEXT) return wrong(vm, &module, "a module's name");
  if (name.kind != CAB_P_TEXT) return wrong(vm, &name, "a name");
  vm->height -= 2;
  return push_global(vm, vm->p->bytes + module.text, module.count, vm->p->bytes + name.text, name.count);
}

/* Tensor arguments: storage, offset, sizes, strides, requires_grad, hooks [, dtype for version 3] [, metadata]. */
static CabStatus check_tensor(Vm *vm, const CabPickleValue *args, bool dtype, uint8_t *stored) {
  static const uint8_t kinds[6] = {CAB_P_STORAGE, CAB_P_INT, CAB_P_TUPLE, CAB_P_TUPLE, CAB_P_BOOL, CAB_P_DICT};
  static const char *const names[6] = {"a storage", "an offset", "a tuple of sizes", "a tuple of strides", "requires_grad", "hooks"};
  uint32_t least = dtype ? 7 : 4;
  if (args->count < least || args->count > 8) return REFUSE("pickle-operand", "a tensor of %u arguments, expected %u to 8", args->count, least);
  for (uint32_t i = 0; i < 6 && i < args->count; i++) {
    const CabPickleValue *a = cab_pickle_item(vm->p, args, i);
    if (a->kind != kinds[i] && !(i == 5 && a->kind == CAB_P_NONE)) return wrong(vm, a, names[i]);
    if (a->kind == CAB_P_TUPLE && a->count > CAB_MAX_RANK) return REFUSE("pickle-operand", "%u dimensions, at most %d", a->count, CAB_MAX_RANK);
    for (uint32_t cell = a->kind == CAB_P_TUPLE ? a->items.first : 0; cell; cell = vm->p->cell[cell].next)
      if (vm->p->value[vm->p->cell[cell].value].kind != CAB_P_INT) return wrong(vm, &vm->p->value[vm->p->cell[cell].value], "an integer size");
  }
  if (!dtype) return CAB_OK;
  const CabPickleValue *d = cab_pickle_item(vm->p, args, 6);
  if (d->kind != CAB_P_GLOBAL || cab_pickle_globals[d->global].role != ROLE_DTYPE) return wrong(vm, d, "a dtype");
  *stored = d->stored;
  return CAB_OK;
}

/* What calling `callee` with the tuple `args` (an index) gives, pushed. */
static CabStatus call(Vm *vm, const CabPickleValue *callee, uint32_t args_index) {
  const CabPickleValue args = vm->p->value[args_index];
  if (callee->kind != CAB_P_GLOBAL) return wrong(vm, callee, "a global");
  if (args.kind != CAB_P_TUPLE) return wrong(vm, &args, "a tuple of arguments");
  Role role = cab_pickle_globals[callee->global].role;
  uint8_t stored = CAB_S_NONE;
  uint32_t first = args.count ? vm->p->cell[args.items.first].value : 0;
  switch (role) {
    case ROLE_TENSOR:
    case ROLE_TENSOR_DTYPE:
      CAB_TRY(check_tensor(vm, &args, role == ROLE_TENSOR_DTYPE, &stored));
      return make(vm, (CabPickleValue){.kind = CAB_P_TENSOR, .stored = stored, .call = args_index});
    case ROLE_FIRST_TENSOR:
      if (!args.count || vm->p->value[first].kind != CAB_P_TENSOR) return wrong(vm, args.count ? &vm->p->value[first] : &args, "a tensor");
      return push(vm, first);
    case ROLE_SIZE:
      if (args.count != 1 || vm->p->value[first].kind != CAB_P_TUPLE) return wrong(vm, args.count ? &vm->p->value[first] : &args, "a tuple of sizes");
      return push(vm, first);
    case ROLE_DICT:
      if (args.count && vm->p->value[first].kind != CAB_P_GLOBAL) return REFUSE("pickle-operand", "a dict made of arguments is not read");
      return make(vm, (CabPickleValue){.kind = CAB_P_DICT});
    case ROLE_OPAQUE: return make(vm, (CabPickleValue){.kind = CAB_P_OPAQUE});
    default: return REFUSE("pickle-operand", "%s.%s cannot be called", cab_pickle_globals[callee->global].module, cab_pickle_globals[callee->global].name);
  }
}

/* _rebuild_from_type_v2(function, type, arguments, state) calls the function. */
static CabStatus op_reduce(Vm *vm) {
  CAB_TRY(need(vm, 2));
  uint32_t args = vm->stack[vm->height - 1];
  CabPickleValue callee = *top(vm, 1);
  const CabPickleValue *list = &vm->p->value[args];
  vm->height -= 2;
  if (callee.kind == CAB_P_GLOBAL && cab_pickle_globals[callee.global].role == ROLE_TYPED && list->kind == CAB_P_TUPLE) {
    if (list->count != 4) return REFUSE("pickle-operand", "a typed tensor of %u arguments, expected 4", list->count);
    callee = *cab_pickle_item(vm->p, list, 0);
    args = vm->p->cell[vm->p->cell[vm->p->cell[list->items.first].next].next].value;
  }
  return call(vm, &callee, args);
}
static CabStatus op_newobj(Vm *vm) {
  CAB_TRY(need(vm, 2));
  const CabPickleValue callee = *top(vm, 1);
  uint32_t args = vm->stack[vm->height - 1];
  vm->height -= 2;
  return call(vm, &callee, args);
}
static CabStatus op_newobj_ex(Vm *vm) {
  CAB_TRY(need(vm, 3));
  if (top(vm, 0)->kind != CAB_P_DICT) return wrong(vm, top(vm, 0), "a dict of arguments");
  vm->height--;
  return op_newobj(vm);
}
/* State of an object: of no use here. */
static CabStatus op_build(Vm *vm) {
  CAB_TRY(need(vm, 2));
  const CabPickleValue *target = top(vm, 1);
  if (target->kind != CAB_P_DICT && target->kind != CAB_P_OPAQUE) return wrong(vm, target, "an object");
  vm->height--;
  return CAB_OK;
}

static CabStatus op_storage(Vm *vm) {
  CAB_TRY(need(vm, 1));
  const CabPickle *p = vm->p;
  const CabPickleValue *id = top(vm, 0), *item[5] = {0};
  if (id->kind != CAB_P_TUPLE) return wrong(vm, id, "the tuple of a storage");
  for (uint32_t i = 0; i < 5 && i < id->count; i++) item[i] = cab_pickle_item(p, id, i);
  if (id->count != 5) return REFUSE("pickle-operand", "a storage of %u parts, expected 5", id->count);
  if (item[0]->kind != CAB_P_TEXT || item[0]->count != 7 || memcmp(p->bytes + item[0]->text, "storage", 7))
    return wrong(vm, item[0], "the word storage");
  if (item[1]->kind != CAB_P_GLOBAL || cab_pickle_globals[item[1]->global].role != ROLE_STORAGE) return wrong(vm, item[1], "a storage type");
  if (item[2]->kind != CAB_P_TEXT) return wrong(vm, item[2], "a key");
  if (item[3]->kind != CAB_P_TEXT) return wrong(vm, item[3], "a device");
  if (item[4]->kind != CAB_P_INT) return wrong(vm, item[4], "a number of elements");
  CabPickleValue made = {.kind = CAB_P_STORAGE, .stored = item[1]->stored, .call = vm->stack[vm->height - 1]};
  vm->height--;
  return make(vm, made);
}

/* ---- the loop ------------------------------------------------------------------------------ */

typedef enum { A_NONE, A_U1, A_U2, A_I4, A_U4, A_U8, A_BE8, A_TEXT1, A_TEXT4, A_TEXT8, A_LINES } Argument;
static const struct { const char *name; CabStatus (*run)(Vm *); Argument argument; } opcodes[256] = {
    ['('] = {"MARK", op_mark, A_NONE}, ['0'] = {"POP", op_pop, A_NONE}, ['1'] = {"POP_MARK", op_pop_mark, A_NONE},
    ['2'] = {"DUP", op_dup, A_NONE}, ['N'] = {"NONE", op_none, A_NONE}, [0x88] = {"NEWTRUE", op_true, A_NONE},
    [0x89] = {"NEWFALSE", op_false, A_NONE}, ['J'] = {"BININT", op_int4, A_I4}, ['K'] = {"BININT1", op_int, A_U1},
    ['M'] = {"BININT2", op_int, A_U2}, [0x8a] = {"LONG1", op_long, A_TEXT1}, [0x8b] = {"LONG4", op_long, A_TEXT4},
    ['G'] = {"BINFLOAT", op_float, A_BE8}, ['T'] = {"BINSTRING", op_text, A_TEXT4}, ['U'] = {"SHORT_BINSTRING", op_text, A_TEXT1},
    ['X'] = {"BINUNICODE", op_text, A_TEXT4}, [0x8c] = {"SHORT_BINUNICODE", op_text, A_TEXT1}, [0x8d] = {"BINUNICODE8", op_text, A_TEXT8},
    ['B'] = {"BINBYTES", op_bytes, A_TEXT4}, ['C'] = {"SHORT_BINBYTES", op_bytes, A_TEXT1}, [0x8e] = {"BINBYTES8", op_bytes, A_TEXT8},
    [0x96] = {"BYTEARRAY8", op_bytes, A_TEXT8}, [']'] = {"EMPTY_LIST", op_empty_list, A_NONE}, ['a'] = {"APPEND", op_append, A_NONE},
    ['e'] = {"APPENDS", op_appends, A_NONE}, ['l'] = {"LIST", op_list, A_NONE}, [')'] = {"EMPTY_TUPLE", op_empty_tuple, A_NONE},
    ['t'] = {"TUPLE", op_tuple, A_NONE}, [0x85] = {"TUPLE1", op_tuple1, A_NONE}, [0x86] = {"TUPLE2", op_tuple2, A_NONE},
    [0x87] = {"TUPLE3", op_tuple3, A_NONE}, ['}'] = {"EMPTY_DICT", op_empty_dict, A_NONE}, ['d'] = {"DICT", op_dict, A_NONE},
    ['s'] = {"SETITEM", op_setitem, A_NONE}, ['u'] = {"SETITEMS", op_setitems, A_NONE}, [0x8f] = {"EMPTY_SET", op_empty_set, A_NONE},
    [0x90] = {"ADDITEMS", op_appends, A_NONE}, [0x91] = {"FROZENSET", op_frozenset, A_NONE}, ['q'] = {"BINPUT", op_put, A_U1},
    ['r'] = {"LONG_BINPUT", op_put, A_U4}, [0x94] = {"MEMOIZE", op_memoize, A_NONE}, ['h'] = {"BINGET", op_get, A_U1},
    ['j'] = {"LONG_BINGET", op_get, A_U4}, ['c'] = {"GLOBAL", op_global, A_LINES}, [0x93] = {"STACK_GLOBAL", op_stack_global, A_NONE},
    ['R'] = {"REDUCE", op_reduce, A_NONE}, ['b'] = {"BUILD", op_build, A_NONE}, [0x81] = {"NEWOBJ", op_newobj, A_NONE},
    [0x92] = {"NEWOBJ_EX", op_newobj_ex, A_NONE}, ['Q'] = {"BINPERSID", op_storage, A_NONE}, [0x80] = {"PROTO", op_proto, A_U1},
    [0x95] = {"FRAME", op_frame, A_U8}, ['i'] = {"INST", op_inst, A_LINES}, ['o'] = {"OBJ", op_instance, A_NONE},
    [0x82] = {"EXT1", op_extension, A_NONE}, [0x83] = {"EXT2", op_extension, A_NONE}, [0x84] = {"EXT4", op_extension, A_NONE},
    ['I'] = {"INT", op_refuse, A_NONE}, ['L'] = {"LONG", op_refuse, A_NONE}, ['F'] = {"FLOAT", op_refuse, A_NONE},
    ['S'] = {"STRING", op_refuse, A_NONE}, ['V'] = {"UNICODE", op_refuse, A_NONE}, ['g'] = {"GET", op_refuse, A_NONE},
    ['p'] = {"PUT", op_refuse, A_NONE}, ['P'] = {"PERSID", op_refuse, A_NONE}, [0x97] = {"NEXT_BUFFER", op_refuse, A_NONE},
    [0x98] = {"READONLY_BUFFER", op_refuse, A_NONE}};

static CabStatus read_text(Vm *vm, uint64_t length) {
  uint64_t at = vm->rd.position;
  if (!rd_slice(&vm->rd, length)) return CAB_OK; /* rd.bad is seen by the caller */
  vm->text = (uint32_t)at, vm->length = (uint32_t)length;
  return CAB_OK;
}

/* Two lines, without the second one's end. */
static CabStatus read_lines(Vm *vm) {
  uint64_t start = vm->rd.position, lines = 0;
  while (lines < 2 && rd_left(&vm->rd))
    if (rd_u8(&vm->rd) == '\n') lines++;
  if (lines < 2) vm->rd.bad = true;
  else vm->text = (uint32_t)start, vm->length = (uint32_t)(vm->rd.position - 1 - start);
  return CAB_OK;
}

static CabStatus read_argument(Vm *vm, Argument argument) {
  CabRd *r = &vm->rd;
  switch (argument) {
    case A_NONE: break;
    case A_U1: vm->number = rd_u8(r); break;
    case A_U2: vm->number = rd_u16le(r); break;
    case A_I4: case A_U4: vm->number = rd_u32le(r); break;
    case A_U8: vm->number = rd_u64le(r); break;
    case A_BE8: vm->number = rd_be(r, 8); break;
    case A_TEXT1: read_text(vm, rd_u8(r)); break;
    case A_TEXT4: read_text(vm, rd_u32le(r)); break;
    case A_TEXT8: read_text(vm, rd_u64le(r)); break;
    case A_LINES: read_lines(vm); break;
  }
  if (r->bad) return REFUSE("pickle-end", "the pickle ends within its argument");
  return CAB_OK;
}

static CabStatus run(Vm *vm) {
  vm->name = "start";
  if (rd_peek(&vm->rd) != 0x80) return REFUSE("pickle-proto", "no protocol number: expected 2 to 5");
  for (;;) {
    vm->at = vm->rd.position;
    if (!rd_left(&vm->rd)) return vm->name = "end", REFUSE("pickle-end", "no STOP");
    uint8_t code = rd_u8(&vm->rd);
    if (code == '.') break;
    vm->name = opcodes[code].name ? opcodes[code].name : "opcode";
    if (!opcodes[code].name) return REFUSE("pickle-opcode", "unknown opcode 0x%02x", code);
    if (++vm->opcodes > CAB_PICKLE_MAX_OPCODES) return REFUSE("pickle-limit", "more than %u opcodes", CAB_PICKLE_MAX_OPCODES);
    CAB_TRY(read_argument(vm, opcodes[code].argument));
    CAB_TRY(opcodes[code].run(vm));
  }
  vm->name = "STOP";
  if (vm->height != 1 || vm->marks) return REFUSE("pickle-stack", "%u values and %u marks are left, expected one value", vm->height, vm->marks);
  if (rd_left(&vm->rd)) return REFUSE("pickle-end", "%llu bytes follow", (unsigned long long)rd_left(&vm->rd));
  vm->p->root = vm->stack[0];
  return CAB_OK;
}

CabStatus cab_pickle_parse(const uint8_t *bytes, uint64_t length, const char *file, uint64_t shift, CabPickle *out) {
  *out = (CabPickle){.bytes = bytes, .file = file, .shift = shift, .cells = 1};
  if (length > CAB_PICKLE_MAX)
    return cab_fail_file(CAB_E_INPUT, "pickle-limit", file, (int64_t)shift, "a pickle of %llu bytes, at most %u are read",
                         (unsigned long long)length, CAB_PICKLE_MAX);
  Vm vm = {.rd = rd_open(bytes, length), .p = out};
  CabStatus status = run(&vm);
  cab_free(vm.stack);
  cab_free(vm.mark);
  cab_free(vm.memo);
  if (status != CAB_OK) cab_pickle_free(out);
  return status;
}

void cab_pickle_free(CabPickle *p) {
  cab_free(p->value);
  cab_free(p->cell);
  *p = (CabPickle){0};
}

const CabPickleValue *cab_pickle_item(const CabPickle *p, const CabPickleValue *list, uint32_t index) {
  uint32_t cell = list->items.first;
  for (uint32_t i = 0; cell && i < index; i++) cell = p->cell[cell].next;
  return cell ? &p->value[p->cell[cell].value] : NULL;
}

const char *cab_pickle_text(const CabPickle *p, const CabPickleValue *text, char out[340]) {
  return cab_escape((const char *)p->bytes + text->text, text->count, out);
}
