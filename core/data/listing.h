/* listing.h - the image files of ROOT/CLASS/IMAGE, in byte order, and an index on disk that spares reading the folders again. */
#ifndef CAB_LISTING_H
#define CAB_LISTING_H
#include "file.h"

/* Names in one block of text. */
typedef struct {
  char *text;
  size_t used, room;
  uint32_t *at; /* [count] offsets */
  size_t count, at_room;
} CabNames;
static inline const char *cab_name_at(const CabNames *n, size_t i) { return n->text + n->at[i]; }

/* What a folder was when it was read. */
typedef struct {
  uint64_t device, inode;
  int64_t modified, changed; /* nanoseconds */
} CabStamp;

typedef struct {
  CabStamp stamp;
  size_t end;      /* files up to and including this folder's */
  uint64_t ignored; /* visible entries that are no images */
} CabListed;

typedef struct {
  CabNames folders, files; /* files: "CLASS/IMAGE" */
  CabListed *folder;       /* [folders.count] */
  CabStamp root;
  uint64_t ignored;        /* visible entries of the root that are no folders */
  int64_t read_at;         /* nanoseconds since 1970: no stamp is younger, unless the folder changed meanwhile */
  size_t scanned;          /* folders that were read, the root included; the rest came from the index */
  char note[340];          /* why the index was not written, "" if it was or need not be */
} CabListing;

/* index: its path, NULL for none. It is taken where it is whole and of this root, folder by folder: a folder whose stamp differs
 * or is so young that a change could hide in it is read again, and the index is written anew. One that is damaged or cannot be
 * written costs time, no more. Listings of less than CAB_INDEX_LEAST files get none. */
enum { CAB_INDEX_LEAST = 4096 };
CabStatus cab_listing_read(const char *root, const char *index, CabListing *out);
void cab_listing_free(CabListing *l);

/* The index as bytes, and back: pure. False: damaged, *out is empty. */
CabStatus cab_index_encode(const CabListing *l, CabBytes *out);
bool cab_index_decode(const uint8_t *bytes, size_t length, CabListing *out);

CabStatus cab_names_add(CabNames *n, const char *folder, const char *name); /* folder NULL: the name alone */
void cab_names_free(CabNames *n);
bool cab_names_image(const char *name); /* by its ending */

#endif
