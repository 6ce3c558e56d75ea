/* sig.c - parses the signatures of all op rows, once. The grammar is in op.h. */
#include <stdlib.h>
#include <string.h>

#include "op.h"

enum { MAX_OPS = 96 };

static const CabOp *const families[] = {cab_ops_math,   cab_ops_nn,   cab_ops_ssm,
                                        cab_ops_bridge, cab_ops_loss, cab_ops_optim};
static CabSignature table[MAX_OPS];
static int table_count = -1;

static CabStatus malformed(const CabOp *op, const char *what, const char *token) {
  return cab_fail(CAB_E_BUG, "op row '%s': %s at '%s' in \"%s\"", op->name, what, token, op->signature);
}

/* Copies up to `capacity` - 1 characters of [text, end); false if it does not fit or is empty. */
static bool take(char *out, size_t capacity, const char *text, const char *end) {
  size_t n = (size_t)(end - text);
  if (n == 0 || n >= capacity) return false;
  memcpy(out, text, n);
  out[n] = 0;
  return true;
}

/* dims := "B,L,4", the text between the brackets. */
static const char *parse_dims(char *text, CabArgSpec *spec) {
  if (!strcmp(text, "&")) return spec->broadcast = true, NULL;
  char *save = NULL;
  for (char *d = strtok_r(text, ",", &save); d; d = strtok_r(NULL, ",", &save)) {
    bool letter = d[0] >= 'A' && d[0] <= 'Z' && !d[1];
    if (d[0] == '*') {
      spec->lead_optional = d[1] == '?';
      if (spec->lead || spec->rank || d[1 + spec->lead_optional]) return "'*' must come first";
      spec->lead = true;
    } else if (!letter && strspn(d, "0123456789") != strlen(d)) {
      return "a dim is an upper-case letter, a number, '*', '*?' or '&'";
    } else if (spec->rank == CAB_MAX_RANK || !take(spec->dims[spec->rank++], sizeof spec->dims[0], d, d + strlen(d))) {
      return "too many dims";
    }
  }
  return NULL;
}

/* arg := [~]name[~|^][:dtype][dims][?]; returns what is wrong or NULL. */
static const char *parse_arg(const char *token, bool output, CabArgSpec *spec) {
  const char *p = token;
  if (*p == '~') {
    if (!output) return "only outputs are kept";
    spec->kept = true, p++;
  }
  size_t name = strcspn(p, "~^:[?");
  if (!take(spec->name, sizeof spec->name, p, p + name)) return "bad name";
  p += name;
  if (*p == '~') spec->rows = true, p++;
  else if (*p == '^') spec->wide = true, p++;
  if (*p == ':') {
    char dtype[8];
    size_t n = strcspn(++p, "[?");
    if (!take(dtype, sizeof dtype, p, p + n) || !cab_dtype_parse(dtype, &spec->dtype)) return "unknown dtype";
    spec->integer = true, p += n;
  }
  if (*p == '[') {
    char dims[64];
    const char *end = strchr(++p, ']'), *wrong;
    if (!end) return "no ']'";
    if (end > p) {
      if (!take(dims, sizeof dims, p, end)) return "dims too long";
      if ((wrong = parse_dims(dims, spec))) return wrong;
    }
    p = end + 1;
  } else if (output) {
    spec->inferred = true;
  } else {
    return "no dims";
  }
  if (*p == '?') spec->optional = true, p++;
  if (*p) return "trailing text";
  return output && (spec->optional || spec->rows) ? "not for outputs" : NULL;
}

/* option := name=default */
static const char *parse_option(const char *token, CabOptionSpec *spec) {
  const char *equals = strchr(token, '=');
  if (!equals || !take(spec->name, sizeof spec->name, token, equals)) return "bad option";
  const char *text = equals + 1;
  char *end;
  spec->initial = strtod(text, &end);
  if (*text && !*end) return spec->kind = CAB_OPTION_NUMBER, NULL;
  spec->initial = !strcmp(text, "true");
  if (spec->initial || !strcmp(text, "false")) return spec->kind = CAB_OPTION_BOOL, NULL;
  spec->kind = CAB_OPTION_WORD;
  for (;;) {
    size_t n = strcspn(text, "|");
    if (spec->words == 8 || !take(spec->word[spec->words++], sizeof spec->word[0], text, text + n)) return "bad word";
    if (!text[n]) return NULL;
    text += n + 1;
  }
}

static int find_name(const CabArgSpec *spec, int count, const char *name) {
  for (int i = 0; i < count; i++)
    if (!strcmp(spec[i].name, name)) return i;
  return -1;
}

static CabStatus parse_saves(const CabOp *op, CabSignature *out) {
  char text[256], *save = NULL;
  snprintf(text, sizeof text, "%s", op->saves ? op->saves : "");
  for (char *name = strtok_r(text, " ", &save); name; name = strtok_r(NULL, " ", &save)) {
    int in = find_name(out->in, out->inputs, name), kept = find_name(out->out, out->outputs + out->kept, name);
    if (in < 0 && kept < 0) return malformed(op, "saves an unknown name", name);
    if (in >= 0) out->saves_in |= 1u << in;
    else out->saves_out |= 1u << kept;
  }
  return CAB_OK;
}

/* Names of inputs, as bits. */
static CabStatus parse_inputs(const CabOp *op, const char *names, const CabSignature *sig, uint32_t *bits) {
  char text[64], *save = NULL;
  snprintf(text, sizeof text, "%s", names ? names : "");
  for (char *name = strtok_r(text, " ", &save); name; name = strtok_r(NULL, " ", &save)) {
    int in = find_name(sig->in, sig->inputs, name);
    if (in < 0) return malformed(op, "the gradient of an unknown name", name);
    *bits |= 1u << in;
  }
  return CAB_OK;
}

static CabStatus parse_output(const CabOp *op, const char *token, CabSignature *out) {
  int n = out->outputs + out->kept;
  if (n == CAB_MAX_ARGS) return malformed(op, "too many outputs", token);
  CabArgSpec *spec = &out->out[n];
  const char *wrong = parse_arg(token, true, spec);
  if (!wrong && !spec->kept && out->kept) wrong = "visible outputs come before kept ones";
  if (!wrong && spec->inferred && !op->shape) wrong = "no dims and no shape function";
  if (wrong) return malformed(op, wrong, token);
  if (spec->kept) out->kept++;
  else out->outputs++;
  return CAB_OK;
}

CabStatus cab_signature_parse(const CabOp *op, CabSignature *out) {
  enum { INPUTS, OPTIONS, OUTPUTS } part = INPUTS;
  char text[512], *save = NULL;
  memset(out, 0, sizeof *out);
  out->op = op;
  if ((size_t)snprintf(text, sizeof text, "%s", op->signature) >= sizeof text) return malformed(op, "too long", "");
  for (char *token = strtok_r(text, " ", &save); token; token = strtok_r(NULL, " ", &save)) {
    const char *wrong = NULL;
    if (!strcmp(token, "|") && part == INPUTS) part = OPTIONS;
    else if (!strcmp(token, "->") && part != OUTPUTS) part = OUTPUTS;
    else if (part == OUTPUTS) CAB_TRY(parse_output(op, token, out));
    else if (part == OPTIONS && out->options < CAB_MAX_ARGS) wrong = parse_option(token, &out->option[out->options++]);
    else if (part == INPUTS && out->inputs < CAB_MAX_ARGS) wrong = parse_arg(token, false, &out->in[out->inputs++]);
    else wrong = "too many";
    if (wrong) return malformed(op, wrong, token);
  }
  if (!out->inputs || !out->outputs || !op->forward) return malformed(op, "no input, output or forward", "");
  CAB_TRY(parse_saves(op, out));
  CAB_TRY(parse_inputs(op, op->adds, out, &out->adds_in));
  return parse_inputs(op, op->strided, out, &out->strided_in);
}

static void fill_table(void) {
  table_count = 0;
  for (size_t f = 0; f < sizeof families / sizeof *families; f++)
    for (const CabOp *op = families[f]; op->name; op++) {
      if (table_count < MAX_OPS && cab_signature_parse(op, &table[table_count++]) == CAB_OK) continue;
      fprintf(stderr, "cab: %s\n", table_count < MAX_OPS ? cab_error()->message : "too many op rows");
      abort();
    }
}

int cab_op_count(void) {
  if (table_count < 0) fill_table();
  return table_count;
}

const CabSignature *cab_op_at(int index) { return index >= 0 && index < cab_op_count() ? &table[index] : NULL; }

const CabSignature *cab_op_find(const char *name) {
  for (int i = 0, n = cab_op_count(); i < n; i++)
    if (!strcmp(table[i].op->name, name)) return &table[i];
  return NULL;
}
