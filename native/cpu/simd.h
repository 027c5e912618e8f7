// One vector of floats as wide as the instruction set this source is compiled for, by the compiler's
// vector extensions: the same kernels serve SSE2, NEON, AVX2 and AVX-512. Arithmetic operators and
// comparisons work lane by lane; a comparison gives an IntVec of 0 or −1.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/isa.h"

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace siglip::SIGLIP_CPU {

#if defined(SIGLIP_ISA_AVX512)
inline constexpr int kLanes = 16;
#elif defined(SIGLIP_ISA_AVX2)
inline constexpr int kLanes = 8;
#else
inline constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t UintVec __attribute__((vector_size(kLanes * 4)));
typedef double DoubleVec __attribute__((vector_size(kLanes * 8)));

namespace unaligned {
typedef float Vec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
}

static inline Vec load(const float* p) { return *reinterpret_cast<const unaligned::Vec*>(p); }
static inline void store(float* p, Vec v) { *reinterpret_cast<unaligned::Vec*>(p) = v; }
static inline Vec splat(float x) { return x - Vec{}; }

// a · b + c. Written as the instruction where there is one: left to contraction, newer compilers
// split chains of it for some processors.
static inline Vec multiply_add(Vec a, Vec b, Vec c) {
#if defined(SIGLIP_ISA_AVX512) && defined(__AVX512F__)
  return reinterpret_cast<Vec>(_mm512_fmadd_ps(
      reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#elif defined(SIGLIP_ISA_AVX2) && defined(__FMA__)
  return reinterpret_cast<Vec>(_mm256_fmadd_ps(
      reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
#elif defined(__ARM_NEON)
  return reinterpret_cast<Vec>(vfmaq_f32(reinterpret_cast<float32x4_t>(c),
                                         reinterpret_cast<float32x4_t>(a),
                                         reinterpret_cast<float32x4_t>(b)));
#else
  return a * b + c;
#endif
}

// First n lanes from memory, the rest `fill`; 0 <= n < kLanes. Touches nothing beyond p[n - 1].
static inline Vec load_partial(const float* p, int64_t n, float fill = 0.0F) {
  Vec v = splat(fill);
#if defined(SIGLIP_ISA_AVX512) && defined(__AVX512F__)
  const auto mask = static_cast<__mmask16>((1U << n) - 1U);
  return reinterpret_cast<Vec>(_mm512_mask_loadu_ps(reinterpret_cast<__m512>(v), mask, p));
#elif defined(SIGLIP_ISA_AVX2) && defined(__AVX2__)
  const IntVec mask = IntVec{0, 1, 2, 3, 4, 5, 6, 7} < static_cast<int32_t>(n);
  const __m256 some = _mm256_maskload_ps(p, reinterpret_cast<__m256i>(mask));
  return mask ? reinterpret_cast<Vec>(some) : v;
#elif defined(SIGLIP_ISA_AVX512)
  std::memcpy(&v, p, static_cast<size_t>(n) * sizeof(float));
  return v;
#else
  if (n > 0) v[0] = p[0];
  if (n > 1) v[1] = p[1];
  if (n > 2) v[2] = p[2];
  return v;
#endif
}
static inline void store_partial(float* p, Vec v, int64_t n) {
#if defined(SIGLIP_ISA_AVX512) && defined(__AVX512F__)
  const auto mask = static_cast<__mmask16>((1U << n) - 1U);
  _mm512_mask_storeu_ps(p, mask, reinterpret_cast<__m512>(v));
#elif defined(SIGLIP_ISA_AVX2) && defined(__AVX2__)
  const IntVec mask = IntVec{0, 1, 2, 3, 4, 5, 6, 7} < static_cast<int32_t>(n);
  _mm256_maskstore_ps(p, reinterpret_cast<__m256i>(mask), reinterpret_cast<__m256>(v));
#elif defined(SIGLIP_ISA_AVX512)
  std::memcpy(p, &v, static_cast<size_t>(n) * sizeof(float));
#else
  if (n > 0) p[0] = v[0];
  if (n > 1) p[1] = v[1];
  if (n > 2) p[2] = v[2];
#endif
}

static inline Vec select(IntVec mask, Vec yes, Vec no) { return mask ? yes : no; }
#if defined(SIGLIP_ISA_AVX512) && defined(__AVX512F__)
// GCC's forms without a mask are written with an undefined operand, and warn.
inline constexpr __mmask16 kAllLanes = 0xffff;
#endif

// Of two lanes that do not compare (NaN), the second.
static inline Vec max(Vec a, Vec b) {
#if defined(SIGLIP_ISA_AVX512) && defined(__AVX512F__)
  return reinterpret_cast<Vec>(
      _mm512_maskz_max_ps(kAllLanes, reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#elif defined(SIGLIP_ISA_AVX2) && defined(__AVX2__)
  return reinterpret_cast<Vec>(
      _mm256_max_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
#else
  return a > b ? a : b;
#endif
}
static inline Vec min(Vec a, Vec b) {
#if defined(SIGLIP_ISA_AVX512) && defined(__AVX512F__)
  return reinterpret_cast<Vec>(
      _mm512_maskz_min_ps(kAllLanes, reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#elif defined(SIGLIP_ISA_AVX2) && defined(__AVX2__)
  return reinterpret_cast<Vec>(
      _mm256_min_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
#else
  return a < b ? a : b;
#endif
}
static inline Vec abs(Vec a) {
  return reinterpret_cast<Vec>(reinterpret_cast<IntVec>(a) & 0x7fffffff);
}

// Pairwise, so that the order is fixed and the error small.
static inline float reduce_add(Vec v) {
  float lane[kLanes];
  std::memcpy(lane, &v, sizeof(lane));
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return lane[0];
}
static inline float reduce_max(Vec v) {
  float lane[kLanes];
  std::memcpy(lane, &v, sizeof(lane));
  float best = lane[0];
  for (int i = 1; i < kLanes; ++i) best = lane[i] > best ? lane[i] : best;
  return best;
}

// e^x to about 1 ulp (Cephes' polynomial); arguments are clamped to the range of normal floats, so
// the result is never 0, infinite or denormal. NaN stays NaN.
static inline Vec exp(Vec x) {
  const IntVec is_nan = x != x;
  const Vec original = x;
  x = min(max(x, splat(-87.33654F)), splat(88.37626F));
  const Vec rounder = splat(12582912.0F);  // 1.5 · 2^23: adding it rounds to the nearest integer
  const Vec n = (x * splat(1.44269504088896341F) + rounder) - rounder;
  Vec r = x - n * splat(0.693359375F);
  r = r - n * splat(-2.12194440e-4F);
  Vec p = splat(1.9875691500e-4F);
  p = p * r + splat(1.3981999507e-3F);
  p = p * r + splat(8.3334519073e-3F);
  p = p * r + splat(4.1665795894e-2F);
  p = p * r + splat(1.6666665459e-1F);
  p = p * r + splat(5.0000001201e-1F);
  p = p * (r * r) + r + splat(1.0F);
  const IntVec exponent = (__builtin_convertvector(n, IntVec) + 127) << 23;
  return select(is_nan, original, p * reinterpret_cast<Vec>(exponent));
}

// log(1 + e) for e in [0, 1], accurate relative to e however small: 2 atanh(e / (2 + e)).
static inline Vec log1p_unit(Vec e) {
  const Vec z = e / (e + splat(2.0F));
  const Vec q = z * z;
  Vec p = splat(1.0F / 15.0F);
  p = p * q + splat(1.0F / 13.0F);
  p = p * q + splat(1.0F / 11.0F);
  p = p * q + splat(1.0F / 9.0F);
  p = p * q + splat(1.0F / 7.0F);
  p = p * q + splat(1.0F / 5.0F);
  p = p * q + splat(1.0F / 3.0F);
  p = p * q + splat(1.0F);
  return (z + z) * p;
}

static inline Vec sigmoid(Vec x) { return splat(1.0F) / (splat(1.0F) + exp(-x)); }

// 2^x for x in [−125, 127] to about 1 ulp (minimax polynomial on [−½, ½]). NaN stays NaN.
static inline Vec exp2_bounded(Vec x) {
#if defined(SIGLIP_ISA_AVX512) && !defined(SIGLIP_EMULATED)
  const Vec n = reinterpret_cast<Vec>(
      _mm512_maskz_roundscale_ps(kAllLanes, reinterpret_cast<__m512>(x), _MM_FROUND_NO_EXC));
  const Vec r = x - n;
#else
  const Vec rounder = splat(12582912.0F);  // 1.5 · 2^23
  const Vec shifted = x + rounder;         // its low bits are round(x)
  const Vec r = x - (shifted - rounder);
#endif
  Vec p = splat(1.5353362e-4F);
  p = multiply_add(p, r, splat(1.3398875e-3F));
  p = multiply_add(p, r, splat(9.6184369e-3F));
  p = multiply_add(p, r, splat(5.5503324e-2F));
  p = multiply_add(p, r, splat(2.4022648e-1F));
  p = multiply_add(p, r, splat(6.9314718e-1F));
  p = multiply_add(p, r, splat(1.0F));
#if defined(SIGLIP_ISA_AVX512) && !defined(SIGLIP_EMULATED)
  return reinterpret_cast<Vec>(
      _mm512_maskz_scalef_ps(kAllLanes, reinterpret_cast<__m512>(p), reinterpret_cast<__m512>(n)));
#else
  // A product keeps every NaN; adding to the exponent's bits would turn some into numbers.
  const UintVec exponent = (reinterpret_cast<UintVec>(shifted) << 23) + 0x3f800000U;
  return p * reinterpret_cast<Vec>(exponent);
#endif
}

// 1 / x for normal x, to 1 ulp or two: an estimate and one step of Newton's take a third of the time
// that a division does.
static inline Vec reciprocal(Vec x) {
#if defined(SIGLIP_ISA_AVX512) && !defined(SIGLIP_EMULATED)
  const Vec estimate =
      reinterpret_cast<Vec>(_mm512_maskz_rcp14_ps(0xffff, reinterpret_cast<__m512>(x)));
  return multiply_add(multiply_add(-x, estimate, splat(1.0F)), estimate, estimate);
#else
  return splat(1.0F) / x;
#endif
}

// GELU, tanh approximation, with u = √(2/π) (x + 0.044715 x³): since ½ (1 + tanh u) = sigmoid(2u),
//   gelu(x) = x s,   gelu'(x) = s + x s (1 − s) 2u',   s = 1 / (1 + e), e = exp(−2u), 1 − s = e s.
// The bound on the exponent keeps s normal and cannot be seen in the result; a NaN stays one, as
// min and max are written to give back x.
static inline Vec gelu_exponential(Vec x) {
  const Vec slope = multiply_add(x * x, splat(-0.10294324F), splat(-2.3022082F));  // times log2 e
  return exp2_bounded(min(splat(126.0F), max(splat(-125.0F), x * slope)));
}
static inline Vec gelu(Vec x) { return x * reciprocal(splat(1.0F) + gelu_exponential(x)); }

// GELU to 2^-14, for what the next product rounds to bfloat16 or int8.
static inline Vec rough_gelu(Vec x) {
#if defined(SIGLIP_ISA_AVX512) && !defined(SIGLIP_EMULATED)
  const Vec slope = multiply_add(x * x, splat(-0.10294324F), splat(-2.3022082F));
  const __m512 t = reinterpret_cast<__m512>(min(splat(126.0F), x * slope));
  const __m512 n = _mm512_maskz_roundscale_ps(kAllLanes, t, _MM_FROUND_NO_EXC);
  const Vec r = reinterpret_cast<Vec>(t) - reinterpret_cast<Vec>(n);
  Vec p = multiply_add(splat(9.6184369e-3F), r, splat(5.5503324e-2F));
  p = multiply_add(p, r, splat(2.4022648e-1F));
  p = multiply_add(p, r, splat(6.9314718e-1F));
  p = multiply_add(p, r, splat(1.0F));
  const Vec e =
      reinterpret_cast<Vec>(_mm512_maskz_scalef_ps(kAllLanes, reinterpret_cast<__m512>(p), n));
  const __m512 sum = reinterpret_cast<__m512>(splat(1.0F) + e);
  return x * reinterpret_cast<Vec>(_mm512_maskz_rcp14_ps(kAllLanes, sum));
#else
  return gelu(x);
#endif
}

static inline Vec gelu_gradient(Vec x) {
  x = min(splat(10.0F), max(splat(-10.0F), x));  // outside, the gradient is 0 or 1 in float32
  const Vec e = gelu_exponential(x);
  const Vec s = reciprocal(splat(1.0F) + e);
  const Vec slope = multiply_add(x * x, splat(0.21406445F), splat(1.5957691F));  // 2u'
  return multiply_add((x * s) * (e * s), slope, s);
}

}  // namespace siglip::SIGLIP_CPU
