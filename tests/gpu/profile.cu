/* profile.cu - a library that CUDA loads into a program (CUDA_INJECTION64_PATH): at the end it prints, for each kernel, copy and fill
 * that ran out of a graph, "NAME<TAB>COUNT<TAB>NANOSECONDS" to the file $CAB_PROFILE.
 * Build: nvcc -shared -Xcompiler -fPIC -o profile.so tests/gpu/profile.cu -lcupti */
#include <cupti.h>
#include <cxxabi.h>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

namespace {
struct Total { uint64_t count, ns; };
std::map<std::string, Total> totals;

std::string readable(const char *mangled) {
  int status = 0;
  char *text = abi::__cxa_demangle(mangled, nullptr, nullptr, &status);
  std::string name = text ? text : mangled;
  free(text);
  return name;
}

void note(uint32_t graph, const std::string &name, uint64_t begin, uint64_t end) {
  if (!graph) return;
  Total &t = totals[name];
  t.count++, t.ns += end - begin;
}

void CUPTIAPI give(uint8_t **buffer, size_t *size, size_t *records) {
  *size = 8 << 20, *records = 0;
  *buffer = (uint8_t *)aligned_alloc(ACTIVITY_RECORD_ALIGNMENT, *size);
}
void CUPTIAPI take(CUcontext, uint32_t, uint8_t *buffer, size_t, size_t valid) {
  CUpti_Activity *r = nullptr;
  while (cuptiActivityGetNextRecord(buffer, valid, &r) == CUPTI_SUCCESS)
    if (r->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) {
      const auto *k = (const CUpti_ActivityKernel10 *)r;
      note(k->graphId, readable(k->name), k->start, k->end);
    } else if (r->kind == CUPTI_ACTIVITY_KIND_MEMCPY) {
      const auto *m = (const CUpti_ActivityMemcpy6 *)r;
      note(m->graphId, "memcpy", m->start, m->end);
    } else if (r->kind == CUPTI_ACTIVITY_KIND_MEMSET) {
      const auto *m = (const CUpti_ActivityMemset4 *)r;
      note(m->graphId, "memset", m->start, m->end);
    }
  free(buffer);
}

void finish() {
  cuptiActivityFlushAll(1);
  const char *path = getenv("CAB_PROFILE");
  FILE *f = path ? fopen(path, "w") : stderr;
  if (!f) return perror(path);
  for (const auto &t : totals)
    fprintf(f, "%s\t%llu\t%llu\n", t.first.c_str(), (unsigned long long)t.second.count, (unsigned long long)t.second.ns);
  if (path) fclose(f);
}
} // namespace

extern "C" int InitializeInjection(void) {
  cuptiActivityRegisterCallbacks(give, take);
  cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL);
  cuptiActivityEnable(CUPTI_ACTIVITY_KIND_MEMCPY);
  cuptiActivityEnable(CUPTI_ACTIVITY_KIND_MEMSET);
  atexit(finish);
  return 1;
}
