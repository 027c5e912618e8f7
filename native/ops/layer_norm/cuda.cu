#define SIGLIP_CPU cuda  // the namespace of the guards
#include "cpu/check.h"
#include "device/reduce.cuh"
#include "device/vector.cuh"
#include "ops/layer_norm/layer_norm.h"
#include "runtime/cuda_context.h"
#include "runtime/cuda_dtype.h"

namespace siglip::cuda {
namespace {

using device::Floats;
using device::kWarpThreads;
using device::Packed;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- Forward ----

template <typename T>
struct Forward {
  const T* x;
  const float* weight;
  const float* bias;  // null without
  float eps;
  int64_t rows;
  int width;
  T* y;
  float* mean;
  float* rstd;
};

// Rows of blocks that give a row to every warp.
constexpr int kWarpRows = 4;
constexpr int kBlockWarps = 8;

// A row to kWarps warps, its elements held in registers from the first pass to the last: kVectors
// vectors of 16 bytes a thread.
template <typename T, int kVectors, int kWarps>
__global__ void __launch_bounds__(kWarps == 1 ? kWarpRows * kWarpThreads : kWarps * kWarpThreads)
    forward_kernel(Forward<T> on) {
  constexpr int N = device::kElements16<T>;
  constexpr int kRowThreads = kWarps * kWarpThreads;
  __shared__ float shared[kWarps];
  const int thread = static_cast<int>(threadIdx.x) % kRowThreads;
  const int64_t row = int64_t{blockIdx.x} * (static_cast<int>(blockDim.x) / kRowThreads) +
                      static_cast<int>(threadIdx.x) / kRowThreads;
  if (row >= on.rows) return;
  const int vectors = on.width / N;
  const T* x = on.x + row * on.width;
  Floats<N> value[kVectors];
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const int i = k * kRowThreads + thread;
    value[k] = i < vectors ? device::load<N>(x + i * N) : device::splat<N>(0.0F);
  }

  const float count = static_cast<float>(on.width);
  float sum = 0.0F;
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
#pragma unroll
    for (int j = 0; j < N; ++j) sum += value[k][j];
  }
  const float mean = device::block_sum<kWarps>(sum, shared) / count;
  sum = 0.0F;
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    if (k * kRowThreads + thread < vectors) {
#pragma unroll
      for (int j = 0; j < N; ++j) {
        value[k][j] -= mean;
        sum = fmaf(value[k][j], value[k][j], sum);
      }
    }
  }
  const float variance = device::block_sum<kWarps>(sum, shared) / count;
  const float rstd = 1.0F / sqrtf(variance + on.eps);

  T* y = on.y + row * on.width;
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const int i = k * kRowThreads + thread;
    if (i < vectors) {
      const Floats<N> weight = device::load<N>(on.weight + i * N);
      const Floats<N> bias =
          on.bias == nullptr ? device::splat<N>(0.0F) : device::load<N>(on.bias + i * N);
#pragma unroll
      for (int j = 0; j < N; ++j) value[k][j] = fmaf(value[k][j] * rstd, weight[j], bias[j]);
      device::store(y + i * N, value[k]);
    }
  }
  if (thread == 0) {
    on.mean[row] = mean;
    on.rstd[row] = rstd;
  }
}

// Any width and alignment: a warp reads its row three times.
template <typename T>
__global__ void __launch_bounds__(kWarpRows* kWarpThreads) forward_any_kernel(Forward<T> on) {
  const int64_t row = int64_t{blockIdx.x} * kWarpRows + device::warp_index();
  if (row >= on.rows) return;
  const int lane = device::lane_index();
  const T* x = on.x + row * on.width;
  const float count = static_cast<float>(on.width);
  float sum = 0.0F;
  for (int i = lane; i < on.width; i += kWarpThreads) sum += device::to_float(x[i]);
  const float mean = device::warp_sum(sum) / count;
  sum = 0.0F;
  for (int i = lane; i < on.width; i += kWarpThreads) {
    const float deviation = device::to_float(x[i]) - mean;
    sum = fmaf(deviation, deviation, sum);
  }
  const float rstd = 1.0F / sqrtf(device::warp_sum(sum) / count + on.eps);
  T* y = on.y + row * on.width;
  for (int i = lane; i < on.width; i += kWarpThreads) {
    const float normal = (device::to_float(x[i]) - mean) * rstd;
    const float bias = on.bias == nullptr ? 0.0F : on.bias[i];
    y[i] = device::from_float<T>(fmaf(normal, on.weight[i], bias));
  }
  if (lane == 0) {
    on.mean[row] = mean;
    on.rstd[row] = rstd;
  }
}

template <typename T>
void launch_forward(Stream& stream, const Forward<T>& on) {
  constexpr int N = device::kElements16<T>;
  const cudaStream_t queue = stream.cuda().stream;
  // A thread holds at most kFloats elements.
  const auto launch = [&](auto floats, auto warps) {
    constexpr int kWarps = warps();
    constexpr int kRows = kWarps == 1 ? kWarpRows : 1;
    forward_kernel<T, floats() / N, kWarps>
        <<<ceil_div(on.rows, kRows), kRows * kWarps * kWarpThreads, 0, queue>>>(on);
  };
  const bool whole_vectors = on.width % N == 0 && device::aligned16(on.x, on.weight, on.bias, on.y);
  const int64_t per_lane = ceil_div(on.width, kWarpThreads);
  const std::integral_constant<int, 1> warp;
  const std::integral_constant<int, kBlockWarps> block;
  if (on.rows == 0 || on.width == 0) return;
  if (!whole_vectors || per_lane > 64 * kBlockWarps) {
    forward_any_kernel<<<ceil_div(on.rows, kWarpRows), kWarpRows * kWarpThreads, 0, queue>>>(on);
  } else if (per_lane <= 8) {
    launch(std::integral_constant<int, 8>(), warp);
  } else if (per_lane <= 16) {
    launch(std::integral_constant<int, 16>(), warp);
  } else if (per_lane <= 24) {
    launch(std::integral_constant<int, 24>(), warp);
  } else if (per_lane <= 32) {
    launch(std::integral_constant<int, 32>(), warp);
  } else if (per_lane <= 40) {
    launch(std::integral_constant<int, 40>(), warp);
  } else if (per_lane <= 48) {
    launch(std::integral_constant<int, 48>(), warp);
  } else if (per_lane <= 16 * kBlockWarps) {
    launch(std::integral_constant<int, 16>(), block);
  } else if (per_lane <= 32 * kBlockWarps) {
    launch(std::integral_constant<int, 32>(), block);
  } else {
    launch(std::integral_constant<int, 64>(), block);
  }
  check_launch("layer_norm_forward");
}

// ---- Backward ----

template <typename T>
struct Backward {
  const T* dy;
  const T* x;
  const float* weight;
  const float* mean;
  const float* rstd;
  const T* residual;
  int64_t rows;
  int width;
  T* dx;
  float* partial;  // (blocks, 2, width): every block's dweight and dbias
};

// A block is `groups` groups of `warps` warps. A group takes rows in turn, a thread always the same
// columns, whose gradients of weight and bias stay in its registers to the end.
constexpr int kMostWarps = 12;
constexpr int kMostThreads = kMostWarps * kWarpThreads;
constexpr int kMostFloats = 16;
// Of the blocks of rows of up to 1,280 columns, which are two groups of five warps.
constexpr int kFewThreads = 320;

struct Shape {
  int floats;  // columns of a thread; 0: the kernels for any width
  int warps;
  int groups;
  int64_t blocks;
};

// Rows a group has in flight, within the registers of two blocks of so many threads.
constexpr int rows_at_once(int floats, size_t element_bytes, int threads) {
  if (floats != 8 || element_bytes != 2) return 1;
  return threads <= kFewThreads ? 3 : 2;
}

// As many blocks as run at the same time: two of 384 threads a multiprocessor where a thread has
// eight columns, one where it has more. Depends on the extents alone, so as scratch does.
Shape backward_shape(int multiprocessors, int64_t rows, int64_t width) {
  Shape shape = {8, 1, 1, 0};
  while (shape.floats <= kMostFloats && width > int64_t{shape.floats} * kMostThreads) {
    shape.floats *= 2;
  }
  if (shape.floats > kMostFloats) {
    shape.floats = 0;
    shape.blocks = 2 * multiprocessors;
  } else {
    shape.warps = static_cast<int>(ceil_div(width, int64_t{shape.floats} * kWarpThreads));
    if (shape.floats == 8) shape.groups = kMostWarps / shape.warps;
    const int together = shape.floats == 8 ? 2 * kMostWarps / (shape.groups * shape.warps) : 1;
    shape.blocks = int64_t{together} * multiprocessors;
  }
  const int64_t most = ceil_div(rows, shape.groups);
  if (shape.blocks > most) shape.blocks = most;
  return shape;
}

// The sums of kCount values over the `warps` warps of a group; `shared` holds kCount values for each
// of them, and another call may not use the same ones: a warp may still be reading.
template <int kCount>
__device__ inline void group_sum(float (&values)[kCount], int group, int warps,
                                 float (*shared)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = device::warp_sum(values[i]);
  if (warps == 1) return;
  const int first = group * warps;
  if (device::lane_index() == 0) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) shared[device::warp_index()][i] = values[i];
  }
  device::sync_group(1 + group, warps * kWarpThreads);
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = 0.0F;
  for (int warp = 0; warp < warps; ++warp) {
#pragma unroll
    for (int i = 0; i < kCount; i += 2) {
      const Floats<2> other = device::load<2>(&shared[first + warp][i]);
      values[i] += other[0];
      values[i + 1] += other[1];
    }
  }
}

// Leaves the block's sums of a column gradient in `out` (width); `shared` holds as many values as the
// block has columns in registers, and may not be in use.
template <int N, int kVectors>
__device__ inline void write_columns(const Floats<N> (&sums)[kVectors], int width, int group,
                                     int groups, int thread, int group_threads, float* shared,
                                     float* out) {
  const int vectors = width / N;
  float* own = groups == 1 ? out : shared + group * width;
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const int i = k * group_threads + thread;
    if (i < vectors) device::store(own + i * N, sums[k]);
  }
  if (groups == 1) return;
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < width; i += static_cast<int>(blockDim.x)) {
    float sum = 0.0F;
    for (int g = 0; g < groups; ++g) sum += shared[g * width + i];
    out[i] = sum;
  }
  __syncthreads();
}

template <typename T, int kFloats, int kThreads, bool kResidual>
__global__ void __launch_bounds__(kThreads, kFloats == 8 ? 2 : 1)
    backward_kernel(Backward<T> on, int warps, int groups) {
  constexpr int N = device::kElements16<T>;
  constexpr int kVectors = kFloats / N;
  constexpr int kRows = rows_at_once(kFloats, sizeof(T), kThreads);
  __shared__ alignas(16) float sums[2][kMostWarps][2 * kRows];
  __shared__ alignas(16) float columns[kFloats == 8 ? kFloats * kMostThreads : 1];
  const int group_threads = warps * kWarpThreads;
  const int group = device::warp_index() / warps;
  const int thread = static_cast<int>(threadIdx.x) - group * group_threads;
  const int vectors = on.width / N;
  const float per_column = 1.0F / static_cast<float>(on.width);

  Floats<N> weight[kVectors], dweight[kVectors], dbias[kVectors];
#pragma unroll
  for (int k = 0; k < kVectors; ++k) {
    const int i = k * group_threads + thread;
    weight[k] = i < vectors ? device::load<N>(on.weight + i * N) : device::splat<N>(0.0F);
    dweight[k] = device::splat<N>(0.0F);
    dbias[k] = device::splat<N>(0.0F);
  }

  int turn = 0;
  const int64_t step = int64_t{gridDim.x} * groups * kRows;
  for (int64_t first = (int64_t{blockIdx.x} * groups + group) * kRows; first < on.rows;
       first += step, turn ^= 1) {
    Packed<T, N> dy[kRows][kVectors], x[kRows][kVectors], residual[kRows][kVectors];
    float mean[kRows], rstd[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const bool inside = first + r < on.rows;
      const int64_t start = (first + r) * on.width;
      mean[r] = inside ? on.mean[first + r] : 0.0F;
      rstd[r] = inside ? on.rstd[first + r] : 0.0F;
#pragma unroll
      for (int k = 0; k < kVectors; ++k) {
        const int i = k * group_threads + thread;
        dy[r][k] = x[r][k] = residual[r][k] = {};
        if (inside && i < vectors) {
          dy[r][k] = device::load_packed<N>(on.dy + start + i * N);
          x[r][k] = device::load_packed<N>(on.x + start + i * N);
          if (kResidual) residual[r][k] = device::load_packed<N>(on.residual + start + i * N);
        }
      }
    }
    float means[2 * kRows] = {};  // of g and of g x̂, row by row
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int k = 0; k < kVectors; ++k) {
        const Floats<N> d = device::unpack(dy[r][k]);
        const Floats<N> value = device::unpack(x[r][k]);
#pragma unroll
        for (int j = 0; j < N; ++j) {
          const float normal = (value[j] - mean[r]) * rstd[r];
          const float g = d[j] * weight[k][j];
          dweight[k][j] = fmaf(d[j], normal, dweight[k][j]);
          dbias[k][j] += d[j];
          means[2 * r] += g;
          means[2 * r + 1] = fmaf(g, normal, means[2 * r + 1]);
        }
        device::keep_packed(&dy[r][k]);
        device::keep_packed(&x[r][k]);
      }
    }
    group_sum(means, group, warps, sums[turn]);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float mean_g = means[2 * r] * per_column;
      const float mean_gx = means[2 * r + 1] * per_column;
#pragma unroll
      for (int k = 0; k < kVectors; ++k) {
        const int i = k * group_threads + thread;
        const Floats<N> d = device::unpack(dy[r][k]);
        const Floats<N> value = device::unpack(x[r][k]);
        const Floats<N> bypass = device::unpack(residual[r][k]);
        Floats<N> out;
#pragma unroll
        for (int j = 0; j < N; ++j) {
          const float normal = (value[j] - mean[r]) * rstd[r];
          out[j] = rstd[r] * (d[j] * weight[k][j] - mean_g - normal * mean_gx);
          if (kResidual) out[j] += bypass[j];
        }
        if (first + r < on.rows && i < vectors) {
          device::store(on.dx + (first + r) * on.width + i * N, out);
        }
      }
    }
  }

  float* partial = on.partial + int64_t{blockIdx.x} * 2 * on.width;
  write_columns(dweight, on.width, group, groups, thread, group_threads, columns, partial);
  write_columns(dbias, on.width, group, groups, thread, group_threads, columns, partial + on.width);
}

// Any width and alignment: a warp reads its row twice.
template <typename T>
__global__ void __launch_bounds__(kWarpRows* kWarpThreads)
    backward_any_rows_kernel(Backward<T> on) {
  const int64_t row = int64_t{blockIdx.x} * kWarpRows + device::warp_index();
  if (row >= on.rows) return;
  const int lane = device::lane_index();
  const int64_t start = row * on.width;
  const float count = static_cast<float>(on.width);
  const float mean = on.mean[row];
  const float rstd = on.rstd[row];
  float sum_g = 0.0F;
  float sum_gx = 0.0F;
  for (int i = lane; i < on.width; i += kWarpThreads) {
    const float g = device::to_float(on.dy[start + i]) * on.weight[i];
    sum_g += g;
    sum_gx = fmaf(g, (device::to_float(on.x[start + i]) - mean) * rstd, sum_gx);
  }
  const float mean_g = device::warp_sum(sum_g) / count;
  const float mean_gx = device::warp_sum(sum_gx) / count;
  for (int i = lane; i < on.width; i += kWarpThreads) {
    const float g = device::to_float(on.dy[start + i]) * on.weight[i];
    const float normal = (device::to_float(on.x[start + i]) - mean) * rstd;
    float out = rstd * (g - mean_g - normal * mean_gx);
    if (on.residual != nullptr) out += device::to_float(on.residual[start + i]);
    on.dx[start + i] = device::from_float<T>(out);
  }
}

constexpr int kAnyColumns = 32;
constexpr int kAnyShares = 8;

// The partial sums of kAnyColumns columns over every gridDim.y-th handful of rows.
template <typename T>
__global__ void __launch_bounds__(kAnyColumns* kAnyShares)
    backward_any_columns_kernel(Backward<T> on) {
  __shared__ float shared[2][kAnyShares][kAnyColumns];
  const int lane = static_cast<int>(threadIdx.x) % kAnyColumns;
  const int share = static_cast<int>(threadIdx.x) / kAnyColumns;
  const int column = static_cast<int>(blockIdx.x) * kAnyColumns + lane;
  float dweight = 0.0F;
  float dbias = 0.0F;
  if (column < on.width) {
    for (int64_t row = int64_t{blockIdx.y} * kAnyShares + share; row < on.rows;
         row += int64_t{gridDim.y} * kAnyShares) {
      const float d = device::to_float(on.dy[row * on.width + column]);
      const float x = device::to_float(on.x[row * on.width + column]);
      dweight = fmaf(d, (x - on.mean[row]) * on.rstd[row], dweight);
      dbias += d;
    }
  }
  shared[0][share][lane] = dweight;
  shared[1][share][lane] = dbias;
  __syncthreads();
  if (share < 2 && column < on.width) {
    float sum = 0.0F;
    for (int i = 0; i < kAnyShares; ++i) sum += shared[share][i][lane];
    on.partial[(int64_t{blockIdx.y} * 2 + share) * on.width + column] = sum;
  }
}

constexpr int kSumColumns = 32;
constexpr int kSumShares = 32;

// dweight and dbias from the partial sums of the blocks.
__global__ void __launch_bounds__(kSumColumns* kSumShares)
    sum_columns_kernel(const float* partial, int64_t blocks, int width, float* dweight,
                       float* dbias) {
  __shared__ float shared[kSumShares][kSumColumns + 1];
  const int lane = static_cast<int>(threadIdx.x) % kSumColumns;
  const int share = static_cast<int>(threadIdx.x) / kSumColumns;
  const int64_t row = int64_t{2} * width;
  const int64_t column = int64_t{blockIdx.x} * kSumColumns + lane;
  float sum = 0.0F;
  if (column < row) {
#pragma unroll 4
    for (int64_t block = share; block < blocks; block += kSumShares) {
      sum += partial[block * row + column];
    }
  }
  shared[share][lane] = sum;
  __syncthreads();
  // A warp a column.
  sum = device::warp_sum(shared[lane][share]);
  const int64_t out = int64_t{blockIdx.x} * kSumColumns + share;
  if (lane != 0 || out >= row) return;
  if (out < width) {
    dweight[out] = sum;
  } else if (dbias != nullptr) {
    dbias[out - width] = sum;
  }
}

template <typename T>
void launch_backward(Stream& stream, const Backward<T>& on, float* dweight, float* dbias) {
  constexpr char kName[] = "layer_norm_backward";
  constexpr int N = device::kElements16<T>;
  const Shape shape = backward_shape(stream.cuda().multiprocessors, on.rows, on.width);
  const cudaStream_t queue = stream.cuda().stream;
  if (on.width == 0) return;
  const bool whole_vectors =
      on.width % N == 0 && device::aligned16(on.dy, on.x, on.weight, on.residual, on.dx);
  if (on.rows == 0) {
  } else if (shape.floats == 0 || !whole_vectors) {
    // Columns first, as dx may be written over dy or x.
    const dim3 grid(static_cast<unsigned>(ceil_div(on.width, kAnyColumns)),
                    static_cast<unsigned>(shape.blocks));
    backward_any_columns_kernel<<<grid, kAnyColumns * kAnyShares, 0, queue>>>(on);
    check_launch(kName);
    backward_any_rows_kernel<<<ceil_div(on.rows, kWarpRows), kWarpRows * kWarpThreads, 0, queue>>>(
        on);
    check_launch(kName);
  } else {
    const int threads = shape.groups * shape.warps * kWarpThreads;
    const auto launch = [&](auto floats, auto most) {
      const auto kernel = on.residual != nullptr ? backward_kernel<T, floats(), most(), true>
                                                 : backward_kernel<T, floats(), most(), false>;
      kernel<<<shape.blocks, threads, 0, queue>>>(on, shape.warps, shape.groups);
    };
    if (shape.floats != 8) {
      launch(std::integral_constant<int, kMostFloats>(),
             std::integral_constant<int, kMostThreads>());
    } else if (threads == kFewThreads) {
      launch(std::integral_constant<int, 8>(), std::integral_constant<int, kFewThreads>());
    } else {
      launch(std::integral_constant<int, 8>(), std::integral_constant<int, kMostThreads>());
    }
    check_launch(kName);
  }
  sum_columns_kernel<<<ceil_div(int64_t{2} * on.width, kSumColumns), kSumColumns * kSumShares, 0,
                       queue>>>(on.partial, shape.blocks, on.width, dweight, dbias);
  check_launch(kName);
}

}  // namespace

void layer_norm_forward(Stream& stream, In x, In weight, MaybeIn bias, double eps, Out y, Out mean,
                        Out rstd) {
  constexpr char kName[] = "layer_norm_forward";
  check_not_scalar(kName, "x", x);
  const int64_t width = x.extent(-1);
  const int64_t rows = x.rows();
  check_elements(kName, "weight", weight, width);
  if (bias.present()) check_elements(kName, "bias", bias, width);
  check_elements(kName, "y", y, rows * width);
  check_dtype(kName, "y", y, x.dtype());
  check_elements(kName, "mean", mean, rows);
  check_elements(kName, "rstd", rstd, rows);
  with_type(kName, "x", x, [&](auto type) {
    using T = decltype(type);
    launch_forward<T>(stream,
                      {elements_of<T>(x), weight.data(), bias.present() ? bias.data() : nullptr,
                       static_cast<float>(eps), rows, static_cast<int>(width), elements_of<T>(y),
                       mean.data(), rstd.data()});
  });
}

void layer_norm_backward(Stream& stream, In dy, In x, In weight, In mean, In rstd, MaybeIn residual,
                         Out dx, Out dweight, MaybeOut dbias, Scratch scratch) {
  constexpr char kName[] = "layer_norm_backward";
  check_not_scalar(kName, "dy", dy);
  const int64_t width = dy.extent(-1);
  const int64_t rows = dy.rows();
  check_elements(kName, "x", x, rows * width);
  check_dtype(kName, "x", x, dy.dtype());
  check_elements(kName, "weight", weight, width);
  check_elements(kName, "mean", mean, rows);
  check_elements(kName, "rstd", rstd, rows);
  if (residual.present()) {
    check_elements(kName, "residual", residual, rows * width);
    check_dtype(kName, "residual", residual, dy.dtype());
  }
  check_elements(kName, "dx", dx, rows * width);
  check_dtype(kName, "dx", dx, dy.dtype());
  check_elements(kName, "dweight", dweight, width);
  if (dbias.present()) check_elements(kName, "dbias", dbias, width);
  check_scratch(kName, scratch, layer_norm_backward_scratch(stream.cuda().multiprocessors, dy));
  with_type(kName, "dy", dy, [&](auto type) {
    using T = decltype(type);
    launch_backward<T>(
        stream,
        {elements_of<T>(dy), elements_of<T>(x), weight.data(), mean.data(), rstd.data(),
         residual.present() ? elements_of<T>(residual) : nullptr, rows, static_cast<int>(width),
         elements_of<T>(dx), reinterpret_cast<float*>(scratch.data)},
        dweight.data(), dbias.present() ? dbias.data() : nullptr);
  });
}

size_t layer_norm_backward_scratch(int multiprocessors, In dy) {
  if (dy.rank() < 1) return 0;
  const int64_t width = dy.extent(-1);
  const int64_t blocks = backward_shape(multiprocessors, dy.rows(), width).blocks;
  return static_cast<size_t>(blocks * 2 * width) * sizeof(float);
}

}  // namespace siglip::cuda
