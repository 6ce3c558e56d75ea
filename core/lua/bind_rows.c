/* bind_rows.c - core.rows: files of coded rows of activations. Rows count from 0. */
#include <omp.h>
#include <string.h>

#include "bind_data.h"
#include "file.h"
#include "rows.h"

#define META_ROWS "cab.rows"

typedef struct {
  CabFile file;
  CabRowForm form;
  uint64_t bytes; /* of a row */
  char path[4096];
} Rows;

static Rows *check_rows(lua_State *L) {
  Rows *r = luaL_testudata(L, 1, META_ROWS);
  if (!r) bind_arg_error(L, 1, "rows expected, got %s", bind_type_name(L, 1));
  if (r->file.fd < 0) bind_fail(L, CAB_E_LUA, "rows is closed");
  return r;
}

/* tokens, width and coding of the options at `table`. */
static CabRowForm read_form(lua_State *L, int table) {
  CabRowForm f = {bind_opt_int(L, table, "tokens", 0), bind_opt_int(L, table, "width", 0),
                  (CabRowCoding)bind_opt_word(L, table, "coding", "f32", cab_row_codings)};
  uint64_t bytes = cab_row_bytes(&f);
  if (bytes > INT32_MAX) bind_fail(L, CAB_E_LUA, "%s: rows of %lld tokens of %lld", bind_function(L), (long long)f.tokens, (long long)f.width);
  return f;
}

static CabTensor *check_values(lua_State *L, int idx, const CabRowForm *f) {
  char text[160];
  CabTensor *t = bind_check_tensor(L, idx);
  bool fits = t->dtype == CAB_F32 && t->rank == 3 && t->shape[1] == f->tokens && t->shape[2] == f->width && t->storage->device == cab_cpu() && cab_tensor_contiguous(t);
  if (!fits) bind_arg_error(L, idx, "contiguous f32[n,%lld,%lld] on the cpu expected, got %s", (long long)f->tokens, (long long)f->width, cab_shape_text(t, text));
  return t;
}

/* core.rows_bytes{tokens=, width=, coding="f32"} -> bytes of a row */
static int rows_bytes(lua_State *L) {
  static const char *const known[] = {"tokens", "width", "coding", NULL};
  bind_check_table(L, 1);
  bind_unknown_keys(L, 1, known);
  CabRowForm f = read_form(L, 1);
  return lua_pushinteger(L, (lua_Integer)cab_row_bytes(&f)), 1;
}

/* core.rows_encode(f32[n,tokens,width], first, {tokens=, width=, coding=}) -> the bytes of rows first, first + 1, .. of a file */
static int rows_encode(lua_State *L) {
  static const char *const known[] = {"tokens", "width", "coding", NULL};
  int64_t first = bind_check_int(L, 2);
  bind_check_table(L, 3);
  bind_unknown_keys(L, 3, known);
  CabRowForm f = read_form(L, 3);
  CabTensor *t = check_values(L, 1, &f);
  if (first < 0) bind_arg_error(L, 2, "rows count from 0");
  uint64_t bytes = cab_row_bytes(&f);
  luaL_Buffer b;
  uint8_t *to = (uint8_t *)luaL_buffinitsize(L, &b, (size_t)t->shape[0] * bytes);
  const float *from = cab_tensor_data(t);
  CabStatus status = CAB_OK;
  for (int64_t i = 0; i < t->shape[0] && !status; i++)
    status = cab_row_encode(&f, (uint64_t)(first + i), from + i * f.tokens * f.width, to + (uint64_t)i * bytes);
  if (status) bind_raise(L, status);
  return luaL_pushresultsize(&b, (size_t)t->shape[0] * bytes), 1;
}

/* core.rows{file=, tokens=, width=, coding="f32"} -> rows; 65 (rows-size) unless the file has whole rows */
static int open_rows(lua_State *L) {
  static const char *const known[] = {"file", "tokens", "width", "coding", NULL};
  bind_check_table(L, 1);
  bind_unknown_keys(L, 1, known);
  const char *path = bind_opt_string(L, 1, "file", NULL);
  CabRowForm form = read_form(L, 1);
  if (!path || !*path) bind_fail(L, CAB_E_LUA, "rows: 'file' is missing");
  Rows *r = lua_newuserdatauv(L, sizeof *r, 0);
  *r = (Rows){.file = {.fd = -1}, .form = form, .bytes = cab_row_bytes(&form)};
  luaL_setmetatable(L, META_ROWS);
  if (strlen(path) >= sizeof r->path) bind_fail(L, CAB_E_LUA, "rows: the path is too long");
  memcpy(r->path, path, strlen(path) + 1);
  CabStatus status = cab_file_open(r->path, &r->file);
  if (status) r->file.fd = -1, bind_raise(L, status);
  if (r->file.size % r->bytes)
    bind_raise(L, cab_fail_file(CAB_E_INPUT, "rows-size", r->path, -1, "%llu bytes are no whole rows of %llu", (unsigned long long)r->file.size, (unsigned long long)r->bytes));
  return 1;
}

static int rows_close(lua_State *L) {
  Rows *r = luaL_testudata(L, 1, META_ROWS);
  if (!r) bind_arg_error(L, 1, "rows expected, got %s", bind_type_name(L, 1));
  if (r->file.fd >= 0) cab_file_close(&r->file);
  r->file.fd = -1;
  return 0;
}

static int rows_count(lua_State *L) {
  Rows *r = check_rows(L);
  return lua_pushinteger(L, (lua_Integer)(r->file.size / r->bytes)), 1;
}

static CabStatus read_row(const Rows *r, uint64_t number, uint8_t *row, float *to) {
  CAB_TRY(cab_file_read(&r->file, row, r->bytes, number * r->bytes));
  if (cab_row_decode(&r->form, number, row, to)) return CAB_OK;
  return cab_fail_file(CAB_E_INPUT, "rows-damaged", r->path, (int64_t)(number * r->bytes), "row %llu is not as it was written", (unsigned long long)number);
}

/* Rows side by side; the first that fails in `bad`, n if none. The error is in the slot of a thread that may be another's. */
static int64_t read_rows(const Rows *r, const uint64_t *numbers, int64_t n, uint8_t *room, float *to, int threads) {
  const int64_t each = r->form.tokens * r->form.width;
  int64_t bad = n;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(min : bad)
  for (int64_t i = 0; i < n; i++)
    if (read_row(r, numbers[i], room + (uint64_t)omp_get_thread_num() * r->bytes, to + i * each) != CAB_OK && i < bad) bad = i;
  return bad;
}

/* rows:read({row, ...}, f32[n,tokens,width]): the rows, decoded, in that order; 65 (rows-damaged) names a row whose bytes changed */
static int rows_read(lua_State *L) {
  Rows *r = check_rows(L);
  char where[48];
  bind_check_table(L, 2);
  CabTensor *t = check_values(L, 3, &r->form);
  const int64_t n = t->shape[0], each = r->form.tokens * r->form.width;
  const int most = n < cab_threads() ? (int)n : cab_threads(), worth = 1 + (int)(n * each >> 19); /* a thread for 2 MiB */
  const int threads = most < worth ? most : worth;
  uint64_t *numbers = lua_newuserdatauv(L, (size_t)n * sizeof *numbers, 0);
  for (int64_t i = 0; i < n; i++) {
    lua_rawgeti(L, 2, i + 1);
    numbers[i] = (uint64_t)bind_check_int(L, -1);
    lua_pop(L, 1);
    if (numbers[i] >= r->file.size / r->bytes)
      bind_arg_error(L, 2, "row %lld of %llu", (long long)numbers[i], (unsigned long long)(r->file.size / r->bytes));
  }
  uint8_t *room = lua_newuserdatauv(L, (size_t)threads * r->bytes, 0);
  float *to = cab_tensor_data(t);
  for (int64_t done = 0; done < n; done++) { /* a row that failed once more in this thread, for its error */
    done += read_rows(r, numbers + done, n - done, room, to + done * each, threads);
    if (done < n && read_row(r, numbers[done], room, to + done * each) != CAB_OK) bind_raise(L, cab_error()->code);
  }
  cab_tensor_touch(t, bind_where(L, where));
  return 0;
}

void bind_rows(lua_State *L) {
  static const luaL_Reg methods[] = {{"count", rows_count}, {"read", rows_read}, {"close", rows_close}, {NULL, NULL}};
  static const luaL_Reg functions[] = {{"rows", open_rows}, {"rows_bytes", rows_bytes}, {"rows_encode", rows_encode}, {NULL, NULL}};
  bind_data_class(L, META_ROWS, "rows", rows_close, methods);
  luaL_setfuncs(L, functions, 0);
}
