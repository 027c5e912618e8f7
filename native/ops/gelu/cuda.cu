#define SIGLIP_CPU cuda  // the namespace of the guards
#include "cpu/check.h"
#include "cuda/map.cuh"
#include "device/gelu.cuh"
#include "ops/gelu/gelu.h"
#include "runtime/cuda_context.h"
#include "runtime/cuda_dtype.h"

namespace siglip::cuda {
namespace {

template <typename T>
struct Gelu {
  device::Elements<T> x;
  template <int N>
  __device__ device::Floats<N> at(int64_t i) const {
    device::Floats<N> out = x.template at<N>(i);
#pragma unroll
    for (int j = 0; j < N; ++j) out[j] = device::gelu(out[j]);
    return out;
  }
};

template <typename T>
struct GeluGradient {
  device::Elements<T> dy;
  device::Elements<T> x;
  template <int N>
  __device__ device::Floats<N> at(int64_t i) const {
    device::Floats<N> out = x.template at<N>(i);
    const device::Floats<N> upstream = dy.template at<N>(i);
#pragma unroll
    for (int j = 0; j < N; ++j) out[j] = upstream[j] * device::gelu_gradient(out[j]);
    return out;
  }
};

}  // namespace

void gelu_forward(Stream& stream, In x, Out y) {
  constexpr char kName[] = "gelu_forward";
  const int64_t size = x.elements();
  check_elements(kName, "y", y, size);
  check_dtype(kName, "y", y, x.dtype());
  with_type(kName, "x", x, [&](auto type) {
    using T = decltype(type);
    const T* x_data = elements_of<T>(x);
    T* y_data = elements_of<T>(y);
    map<device::kElements16<T>>(stream, kName, Gelu<T>{{x_data}}, size, y_data,
                                device::aligned16(x_data, y_data));
  });
}

void gelu_backward(Stream& stream, In dy, In x, Out dx) {
  constexpr char kName[] = "gelu_backward";
  const int64_t size = x.elements();
  check_elements(kName, "dy", dy, size);
  check_dtype(kName, "dy", dy, x.dtype());
  check_elements(kName, "dx", dx, size);
  check_dtype(kName, "dx", dx, x.dtype());
  with_type(kName, "x", x, [&](auto type) {
    using T = decltype(type);
    const T* dy_data = elements_of<T>(dy);
    const T* x_data = elements_of<T>(x);
    T* dx_data = elements_of<T>(dx);
    map<device::kElements16<T>>(stream, kName, GeluGradient<T>{{dy_data}, {x_data}}, size, dx_data,
                                device::aligned16(dy_data, x_data, dx_data));
  });
}

}  // namespace siglip::cuda
