// Found before the compiler's own: AVX-512 by SIMDe in plain code, for a machine that lacks it. The
// real header comes first, so that its names are taken before SIMDe's are put over them.
#pragma once
#include_next <immintrin.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

// What SIMDe 0.7.4 lacks, or gives a wrong alias.
#undef _mm512_madd_epi16
#define _mm512_madd_epi16(a, b) simde_mm512_madd_epi16(a, b)
#define _mm512_mask_loadu_ps(source, mask, p) emulated_mask_loadu_ps(source, mask, p)
#define _mm512_mask_storeu_ps(p, mask, v) emulated_mask_storeu_ps(p, mask, v)
#define _mm512_maskz_shuffle_ps(mask, a, b, how) emulated_maskz_shuffle_ps(mask, a, b, how)
#define _mm512_maskz_cvtps_epi32(mask, a) emulated_maskz_cvtps_epi32(mask, a)
#define _mm512_maskz_cvtepi32_epi16(mask, a) emulated_maskz_narrow<__m256i, short>(mask, a)
#define _mm512_maskz_cvtepi32_epi8(mask, a) emulated_maskz_narrow<__m128i, signed char>(mask, a)
#define _mm512_maskz_cvtepi8_epi16(all, a) simde_mm512_cvtepi8_epi16(a)

static inline __m512 emulated_mask_loadu_ps(__m512 source, unsigned mask, const float* p) {
  for (int i = 0; i < 16; ++i) {
    if ((mask >> i & 1) != 0) source[i] = p[i];
  }
  return source;
}
static inline void emulated_mask_storeu_ps(float* p, unsigned mask, __m512 v) {
  for (int i = 0; i < 16; ++i) {
    if ((mask >> i & 1) != 0) p[i] = v[i];
  }
}
static inline __m512 emulated_maskz_shuffle_ps(unsigned mask, __m512 a, __m512 b, int how) {
  __m512 v;
  for (int i = 0; i < 16; ++i) {
    const int from = i / 4 * 4 + (how >> (2 * (i % 4)) & 3);
    v[i] = (mask >> i & 1) == 0 ? 0.0F : i % 4 < 2 ? a[from] : b[from];
  }
  return v;
}
static inline __m512i emulated_maskz_cvtps_epi32(unsigned mask, __m512 a) {
  int lanes[16];
  for (int i = 0; i < 16; ++i) {
    const bool fits = a[i] >= -2147483648.0F && a[i] < 2147483648.0F;
    lanes[i] = (mask >> i & 1) == 0 ? 0
               : fits               ? static_cast<int>(__builtin_rintf(a[i]))
                                    : -2147483647 - 1;
  }
  __m512i v;
  __builtin_memcpy(&v, lanes, sizeof(v));
  return v;
}
template <typename V, typename Lane>
static inline V emulated_maskz_narrow(unsigned mask, __m512i a) {
  int wide[16];
  Lane lanes[16];
  __builtin_memcpy(wide, &a, sizeof(wide));
  for (int i = 0; i < 16; ++i) {
    lanes[i] = static_cast<Lane>((mask >> i & 1) == 0 ? 0 : wide[i]);
  }
  V v;
  __builtin_memcpy(&v, lanes, sizeof(v));
  return v;
}

// From here on sources believe that they are compiled for AVX-512.
#define __AVX512F__ 1
#define __AVX512BW__ 1
