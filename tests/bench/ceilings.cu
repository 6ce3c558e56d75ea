/* ceilings.cu - what this GPU can do, measured without any of our code: one "name value" a line.
 * build: nvcc -O3 -arch=native -o build/ceilings tests/bench/ceilings.cu -lcublas */
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#define TRY(call)                                                                       \
  do {                                                                                  \
    int code_ = (int)(call);                                                            \
    if (code_) fprintf(stderr, "%s: error %d\n", #call, code_), exit(1);                \
  } while (0)

static cudaStream_t stream;

/* Median seconds of one of `count` launches, as a graph that is replayed until it has taken a few milliseconds. */
template <class F> static double seconds(int count, F launch) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  cudaEvent_t begin, end;
  launch(0);
  TRY(cudaStreamSynchronize(stream));
  TRY(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < count; i++) launch(i);
  TRY(cudaStreamEndCapture(stream, &graph));
  TRY(cudaGraphInstantiate(&exec, graph, 0));
  TRY(cudaEventCreate(&begin));
  TRY(cudaEventCreate(&end));
  std::vector<float> times;
  int replays = 1;
  for (int i = 0; i < 14; i++) {
    float ms;
    TRY(cudaEventRecord(begin, stream));
    for (int k = 0; k < replays; k++) TRY(cudaGraphLaunch(exec, stream));
    TRY(cudaEventRecord(end, stream));
    TRY(cudaEventSynchronize(end));
    TRY(cudaEventElapsedTime(&ms, begin, end));
    if (i == 2) replays = ms < 5 ? (int)(5 / ms) + 1 : 1;
    if (i > 3) times.push_back(ms / replays);
  }
  std::sort(times.begin(), times.end());
  TRY(cudaGraphExecDestroy(exec));
  TRY(cudaGraphDestroy(graph));
  return times[times.size() / 2] * 1e-3 / count;
}

__global__ static void copy_kernel(size_t n, const float4 *src, float4 *dst) {
  for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) dst[i] = src[i];
}
__global__ static void nothing() {}

/* Eight independent chains of exp2 a thread. */
enum { EXP_STEPS = 2048 };
__global__ static void exp2_kernel(float seed, float *out) {
  float x[8];
  for (int i = 0; i < 8; i++) x[i] = seed * (float)(threadIdx.x + i);
  for (int k = 0; k < EXP_STEPS; k++)
#pragma unroll
    for (int i = 0; i < 8; i++) asm volatile("ex2.approx.ftz.f32 %0, %0;" : "+f"(x[i]));
  float sum = 0;
  for (int i = 0; i < 8; i++) sum += x[i];
  if (sum == 12345.f) *out = sum;
}

/* Copies of `bytes` bytes between `sets` pairs of buffers in turn. */
static void copy_rate(const char *name, size_t bytes, int sets) {
  std::vector<float4 *> buffer(2 * sets);
  for (auto &b : buffer) {
    TRY(cudaMalloc(&b, bytes));
    TRY(cudaMemset(b, 1, bytes));
  }
  double best = 0;
  for (int blocks = 1; blocks <= 16; blocks *= 2) {
    double t = seconds(20, [&](int i) {
      copy_kernel<<<132 * blocks, 512, 0, stream>>>(bytes / 16, buffer[2 * (i % sets)], buffer[2 * (i % sets) + 1]);
    });
    best = std::max(best, 2 * bytes / t);
  }
  double t = seconds(20, [&](int i) { cudaMemcpyAsync(buffer[2 * (i % sets) + 1], buffer[2 * (i % sets)], bytes, cudaMemcpyDeviceToDevice, stream); });
  printf("%s %.4g\n", name, std::max(best, 2 * bytes / t));
  for (auto b : buffer) cudaFree(b);
}

/* y[m,n] = x[m,k] w[n,k]^T, row-major. */
static void product_rate(cublasHandle_t blas, const char *name, int m, int n, int k) {
  static const struct { const char *name; cudaDataType type; cublasComputeType_t compute; } kinds[] = {
      {"f32", CUDA_R_32F, CUBLAS_COMPUTE_32F}, {"tf32", CUDA_R_32F, CUBLAS_COMPUTE_32F_FAST_TF32}, {"bf16", CUDA_R_16BF, CUBLAS_COMPUTE_32F}};
  size_t bytes = 4 * ((size_t)m * k + (size_t)n * k + (size_t)m * n);
  int sets = bytes > (200u << 20) ? 1 : (int)((200u << 20) / bytes) + 1;
  sets = std::min(sets, 40);
  std::vector<char *> buffer(sets);
  for (auto &b : buffer) {
    TRY(cudaMalloc(&b, bytes));
    TRY(cudaMemset(b, 0, bytes));
  }
  for (auto &kind : kinds) {
    float one = 1, zero = 0;
    double t = seconds(bytes > (200u << 20) ? 2 : 20, [&](int i) {
      char *x = buffer[i % sets], *w = x + 4 * (size_t)m * k, *y = w + 4 * (size_t)n * k;
      TRY(cublasGemmEx(blas, CUBLAS_OP_T, CUBLAS_OP_N, n, m, k, &one, w, kind.type, k, x, kind.type, k, &zero, y, kind.type, n,
                       kind.compute, CUBLAS_GEMM_DEFAULT));
    });
    printf("%s_%s %.4g\n", name, kind.name, 2.0 * m * n * k / t);
  }
  for (auto b : buffer) cudaFree(b);
}

int main() {
  cublasHandle_t blas;
  float *out;
  void *workspace;
  TRY(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  TRY(cublasCreate(&blas));
  TRY(cublasSetStream(blas, stream));
  TRY(cudaMalloc(&workspace, 64 << 20));
  TRY(cublasSetWorkspace(blas, workspace, 64 << 20));
  TRY(cudaMalloc(&out, 4));
  copy_rate("copy_1GiB", (size_t)1 << 30, 2);
  copy_rate("copy_19MB", (size_t)64 * 197 * 384 * 4, 6);
  int blocks = 132 * 16;
  printf("exp2 %.4g\n", 8.0 * EXP_STEPS * blocks * 256 / seconds(1, [&](int) { exp2_kernel<<<blocks, 256, 0, stream>>>(1e-3f, out); }));
  printf("node_us %.3g\n", 1e6 * seconds(2000, [](int) { nothing<<<1, 32, 0, stream>>>(); }));
  cudaEvent_t begin, end;
  float ms;
  TRY(cudaEventCreate(&begin));
  TRY(cudaEventCreate(&end));
  TRY(cudaEventRecord(begin, stream));
  for (int i = 0; i < 20000; i++) nothing<<<1, 32, 0, stream>>>();
  TRY(cudaEventRecord(end, stream));
  TRY(cudaEventSynchronize(end));
  TRY(cudaEventElapsedTime(&ms, begin, end));
  printf("launch_us %.3g\n", ms / 20);
  product_rate(blas, "gemm_8192", 8192, 8192, 8192);
  product_rate(blas, "in_proj", 12608, 768, 192);
  product_rate(blas, "x_proj", 12608, 44, 384);
  product_rate(blas, "dt_proj", 12608, 384, 12);
  product_rate(blas, "out_proj", 12608, 192, 384);
  return 0;
}
