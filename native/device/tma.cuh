// Copies of boxes of a tensor between global and shared memory by the copy engine (sm_90). The tensor
// is described by a map from runtime/tensor_map.h that the kernel takes as
// `const __grid_constant__ CUtensorMap`; coordinates are in elements, the innermost first, and may
// reach outside the tensor: zeros are read there, nothing is written. One thread issues a copy.
// Shared memory of a box with a swizzle begins at a multiple of its pattern (1024, 512, 256 bytes).
#pragma once

#include <cuda.h>

#include "device/barrier.cuh"

namespace siglip::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ void tma_prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Loads complete on `barrier`, which expects their bytes, those outside the tensor included.
__device__ __forceinline__ void tma_load(void* shared, const CUtensorMap* map, uint64_t* barrier,
                                         int x0, int x1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];" ::"r"(shared_address(shared)),
      "l"(map), "r"(shared_address(barrier)), "r"(x0), "r"(x1)
      : "memory");
}
__device__ __forceinline__ void tma_load(void* shared, const CUtensorMap* map, uint64_t* barrier,
                                         int x0, int x1, int x2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(shared)),
      "l"(map), "r"(shared_address(barrier)), "r"(x0), "r"(x1), "r"(x2)
      : "memory");
}
__device__ __forceinline__ void tma_load(void* shared, const CUtensorMap* map, uint64_t* barrier,
                                         int x0, int x1, int x2, int x3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared_address(shared)),
      "l"(map), "r"(shared_address(barrier)), "r"(x0), "r"(x1), "r"(x2), "r"(x3)
      : "memory");
}

// Stores; what they read must have been made visible by fence_async_shared() in the threads that
// wrote it, and a barrier after it.
__device__ __forceinline__ void tma_store(const CUtensorMap* map, const void* shared, int x0,
                                          int x1) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
      "r"(shared_address(shared)), "r"(x0), "r"(x1)
      : "memory");
}
__device__ __forceinline__ void tma_store(const CUtensorMap* map, const void* shared, int x0,
                                          int x1, int x2, int x3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(
          map),
      "r"(shared_address(shared)), "r"(x0), "r"(x1), "r"(x2), "r"(x3)
      : "memory");
}

// Closes the group of this thread's stores since the last one.
__device__ __forceinline__ void tma_store_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Waits until the shared memory of all but the last kGroups groups may be written again.
template <int kGroups>
__device__ __forceinline__ void tma_store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kGroups) : "memory");
}

// Waits until all but the last kGroups groups are in global memory.
template <int kGroups>
__device__ __forceinline__ void tma_store_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kGroups) : "memory");
}

#endif  // sm_90a

}  // namespace siglip::cuda
