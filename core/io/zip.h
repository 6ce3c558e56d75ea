/* zip.h - the directory of a zip archive, checked as a whole: entries tile the file from byte 0 to the directory, both headers
 * of an entry agree, nothing follows the end record. Errors 65: zip-end, zip-zip64, zip-central, zip-local, zip-name, zip-flags,
 * zip-encrypted, zip-method, zip-overlap, zip-hole, zip-duplicate, zip-bomb; on reading zip-data, zip-crc. */
#ifndef CAB_ZIP_H
#define CAB_ZIP_H
#include "file.h"

typedef struct {
  const char *name;
  uint64_t at, data_at;   /* file offsets of the local header and of the bytes */
  uint64_t packed, bytes; /* size in the file and unpacked */
  uint32_t crc;
  uint16_t flags;
  bool deflated;
} CabZipEntry;

typedef struct {
  int count;
  CabZipEntry *entry; /* by name */
  char *names;        /* owns the strings */
} CabZip;

CabStatus cab_zip_open(const CabFile *file, CabZip *out);
void cab_zip_free(CabZip *zip);
int cab_zip_find(const CabZip *zip, const char *name); /* -1: not there */
/* All of an entry, CRC checked. */
CabStatus cab_zip_read(const CabFile *file, const CabZipEntry *entry, CabBytes *out);
/* Its first bytes, at most `count`, CRC not checked: *got of them. */
CabStatus cab_zip_head(const CabFile *file, const CabZipEntry *entry, uint8_t *to, uint64_t count, uint64_t *got);

#endif
