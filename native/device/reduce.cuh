// Sums and maxima over a warp or a block, in an order that depends on the shape alone. Every thread
// gets the result, the same bits in all.
#pragma once

#include <cstdint>

namespace siglip::device {

inline constexpr int kWarpThreads = 32;

__device__ inline int lane_index() { return static_cast<int>(threadIdx.x) % kWarpThreads; }
__device__ inline int warp_index() { return static_cast<int>(threadIdx.x) / kWarpThreads; }

// Waits for `threads` threads of the block, whole warps that name the same barrier: 1 to 15.
// __syncthreads() is number 0.
__device__ inline void sync_group(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Over groups of kWidth consecutive lanes (a power of two), all of which must call. Partners add the
// same two terms, and addition commutes: so the bits are the same in every lane.
template <int kWidth = kWarpThreads, typename T>
__device__ inline T warp_sum(T value) {
#pragma unroll
  for (int distance = kWidth / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffU, value, distance);
  }
  return value;
}

template <int kWidth = kWarpThreads>
__device__ inline float warp_max(float value) {
#pragma unroll
  for (int distance = kWidth / 2; distance > 0; distance /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffU, value, distance));
  }
  return value;
}

// Over a one-dimensional block of kWarps warps (a power of two, at most 32), all threads of which
// must call. `shared` holds kWarps values and may be used again right after the call.
template <int kWarps, typename T>
__device__ inline T block_sum(T value, T* shared) {
  static_assert(kWarps <= kWarpThreads && (kWarps & (kWarps - 1)) == 0);
  value = warp_sum(value);
  if constexpr (kWarps == 1) return value;
  if (lane_index() == 0) shared[warp_index()] = value;
  __syncthreads();
  value = warp_sum<kWarps>(shared[lane_index() % kWarps]);
  __syncthreads();
  return value;
}

template <int kWarps>
__device__ inline float block_max(float value, float* shared) {
  static_assert(kWarps <= kWarpThreads && (kWarps & (kWarps - 1)) == 0);
  value = warp_max(value);
  if constexpr (kWarps == 1) return value;
  if (lane_index() == 0) shared[warp_index()] = value;
  __syncthreads();
  value = warp_max<kWarps>(shared[lane_index() % kWarps]);
  __syncthreads();
  return value;
}

}  // namespace siglip::device
