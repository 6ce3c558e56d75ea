/* dataset.h - labelled images behind one small vtable, transforms, the loader, subsets. */
#ifndef CAB_DATASET_H
#define CAB_DATASET_H
#include "base.h"
#include "image.h"

/* fetch may run in many threads at once; nothing else changes after opening. */
typedef struct CabDataset {
  const struct CabDatasetKind *kind;
  int64_t count;
  int classes, channels; /* channels: of every image, 3 for folders */
  char **names;          /* one per class; NULL if the set has none */
  int32_t *labels;       /* [count], in 0..classes-1 */
  int width, height;     /* of every image, 0 if they differ */
  int64_t ignored;       /* folder: entries that are no image and no class */
  int refs;
} CabDataset;

typedef struct CabDatasetKind {
  const char *name; /* "idx" */
  /* The image; warnings as in cab_image_decode. Errors name file and record. */
  CabStatus (*fetch)(CabDataset *, int64_t index, int *warnings, CabImage *out);
  const char *(*path)(const CabDataset *, int64_t index, char *room); /* its file; room: PATH_MAX bytes */
  void (*destroy)(CabDataset *); /* frees the kind's own parts and the struct */
} CabDatasetKind;

CabDataset *cab_dataset_retain(CabDataset *ds);
void cab_dataset_release(CabDataset *ds); /* NULL allowed */
/* For kinds: labels of `count` records and copies of the names (NULL: none); *ds is zeroed memory. */
CabStatus cab_dataset_init(CabDataset *ds, const CabDatasetKind *kind, int64_t count, int classes, const char *const *names);

/* Names may be NULL. NULL + error slot on failure. */
CabDataset *cab_idx_open(const char *images, const char *labels, int classes, const char *const *names);
CabDataset *cab_cifar_open(int files, const char *const *paths, int classes, const char *const *names);
/* ROOT/CLASS/IMAGE.png|jpg|jpeg, both levels in byte order. With names: exactly these folders may be there. */
CabDataset *cab_folder_open(const char *root, int classes, const char *const *names);

/* IDX: u8 data of 1 or 3 dimensions. Pure. */
typedef struct {
  uint32_t count, height, width; /* height = width = 1 for labels */
  const uint8_t *data;
} CabIdx;
CabStatus cab_idx_parse(const uint8_t *bytes, size_t length, int dims, const char *file, CabIdx *out);

/* ---- transforms: image -> f32[C,S,S] or u8[C,S,S] ------------------------------------------ */
typedef enum { CAB_CROP_NONE, CAB_CROP_CENTER, CAB_CROP_RANDOM, CAB_CROP_RESIZED } CabCrop;
typedef enum { CAB_BICUBIC, CAB_BILINEAR } CabFilter;
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
} CabTransform;
typedef struct {
  uint64_t seed, epoch, sample; /* all randomness is a function of these */
} CabDraw;
CabStatus cab_transform_check(const CabTransform *t);
size_t cab_transform_size(const CabTransform *t); /* bytes of a result; t was checked */
CabStatus cab_transform_apply(const CabTransform *t, CabDraw draw, const CabImage *image, void *out);
/* Antialiased, bit-equal to Pillow; rows of `image` are `stride` bytes apart. */
CabStatus cab_resize(const CabImage *image, size_t stride, int width, int height, CabFilter filter, CabImage *out);

/* ---- loader -------------------------------------------------------------------------------- */
typedef struct {
  CabDataset *dataset;
  const int32_t *indices; /* NULL: all */
  int64_t count;          /* of indices */
  int batch, threads;     /* threads 0: the caller decodes */
  uint64_t seed, epoch;
  bool shuffle, drop_last, skip_bad, tolerant;
  int64_t start;          /* first batch */
  CabTransform transform;
} CabLoaderOptions;
typedef struct CabLoader CabLoader;
CabLoader *cab_loader_open(const CabLoaderOptions *options); /* retains the dataset, copies the indices */
/* *count = 0 at the end. The buffers [count,C,S,S] and [count] stay valid until the next call. */
CabStatus cab_loader_next(CabLoader *l, int *count, const void **images, const int32_t **labels);
void cab_loader_close(CabLoader *l); /* joins the workers; NULL allowed */
int64_t cab_loader_batches(const CabLoader *l);
double cab_loader_wait(const CabLoader *l);      /* seconds that next() waited for workers, or did their work */
int64_t cab_loader_skipped(const CabLoader *l);
int64_t cab_loader_warnings(const CabLoader *l); /* tolerated, over all images so far */

/* Nested per class: the first ceil(fraction n) of a seeded permutation of each class, sorted. *out: cab_free. */
CabStatus cab_subset(const int32_t *labels, int64_t count, double fraction, uint64_t seed, int32_t **out, int64_t *out_count);

#endif
