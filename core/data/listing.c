/* listing.c - reading the folders of a root, as few as possible. */
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <time.h>

#include "listing.h"

/* A file system's clock may tick this slowly: a folder that changed so shortly before it was read may change again unseen. */
static const int64_t TICK = 2000000000;

void cab_names_free(CabNames *n) {
  cab_free(n->text);
  cab_free(n->at);
  *n = (CabNames){0};
}

CabStatus cab_names_add(CabNames *n, const char *folder, const char *name) {
  size_t left = folder ? strlen(folder) + 1 : 0, right = strlen(name) + 1;
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
  if (folder) {
    memcpy(n->text + n->used, folder, left - 1);
    n->text[n->used + left - 1] = '/';
  }
  memcpy(n->text + n->used + left, name, right);
  n->used += left + right;
  return CAB_OK;
}

void cab_listing_free(CabListing *l) {
  cab_names_free(&l->folders), cab_names_free(&l->files);
  cab_free(l->folder);
  l->folder = NULL;
}

bool cab_names_image(const char *name) {
  const char *dot = strrchr(name, '.');
  return dot && (!strcasecmp(dot, ".png") || !strcasecmp(dot, ".jpg") || !strcasecmp(dot, ".jpeg"));
}

static CabStatus join(const char *dir, const char *name, char out[PATH_MAX]) {
  int n = snprintf(out, PATH_MAX, "%s/%s", dir, name);
  return n < PATH_MAX ? CAB_OK : cab_fail_file(CAB_E_IO, "", dir, -1, "name too long");
}

static int64_t nanoseconds(struct timespec t) { return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec; }

static bool stamp_of(const char *path, CabStamp *out) {
  struct stat s;
  if (stat(path, &s) || !S_ISDIR(s.st_mode)) return false;
  *out = (CabStamp){s.st_dev, s.st_ino, nanoseconds(s.st_mtim), nanoseconds(s.st_ctim)};
  return true;
}

static int order(const void *a, const void *b, void *text) {
  return strcmp((const char *)text + *(const uint32_t *)a, (const char *)text + *(const uint32_t *)b);
}

/* Sub-directories (dirs) or image files of a directory, sorted; other visible entries are counted in *ignored. */
static CabStatus scan(const char *path, bool dirs, CabNames *out, uint64_t *ignored) {
  DIR *dir = cab_fault("file.open") ? (errno = EIO, NULL) : opendir(path);
  if (!dir) return cab_fail_errno(path, "open");
  CabStatus status = CAB_OK;
  for (struct dirent *e; status == CAB_OK && (errno = 0, e = readdir(dir));) {
    char full[PATH_MAX];
    struct stat s;
    if (e->d_name[0] == '.') continue;
    bool wanted = !dirs && cab_names_image(e->d_name);
    if (dirs && e->d_type == DT_DIR) wanted = true;
    else if (dirs && (e->d_type == DT_LNK || e->d_type == DT_UNKNOWN)) {
      if ((status = join(path, e->d_name, full)) != CAB_OK) break;
      wanted = !stat(full, &s) && S_ISDIR(s.st_mode);
    }
    if (wanted) status = cab_names_add(out, NULL, e->d_name);
    else ++*ignored;
    errno = 0;
  }
  if (status == CAB_OK && errno) status = cab_fail_errno(path, "read");
  closedir(dir);
  if (status == CAB_OK && out->count) qsort_r(out->at, out->count, sizeof *out->at, order, out->text);
  return status;
}

/* Unchanged since the index was made, and old enough then for that to be seen. */
static bool is_fresh(const CabListing *old, const CabStamp *then, const CabStamp *now) {
  return !memcmp(then, now, sizeof *now) && now->changed < old->read_at - TICK && now->modified < old->read_at - TICK;
}

/* The folder's place in the old listing, -1 if it has none. */
static int64_t find_folder(const CabListing *old, const char *name) {
  size_t low = 0, high = old->folders.count;
  while (low < high) {
    size_t middle = (low + high) / 2;
    int c = strcmp(cab_name_at(&old->folders, middle), name);
    if (c == 0) return (int64_t)middle;
    if (c < 0) low = middle + 1;
    else high = middle;
  }
  return -1;
}

/* Folder i of l: its files from the old listing, or else from the disk. */
static CabStatus list_folder(const char *root, const CabListing *old, size_t i, CabListing *l) {
  char path[PATH_MAX];
  const char *name = cab_name_at(&l->folders, i);
  CabListed *to = &l->folder[i];
  CAB_TRY(join(root, name, path));
  if (!stamp_of(path, &to->stamp)) return cab_fail_errno(path, "open");
  int64_t at = find_folder(old, name);
  CabStatus status = CAB_OK;
  if (at >= 0 && is_fresh(old, &old->folder[at].stamp, &to->stamp)) {
    to->ignored = old->folder[at].ignored;
    for (size_t k = at ? old->folder[at - 1].end : 0; status == CAB_OK && k < old->folder[at].end; k++)
      status = cab_names_add(&l->files, NULL, cab_name_at(&old->files, k));
  } else {
    CabNames images = {0};
    l->scanned++;
    status = scan(path, false, &images, &to->ignored);
    for (size_t k = 0; status == CAB_OK && k < images.count; k++) status = cab_names_add(&l->files, name, cab_name_at(&images, k));
    cab_names_free(&images);
  }
  to->end = l->files.count;
  return status;
}

/* The folders' names: those of the old listing if the root is as it was. */
static CabStatus list_root(const char *root, const CabListing *old, CabListing *l) {
  if (!stamp_of(root, &l->root)) return cab_fail_errno(root, "open");
  if (!old->folders.count || !is_fresh(old, &old->root, &l->root)) {
    l->scanned++;
    return scan(root, true, &l->folders, &l->ignored);
  }
  l->ignored = old->ignored;
  for (size_t i = 0; i < old->folders.count; i++) CAB_TRY(cab_names_add(&l->folders, NULL, cab_name_at(&old->folders, i)));
  return CAB_OK;
}

static CabStatus list_all(const char *root, const CabListing *old, CabListing *l) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  l->read_at = nanoseconds(now);
  CAB_TRY(list_root(root, old, l));
  if (!l->folders.count) return cab_fail_file(CAB_E_INPUT, "folder-empty", root, -1, "no class folders");
  if (l->folders.count > 1u << 20) return cab_fail_file(CAB_E_INPUT, "folder-class", root, -1, "%zu class folders", l->folders.count);
  if (!(l->folder = cab_calloc(l->folders.count, sizeof *l->folder))) return CAB_E_MEMORY;
  for (size_t i = 0; i < l->folders.count; i++) CAB_TRY(list_folder(root, old, i, l));
  return CAB_OK;
}

static void read_index(const char *path, CabListing *out) {
  CabBytes bytes;
  if (cab_read_file(path, UINT32_MAX, &bytes) != CAB_OK) return;
  cab_index_decode(bytes.data, bytes.length, out);
  cab_bytes_free(&bytes);
}

static void write_index(const char *path, CabListing *l) {
  CabBytes bytes = {0};
  CabStatus status = cab_index_encode(l, &bytes);
  if (status == CAB_OK) status = cab_write_file(path, bytes.data, bytes.length);
  if (status != CAB_OK) snprintf(l->note, sizeof l->note, "the index of the folder was not kept: %.280s", cab_error()->message);
  cab_bytes_free(&bytes);
}

CabStatus cab_listing_read(const char *root, const char *index, CabListing *out) {
  CabListing old = {0};
  *out = (CabListing){0};
  if (index) read_index(index, &old);
  CabStatus status = list_all(root, &old, out);
  cab_listing_free(&old);
  if (status == CAB_OK && index && out->scanned && out->files.count >= CAB_INDEX_LEAST) write_index(index, out);
  return status;
}
