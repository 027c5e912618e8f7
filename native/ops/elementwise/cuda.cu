#include <cstring>

#define SIGLIP_CPU cuda  // the namespace of the guards
#include "cpu/check.h"
#include "cuda/map.cuh"
#include "ops/elementwise/elementwise.h"
#include "ops/elementwise/join_rows.h"
#include "runtime/cuda_context.h"
#include "runtime/cuda_dtype.h"

namespace siglip::cuda {
namespace {

template <typename A, typename B>
struct Sum {
  A a;
  B b;
  template <int N>
  __device__ device::Floats<N> at(int64_t i) const {
    device::Floats<N> out = a.template at<N>(i);
    const device::Floats<N> other = b.template at<N>(i);
#pragma unroll
    for (int j = 0; j < N; ++j) out[j] += other[j];
    return out;
  }
};
template <typename A, typename B>
Sum(A, B) -> Sum<A, B>;

// factor · x, the factor being a scalar of the device where `on_device` is given.
template <typename T>
struct Scaled {
  device::Elements<T> x;
  float factor;
  const float* on_device;
  template <int N>
  __device__ device::Floats<N> at(int64_t i) const {
    const float by = on_device == nullptr ? factor : *on_device;
    device::Floats<N> out = x.template at<N>(i);
#pragma unroll
    for (int j = 0; j < N; ++j) out[j] *= by;
    return out;
  }
};

struct Moved {
  device::Elements<float> average;
  device::Elements<float> x;
  float keep;
  float take;
  template <int N>
  __device__ device::Floats<N> at(int64_t i) const {
    device::Floats<N> out = average.template at<N>(i);
    const device::Floats<N> other = x.template at<N>(i);
#pragma unroll
    for (int j = 0; j < N; ++j) out[j] = keep * out[j] + take * other[j];
    return out;
  }
};

// Vectors that are 16 bytes of the widest of the types.
template <typename... Types>
constexpr int vector_elements() {
  size_t widest = 0;
  ((widest = sizeof(Types) > widest ? sizeof(Types) : widest), ...);
  return static_cast<int>(16 / widest);
}

template <typename A, typename B, typename Y>
void add(Stream& stream, const char* kernel, const A* a, const B* b, int64_t size, Y* y) {
  map<vector_elements<A, B, Y>()>(stream, kernel,
                                  Sum{device::Elements<A>{a}, device::Elements<B>{b}}, size, y,
                                  device::aligned16(a, b, y));
}

void scale(Stream& stream, const char* kernel, const In& x, float factor, const float* on_device,
           const Out& y) {
  const int64_t size = x.elements();
  check_elements(kernel, "y", y, size);
  check_dtype(kernel, "y", y, x.dtype());
  with_type(kernel, "x", x, [&](auto type) {
    using T = decltype(type);
    const T* x_data = elements_of<T>(x);
    T* y_data = elements_of<T>(y);
    map<vector_elements<T>()>(stream, kernel, Scaled<T>{{x_data}, factor, on_device}, size, y_data,
                              device::aligned16(x_data, y_data));
  });
}

void copy(Stream& stream, const In& x, const Out& y) {
  const size_t bytes = static_cast<size_t>(x.elements()) * size_of(x.dtype());
  if (bytes == 0 || x.bytes() == y.bytes()) return;
  check_cuda(
      cudaMemcpyAsync(y.bytes(), x.bytes(), bytes, cudaMemcpyDeviceToDevice, stream.cuda().stream),
      "copy_forward");
}

// Every element takes the bits of `value`, whose bytes are all the same or else 2 or 4 in number.
template <typename T>
void fill_with(Stream& stream, T value, const Out& y) {
  const int64_t size = y.elements();
  uint8_t bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  bool same = true;
  for (const uint8_t byte : bytes) same = same && byte == bytes[0];
  if (size == 0) return;
  if (same) {
    return check_cuda(cudaMemsetAsync(y.bytes(), bytes[0], static_cast<size_t>(size) * sizeof(T),
                                      stream.cuda().stream),
                      "fill");
  }
  if constexpr (sizeof(T) == 4) {
    float bits;  // those of an int32 as well: nothing is computed with it
    std::memcpy(&bits, &value, sizeof(T));
    float* data = elements_of<float>(y);
    map<4>(stream, "fill", device::Constant{bits}, size, data, device::aligned16(data));
  } else if constexpr (sizeof(T) == 2) {
    __nv_bfloat16* data = elements_of<__nv_bfloat16>(y);
    map<8>(stream, "fill", device::Constant{__bfloat162float(value)}, size, data,
           device::aligned16(data));
  }
}

// A row against the whole it is shared by.
void check_copies(const char* who, const char* what, const View& whole, const View& row) {
  const int64_t size = row.elements();
  const int64_t count = size > 0 ? whole.elements() / size : 0;
  check_elements(who, what, whole, count * size);
}

}  // namespace

void add_forward(Stream& stream, In a, In b, Out y) {
  constexpr char kName[] = "add_forward";
  const int64_t size = a.elements();
  check_elements(kName, "b", b, size);
  check_dtype(kName, "b", b, a.dtype());
  check_elements(kName, "y", y, size);
  check_dtype(kName, "y", y, a.dtype());
  with_type(kName, "a", a, [&](auto type) {
    using T = decltype(type);
    add(stream, kName, elements_of<T>(a), elements_of<T>(b), size, elements_of<T>(y));
  });
}

void add_row_forward(Stream& stream, In x, In row, Out y) {
  constexpr char kName[] = "add_row_forward";
  check_copies(kName, "x", x, row);
  const int64_t size = x.elements();
  check_elements(kName, "y", y, size);
  check_dtype(kName, "y", y, x.dtype());
  with_type(kName, "x", x, [&](auto type) {
    with_type(kName, "row", row, [&](auto row_type) {
      using T = decltype(type);
      using R = decltype(row_type);
      if constexpr (sizeof(R) < sizeof(T)) {
        check_dtype(kName, "row", row, x.dtype());
      } else {
        constexpr int N = vector_elements<T, R>();
        const T* x_data = elements_of<T>(x);
        const R* row_data = elements_of<R>(row);
        T* y_data = elements_of<T>(y);
        map<N>(stream, kName,
               Sum{device::Elements<T>{x_data}, device::Repeated<R>{row_data, row.elements()}},
               size, y_data,
               row.elements() % N == 0 && device::aligned16(x_data, row_data, y_data));
      }
    });
  });
}

void repeat_row_forward(Stream& stream, In row, Out y) {
  constexpr char kName[] = "repeat_row_forward";
  check_copies(kName, "y", y, row);
  with_type(kName, "y", y, [&](auto type) {
    with_type(kName, "row", row, [&](auto row_type) {
      using T = decltype(type);
      using R = decltype(row_type);
      if constexpr (sizeof(R) < sizeof(T)) {
        check_dtype(kName, "row", row, y.dtype());
      } else {
        constexpr int N = vector_elements<T, R>();
        const R* row_data = elements_of<R>(row);
        T* y_data = elements_of<T>(y);
        map<N>(stream, kName, device::Repeated<R>{row_data, row.elements()}, y.elements(), y_data,
               row.elements() % N == 0 && device::aligned16(row_data, y_data));
      }
    });
  });
}

void scale_forward(Stream& stream, In x, In factor, Out y) {
  constexpr char kName[] = "scale_forward";
  check_elements(kName, "factor", factor, 1);
  scale(stream, kName, x, 1.0F, factor.data(), y);
}

void scale_by_forward(Stream& stream, In x, double factor, Out y) {
  scale(stream, "scale_by_forward", x, static_cast<float>(factor), nullptr, y);
}

void accumulate(Stream& stream, In x, InOut accumulator) {
  constexpr char kName[] = "accumulate";
  const int64_t size = x.elements();
  check_elements(kName, "accumulator", accumulator, size);
  with_type(kName, "x", x, [&](auto type) {
    with_type(kName, "accumulator", accumulator, [&](auto sum_type) {
      using T = decltype(type);
      using S = decltype(sum_type);
      if constexpr (sizeof(S) < sizeof(T)) {
        check_dtype(kName, "accumulator", accumulator, x.dtype());
      } else {
        S* sum = elements_of<S>(accumulator);
        add(stream, kName, static_cast<const S*>(sum), elements_of<T>(x), size, sum);
      }
    });
  });
}

void moving_average(Stream& stream, In x, double momentum, InOut average) {
  constexpr char kName[] = "moving_average";
  const int64_t size = x.elements();
  check_elements(kName, "average", average, size);
  const float* x_data = x.data();
  float* average_data = average.data();
  const Moved moved = {
      {average_data}, {x_data}, static_cast<float>(momentum), static_cast<float>(1.0 - momentum)};
  map<vector_elements<float>()>(stream, kName, moved, size, average_data,
                                device::aligned16(x_data, average_data));
}

void fill(Stream& stream, double value, Out y) {
  switch (y.dtype()) {
    case DType::kFloat32:
      return fill_with(stream, static_cast<float>(value), y);
    case DType::kInt32:
      return fill_with(stream, static_cast<int32_t>(value), y);
    case DType::kUint8:
      return fill_with(stream, static_cast<uint8_t>(value), y);
    case DType::kBfloat16:
      return fill_with(stream, __float2bfloat16_rn(static_cast<float>(value)), y);
  }
}

void copy_forward(Stream& stream, In x, Out y) {
  check_elements("copy_forward", "y", y, x.elements());
  check_dtype("copy_forward", "y", y, x.dtype());
  copy(stream, x, y);
}

void cast_forward(Stream& stream, In x, Out y) {
  constexpr char kName[] = "cast_forward";
  const int64_t size = x.elements();
  check_elements(kName, "y", y, size);
  with_type(kName, "x", x, [&](auto type) {
    with_type(kName, "y", y, [&](auto to_type) {
      using T = decltype(type);
      using Y = decltype(to_type);
      if constexpr (sizeof(T) == sizeof(Y)) {
        copy(stream, x, y);
      } else {
        const T* x_data = elements_of<T>(x);
        Y* y_data = elements_of<Y>(y);
        map<vector_elements<T, Y>()>(stream, kName, device::Elements<T>{x_data}, size, y_data,
                                     device::aligned16(x_data, y_data));
      }
    });
  });
}

void join_rows_forward(Stream& stream, InList parts, Out y) { cast_parts(stream, parts, y); }

}  // namespace siglip::cuda
