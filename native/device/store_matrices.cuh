// Tiles of 16-bit elements from registers to shared memory (sm_90).
#pragma once

#include "device/address.cuh"

namespace siglip::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Four 8 × 8 matrices, distributed as mma's results are; lanes 8i .. 8i + 7 give the addresses of the rows
// of the i-th.
__device__ __forceinline__ void store_matrices(uint32_t address, uint32_t r0, uint32_t r1,
                                               uint32_t r2, uint32_t r3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(address),
               "r"(r0), "r"(r1), "r"(r2), "r"(r3)
               : "memory");
}

#endif  // sm_90a

}  // namespace siglip::cuda
