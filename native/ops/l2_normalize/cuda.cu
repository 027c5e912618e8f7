// A warp a row, which it reads twice. Sums are in float64, so that squares neither overflow nor vanish.
#include "ops/l2_normalize/l2_normalize.h"

#include "device/reduce.cuh"
#include "device/vector.cuh"
#include "runtime/cuda_context.h"
#include "runtime/cuda_dtype.h"

#define SIGLIP_CPU cuda  // the namespace of the checks
#include "cpu/check.h"

namespace siglip::cuda {
namespace {

using device::Floats;
using device::kWarpThreads;
using device::lane_index;
using device::warp_index;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpThreads;
constexpr int kVector = 4;  // elements of a lane at a time, where the width allows

unsigned blocks_of(int64_t rows) { return static_cast<unsigned>((rows + kWarps - 1) / kWarps); }

template <int kN, typename T>
__global__ void __launch_bounds__(kThreads)
    normalize_rows(const T* __restrict__ x, int64_t rows, int64_t width, double eps,
                   float* __restrict__ y, float* __restrict__ norm) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + warp_index();
  if (row >= rows) return;
  const T* from = x + row * width;
  double squares = 0.0;
#pragma unroll 4
  for (int64_t d = lane_index() * kN; d < width; d += kWarpThreads * kN) {
    const Floats<kN> v = device::load<kN>(from + d);
#pragma unroll
    for (int i = 0; i < kN; ++i) squares += static_cast<double>(v[i]) * static_cast<double>(v[i]);
  }
  const double length = sqrt(device::warp_sum(squares));
  const auto scale = static_cast<float>(1.0 / (length + eps));
#pragma unroll 4
  for (int64_t d = lane_index() * kN; d < width; d += kWarpThreads * kN) {
    Floats<kN> v = device::load<kN>(from + d);
#pragma unroll
    for (int i = 0; i < kN; ++i) v[i] *= scale;
    device::store(y + row * width + d, v);
  }
  if (lane_index() == 0) norm[row] = static_cast<float>(length);
}

template <int kN, typename T>
__global__ void __launch_bounds__(kThreads)
    normalize_rows_backward(const float* __restrict__ dy, const T* __restrict__ x,
                            const float* __restrict__ norm, int64_t rows, int64_t width, double eps,
                            T* __restrict__ dx) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + warp_index();
  if (row >= rows) return;
  const float* gradient = dy + row * width;
  const T* from = x + row * width;
  T* to = dx + row * width;
  const double length = norm[row];
  if (length == 0.0) {
    for (int64_t d = lane_index() * kN; d < width; d += kWarpThreads * kN) {
      device::store(to + d, device::splat<kN>(0.0F));
    }
    return;
  }
  double dot = 0.0;
#pragma unroll 4
  for (int64_t d = lane_index() * kN; d < width; d += kWarpThreads * kN) {
    const Floats<kN> a = device::load<kN>(from + d);
    const Floats<kN> b = device::load<kN>(gradient + d);
#pragma unroll
    for (int i = 0; i < kN; ++i) dot += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  }
  dot = device::warp_sum(dot);
  // In two factors, (u / n) · ((u·dz) / (n + eps)²): their product may not fit in a float.
  const double divisor = length + eps;
  const auto scale = static_cast<float>(1.0 / divisor);
  const auto unit = static_cast<float>(1.0 / length);
  const auto along = static_cast<float>(dot / (divisor * divisor));
#pragma unroll 4
  for (int64_t d = lane_index() * kN; d < width; d += kWarpThreads * kN) {
    const Floats<kN> a = device::load<kN>(from + d);
    Floats<kN> b = device::load<kN>(gradient + d);
#pragma unroll
    for (int i = 0; i < kN; ++i) b[i] = scale * b[i] - (unit * a[i]) * along;
    device::store(to + d, b);
  }
}

}  // namespace

void l2_normalize_forward(Stream& stream, In x, double eps, Out y, Out norm) {
  constexpr char kName[] = "l2_normalize_forward";
  check_not_scalar(kName, "x", x);
  const int64_t width = x.extent(-1);
  const int64_t rows = x.rows();
  check_elements(kName, "y", y, rows * width);
  check_elements(kName, "norm", norm, rows);
  float* y_data = y.data();
  float* norm_data = norm.data();
  with_type(kName, "x", x, [&](auto type) {
    using T = decltype(type);
    const T* x_data = elements_of<T>(x);
    const bool vectors = width % kVector == 0 && device::aligned16(x_data, y_data);
    const auto kernel = vectors ? normalize_rows<kVector, T> : normalize_rows<1, T>;
    kernel<<<blocks_of(rows), kThreads, 0, stream.cuda().stream>>>(x_data, rows, width, eps, y_data,
                                                                   norm_data);
    check_launch("normalize_rows");
  });
}

void l2_normalize_backward(Stream& stream, In dy, In x, In norm, double eps, Out dx) {
  constexpr char kName[] = "l2_normalize_backward";
  check_not_scalar(kName, "dy", dy);
  const int64_t width = dy.extent(-1);
  const int64_t rows = dy.rows();
  check_elements(kName, "x", x, rows * width);
  check_elements(kName, "norm", norm, rows);
  check_elements(kName, "dx", dx, rows * width);
  check_dtype(kName, "dx", dx, x.dtype());
  const float* dy_data = dy.data();
  const float* norm_data = norm.data();
  with_type(kName, "x", x, [&](auto type) {
    using T = decltype(type);
    const T* x_data = elements_of<T>(x);
    T* dx_data = elements_of<T>(dx);
    const bool vectors = width % kVector == 0 && device::aligned16(dy_data, x_data, dx_data);
    const auto kernel =
        vectors ? normalize_rows_backward<kVector, T> : normalize_rows_backward<1, T>;
    kernel<<<blocks_of(rows), kThreads, 0, stream.cuda().stream>>>(dy_data, x_data, norm_data, rows,
                                                                   width, eps, dx_data);
    check_launch("normalize_rows_backward");
  });
}

}  // namespace siglip::cuda
