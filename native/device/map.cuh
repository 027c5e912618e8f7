// y[i] = value(i): the kernel of everything elementwise, and the values it is composed of. A value
// gives any N consecutive elements, as float32; N > 1 where addresses and rows are whole vectors.
// y may be the memory of an operand: a thread reads all it needs before it writes.
#pragma once

#include <cstdint>

#include "device/vector.cuh"

namespace siglip::device {

inline constexpr int kMapThreads = 256;
// Vectors of a thread, all read before the first is written.
inline constexpr int kMapUnroll = 4;

template <typename T>
struct Elements {
  const T* data;
  template <int N>
  __device__ Floats<N> at(int64_t i) const {
    return load<N>(data + i);
  }
};

// A row of `size` elements, over and over.
template <typename T>
struct Repeated {
  const T* data;
  int64_t size;
  template <int N>
  __device__ Floats<N> at(int64_t i) const {
    return load<N>(data + static_cast<uint64_t>(i) % static_cast<uint64_t>(size));
  }
};

struct Constant {
  float value;
  template <int N>
  __device__ Floats<N> at(int64_t) const {
    return splat<N>(value);
  }
};

// The blocks of map_kernel.
template <int N>
int64_t map_blocks(int64_t size) {
  constexpr int64_t kBlock = int64_t{kMapThreads} * kMapUnroll * N;
  return (size + kBlock - 1) / kBlock;
}

template <int N, typename Y, typename Value>
__global__ void __launch_bounds__(kMapThreads, 4) map_kernel(Value value, int64_t size, Y* y) {
  constexpr int64_t kStep = int64_t{kMapThreads} * N;
  const int64_t first = int64_t{blockIdx.x} * kMapUnroll * kStep + int64_t{threadIdx.x} * N;
  if (first + (kMapUnroll - 1) * kStep + N <= size) {
    Floats<N> out[kMapUnroll];
#pragma unroll
    for (int u = 0; u < kMapUnroll; ++u) out[u] = value.template at<N>(first + u * kStep);
#pragma unroll
    for (int u = 0; u < kMapUnroll; ++u) store(y + first + u * kStep, out[u]);
    return;
  }
  for (int64_t i = first; i < size && i < first + kMapUnroll * kStep; i += kStep) {
    if (i + N <= size) {
      store(y + i, value.template at<N>(i));
    } else {
      for (int64_t j = i; j < size; ++j) store(y + j, value.template at<1>(j));
    }
  }
}

}  // namespace siglip::device
