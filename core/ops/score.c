/* score.c - how likely a language model holds given tokens: read off logits after the forward pass, for evaluation only. */
#include <math.h>

#include "tensor.h"
#include "update.h"

/* log softmax(x)[target] in f64, and whether target is the first of the largest. */
static double row_score(const float *x, int64_t V, int32_t target, int32_t *greedy) {
  int64_t best = 0;
  double sum = -1; /* e^0 of the largest, which log1p brings back */
  for (int64_t i = 1; i < V; i++)
    if (x[i] > x[best]) best = i;
  for (int64_t i = 0; i < V; i++) sum += expf(x[i] - x[best]);
  *greedy = target == best;
  return (double)x[target] - x[best] - log1p(sum);
}

static CabStatus check(const CabTensor *logits, const CabTensor *targets) {
  char text[160];
  if (!logits->storage || !targets->storage) return cab_fail(CAB_E_LUA, "token_scores: tensor is closed");
  if (logits->rank != 2 || logits->shape[1] < 1) return cab_fail(CAB_E_LUA, "token_scores: 'logits' is %s, expected [R,V]", cab_shape_text(logits, text));
  if (targets->dtype != CAB_I32 || targets->rank != 1 || targets->shape[0] != logits->shape[0])
    return cab_fail(CAB_E_LUA, "token_scores: 'targets' is %s, expected i32[R=%lld]", cab_shape_text(targets, text), (long long)logits->shape[0]);
  return CAB_OK;
}

/* x f32[R,V], target i32[R], score f64[R], greedy i32[R]: all on the CPU, contiguous. */
static CabStatus run(const CabTensor *x, const CabTensor *targets, double *score, int32_t *greedy) {
  int64_t R = x->shape[0], V = x->shape[1];
  const int32_t *target = cab_tensor_data(targets);
  const float *row = cab_tensor_data(x);
  for (int64_t r = 0; r < R; r++)
    if (target[r] < -1 || target[r] >= V)
      return cab_fail(CAB_E_LUA, "token_scores: target %d at row %lld, expected -1 to %lld", target[r], (long long)r + 1, (long long)V - 1);
#pragma omp parallel for schedule(static) if (R * V > 1 << 16)
  for (int64_t r = 0; r < R; r++) {
    score[r] = 0, greedy[r] = 0;
    if (target[r] >= 0) score[r] = row_score(row + r * V, V, target[r], &greedy[r]);
  }
  return CAB_OK;
}

CabStatus cab_token_scores(CabTensor *logits, CabTensor *targets, CabTensor *score, CabTensor *greedy) {
  CAB_TRY(check(logits, targets));
  CabTensor *x = cab_tensor_to(logits, cab_cpu(), CAB_F32), *ids = x ? cab_tensor_to(targets, cab_cpu(), CAB_I32) : NULL;
  CabStatus status = ids ? run(x, ids, cab_tensor_data(score), cab_tensor_data(greedy)) : cab_error()->code;
  cab_tensor_release(x), cab_tensor_release(ids);
  return status;
}
