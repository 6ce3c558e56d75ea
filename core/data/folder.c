/* folder.c - ROOT/CLASS/IMAGE. Names are read once, in byte order; images are decoded when they are asked for. */
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "dataset.h"

/* Sorted names of one directory: offsets into one block of text. */
typedef struct {
  char *text;
  size_t used, room;
  uint32_t *at;
  size_t count, at_room;
} Names;

typedef struct {
  CabDataset base;
  char *root;
  Names files; /* "CLASS/IMAGE" */
} Folder;

static void free_names(Names *n) {
  cab_free(n->text);
  cab_free(n->at);
  *n = (Names){0};
}

static CabStatus add_name(Names *n, const char *dir, const char *name) {
  size_t left = dir ? strlen(dir) + 1 : 0, right = strlen(name) + 1;
  if (n->used + left + right > UINT32_MAX) return cab_fail(CAB_E_INPUT, "folder: more than 4 GiB of file names");
  if (n->room - n->used < left + right) {
    size_t room = n->room * 2 + left + right + 1024;
    char *grown = cab_realloc(n->text, room, 1);
    if (!grown) return CAB_E_MEMORY;
    n->text = grown, n->room = room;
  }
  if (n->count == n->at_room) {
    size_t room = n->at_room * 2 + 64;
    uint32_t *grown = cab_realloc(n->at, room, sizeof *grown);
    if (!grown) return CAB_E_MEMORY;
    n->at = grown, n->at_room = room;
  }
  n->at[n->count++] = (uint32_t)n->used;
  if (dir) {
    memcpy(n->text + n->used, dir, left - 1);
    n->text[n->used + left - 1] = '/';
  }
  memcpy(n->text + n->used + left, name, right);
  n->used += left + right;
  return CAB_OK;
}

static const char *name_at(const Names *n, size_t i) { return n->text + n->at[i]; }

static int order(const void *a, const void *b, void *text) {
  return strcmp((const char *)text + *(const uint32_t *)a, (const char *)text + *(const uint32_t *)b);
}

static CabStatus join(const char *dir, const char *name, char out[PATH_MAX]) {
  int n = snprintf(out, PATH_MAX, "%s/%s", dir, name);
  return n < PATH_MAX ? CAB_OK : cab_fail_file(CAB_E_IO, "", dir, -1, "name too long");
}

static bool is_image(const char *name) {
  const char *dot = strrchr(name, '.');
  return dot && (!strcasecmp(dot, ".png") || !strcasecmp(dot, ".jpg") || !strcasecmp(dot, ".jpeg"));
}

/* Sub-directories (dirs) or image files of a directory; other visible entries are counted in *ignored. */
static CabStatus scan(const char *path, bool dirs, Names *out, int64_t *ignored) {
  DIR *dir = cab_fault("file.open") ? (errno = EIO, NULL) : opendir(path);
  if (!dir) return cab_fail_errno(path, "open");
  CabStatus status = CAB_OK;
  for (struct dirent *e; status == CAB_OK && (errno = 0, e = readdir(dir));) {
    char full[PATH_MAX];
    struct stat s;
    if (e->d_name[0] == '.') continue;
    bool wanted = !dirs && is_image(e->d_name);
    if (dirs && e->d_type == DT_DIR) wanted = true;
    else if (dirs && (e->d_type == DT_LNK || e->d_type == DT_UNKNOWN)) {
      if ((status = join(path, e->d_name, full)) != CAB_OK) break;
      wanted = !stat(full, &s) && S_ISDIR(s.st_mode);
    }
    if (wanted) status = add_name(out, NULL, e->d_name);
    else ++*ignored;
    errno = 0;
  }
  if (status == CAB_OK && errno) status = cab_fail_errno(path, "read");
  closedir(dir);
  if (status == CAB_OK && out->count) qsort_r(out->at, out->count, sizeof *out->at, order, out->text);
  return status;
}

static CabStatus fetch(CabDataset *ds, int64_t index, const CabWish *wish, int *warnings, CabImage *out) {
  const Folder *d = (const Folder *)ds;
  char path[PATH_MAX];
  CabBytes bytes;
  CAB_TRY(join(d->root, name_at(&d->files, (size_t)index), path));
  CAB_TRY(cab_read_file(path, CAB_IMAGE_MAX_FILE, &bytes));
  CabStatus status = cab_image_decode_part(bytes.data, bytes.length, path, wish, warnings, out);
  cab_bytes_free(&bytes);
  return status;
}

static const char *path_of(const CabDataset *ds, int64_t index, char *room) {
  const Folder *d = (const Folder *)ds;
  return join(d->root, name_at(&d->files, (size_t)index), room) == CAB_OK ? room : d->root;
}

static void destroy(CabDataset *ds) {
  Folder *d = (Folder *)ds;
  free_names(&d->files);
  cab_free(d->root);
  cab_free(d);
}

static const CabDatasetKind kind = {"folder", fetch, path_of, destroy};

/* Class of a folder: its place in the given names, or its own place. */
static int class_of(const char *folder, size_t place, int classes, const char *const *names) {
  if (!names) return (int)place;
  for (int i = 0; i < classes; i++)
    if (!strcmp(names[i], folder)) return i;
  return -1;
}

static CabStatus list_files(Folder *d, const Names *folders, int classes, const char *const *names, int64_t *end) {
  for (size_t c = 0; c < folders->count; c++) {
    char path[PATH_MAX], shown[340];
    const char *folder = name_at(folders, c);
    Names images = {0};
    if (class_of(folder, c, classes, names) < 0)
      return cab_fail_file(CAB_E_INPUT, "folder-class", d->root, -1, "folder \"%s\" is none of the %d classes given",
                           cab_escape(folder, strlen(folder), shown), classes);
    CAB_TRY(join(d->root, folder, path));
    CabStatus status = scan(path, false, &images, &d->base.ignored);
    for (size_t i = 0; status == CAB_OK && i < images.count; i++) status = add_name(&d->files, folder, name_at(&images, i));
    if (status == CAB_OK && !images.count)
      status = cab_fail_file(CAB_E_INPUT, "folder-empty", path, -1, "no PNG or JPEG files");
    free_names(&images);
    if (status != CAB_OK) return status;
    end[c] = (int64_t)d->files.count;
  }
  return CAB_OK;
}

static CabStatus label_files(Folder *d, const Names *folders, int classes, const char *const *names, const int64_t *end) {
  const char **own = cab_malloc(folders->count, sizeof *own);
  if (!own) return CAB_E_MEMORY;
  for (size_t c = 0; c < folders->count; c++) own[c] = name_at(folders, c);
  CabStatus status = cab_dataset_init(&d->base, &kind, (int64_t)d->files.count, names ? classes : (int)folders->count, names ? names : own);
  cab_free(own);
  for (size_t c = 0; status == CAB_OK && c < folders->count; c++)
    for (int64_t i = c ? end[c - 1] : 0; i < end[c]; i++)
      d->base.labels[i] = class_of(name_at(folders, c), c, classes, names);
  d->base.channels = 3;
  return status;
}

static CabStatus open_root(Folder *d, const char *root, Names *folders, int classes, const char *const *names) {
  size_t n = strlen(root) + 1;
  if (!(d->root = cab_malloc(n, 1))) return CAB_E_MEMORY;
  memcpy(d->root, root, n);
  CAB_TRY(scan(root, true, folders, &d->base.ignored));
  if (!folders->count) return cab_fail_file(CAB_E_INPUT, "folder-empty", root, -1, "no class folders");
  if (folders->count > 1u << 20) return cab_fail_file(CAB_E_INPUT, "folder-class", root, -1, "%zu class folders", folders->count);
  int64_t *end = cab_calloc(folders->count, sizeof *end);
  if (!end) return CAB_E_MEMORY;
  CabStatus status = list_files(d, folders, classes, names, end);
  if (status == CAB_OK) status = label_files(d, folders, classes, names, end);
  cab_free(end);
  return status;
}

CabDataset *cab_folder_open(const char *root, int classes, const char *const *names) {
  Names folders = {0};
  Folder *d = cab_calloc(1, sizeof *d);
  if (!d) return NULL;
  d->base.kind = &kind, d->base.refs = 1;
  CabStatus status = open_root(d, root, &folders, classes, names);
  free_names(&folders);
  if (status == CAB_OK) return &d->base;
  cab_dataset_release(&d->base);
  return NULL;
}
