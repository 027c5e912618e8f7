// Launching the kernel of everything elementwise (device/map.cuh).
#pragma once

#include "device/map.cuh"
#include "runtime/cuda_context.h"

namespace siglip::cuda {

// y[i] = value(i) for i < size: N elements at a time where all operands are whole vectors, else one.
template <int N, typename Y, typename Value>
void map(Stream& stream, const char* kernel, const Value& value, int64_t size, Y* y,
         bool whole_vectors) {
  if (size == 0) return;
  if (whole_vectors) {
    device::map_kernel<N>
        <<<device::map_blocks<N>(size), device::kMapThreads, 0, stream.cuda().stream>>>(value, size,
                                                                                        y);
  } else {
    device::map_kernel<1>
        <<<device::map_blocks<1>(size), device::kMapThreads, 0, stream.cuda().stream>>>(value, size,
                                                                                        y);
  }
  check_launch(kernel);
}

}  // namespace siglip::cuda
