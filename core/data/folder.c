/* folder.c - ROOT/CLASS/IMAGE. Names are read once; images are decoded when they are asked for. */
#include <limits.h>
#include <stdatomic.h>
#include <string.h>

#include "dataset.h"
#include "listing.h"

typedef struct {
  CabDataset base;
  char *root;
  CabListing list;
  atomic_uchar *good; /* [count] 1: read to its end without a complaint */
} Folder;

static const char *file_of(const CabDataset *ds, int64_t index) { return cab_name_at(&((const Folder *)ds)->list.files, (size_t)index); }

static const char *path_of(const CabDataset *ds, int64_t index, char *room) {
  const Folder *d = (const Folder *)ds;
  return snprintf(room, PATH_MAX, "%s/%s", d->root, file_of(ds, index)) < PATH_MAX ? room : d->root;
}

static CabStatus fetch(CabDataset *ds, int64_t index, const CabWish *wish, int *warnings, CabImage *out) {
  char room[PATH_MAX];
  const char *path = path_of(ds, index, room);
  atomic_uchar *good = &((Folder *)ds)->good[index];
  CabBytes bytes;
  CabWish again;
  int before = warnings ? *warnings : 0;
  if (wish) {
    again = *wish, again.known = atomic_load_explicit(good, memory_order_relaxed);
    wish = &again;
  }
  CAB_TRY(cab_read_file(path, CAB_IMAGE_MAX_FILE, &bytes));
  CabStatus status = cab_image_decode_part(bytes.data, bytes.length, path, wish, warnings, out);
  cab_bytes_free(&bytes);
  if (status == CAB_OK && !(warnings && *warnings > before)) atomic_store_explicit(good, 1, memory_order_relaxed);
  return status;
}

static const char *name_of(const CabDataset *ds, int64_t index, char *room) { return (void)room, file_of(ds, index); }

static void destroy(CabDataset *ds) {
  Folder *d = (Folder *)ds;
  cab_listing_free(&d->list);
  cab_free(d->good), cab_free(d->root);
  cab_free(d);
}

static const CabDatasetKind kind = {"folder", fetch, path_of, name_of, destroy};

/* Class of a folder: its place in the given names, or its own place. */
static int class_of(const char *folder, size_t place, int classes, const char *const *names) {
  if (!names) return (int)place;
  for (int i = 0; i < classes; i++)
    if (!strcmp(names[i], folder)) return i;
  return -1;
}

static CabStatus check_folders(const Folder *d, int classes, const char *const *names) {
  const CabListing *l = &d->list;
  for (size_t c = 0; c < l->folders.count; c++) {
    char shown[340], path[PATH_MAX];
    const char *folder = cab_name_at(&l->folders, c);
    if (class_of(folder, c, classes, names) < 0)
      return cab_fail_file(CAB_E_INPUT, "folder-class", d->root, -1, "folder \"%s\" is none of the %d classes given",
                           cab_escape(folder, strlen(folder), shown), classes);
    if (l->folder[c].end == (c ? l->folder[c - 1].end : 0)) {
      snprintf(path, sizeof path, "%s/%s", d->root, folder);
      return cab_fail_file(CAB_E_INPUT, "folder-empty", path, -1, "no PNG or JPEG files");
    }
  }
  return CAB_OK;
}

static CabStatus label_files(Folder *d, int classes, const char *const *names) {
  const CabListing *l = &d->list;
  size_t folders = l->folders.count;
  const char **own = cab_malloc(folders, sizeof *own);
  if (!own) return CAB_E_MEMORY;
  for (size_t c = 0; c < folders; c++) own[c] = cab_name_at(&l->folders, c);
  CabStatus status = cab_dataset_init(&d->base, &kind, (int64_t)l->files.count, names ? classes : (int)folders, names ? names : own);
  cab_free(own);
  for (size_t c = 0, i = 0; status == CAB_OK && c < folders; c++)
    for (int class = class_of(cab_name_at(&l->folders, c), c, classes, names); i < l->folder[c].end; i++) d->base.labels[i] = class;
  d->base.channels = 3;
  d->base.ignored = (int64_t)l->ignored;
  for (size_t c = 0; c < folders; c++) d->base.ignored += (int64_t)l->folder[c].ignored;
  d->base.scanned = (int64_t)l->scanned;
  d->base.note = l->note;
  return status;
}

static CabStatus open_root(Folder *d, const char *root, const char *index, int classes, const char *const *names) {
  size_t n = strlen(root) + 1;
  if (!(d->root = cab_malloc(n, 1))) return CAB_E_MEMORY;
  memcpy(d->root, root, n);
  CAB_TRY(cab_listing_read(root, index, &d->list));
  CAB_TRY(check_folders(d, classes, names));
  if (!(d->good = cab_calloc(d->list.files.count, sizeof *d->good))) return CAB_E_MEMORY;
  return label_files(d, classes, names);
}

CabDataset *cab_folder_open(const char *root, const char *index, int classes, const char *const *names) {
  Folder *d = cab_calloc(1, sizeof *d);
  if (!d) return NULL;
  d->base.kind = &kind, d->base.refs = 1;
  if (open_root(d, root, index, classes, names) == CAB_OK) return &d->base;
  cab_dataset_release(&d->base);
  return NULL;
}
