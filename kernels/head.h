/* head.h - op head_loss: what follows the logits of a language model, next-token cross-entropy and a divergence from a teacher, each row's
 * value and the gradient of its logits at once, so that the logits of a block of rows are all that is ever held.
 * Row r is token t of sequence s = r / L. Its target is token t+1 of the sequence, if that is of the same segment; its divergence
 * counts where its segment is not negative (padding). With p = softmax(teacher / T), q = softmax(logits / T), over the first
 * `vocab` entries alone:
 *   FORWARD T^2 sum p (log p - log q);  CROSS T^2 sum -p log q;  REVERSE T^2 sum q (log q - log p);
 *   JSD T^2 (sum p log(p/m) + sum q log(q/m)) / 2, m = (p + q)/2 */
#ifndef CAB_KERNELS_HEAD_H
#define CAB_KERNELS_HEAD_H
#include "kernel.h"
typedef enum { HEAD_FORWARD, HEAD_CROSS, HEAD_REVERSE, HEAD_JSD } HeadDivergence;
typedef struct {
  int64_t B, L, vocab;
  int64_t V, U, K;     /* row strides of logits and of the teacher's; entries of its top list, 0: whole rows */
  double ce, kl, smoothing, temperature; /* weights of the two losses, 0: not computed */
  HeadDivergence divergence;
} HeadShape;
/* count [2]: rows that have a target, rows that count for the divergence; at least 1 each. */
TWIN(head_count, int64_t B, int64_t L, const int32_t *ids, const int32_t *segment, wide *count);
/* Rows first .. first + rows. logits [rows,V] without bias [V] (or NULL) on entry; gradient of ce/count[0] sum CE +
 * kl/count[1] sum divergence on return, 0 from `vocab` to the next row, if `gradient`. teacher [rows,U] likewise, overwritten, its bias [U]; or, with K,
 * teacher [rows,K] and its entries top [rows,K]: p is theirs, 0 elsewhere (FORWARD, CROSS); a row's entries differ. losses [2,B*L]: each row's share of
 * the two means (unweighted). segment, teacher, bias and top may be NULL. */
TWIN(head_rows, const HeadShape *s, int64_t first, int64_t rows, const int32_t *ids, const int32_t *segment, const wide *count,
     real *logits, const wide *bias, real *teacher, const wide *teacher_bias, const int32_t *top, bool gradient, wide *losses);
/* y = factor x; factor is one number. */
TWIN(head_scaled, int64_t n, const real *x, const wide *factor, real *y);
#endif
