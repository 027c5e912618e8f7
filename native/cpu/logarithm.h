// The natural logarithm.
#pragma once

#include "cpu/simd.h"

namespace siglip::SIGLIP_CPU {

// log(x) for a normal positive x, accurate in absolute terms near 1; NaN for NaN.
static inline Vec log(Vec x) {
  const UintVec bits = reinterpret_cast<UintVec>(x);
  const IntVec exponent = reinterpret_cast<IntVec>(bits >> 23) - 127;
  const Vec mantissa = reinterpret_cast<Vec>((bits & 0x7fffffU) | 0x3f800000U);
  return __builtin_convertvector(exponent, Vec) * splat(0.69314718055994531F) +
         log1p_unit(mantissa - splat(1.0F)) + (x - x);
}

}  // namespace siglip::SIGLIP_CPU
