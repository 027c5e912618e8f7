#define SIGLIP_CPU cuda  // the namespace of the guards
#include "cpu/activation.h"
#include "cpu/check.h"
#include "cuda/map.cuh"
#include "device/gelu.cuh"
#include "ops/gelu/gelu.h"
#include "runtime/cuda_context.h"
#include "runtime/cuda_dtype.h"

namespace siglip::cuda {
namespace {

struct GeluTanh {
  static __device__ float value(float x) { return device::gelu(x); }
  static __device__ float gradient(float x) { return device::gelu_gradient(x); }
};

struct GeluErf {
  static __device__ float value(float x) { return x * normcdff(x); }
  static __device__ float gradient(float x) {
    return fmaf(x, 0.39894228F * expf(-0.5F * x * x), normcdff(x));
  }
};

// body(GeluTanh{}) or body(GeluErf{}).
template <typename Body>
void with_form(int64_t form, const Body& body) {
  form == kActivationGeluErf ? body(GeluErf{}) : body(GeluTanh{});
}

template <typename Form, typename T>
struct Gelu {
  device::Elements<T> x;
  template <int N>
  __device__ device::Floats<N> at(int64_t i) const {
    device::Floats<N> out = x.template at<N>(i);
#pragma unroll
    for (int j = 0; j < N; ++j) out[j] = Form::value(out[j]);
    return out;
  }
};

template <typename Form, typename T>
struct GeluGradient {
  device::Elements<T> dy;
  device::Elements<T> x;
  template <int N>
  __device__ device::Floats<N> at(int64_t i) const {
    device::Floats<N> out = x.template at<N>(i);
    const device::Floats<N> upstream = dy.template at<N>(i);
#pragma unroll
    for (int j = 0; j < N; ++j) out[j] = upstream[j] * Form::gradient(out[j]);
    return out;
  }
};

}  // namespace

void gelu_forward(Stream& stream, In x, int64_t form, Out y) {
  constexpr char kName[] = "gelu_forward";
  const int64_t size = x.elements();
  check_elements(kName, "y", y, size);
  check_dtype(kName, "y", y, x.dtype());
  with_type(kName, "x", x, [&](auto type) {
    using T = decltype(type);
    const T* x_data = elements_of<T>(x);
    T* y_data = elements_of<T>(y);
    with_form(form, [&](auto activation) {
      using Form = decltype(activation);
      map<device::kElements16<T>>(stream, kName, Gelu<Form, T>{{x_data}}, size, y_data,
                                  device::aligned16(x_data, y_data));
    });
  });
}

void gelu_backward(Stream& stream, In dy, In x, int64_t form, Out dx) {
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
    with_form(form, [&](auto activation) {
      using Form = decltype(activation);
      map<device::kElements16<T>>(stream, kName, GeluGradient<Form, T>{{dy_data}, {x_data}}, size,
                                  dx_data, device::aligned16(dy_data, x_data, dx_data));
    });
  });
}

}  // namespace siglip::cuda
