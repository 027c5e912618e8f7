// The order in which learnability_select draws, the same on every device.
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>

#include "cpu/isa.h"

#if defined(__CUDACC__)
#define SIGLIP_EVERYWHERE __host__ __device__
#else
#define SIGLIP_EVERYWHERE
#endif

namespace siglip::SIGLIP_CPU {

struct Draw {
  uint32_t key0;
  uint32_t key1;
  uint32_t counter1;
  uint32_t counter2;
  uint32_t counter3;
};

// The first word of Philox4x32-10 (Salmon et al., SC 2011).
SIGLIP_EVERYWHERE static inline uint32_t random_word(const Draw& draw, uint32_t counter0) {
  uint32_t c0 = counter0;
  uint32_t c1 = draw.counter1;
  uint32_t c2 = draw.counter2;
  uint32_t c3 = draw.counter3;
  uint32_t k0 = draw.key0;
  uint32_t k1 = draw.key1;
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xd2511f53U} * c0;
    const uint64_t product1 = uint64_t{0xcd9e8d57U} * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(product0);
    k0 += 0x9e3779b9U;
    k1 += 0xbb67ae85U;
  }
  return c0;
}

// In float64, so that devices differ in less than what rounding to float32 shows.
SIGLIP_EVERYWHERE static inline double gumbel_noise(uint32_t word) {
  return -::log(-::log((static_cast<double>(word) + 0.5) * 0x1p-32));
}

// Keys compare as examples do: the larger one is drawn first. No two are equal.
SIGLIP_EVERYWHERE static inline uint64_t selection_key(double value, bool taken, uint32_t index) {
  const float rounded = static_cast<float>(value);
  uint32_t bits;
  memcpy(&bits, &rounded, sizeof(bits));
  // Floats in order as unsigned integers, all above 1: −∞ is 0x007fffff.
  uint32_t order = (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
  if (rounded != rounded) order = 1;
  if (taken) order = 0;
  return (static_cast<uint64_t>(order) << 32) | ~index;
}

SIGLIP_EVERYWHERE static inline int32_t index_of_key(uint64_t key) {
  return static_cast<int32_t>(~static_cast<uint32_t>(key));
}

}  // namespace siglip::SIGLIP_CPU
