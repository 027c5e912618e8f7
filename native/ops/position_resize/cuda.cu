#include "ops/position_resize/position_resize.h"

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
constexpr int kLaneColumns = 8;
constexpr int kSlice = kWarpThreads * kLaneColumns;  // columns of a warp

// One axis of the resize, n -> m. Weights are in float64, recomputed wherever they are needed, one a
// lane.
struct Axis {
  int64_t n;
  int64_t m;
  double step;     // s = n / m
  double support;  // f = max(s, 1)
  double inverse;  // 1 / f

  __device__ Axis(int64_t from, int64_t to)
      : n(from), m(to), step(static_cast<double>(from) / static_cast<double>(to)) {
    support = step > 1.0 ? step : 1.0;
    inverse = 1.0 / support;
  }
  __device__ double center(int64_t i) const { return step * (static_cast<double>(i) + 0.5); }
  // Taps of output i are [first(i), last(i)); never empty.
  __device__ int64_t first(int64_t i) const {
    const double low = center(i) - support + 0.5;
    return low > 0.0 ? static_cast<int64_t>(low) : 0;
  }
  __device__ int64_t last(int64_t i) const {
    return min(static_cast<int64_t>(center(i) + support + 0.5), n);
  }
  __device__ double triangle(int64_t i, int64_t k) const {
    const double distance = fabs(static_cast<double>(k) - center(i) + 0.5) * inverse;
    return distance < 1.0 ? 1.0 - distance : 0.0;
  }
  __device__ double triangle_sum(int64_t i) const {
    double sum = 0.0;
    for (int64_t k = first(i), end = last(i); k < end; ++k) sum += triangle(i, k);
    return sum;
  }
  // The weight of tap k for output i; zero where it is none.
  __device__ double weight(int64_t i, int64_t k) const {
    if (i >= m || k < first(i) || k >= last(i)) return 0.0;
    return triangle(i, k) / triangle_sum(i);
  }
  // Outputs that may have tap k lie in [first_output(k), last_output(k)): one more on either side
  // than in exact arithmetic, where their weight is zero.
  __device__ int64_t first_output(int64_t k) const {
    const double low = (static_cast<double>(k) + 0.5 - support) / step - 1.5;
    return low > 0.0 ? static_cast<int64_t>(low) : 0;
  }
  __device__ int64_t last_output(int64_t k) const {
    return min(static_cast<int64_t>((static_cast<double>(k) + 0.5 + support) / step + 1.5), m);
  }
};

// A lane's columns of a slice of a row: kVector neighbours, kSteps times.
template <int kVector>
struct Sum {
  static constexpr int kSteps = kLaneColumns / kVector;
  Floats<kVector> v[kSteps];

  __device__ Sum() {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) v[s] = device::splat<kVector>(0.0F);
  }
  static __device__ int64_t column(int64_t slice, int s) {
    return slice * kSlice + (s * kWarpThreads + lane_index()) * kVector;
  }
  template <typename T>
  __device__ void add(int64_t slice, int64_t width, float weight, const T* row) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int64_t d = column(slice, s);
      if (d >= width) continue;
      const Floats<kVector> values = device::load<kVector>(row + d);
#pragma unroll
      for (int j = 0; j < kVector; ++j) v[s][j] = fmaf(weight, values[j], v[s][j]);
    }
  }
  template <typename T>
  __device__ void store(int64_t slice, int64_t width, T* row) const {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int64_t d = column(slice, s);
      if (d < width) device::store(row + d, v[s]);
    }
  }
};

// body(y, x, weight) over [y_begin, y_end) × [x_begin, x_end) where weight_y(y) · weight_x(x) is not
// zero, the weights computed one a lane. The whole warp calls.
template <typename WeightY, typename WeightX, typename Body>
__device__ void for_weights(int64_t y_begin, int64_t y_end, int64_t x_begin, int64_t x_end,
                            const WeightY& weight_y, const WeightX& weight_x, const Body& body) {
  constexpr unsigned kAll = 0xffffffffU;
  for (int64_t y0 = y_begin; y0 < y_end; y0 += kWarpThreads) {
    const int64_t y_lane = y0 + lane_index();
    const double own_y = y_lane < y_end ? weight_y(y_lane) : 0.0;
    for (int64_t x0 = x_begin; x0 < x_end; x0 += kWarpThreads) {
      const int64_t x_lane = x0 + lane_index();
      const double own_x = x_lane < x_end ? weight_x(x_lane) : 0.0;
      for (int64_t y = y0; y < min(y0 + kWarpThreads, y_end); ++y) {
        const double at_y = __shfl_sync(kAll, own_y, static_cast<int>(y - y0));
        if (at_y == 0.0) continue;
        for (int64_t x = x0; x < min(x0 + kWarpThreads, x_end); ++x) {
          const double at_x = __shfl_sync(kAll, own_x, static_cast<int>(x - x0));
          const auto weight = static_cast<float>(at_y * at_x);
          if (weight != 0.0F) body(y, x, weight);
        }
      }
    }
  }
}

struct Geometry {
  int64_t side;           // n
  int64_t images;         // B
  int64_t length;         // L
  int64_t width;          // D
  const int32_t* shapes;  // (B, 2)
  const int32_t* starts;  // of packed images, else null

  __host__ __device__ int64_t rows() const { return starts == nullptr ? images * length : length; }
  __device__ int64_t first(int64_t image) const {
    return starts == nullptr ? image * length : starts[image];
  }
  // The image a row lies in; `images` behind the last.
  __device__ int64_t image_of(int64_t row) const {
    if (starts == nullptr) return row / length;
    int64_t low = 0;
    int64_t high = images + 1;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      if (starts[middle] <= row) {
        low = middle;
      } else {
        high = middle;
      }
    }
    return low;
  }
};

// A warp a row of positions and slice.
template <int kVector, typename T>
__global__ void __launch_bounds__(kThreads)
    resize(const float* __restrict__ grid, Geometry g, T* __restrict__ positions) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + warp_index();
  if (row >= g.rows()) return;
  const int64_t slice = blockIdx.y;
  const int64_t image = g.image_of(row);
  Sum<kVector> sum;
  if (image < g.images) {
    const Axis y(g.side, g.shapes[2 * image]);
    const Axis x(g.side, g.shapes[2 * image + 1]);
    const int64_t position = row - g.first(image);
    if (position >= 0 && position < y.m * x.m) {
      const int64_t i = position / x.m;
      const int64_t j = position % x.m;
      for_weights(
          y.first(i), y.last(i), x.first(j), x.last(j), [&](int64_t k) { return y.weight(i, k); },
          [&](int64_t k) { return x.weight(j, k); },
          [&](int64_t ky, int64_t kx, float weight) {
            sum.add(slice, g.width, weight, grid + (ky * g.side + kx) * g.width);
          });
    }
  }
  sum.store(slice, g.width, positions + row * g.width);
}

// Every cell of the grid gathers what it gave, in the order of (image, i, j) within a warp. A block a
// cell and slice, its warps every eighth image.
template <int kVector, typename T>
__global__ void __launch_bounds__(kThreads)
    resize_backward(const T* __restrict__ dpositions, Geometry g, float* __restrict__ dgrid) {
  __shared__ float sums[kWarps][kLaneColumns][kWarpThreads];
  constexpr int kSteps = Sum<kVector>::kSteps;
  const int64_t cell = blockIdx.x;
  const int64_t slice = blockIdx.y;
  const int64_t ky = cell / g.side;
  const int64_t kx = cell % g.side;
  Sum<kVector> sum;
  for (int64_t image = warp_index(); image < g.images; image += kWarps) {
    const Axis y(g.side, g.shapes[2 * image]);
    const Axis x(g.side, g.shapes[2 * image + 1]);
    const int64_t first = g.first(image);
    for_weights(
        y.first_output(ky), y.last_output(ky), x.first_output(kx), x.last_output(kx),
        [&](int64_t i) { return y.weight(i, ky); }, [&](int64_t j) { return x.weight(j, kx); },
        [&](int64_t i, int64_t j, float weight) {
          const int64_t row = first + i * x.m + j;
          if (row < 0 || row >= g.rows()) return;
          sum.add(slice, g.width, weight, dpositions + row * g.width);
        });
  }
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      sums[warp_index()][s * kVector + j][lane_index()] = sum.v[s][j];
    }
  }
  __syncthreads();
  if (warp_index() > 0) return;
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
#pragma unroll
      for (int w = 1; w < kWarps; ++w) sum.v[s][j] += sums[w][s * kVector + j][lane_index()];
    }
  }
  sum.store(slice, g.width, dgrid + cell * g.width);
}

// What shapes and segments hold lies on the device and is not checked: kernels stay within the grid
// and the positions whatever it is.
Geometry geometry(const char* who, const View& grid, const In& shapes, const MaybeIn& segments,
                  const View& positions) {
  check_rank(who, "grid", grid, 2);
  check_rank(who, "positions", positions, 3);
  const bool packed = segments.present();
  if (packed) {
    check_rank(who, "segments", segments, 1);
    check_extent(who, "positions", positions, 0, 1);
    if (segments.extent(0) < 1) {
      fail("ERR_SHAPE", "%s: segments must have at least 1 element, got 0", who);
    }
  }
  const Geometry g = {static_cast<int64_t>(__builtin_sqrt(static_cast<double>(grid.extent(0)))),
                      packed ? segments.elements() - 1 : positions.extent(0),
                      positions.extent(1),
                      positions.extent(2),
                      shapes.data<int32_t>(),
                      packed ? segments.data<int32_t>() : nullptr};
  if (g.side * g.side != grid.extent(0) || g.side < 1) {
    fail("ERR_SHAPE", "%s: extent 0 of grid must be a square number, got %lld", who,
         static_cast<long long>(grid.extent(0)));
  }
  check_extent(who, "grid", grid, 1, g.width);
  check_elements(who, "shapes", shapes, 2 * g.images);
  return g;
}

unsigned slices_of(const Geometry& g) {
  return static_cast<unsigned>((g.width + kSlice - 1) / kSlice);
}

}  // namespace

void position_resize_forward(Stream& stream, In grid, In shapes, MaybeIn segments, Out positions) {
  constexpr char kName[] = "position_resize_forward";
  const Geometry g = geometry(kName, grid, shapes, segments, positions);
  const float* grid_data = grid.data();
  with_type(kName, "positions", positions, [&](auto type) {
    using T = decltype(type);
    T* positions_data = elements_of<T>(positions);
    const bool vectors = g.width % 4 == 0 && device::aligned16(grid_data, positions_data);
    const dim3 blocks(static_cast<unsigned>((g.rows() + kWarps - 1) / kWarps), slices_of(g));
    const auto kernel = vectors ? resize<4, T> : resize<1, T>;
    kernel<<<blocks, kThreads, 0, stream.cuda().stream>>>(grid_data, g, positions_data);
    check_launch("resize");
  });
}

size_t position_resize_backward_scratch(int, In, In) { return 0; }

void position_resize_backward(Stream& stream, In dpositions, In shapes, MaybeIn segments, Out dgrid,
                              Scratch) {
  constexpr char kName[] = "position_resize_backward";
  const Geometry g = geometry(kName, dgrid, shapes, segments, dpositions);
  float* dgrid_data = dgrid.data();
  with_type(kName, "dpositions", dpositions, [&](auto type) {
    using T = decltype(type);
    const T* dpositions_data = elements_of<T>(dpositions);
    const bool vectors = g.width % 4 == 0 && device::aligned16(dpositions_data, dgrid_data);
    const dim3 blocks(static_cast<unsigned>(g.side * g.side), slices_of(g));
    const auto kernel = vectors ? resize_backward<4, T> : resize_backward<1, T>;
    kernel<<<blocks, kThreads, 0, stream.cuda().stream>>>(dpositions_data, g, dgrid_data);
    check_launch("resize_backward");
  });
}

}  // namespace siglip::cuda
