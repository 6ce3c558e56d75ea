/* dataset.h - labelled images behind one small vtable, transforms, the loader, subsets. */
#ifndef CAB_DATASET_H
#define CAB_DATASET_H
#include "augment.h"

/* fetch may run in many threads at once; nothing else changes after opening. */
typedef struct CabDataset {
  const struct CabDatasetKind *kind;
  int64_t count;
  int classes, channels; /* channels: of every image, 3 for folders */
  char **names;          /* one per class; NULL if the set has none */
  int32_t *labels;       /* [count], in 0..classes-1 */
  int width, height;     /* of every image, 0 if they differ */
  int64_t ignored;       /* folder: entries that are no image and no class */
  int64_t scanned;       /* folder: directories that were read, not taken from the index */
  const char *note;      /* what a run should say about it; NULL or "" for nothing */
  int refs;
} CabDataset;

typedef struct CabDatasetKind {
  const char *name; /* "idx" */
  /* The image, or the part wished for (NULL: all); warnings as in cab_image_decode. Errors name file and record. */
  CabStatus (*fetch)(CabDataset *, int64_t index, const CabWish *wish, int *warnings, CabImage *out);
  const char *(*path)(const CabDataset *, int64_t index, char *room); /* its file; room: PATH_MAX bytes */
  const char *(*record)(const CabDataset *, int64_t index, char *room); /* its name in lists: "CLASS/IMAGE", or its number from 1 */
  void (*destroy)(CabDataset *); /* frees the kind's own parts and the struct */
} CabDatasetKind;

const char *cab_dataset_number(const CabDataset *ds, int64_t index, char *room); /* a kind's name where records have only numbers */
CabDataset *cab_dataset_retain(CabDataset *ds);
void cab_dataset_release(CabDataset *ds); /* NULL allowed */
/* For kinds: labels of `count` records and copies of the names (NULL: none); *ds is zeroed memory. */
CabStatus cab_dataset_init(CabDataset *ds, const CabDatasetKind *kind, int64_t count, int classes, const char *const *names);

/* Names may be NULL. NULL + error slot on failure. */
CabDataset *cab_idx_open(const char *images, const char *labels, int classes, const char *const *names);
CabDataset *cab_cifar_open(int files, const char *const *paths, int classes, const char *const *names);
/* ROOT/CLASS/IMAGE.png|jpg|jpeg, both levels in byte order. With names: exactly these folders may be there. index: a file that
 * keeps the names (listing.h), NULL for none. */
CabDataset *cab_folder_open(const char *root, const char *index, int classes, const char *const *names);

/* IDX: u8 data of 1 or 3 dimensions. Pure. */
typedef struct {
  uint32_t count, height, width; /* height = width = 1 for labels */
  const uint8_t *data;
} CabIdx;
CabStatus cab_idx_parse(const uint8_t *bytes, size_t length, int dims, const char *file, CabIdx *out);

/* ---- transforms: image -> f32[C,S,S] or u8[C,S,S] ------------------------------------------ */
typedef enum { CAB_CROP_NONE, CAB_CROP_CENTER, CAB_CROP_RANDOM, CAB_CROP_RESIZED } CabCrop;
typedef struct {
  int size;              /* side of the result */
  int resize;            /* length of the shorter side before the crop, 0: none */
  CabCrop crop;
  CabFilter filter;
  int pad;               /* zeros around the image before a random crop */
  bool flip;             /* mirror every other image */
  int channels;          /* 1 or 3 */
  bool bytes;            /* pixels as they are, u8; otherwise f32, (x / 255 - mean) / deviation */
  float mean[3], deviation[3];
  double scale[2], ratio[2]; /* random resized crop: share of the area, width / height */
  bool draft;            /* JPEG shrunk while it is decoded, to no less than twice what is needed */
  CabAugment augment;
} CabTransform;
CabStatus cab_transform_check(const CabTransform *t);
size_t cab_transform_size(const CabTransform *t); /* bytes of a result; t was checked */
/* image: all of it, or what the wish of the same transform and draw gave. */
CabStatus cab_transform_apply(const CabTransform *t, CabDraw draw, const CabImage *image, void *out);
void cab_transform_normalise(const CabTransform *t, const uint8_t *bytes, float *out); /* planes [C,S,S], as apply does */
typedef struct {
  const CabTransform *transform;
  CabDraw draw;
} CabTransformCall;
CabPart cab_transform_part(const void *call, int width, int height); /* what apply will read, a CabWish's choose */

/* ---- mixing the records of a batch, each with the one as far from the other end ---------------- */
typedef struct {
  double mixup, cutmix; /* alpha of Beta(alpha, alpha), 0: never */
  double change;        /* chance of cutmix where both are possible */
} CabMix;
typedef struct {
  double share;  /* of the first image */
  bool cut;      /* the window is exchanged; otherwise all pixels are averaged */
  CabWindow window;
} CabMixing;
CabStatus cab_mix_check(const CabMix *m);
CabMixing cab_mix_draw(const CabMix *m, CabDraw d, int size); /* d.sample: number of the batch */
/* Two images of `channels` planes of size x size bytes. */
void cab_mix_pair(const CabMixing *m, int channels, int size, uint8_t *a, uint8_t *b);

/* ---- loader -------------------------------------------------------------------------------- */
typedef struct {
  CabDataset *dataset;
  const int32_t *indices; /* NULL: all */
  int64_t count;          /* of indices */
  int batch, threads;     /* threads 0: the caller decodes */
  uint64_t seed, epoch;
  bool shuffle, drop_last, skip_bad, tolerant;
  int repeats;            /* of each record in a row, so that an epoch has count / repeats of them; 1: none */
  int64_t start;          /* first batch */
  int part, parts;        /* of several ranks, from 0; parts 0: all. With drop_last each has some rows of every batch (records that are
                             mixed with each other stay together), otherwise every parts-th batch */
  CabTransform transform;
  CabMix mix;
} CabLoaderOptions;
typedef struct CabLoader CabLoader;
CabLoader *cab_loader_open(const CabLoaderOptions *options); /* retains the dataset, copies the indices */
typedef struct {
  int count; /* 0: the end */
  const void *images;    /* [count,C,S,S] */
  const int32_t *labels; /* [count] */
  const float *targets;  /* [count,classes] where records are mixed, otherwise NULL */
} CabBatch;
/* What the batch points to stays valid until the next call. */
CabStatus cab_loader_next(CabLoader *l, CabBatch *out);
void cab_loader_close(CabLoader *l); /* joins the workers; NULL allowed */
int64_t cab_loader_batches(const CabLoader *l);
const int32_t *cab_loader_order(const CabLoader *l, int64_t *count); /* records in the order of this epoch */
double cab_loader_wait(const CabLoader *l);      /* seconds that next() waited for workers, or did their work */
int64_t cab_loader_skipped(const CabLoader *l);
int64_t cab_loader_warnings(const CabLoader *l); /* tolerated, over all images so far */

/* Nested per class: the first m = ceil(fraction n) of a seeded permutation of each class, floor(hold m) of them held out. *out has
 * *out_count indices, sorted, and then the *out_held that are held out, sorted: cab_free. */
CabStatus cab_subset(const int32_t *labels, int64_t count, double fraction, double hold, uint64_t seed, int32_t **out, int64_t *out_count,
                     int64_t *out_held);

#endif
