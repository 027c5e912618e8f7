// The last step of a sum over a whole tensor: the partial sums that blocks left in scratch, added by
// one block.
#pragma once

#include <cstdint>

#include "device/reduce.cuh"

namespace siglip::device {

inline constexpr int kSumWarps = 32;

// Σ partial[i · stride] for i < count, in float64, for a block of kSumWarps warps. `shared` holds
// kSumWarps values.
__device__ inline double sum_partials(const float* partial, int64_t count, int64_t stride,
                                      double* shared) {
  constexpr int kThreads = kSumWarps * kWarpThreads;
  double sum = 0.0;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    sum += static_cast<double>(partial[i * stride]);
  }
  return block_sum<kSumWarps>(sum, shared);
}

}  // namespace siglip::device
