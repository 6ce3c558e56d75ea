/* simd.h - one register of reals (`vec`, LANES of them) and the functions kernels need on it. CPU kernel files only.
 *
 * Arithmetic is GCC's vector extension (a * b + c contracts to FMA); a scalar operand is broadcast. Memory access goes
 * through memcpy, so nothing needs alignment. Accuracy: f32 functions are polynomials with the stated relative error,
 * f64 exp is a polynomial (< 4e-16), other f64 functions are libm lane by lane. NaN in gives NaN out. */
#ifndef CAB_KERNELS_SIMD_H
#define CAB_KERNELS_SIMD_H
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "kernel.h"

#define REAL_BITS_f32 32
#define REAL_BITS_f64 64
#define REAL_BITS CAB_CAT(REAL_BITS_, REAL) /* usable in #if */
#if defined(__AVX512F__) && defined(__AVX512DQ__)
#define VEC_BYTES 64
#elif defined(__AVX2__)
#define VEC_BYTES 32
#else
#define VEC_BYTES 16
#endif
#define LANES (VEC_BYTES * 8 / REAL_BITS)
#if REAL_BITS == 32
typedef int32_t real_bits;
#define VEC_SUFFIX ps
#else
typedef int64_t real_bits;
#define VEC_SUFFIX pd
#endif
#if VEC_BYTES == 64
#define VEC_PREFIX _mm512
#elif VEC_BYTES == 32
#define VEC_PREFIX _mm256
#else
#define VEC_PREFIX _mm
#endif
#define VEC_CAT_(p, op, s) p##_##op##_##s
#define VEC_CAT(p, op, s) VEC_CAT_(p, op, s)
#define VEC_OP(op) VEC_CAT(VEC_PREFIX, op, VEC_SUFFIX) /* VEC_OP(min) is _mm512_min_ps */

typedef real vec __attribute__((vector_size(VEC_BYTES)));
typedef real_bits ivec __attribute__((vector_size(VEC_BYTES))); /* comparison results: -1 or 0 */
#define SIMD static inline __attribute__((always_inline, unused))

SIMD vec vec_set(real x) { return x - (vec){0}; } /* x + 0 would lose the sign of -0 */
SIMD vec vec_load(const real *p) {
  vec v;
  memcpy(&v, p, sizeof v);
  return v;
}
SIMD void vec_store(real *p, vec v) { memcpy(p, &v, sizeof v); }
/* The first n > 0 lanes (n >= LANES: all); the others read as 0 and are not written. */
SIMD vec vec_load_n(const real *p, int64_t n) {
  if (__builtin_expect(n >= LANES, 1)) return vec_load(p);
#if VEC_BYTES == 64
  return VEC_OP(maskz_loadu)((1 << n) - 1, p);
#else
  real buffer[LANES] = {0};
  for (int64_t i = 0; i < n; i++) buffer[i] = p[i];
  return vec_load(buffer);
#endif
}
SIMD void vec_store_n(real *p, vec v, int64_t n) {
  if (__builtin_expect(n >= LANES, 1)) {
    vec_store(p, v);
    return;
  }
#if VEC_BYTES == 64
  VEC_OP(mask_storeu)(p, (1 << n) - 1, v);
#else
  real buffer[LANES];
  vec_store(buffer, v);
  for (int64_t i = 0; i < n; i++) p[i] = buffer[i];
#endif
}
/* b where either is NaN: put the constant first and NaN passes through. */
SIMD vec vec_min(vec a, vec b) { return VEC_OP(min)(a, b); }
SIMD vec vec_max(vec a, vec b) { return VEC_OP(max)(a, b); }
SIMD vec vec_select(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }
SIMD bool vec_all(ivec mask) {
#if VEC_BYTES == 64 && REAL_BITS == 32
  return _mm512_movepi32_mask((__m512i)mask) == 0xffff;
#elif VEC_BYTES == 64
  return _mm512_movepi64_mask((__m512i)mask) == 0xff;
#else
  return VEC_OP(movemask)((vec)mask) == (1 << LANES) - 1;
#endif
}
SIMD vec vec_abs(vec x) { return (vec)((ivec)x & ~(ivec)vec_set(-(real)0)); }
SIMD vec vec_sqrt(vec x) { return VEC_OP(sqrt)(x); }
/* Lane by lane through a scalar function. */
#define VEC_EACH(f, x)                                          \
  ({                                                            \
    vec each_ = (x);                                            \
    for (int l_ = 0; l_ < LANES; l_++) each_[l_] = f(each_[l_]); \
    each_;                                                      \
  })

/* Sum and maximum of all lanes, halving: a fixed order. */
SIMD real vec_sum(vec v) {
  real a[LANES];
  vec_store(a, v);
  for (int w = LANES / 2; w; w /= 2)
    for (int i = 0; i < w; i++) a[i] += a[i + w];
  return a[0];
}
SIMD real vec_max_of(vec v) {
  real a[LANES];
  vec_store(a, v);
  for (int w = LANES / 2; w; w /= 2)
    for (int i = 0; i < w; i++) a[i] = a[i] > a[i + w] ? a[i] : a[i + w];
  return a[0];
}
/* Lane i of the result is the sum of v[i], i < LANES: 3 instructions per sum where LANES calls of vec_sum take ~12. */
SIMD vec vec_sum_each(const vec *v) {
#if LANES == 16
  const ivec even = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
#elif LANES == 8
  const ivec even = {0, 2, 4, 6, 8, 10, 12, 14};
#elif LANES == 4
  const ivec even = {0, 2, 4, 6};
#else
  const ivec even = {0, 2};
#endif
  vec w[LANES];
  memcpy(w, v, sizeof w);
#pragma GCC unroll 4
  for (int m = LANES / 2; m; m /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < m; i++)
      w[i] = __builtin_shuffle(w[2 * i], w[2 * i + 1], even) + __builtin_shuffle(w[2 * i], w[2 * i + 1], even + 1);
  return w[0];
}

/* LANES x LANES reals in LANES registers become their transpose. */
SIMD void vec_transpose(vec *r) {
#pragma GCC unroll 4
  for (int w = 1; w < LANES; w *= 2) {
    ivec low, high;
    for (int l = 0; l < LANES; l++) {
      low[l] = l & w ? LANES + l - w : l;
      high[l] = l & w ? LANES + l : l + w;
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
      if (!(i & w)) {
        const vec a = r[i], b = r[i + w];
        r[i] = __builtin_shuffle(a, b, low);
        r[i + w] = __builtin_shuffle(a, b, high);
      }
  }
}

/* 2^f, |f| <= 1/2; exactly 1 at 0. f32: minimax, 7.2e-9 before rounding. f64: Taylor, 4e-18. */
SIMD vec vec_exp2_core(vec f) {
#if REAL_BITS == 32
  vec p = 1.5535319610683e-4f * f + 1.3396560837632e-3f;
  p = p * f + 9.6178588592638e-3f;
  p = p * f + 5.5503376124104e-2f;
  p = p * f + 2.4022651899659e-1f;
  p = p * f + 6.9314720153346e-1f;
#else
  vec p = 1.3691488853904128881e-12 * f + 2.5678435993488205142e-11;
  p = p * f + 4.4455382718708114976e-10;
  p = p * f + 7.0549116208011233299e-9;
  p = p * f + 1.0178086009239699727e-7;
  p = p * f + 1.3215486790144309488e-6;
  p = p * f + 1.525273380405984028e-5;
  p = p * f + 1.5403530393381609954e-4;
  p = p * f + 1.3333558146428443423e-3;
  p = p * f + 9.618129107628477162e-3;
  p = p * f + 5.5504108664821579953e-2;
  p = p * f + 2.4022650695910071233e-1;
  p = p * f + 6.9314718055994530942e-1;
#endif
  return p * f + (real)1;
}
#define VEC_LOG2E ((real)1.44269504088896340736)
#define VEC_LN2 ((real)0.69314718055994530942)
/* Exponents beyond which 2^n is infinite, or zero (v4 goes through the subnormals; v2, v3 flush them to 0). */
#define EXP2_MAX ((real)(REAL_BITS == 32 ? 129 : 1025))
#define EXP2_MIN ((real)(REAL_BITS == 32 ? -126 : -1022))

#if VEC_BYTES == 64
SIMD vec vec_round(vec x) { return VEC_OP(roundscale)(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
SIMD vec vec_scale2(vec x, vec n) { return VEC_OP(scalef)(x, n); }
/* 2^x, any x; the argument's own rounding aside, f32 < 1.2e-7, f64 < 4e-16. 11 operations in f32. */
SIMD vec vec_exp2(vec x) {
  vec f = VEC_OP(reduce)(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); /* x - round(x), 0 at infinity */
  return vec_scale2(vec_exp2_core(f), x - f);
}
#else
SIMD vec vec_round(vec x) { return VEC_OP(round)(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
/* x 2^n for integer EXP2_MIN <= n <= EXP2_MAX and 0.7 < x < 1.5: twice x times 2^(n-1), whose exponent field then
 * runs from 0 (that is 0.0) to all ones (infinity). The integer comes off the mantissa of n + 1.5 2^(mantissa bits). */
SIMD vec vec_scale2(vec x, vec n) {
  const int mantissa = REAL_BITS == 32 ? 23 : 52;
  const real magic = REAL_BITS == 32 ? (real)0x1.8p23 : (real)0x1.8p52;
  ivec bits = (ivec)(n + (magic + (REAL_BITS == 32 ? 126 : 1022)));
  return (x + x) * (vec)(bits << mantissa);
}
SIMD vec vec_exp2(vec x) {
  x = vec_max(vec_set(EXP2_MIN), vec_min(vec_set(EXP2_MAX), x));
  vec n = vec_round(x);
  return vec_scale2(vec_exp2_core(x - n), n);
}
#endif

/* e^x: f32 < 2e-7, f64 < 4e-16; n ln 2 is subtracted in two parts, the first exact. */
SIMD vec vec_exp(vec x) {
#if REAL_BITS == 32
  const real hi = 0x1.62e4p-1f, lo = 0x1.7f7d1cp-20f, low = -104, high = 89;
#else
  const real hi = 0x1.62e42feep-1, lo = 0x1.a39ef35793c76p-33, low = -746, high = 710;
#endif
  x = vec_max(vec_set(low), vec_min(vec_set(high), x));
  vec n = vec_round(x * VEC_LOG2E);
#if VEC_BYTES < 64
  vec r = x - n * hi - n * lo;
  n = vec_max(vec_set(EXP2_MIN), vec_min(vec_set(EXP2_MAX), n));
#else
  vec r = x - n * hi - n * lo;
#endif
  return vec_scale2(vec_exp2_core(r * VEC_LOG2E), n);
}
/* 1/x for 1 <= x < 2^126, f32 < 1.2e-7. On v4 a 14-bit estimate and a Newton step: 3 operations where one division
 * keeps the unit busy for ~16 cycles. */
SIMD vec vec_inverse(vec x) {
#if REAL_BITS == 32 && VEC_BYTES == 64
  vec r = _mm512_rcp14_ps(x);
  return r + r * (1 - x * r);
#else
  return 1 / x;
#endif
}
/* log(1 + e) for 0 <= e <= 1, as 2 atanh(s), s = e/(2+e) <= 1/3; f32 < 3e-7. */
SIMD vec vec_log1p01(vec e) {
#if REAL_BITS == 32
  vec s = e * vec_inverse(e + 2), z = s * s;
  vec p = z * (1.f / 13) + 1.f / 11;
  p = p * z + 1.f / 9;
  p = p * z + 1.f / 7;
  p = p * z + 1.f / 5;
  p = p * z + 1.f / 3;
  s += s;
  return s + s * z * p;
#else
  return VEC_EACH(log1p, e);
#endif
}
/* From e^-|x|, which cannot overflow; f32 < 2e-7. */
SIMD vec vec_sigmoid(vec x) {
  vec e = vec_exp(-vec_abs(x));
  return vec_select(x >= 0, vec_set(1), e) * vec_inverse(1 + e);
}
/* log(1 + e^x), and its derivative sigmoid(x) when asked for, from one exponential. */
SIMD vec vec_softplus_d(vec x, vec *derivative) {
  vec e = vec_exp(-vec_abs(x));
  if (derivative) *derivative = vec_select(x >= 0, vec_set(1), e) * vec_inverse(1 + e);
  return vec_max(vec_set(0), x) + vec_log1p01(e);
}
SIMD vec vec_softplus(vec x) { return vec_softplus_d(x, NULL); }
SIMD vec vec_silu(vec x) { return x * vec_sigmoid(x); }
/* d/dx x sigmoid(x), given s = sigmoid(x) */
SIMD vec vec_silu_slope(vec x, vec s) { return s + x * s * (1 - s); }
/* f32 < 3e-7: odd polynomial up to 5/8, 1 - 2/(e^2x + 1) beyond. */
SIMD vec vec_tanh(vec x) {
#if REAL_BITS == 32
  vec z = x * x;
  vec p = -5.70498872745e-3f * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  p = p * z * x + x;
  return vec_select(vec_abs(x) < 0.625f, p, 1 - 2 / (vec_exp(x + x) + 1));
#else
  return VEC_EACH(tanh, x);
#endif
}
/* Normal density and distribution Phi(x) = erfc(-x/sqrt 2)/2 (f32: rational-Chebyshev erfc of Numerical Recipes, its
 * e^(-x^2/2) taken as a product over the leading 12 bits of x and the rest, so the tail keeps its relative error). */
SIMD vec vec_normal(vec x, vec *density) {
#if REAL_BITS == 32
  vec a = vec_min(vec_set(30), vec_abs(x)), head = (vec)((ivec)a & -4096), rest = (a - head) * (a + head) * -0.5f;
  vec bell = vec_exp(head * head * -0.5f);
  vec t = 1 / (a * 0.353553390593f + 1);
  vec p = 0.17087277f * t - 0.82215223f;
  p = p * t + 1.48851587f;
  p = p * t - 1.13520398f;
  p = p * t + 0.27886807f;
  p = p * t - 0.18628806f;
  p = p * t + 0.09678418f;
  p = p * t + 0.37409196f;
  p = p * t + 1.00002368f;
  p = p * t - 1.26551223f;
  vec tail = 0.5f * t * bell * vec_exp(p + rest);
  if (density) *density = 0.398942280401f * bell * vec_exp(rest);
  return vec_select(x > 0, 1 - tail, tail);
#else
  if (density) *density = 0.398942280401432677939946 * vec_exp(-0.5 * x * x);
  vec y = x * -0.707106781186547524400844;
  return 0.5 * VEC_EACH(erfc, y);
#endif
}

/* The same functions of one real (same bits as in a vector). */
SIMD real k_exp(real x) { return vec_exp(vec_set(x))[0]; }
SIMD real k_sigmoid(real x) { return vec_sigmoid(vec_set(x))[0]; }
SIMD real k_softplus(real x) { return vec_softplus(vec_set(x))[0]; }
SIMD real k_tanh(real x) { return vec_tanh(vec_set(x))[0]; }
#endif
