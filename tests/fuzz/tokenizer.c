/* The first byte chooses what the file part is, the next two how long it is; the rest is text to encode.
 * 0 tokenizer.json, 1 the vocab of one, 2 the merges of one, 3 merges.txt, 4 the compact form (its check sum made right), 5 a fixed
 * small tokenizer and nothing but text, 6 that with NFC. */
#include <stdlib.h>

#define CACHE_BITS 4 /* words replace each other */

#include "../../core/data/encode.c"
#include "../../core/data/tokenizer.c"
#include "../../core/data/tokenizer_files.c"
#include "../../core/data/tokenizer_json.c"
#include "../../core/data/unicode.c"
#include "../../core/data/vocab.c"

static const char head[] = "{\"added_tokens\":[{\"id\":4,\"content\":\"ab a\",\"normalized\":true},{\"id\":5,\"content\":\"<e>\",\"special\":true,\"lstrip\":true,\"rstrip\":true}],"
                           "\"pre_tokenizer\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":";
static const char good_vocab[] = "{\"a\":0,\"b\":1,\"ab\":2,\"Ġ\":3}", good_merges[] = "[\"a b\"]";

/* parts joined in *out */
static void join(CabBytes *out, int count, const CabSource *part) {
  size_t n = 0;
  for (int i = 0; i < count; i++) n += part[i].n;
  out->data = cab_malloc(n, 1), out->length = 0;
  for (int i = 0; i < count; i++)
    if (part[i].n) memcpy(out->data + out->length, part[i].bytes, part[i].n), out->length += part[i].n;
}

#define TEXT(s) {(const uint8_t *)(s), sizeof(s) - 1, NULL}

static CabStatus read_file(int mode, CabSource file, CabVocab *v) {
  CabBytes all = {0};
  CabStatus status;
  if (mode == 0) return cab_vocab_json(file.bytes, file.n, "fuzz", v);
  if (mode == 3) return cab_vocab_files(file, UINT64_MAX, NULL, NULL, v);
  if (mode == 4) {
    uint8_t sum[8];
    join(&all, 2, (CabSource[]){TEXT("CABTOK1\n"), file});
    uint64_t hash = XXH64(all.data, all.length, 0);
    for (int i = 0; i < 8; i++) sum[i] = (uint8_t)(hash >> 8 * i);
    CabBytes whole;
    join(&whole, 2, (CabSource[]){{all.data, all.length, NULL}, {sum, 8, NULL}});
    status = cab_vocab_compact(whole.data, whole.length, "fuzz", v);
    cab_bytes_free(&whole);
  } else {
    CabSource none = TEXT(""), nfc = TEXT(",\"normalizer\":{\"type\":\"NFC\"}"), v0 = TEXT(good_vocab), m0 = TEXT(good_merges);
    join(&all, 6, (CabSource[]){TEXT(head), mode == 1 ? file : v0, TEXT(",\"merges\":"), mode == 2 ? file : m0, TEXT("}"), mode == 6 ? nfc : none});
    CabBytes whole;
    join(&whole, 2, (CabSource[]){{all.data, all.length, NULL}, TEXT("}")});
    status = cab_vocab_json(whole.data, whole.length, "fuzz", v);
    cab_bytes_free(&whole);
  }
  cab_bytes_free(&all);
  return status;
}

/* Encodes; without NFC, prefix space and white space taken by tokens the text must come back. */
static void use(const CabTokenizer *t, const char *text, size_t n, int mode) {
  CabEncoder *e = cab_encoder_new(t);
  for (int control = 0; control < 2; control++) {
    CabIds ids = {0};
    CabBytes back = {0};
    if (cab_encode(e, text, n, control, &ids) == CAB_OK) {
      if (cab_tokenizer_decode(t, ids.ids, ids.count, true, &back) != CAB_OK) abort();
      if (mode == 5 && !control && (back.length != n || memcmp(back.data, text, n))) abort();
    }
    cab_bytes_free(&back);
    cab_free(ids.ids);
  }
  cab_encoder_free(e);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size < 3) return 0;
  int mode = data[0] % 7;
  size_t n = mode > 4 ? 0 : (size_t)(data[1] | data[2] << 8);
  if (n > size - 3) n = size - 3;
  CabVocab v = {0};
  CabStatus status = read_file(mode, (CabSource){data + 3, n, "fuzz"}, &v);
  CabTokenizer *t = status == CAB_OK ? cab_tokenizer_new(&v) : NULL;
  cab_vocab_free(&v);
  if (mode > 4 && !t) abort();
  if (!t) return 0;
  use(t, (const char *)data + 3 + n, size - 3 - n, mode);
  cab_tokenizer_free(t);
  return 0;
}
