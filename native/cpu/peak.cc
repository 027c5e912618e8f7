#include "cpu/peak.h"

#include "cpu/simd.h"

namespace siglip::SIGLIP_CPU {
namespace {

// Enough independent chains to fill two pipes of latency 4, and few enough to stay in 16 registers.
constexpr int kChains = 12;

}  // namespace

double multiply_add(Stream& stream, int64_t rounds) {
  stream.parallel(stream.threads(), [&](int64_t, int) {
    Vec chain[kChains];
    // Not from 1, the fixed point of the recurrence, which the compiler would see through.
    for (int i = 0; i < kChains; ++i) chain[i] = splat(2.0F + static_cast<float>(i));
    const Vec factor = splat(0.999F);
    const Vec term = splat(0.001F);
    for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
      for (int i = 0; i < kChains; ++i) chain[i] = chain[i] * factor + term;
    }
    Vec sum = chain[0];
    for (int i = 1; i < kChains; ++i) sum += chain[i];
    volatile float sink = reduce_add(sum);
    (void)sink;
  });
  return 2.0 * kChains * kLanes * static_cast<double>(rounds) * stream.threads();
}

}  // namespace siglip::SIGLIP_CPU
