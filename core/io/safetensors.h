/* safetensors.h - u64 header length, JSON header {"name": {"dtype", "shape", "data_offsets"}, "__metadata__": {..}}, data.
 * Names are sorted in every description and in every file written here. */
#ifndef CAB_SAFETENSORS_H
#define CAB_SAFETENSORS_H
#include "file.h"
#include "stored.h"

#define CAB_ST_MAX_HEADER 100000000u

typedef struct {
  const char *name; /* ends with NUL and holds no other */
  uint64_t at;      /* file offset of the name */
  CabStored stored;
  int rank;
  int64_t shape[CAB_MAX_RANK];
  uint64_t begin, end; /* in the data part */
} CabStTensor;

typedef struct {
  const char *key, *value;
  uint64_t at;
} CabStMeta;

typedef struct {
  int count, metadata_count;
  CabStTensor *tensor; /* by name */
  CabStMeta *metadata; /* by key */
  uint64_t data_at;    /* file offset of the data part */
  char *names;         /* owns the strings */
} CabSafetensors;

/* The length field of the first 8 bytes (fewer if the file is shorter), checked against the file's size. */
CabStatus cab_st_header_length(const uint8_t *first, uint64_t count, uint64_t file_size, const char *file, uint64_t *out);
/* Pure: the header's bytes (after the length field) and the file's size to a description in which every tensor lies
 * where it says, nothing overlaps and nothing is left over. */
CabStatus cab_st_parse(const uint8_t *header, uint64_t length, uint64_t file_size, const char *file, CabSafetensors *out);
void cab_st_free(CabSafetensors *st);

/* Reads and checks the header of an open file. */
CabStatus cab_st_open(const CabFile *file, CabSafetensors *out);

typedef struct {
  const char *name;
  CabTensor *tensor; /* any device and layout */
} CabStEntry;
/* Atomic. Sorts both arrays by name; equal names, "__metadata__" and bad UTF-8 are errors. Metadata may be NULL. */
CabStatus cab_st_save(const char *path, int count, CabStEntry *entries, int metadata_count, CabStMeta *metadata);

#endif
