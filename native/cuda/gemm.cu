#include "cuda/gemm.h"

#include <cuda_bf16.h>

#include <algorithm>
#include <limits>
#include <string>

#include "cuda/gemm_epilogue.cuh"
#include "cuda/gemm_task.h"
#include "runtime/cublaslt.h"
#include "runtime/cuda_context.h"
#include "runtime/error.h"

namespace siglip::cuda {
namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How the work on a product is cut.
struct Cut {
  int tile = 128;
  int64_t splits = 1;
  int64_t split_k = 0;
};

// Partial sums take no more than this.
constexpr int64_t kPartialBytes = int64_t{64} << 20;

// Large tiles where there is work for all multiprocessors: tiles times thousands of k. Then the split
// with the fewest idle places in the last round of blocks, a hundredth off for each range, as their sums
// have to be added.
Cut cut_of(int multiprocessors, const MatrixProduct& product) {
  const auto tiles = [&](int64_t tile) {
    return divide_up(product.m, tile) * divide_up(product.n, tile) * product.groups;
  };
  Cut cut;
  cut.tile = tiles(128) * divide_up(product.k, 1024) >= multiprocessors ? 128 : 64;
  const int64_t blocks = tiles(cut.tile);
  const int64_t places = int64_t{multiprocessors} * (cut.tile == 128 ? 2 : 4);
  const int64_t least_k = cut.tile == 128 ? 512 : 256;
  const int64_t sums = product.groups * product.m * product.n;
  const int64_t most = std::max<int64_t>(
      1,
      std::min({int64_t{16}, product.k / least_k, kPartialBytes / 4 / std::max<int64_t>(sums, 1)}));
  double best = 0.0;
  for (int64_t splits = 1; splits <= most; ++splits) {
    const int64_t all = blocks * splits;
    const double busy =
        static_cast<double>(all) / static_cast<double>(divide_up(all, places) * places);
    const double score = busy * (1.0 - 0.01 * static_cast<double>(splits - 1));
    if (score <= best) continue;
    best = score;
    cut.splits = splits;
  }
  cut.split_k = divide_up(divide_up(product.k, cut.splits), 32) * 32;
  cut.splits = divide_up(product.k, cut.split_k);
  return cut;
}

size_t partial_bytes(const MatrixProduct& product, const Cut& cut) {
  if (cut.splits == 1) return 0;
  return static_cast<size_t>(cut.splits * product.groups * product.m * product.n) * sizeof(float);
}

bool aligned(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) == 0;
}

// Whether every row begins at a multiple of so many elements.
bool rows_aligned(const MatrixProduct::Operand& operand, DType dtype, int64_t elements) {
  return aligned(operand.data, elements * static_cast<int64_t>(size_of(dtype))) &&
         operand.stride % elements == 0 && operand.group_stride % elements == 0;
}

GemmOperand operand_of(const MatrixProduct::Operand& operand, DType dtype, bool along_k) {
  return {operand.data, operand.stride, operand.group_stride, along_k,
          rows_aligned(operand, dtype, 4)};
}

GemmEpilogue epilogue_of(const MatrixProduct& product) {
  GemmEpilogue out;
  out.c = product.c;
  out.stride = product.c_stride;
  out.group_stride = product.c_group_stride;
  out.bias = product.bias;
  out.pre = product.pre;
  out.residual = product.residual;
  out.bfloat16 = product.output == DType::kBfloat16;
  out.bfloat16_bias = product.bias_dtype == DType::kBfloat16;
  out.gelu = product.gelu;
  const int64_t bytes = 4 * static_cast<int64_t>(size_of(product.output));
  out.by_four = product.c_stride % 4 == 0 && product.c_group_stride % 4 == 0 &&
                aligned(product.c, bytes) && aligned(product.pre, bytes) &&
                aligned(product.residual, bytes) &&
                aligned(product.bias, 4 * static_cast<int64_t>(size_of(product.bias_dtype)));
  return out;
}

void own_gemm(const CudaContext& context, const MatrixProduct& product, Scratch scratch) {
  const Cut cut = cut_of(context.multiprocessors, product);
  const int copy_bytes = product.input == DType::kBfloat16 ? gemm_copy_bytes(product) : 0;
  // A product cut for large tiles is cut well enough for small ones.
  const int tile = copy_bytes == 4 ? 64 : cut.tile;
  GemmTask task;
  task.a = operand_of(product.a, product.input, !product.transpose_a);
  task.b = operand_of(product.b, product.input, product.transpose_b);
  task.m = static_cast<int>(product.m);
  task.n = static_cast<int>(product.n);
  task.k = static_cast<int>(product.k);
  task.tiles_m = static_cast<int>(divide_up(product.m, tile));
  task.tiles_n = static_cast<int>(divide_up(product.n, tile));
  task.splits = static_cast<int>(cut.splits);
  task.split_k = static_cast<int>(cut.split_k);
  task.groups = static_cast<int>(product.groups);
  task.partial = reinterpret_cast<float*>(scratch.data);
  task.epilogue = epilogue_of(product);
  if (copy_bytes > 0) {
    gemm_tensor(context, task, tile, copy_bytes);
  } else {
    gemm_simple(context, task, tile, product.input);
  }
  if (task.splits > 1) gemm_finish(context, task);
}

// A thread adds up the ranges' sums of four columns of a row, in the order of the ranges.
constexpr int kFinishThreads = 256;
__global__ void __launch_bounds__(kFinishThreads)
    gemm_finish_kernel(const __grid_constant__ GemmTask task) {
  const int fours = (task.n + 3) / 4;
  const int64_t index = int64_t{blockIdx.x} * kFinishThreads + threadIdx.x;
  const int64_t line = index / fours;  // over groups and rows
  const int column = static_cast<int>(index % fours) * 4;
  if (line >= int64_t{task.groups} * task.m) return;
  const int64_t range = int64_t{task.groups} * task.m * task.n;
  const float* from = task.partial + line * task.n + column;
  const bool whole = task.n % 4 == 0;
  GemmFour sum = {};
  for (int split = 0; split < task.splits; ++split, from += range) {
    if (whole) {
      const GemmFour four = load_four(from, false, 0);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum.v[i] += four.v[i];
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (column + i < task.n) sum.v[i] += from[i];
      }
    }
  }
  store_result(task.epilogue, static_cast<int>(line / task.m), static_cast<int>(line % task.m),
               column, task.n, sum);
}

// Sums of the columns of rows of T, in two steps: of as many ranges of rows as keep the device busy, then
// over the ranges. A warp takes every eighth row of its range, a lane four columns.
constexpr int kSumWarps = 8;
constexpr int kSumColumns = 128;

int64_t row_ranges(int multiprocessors, int64_t rows, int64_t columns) {
  const int64_t wide = divide_up(columns, kSumColumns);
  return std::clamp<int64_t>(int64_t{4} * multiprocessors / wide, 1, divide_up(rows, 64));
}

template <typename T>
__global__ void __launch_bounds__(32 * kSumWarps)
    column_sums_kernel(const T* __restrict__ data, int64_t stride, int64_t rows, int columns,
                       int64_t range_rows, bool by_four, float* __restrict__ partial) {
  __shared__ float sums[kSumWarps][kSumColumns];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int column = static_cast<int>(blockIdx.x) * kSumColumns + lane * 4;
  const int64_t begin = blockIdx.y * range_rows;
  const int64_t end = min(rows, begin + range_rows);
  const bool whole = by_four && column + 4 <= columns;
  GemmFour sum = {};
#pragma unroll 4
  for (int64_t row = begin + warp; row < end; row += kSumWarps) {
    const T* from = data + row * stride + column;
    if (whole) {
      const GemmFour four = load_four(from, sizeof(T) == 2, 0);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum.v[i] += four.v[i];
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (column + i < columns) sum.v[i] += load_one(from, sizeof(T) == 2, i);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) sums[warp][lane * 4 + i] = sum.v[i];
  __syncthreads();
  const int own = static_cast<int>(threadIdx.x);
  const int own_column = static_cast<int>(blockIdx.x) * kSumColumns + own;
  if (own >= kSumColumns || own_column >= columns) return;
  float total = 0.0F;
#pragma unroll
  for (int i = 0; i < kSumWarps; ++i) total += sums[i][own];
  partial[int64_t{blockIdx.y} * columns + own_column] = total;
}

// A block of eight warps adds up the ranges of 32 columns, each warp every eighth.
__global__ void __launch_bounds__(32 * kSumWarps)
    range_sums_kernel(const float* __restrict__ partial, int ranges, int columns,
                      float* __restrict__ sums) {
  __shared__ float parts[kSumWarps][32];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int column = static_cast<int>(blockIdx.x) * 32 + lane;
  float part = 0.0F;
  if (column < columns) {
#pragma unroll 8
    for (int range = warp; range < ranges; range += kSumWarps) {
      part += partial[int64_t{range} * columns + column];
    }
  }
  parts[warp][lane] = part;
  __syncthreads();
  if (warp > 0 || column >= columns) return;
  float total = 0.0F;
#pragma unroll
  for (int i = 0; i < kSumWarps; ++i) total += parts[i][lane];
  sums[column] = total;
}

size_t row_sums_bytes(int multiprocessors, const MatrixProduct& product) {
  if (!product.transpose_a) return 0;
  return static_cast<size_t>(row_ranges(multiprocessors, product.k, product.m) * product.m) *
         sizeof(float);
}

// The sums of op(A) over k, which are those of the columns of A as it is stored.
void own_row_sums(const CudaContext& context, const MatrixProduct& product, Scratch scratch) {
  const int64_t ranges = row_ranges(context.multiprocessors, product.k, product.m);
  const int64_t range_rows = divide_up(product.k, ranges);
  const unsigned wide = static_cast<unsigned>(divide_up(product.m, kSumColumns));
  const int columns = static_cast<int>(product.m);
  float* partial = reinterpret_cast<float*>(scratch.data);
  const bool by_four = rows_aligned(product.a, product.input, 4);
  const dim3 grid(wide, static_cast<unsigned>(ranges));
  if (product.input == DType::kBfloat16) {
    column_sums_kernel<<<grid, 32 * kSumWarps, 0, context.stream>>>(
        static_cast<const __nv_bfloat16*>(product.a.data), product.a.stride, product.k, columns,
        range_rows, by_four, partial);
  } else {
    column_sums_kernel<<<grid, 32 * kSumWarps, 0, context.stream>>>(
        static_cast<const float*>(product.a.data), product.a.stride, product.k, columns, range_rows,
        by_four, partial);
  }
  check_launch("column_sums");
  range_sums_kernel<<<static_cast<unsigned>(divide_up(product.m, 32)), 32 * kSumWarps, 0,
                      context.stream>>>(partial, static_cast<int>(ranges), columns,
                                        product.row_sums);
  check_launch("range_sums");
}

constexpr int kRoundThreads = 256;
__global__ void __launch_bounds__(kRoundThreads)
    round_kernel(const float* __restrict__ from, int count, __nv_bfloat16* __restrict__ to) {
  const int i = static_cast<int>(blockIdx.x) * kRoundThreads + static_cast<int>(threadIdx.x);
  if (i < count) to[i] = __float2bfloat16_rn(from[i]);
}

size_t bias_bytes(const MatrixProduct& product) {
  return static_cast<size_t>(product.n) * sizeof(__nv_bfloat16);
}

// cuBLASLt takes a bias of the type of C alone, so one of float32 is rounded for a C of bfloat16.
bool library_gemm(const CudaContext& context, CublasLt& library, MatrixProduct product,
                  Scratch scratch) {
  if (product.gelu && product.residual != nullptr) return false;
  if (product.bias != nullptr && product.output == DType::kBfloat16 &&
      product.bias_dtype == DType::kFloat32) {
    __nv_bfloat16* rounded = reinterpret_cast<__nv_bfloat16*>(scratch.data);
    const unsigned blocks = static_cast<unsigned>(divide_up(product.n, kRoundThreads));
    round_kernel<<<blocks, kRoundThreads, 0, context.stream>>>(
        static_cast<const float*>(product.bias), static_cast<int>(product.n), rounded);
    check_launch("round_bias");
    product.bias = rounded;
    product.bias_dtype = DType::kBfloat16;
  }
  return library.multiply(product);
}

// With more rows than these, the library's product and our sums of rows take less time than its product
// that makes both: its fastest kernels do not.
constexpr int64_t kMostSummedRows = 4096;

void check_limit(const char* what, int64_t value, int64_t limit) {
  if (value <= limit) return;
  throw Error("ERR_SHAPE", std::string("cuda: ") + what + " of a product must be at most " +
                               std::to_string(limit) + ", got " + std::to_string(value));
}

}  // namespace

int gemm_copy_bytes(const MatrixProduct& product) {
  for (const int64_t elements : {8, 2}) {
    if (rows_aligned(product.a, product.input, elements) &&
        rows_aligned(product.b, product.input, elements)) {
      return static_cast<int>(elements) * 2;
    }
  }
  return 0;
}

void gemm_finish(const CudaContext& context, const GemmTask& task) {
  const int64_t fours = int64_t{task.groups} * task.m * divide_up(task.n, 4);
  const unsigned blocks = static_cast<unsigned>(divide_up(fours, kFinishThreads));
  gemm_finish_kernel<<<blocks, kFinishThreads, 0, context.stream>>>(task);
  check_launch("gemm_finish");
}

size_t gemm_scratch(int multiprocessors, const MatrixProduct& product) {
  return std::max({partial_bytes(product, cut_of(multiprocessors, product)),
                   row_sums_bytes(multiprocessors, product), bias_bytes(product)});
}

bool library_gemm(Stream& stream, const MatrixProduct& product) {
  CudaContext& context = stream.cuda();
  return context.blas != nullptr && context.blas->multiply(product);
}

void gemm(Stream& stream, MatrixProduct product, Scratch scratch) {
  // Tiles overhang the extents and are counted in 32 bits.
  constexpr int64_t kMostExtent = std::numeric_limits<int>::max() - 1024;
  check_limit("an extent", std::max({product.m, product.n, product.k}), kMostExtent);
  check_limit("the tiles",
              divide_up(product.m, 64) * divide_up(product.n, 64) * 16 * product.groups,
              kMostExtent);
  CudaContext& context = stream.cuda();
  const auto by_library = [&] {
    return context.blas != nullptr && library_gemm(context, *context.blas, product, scratch);
  };
  if (product.row_sums != nullptr) {
    if (product.k <= kMostSummedRows && by_library()) return;
    own_row_sums(context, product, scratch);
    product.row_sums = nullptr;
  }
  if (by_library()) return;
  own_gemm(context, product, scratch);
}

}  // namespace siglip::cuda
