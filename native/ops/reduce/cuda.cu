#define SIGLIP_CPU cuda  // the namespace of the guards
#include "cpu/check.h"
#include "device/reduce.cuh"
#include "device/sum_partials.cuh"
#include "device/vector.cuh"
#include "ops/reduce/reduce.h"
#include "runtime/cuda_context.h"
#include "runtime/cuda_dtype.h"

namespace siglip::cuda {
namespace {

using device::Floats;

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * device::kWarpThreads;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Column sums. kColumns threads side by side take N columns each; the other threads of the block
// share the rows, and their sums meet in shared memory.
template <int N, int kColumns, typename T>
__global__ void __launch_bounds__(kThreads)
    sum_rows_kernel(const T* x, int64_t rows, int64_t size, float* y) {
  constexpr int kShares = kThreads / kColumns;
  __shared__ float sums[N][kThreads];
  const int share = static_cast<int>(threadIdx.x) / kColumns;
  const int64_t column =
      (int64_t{blockIdx.x} * kColumns + static_cast<int>(threadIdx.x) % kColumns) * N;
  Floats<N> sum = device::splat<N>(0.0F);
  if (column < size) {
    const T* from = x + column;
#pragma unroll 4
    for (int64_t row = share; row < rows; row += kShares) {
      const Floats<N> value = device::load<N>(from + row * size);
#pragma unroll
      for (int i = 0; i < N; ++i) sum[i] += value[i];
    }
  }
#pragma unroll
  for (int i = 0; i < N; ++i) sums[i][threadIdx.x] = sum[i];
  for (int shares = kShares / 2; shares > 0; shares /= 2) {
    __syncthreads();
    if (share < shares) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        sums[i][threadIdx.x] += sums[i][threadIdx.x + shares * kColumns];
      }
    }
  }
  if (share == 0 && column < size) {
#pragma unroll
    for (int i = 0; i < N; ++i) sum[i] = sums[i][threadIdx.x];
    device::store(y + column, sum);
  }
}

template <int N, int kColumns, typename T>
void launch_sum_rows(Stream& stream, const T* x, int64_t rows, int64_t size, float* y) {
  sum_rows_kernel<N, kColumns>
      <<<ceil_div(size, kColumns * N), kThreads, 0, stream.cuda().stream>>>(x, rows, size, y);
  check_launch("sum_rows_forward");
}

// Fewer columns a block where there would not be a block for every multiprocessor; 32 bytes of a row
// at least.
template <typename T>
void sum_rows(Stream& stream, const T* x, int64_t rows, int64_t size, float* y) {
  constexpr int N = device::kElements16<T>;
  const int64_t processors = stream.cuda().multiprocessors;
  if (size == 0) return;
  if (size % N != 0 || !device::aligned16(x, y)) {
    launch_sum_rows<1, 32>(stream, x, rows, size, y);
  } else if (ceil_div(size, 32 * N) >= 2 * processors) {
    launch_sum_rows<N, 32>(stream, x, rows, size, y);
  } else if (ceil_div(size, 8 * N) >= 2 * processors) {
    launch_sum_rows<N, 8>(stream, x, rows, size, y);
  } else {
    launch_sum_rows<N, 2>(stream, x, rows, size, y);
  }
}

// Elements of one term of a sum per thread and turn of its loop, and the terms Σ of N of them.
template <typename T>
struct Product {
  const T* a;
  const T* b;
  template <int N>
  __device__ void add_to(Floats<N>* sum, int64_t i) const {
    const Floats<N> left = device::load<N>(a + i);
    const Floats<N> right = device::load<N>(b + i);
#pragma unroll
    for (int j = 0; j < N; ++j) (*sum)[j] = fmaf(left[j], right[j], (*sum)[j]);
  }
};

struct Square {
  const float* x;
  template <int N>
  __device__ void add_to(Floats<N>* sum, int64_t i) const {
    const Floats<N> value = device::load<N>(x + i);
#pragma unroll
    for (int j = 0; j < N; ++j) (*sum)[j] = fmaf(value[j], value[j], (*sum)[j]);
  }
};

// The sum of the terms of elements [begin, end), by the whole block.
template <int N, typename Term>
__device__ float sum_terms(const Term& term, int64_t begin, int64_t end, float* shared) {
  Floats<N> sum = device::splat<N>(0.0F);
  int64_t i = begin + int64_t{threadIdx.x} * N;
#pragma unroll 4
  for (; i + N <= end; i += kThreads * N) term.template add_to<N>(&sum, i);
  Floats<1> total = {sum[0]};
#pragma unroll
  for (int j = 1; j < N; ++j) total[0] += sum[j];
  if (N > 1) {
    for (; i < end; ++i) term.template add_to<1>(&total, i);
  }
  return device::block_sum<kWarps>(total[0], shared);
}

// Elements of a block, in dot and in the global norm: 16 turns of 256 threads with 4 elements each.
// Sums of so few float32 terms a thread are as good as exact; the blocks' are added in float64.
constexpr int64_t kChunk = int64_t{1} << 14;

template <int N, typename T>
__global__ void __launch_bounds__(kThreads)
    dot_kernel(Product<T> term, int64_t size, float* partial) {
  __shared__ float shared[kWarps];
  const int64_t begin = int64_t{blockIdx.x} * kChunk;
  const int64_t end = begin + kChunk < size ? begin + kChunk : size;
  const float sum = sum_terms<N>(term, begin, end, shared);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// What one launch can be told about tensors, within the 4 kB of a kernel's parameters.
struct TensorBatch {
  static constexpr int kMost = 160;
  const float* data[kMost];
  int64_t size[kMost];
  int first_block[kMost];
  int count;
};

__global__ void __launch_bounds__(kThreads)
    square_sum_kernel(const __grid_constant__ TensorBatch batch, float* partial) {
  __shared__ float shared[kWarps];
  const int block = static_cast<int>(blockIdx.x);
  int tensor = 0;  // the last whose first block is not beyond this one
  for (int end = batch.count; end - tensor > 1;) {
    const int middle = (tensor + end) / 2;
    if (batch.first_block[middle] <= block) {
      tensor = middle;
    } else {
      end = middle;
    }
  }
  const float* x = batch.data[tensor];
  const int64_t size = batch.size[tensor];
  const int64_t begin = (block - batch.first_block[tensor]) * kChunk;
  const int64_t end = begin + kChunk < size ? begin + kChunk : size;
  const float sum = device::aligned16(x) ? sum_terms<4>(Square{x}, begin, end, shared)
                                         : sum_terms<1>(Square{x}, begin, end, shared);
  if (threadIdx.x == 0) partial[block] = sum;
}

constexpr int kSumThreads = device::kSumWarps * device::kWarpThreads;

template <bool kRoot>
__global__ void __launch_bounds__(kSumThreads)
    sum_partials_kernel(const float* partial, int64_t count, float* y) {
  __shared__ double shared[device::kSumWarps];
  const double sum = device::sum_partials(partial, count, 1, shared);
  if (threadIdx.x == 0) *y = static_cast<float>(kRoot ? sqrt(sum) : sum);
}

int64_t chunks(const InList& tensors) {
  int64_t count = 0;
  for (int64_t i = 0; i < tensors.count; ++i) count += ceil_div(tensors[i].elements(), kChunk);
  return count;
}

struct ScalarBatch {
  static constexpr int kMost = 480;
  const float* data[kMost];
  int count;
  bool first;  // else y holds the sum of the batches before
  bool last;   // y becomes the root
};

__global__ void __launch_bounds__(kSumThreads)
    root_sum_kernel(const __grid_constant__ ScalarBatch batch, float* y) {
  __shared__ double shared[device::kSumWarps];
  const int i = static_cast<int>(threadIdx.x);
  static_assert(ScalarBatch::kMost <= kSumThreads);
  double sum = i < batch.count ? static_cast<double>(*batch.data[i]) : 0.0;
  sum = device::block_sum<device::kSumWarps>(sum, shared);
  if (i == 0) {
    if (!batch.first) sum += static_cast<double>(*y);
    *y = static_cast<float>(batch.last ? sqrt(sum) : sum);
  }
}

// y = x / Σ x over the rows; a warp a row.
__global__ void row_shares(const float* x, int64_t rows, int64_t width, float* y) {
  const int64_t row = int64_t{blockIdx.x} * (blockDim.x / device::kWarpThreads) +
                      static_cast<int64_t>(device::warp_index());
  if (row >= rows) return;
  x += row * width;
  y += row * width;
  float sum = 0.0F;
  for (int64_t i = device::lane_index(); i < width; i += device::kWarpThreads) sum += x[i];
  sum = device::warp_sum(sum);
  const float factor = sum == 0.0F ? 0.0F : 1.0F / sum;
  for (int64_t i = device::lane_index(); i < width; i += device::kWarpThreads) y[i] = x[i] * factor;
}

}  // namespace

void sum_rows_forward(Stream& stream, In x, Out y) {
  constexpr char kName[] = "sum_rows_forward";
  check_not_scalar(kName, "x", x);
  const int64_t count = x.extent(0);
  const int64_t size = y.elements();
  check_elements(kName, "x", x, count * size);
  float* y_data = y.data();
  with_type(kName, "x", x, [&](auto type) {
    using T = decltype(type);
    sum_rows(stream, elements_of<T>(x), count, size, y_data);
  });
}

void row_shares_forward(Stream& stream, In x, Out y) {
  constexpr char kName[] = "row_shares_forward";
  check_not_scalar(kName, "x", x);
  check_elements(kName, "y", y, x.elements());
  constexpr int kWarps = 4;
  const int64_t rows = x.rows();
  const auto blocks = static_cast<unsigned>(ceil_div(rows, kWarps));
  row_shares<<<blocks, kWarps * device::kWarpThreads, 0, stream.cuda().stream>>>(
      x.data(), rows, x.extent(-1), y.data());
  check_launch("row_shares");
}

void dot_forward(Stream& stream, In a, In b, Out y, Scratch scratch) {
  constexpr char kName[] = "dot_forward";
  const int64_t size = a.elements();
  check_elements(kName, "b", b, size);
  check_dtype(kName, "b", b, a.dtype());
  check_elements(kName, "y", y, 1);
  check_scratch(kName, scratch, dot_forward_scratch(stream.cuda().multiprocessors, a));
  float* partial = reinterpret_cast<float*>(scratch.data);
  float* y_data = y.data();
  const int64_t blocks = ceil_div(size, kChunk);
  const cudaStream_t queue = stream.cuda().stream;
  with_type(kName, "a", a, [&](auto type) {
    using T = decltype(type);
    const Product<T> term = {elements_of<T>(a), elements_of<T>(b)};
    if (blocks == 0) return;
    if (device::aligned16(term.a, term.b)) {
      dot_kernel<device::kElements16<T>><<<blocks, kThreads, 0, queue>>>(term, size, partial);
    } else {
      dot_kernel<1><<<blocks, kThreads, 0, queue>>>(term, size, partial);
    }
    check_launch(kName);
  });
  sum_partials_kernel<false><<<1, kSumThreads, 0, queue>>>(partial, blocks, y_data);
  check_launch(kName);
}

size_t dot_forward_scratch(int, In a) {
  return static_cast<size_t>(ceil_div(a.elements(), kChunk)) * sizeof(float);
}

void global_norm_forward(Stream& stream, InList tensors, Out y, Scratch scratch) {
  constexpr char kName[] = "global_norm_forward";
  check_elements(kName, "y", y, 1);
  check_scratch(kName, scratch,
                global_norm_forward_scratch(stream.cuda().multiprocessors, tensors));
  float* partial = reinterpret_cast<float*>(scratch.data);
  float* y_data = y.data();
  for (int64_t i = 0; i < tensors.count; ++i) tensors[i].data();  // dtypes, before any work
  const cudaStream_t queue = stream.cuda().stream;
  int64_t queued = 0;
  for (int64_t i = 0; i < tensors.count;) {
    TensorBatch batch;
    batch.count = 0;
    int64_t blocks = 0;
    for (; i < tensors.count && batch.count < TensorBatch::kMost; ++i) {
      const int64_t size = tensors[i].elements();
      if (size == 0) continue;
      batch.data[batch.count] = tensors[i].data();
      batch.size[batch.count] = size;
      batch.first_block[batch.count] = static_cast<int>(blocks);
      ++batch.count;
      blocks += ceil_div(size, kChunk);
    }
    if (blocks == 0) break;
    square_sum_kernel<<<blocks, kThreads, 0, queue>>>(batch, partial + queued);
    check_launch(kName);
    queued += blocks;
  }
  sum_partials_kernel<true><<<1, kSumThreads, 0, queue>>>(partial, queued, y_data);
  check_launch(kName);
}

size_t global_norm_forward_scratch(int, InList tensors) {
  return static_cast<size_t>(chunks(tensors)) * sizeof(float);
}

void root_sum_forward(Stream& stream, InList scalars, Out y) {
  constexpr char kName[] = "root_sum_forward";
  check_elements(kName, "y", y, 1);
  for (int64_t i = 0; i < scalars.count; ++i) check_elements(kName, "a scalar", scalars[i], 1);
  float* y_data = y.data();
  int64_t i = 0;
  do {
    ScalarBatch batch;
    batch.first = i == 0;
    batch.count = 0;
    for (; i < scalars.count && batch.count < ScalarBatch::kMost; ++i) {
      batch.data[batch.count++] = scalars[i].data();
    }
    batch.last = i == scalars.count;
    root_sum_kernel<<<1, kSumThreads, 0, stream.cuda().stream>>>(batch, y_data);
    check_launch(kName);
  } while (i < scalars.count);
}

}  // namespace siglip::cuda
