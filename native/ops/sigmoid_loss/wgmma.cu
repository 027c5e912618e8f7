#include "ops/sigmoid_loss/wgmma.h"

#include "device/tile_epilogues.cuh"
#include "device/tile_product_sm90.cuh"
#include "runtime/tensor_map.h"

namespace siglip::cuda {
namespace {

constexpr int kLogitColumns = 256;
constexpr int kPart = 8;  // eights of columns that are worked off at a time

// Stores four 8 × 8 matrices of 16-bit elements, distributed as mma's results are; lanes 8i .. 8i + 7 give
// the addresses of the rows of the i-th.
[[maybe_unused]] __device__ __forceinline__ void store_matrices(uint32_t address, uint32_t r0, uint32_t r1,
                                               uint32_t r2, uint32_t r3) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(address),
               "r"(r0), "r"(r1), "r"(r2), "r"(r3)
               : "memory");
#endif
}

template <bool kLoss, bool kGradient>
struct WgmmaPairBlock {
  using State = PairSums;

  const PairScalars* scalars;
  PairWindow window;
  double* partials;
  __nv_bfloat16* gradient;
  int64_t stride;

  template <int kColumns>
  __device__ __forceinline__ void tile(State& state, float (&acc)[1][kColumns][4], int row,
                                       int column, std::byte* shared) const {
    const PairScalars s = *scalars;
    const Positives<1> positives = take_positives(acc, row, column, window);
    TileSums sums;
    float g[2];
    add_positives(positives, s, &sums, g);
#pragma unroll
    for (int part = 0; part < kColumns; part += kPart) {
      add_negatives<kLoss, kGradient>(acc, part, part + kPart, s, &sums);
      if (kGradient) {
        put_positives(positives, g, part, part + kPart, acc);
        put_part(acc, part, row, column, shared);
      }
    }
    close_tile<kLoss, kGradient>(sums, &state);
  }

  // 16 rows of 64 columns through shared memory, 144 bytes a row, and from there to memory in whole rows
  // of 128 bytes.
  template <int kColumns>
  __device__ __forceinline__ void put_part(float (&acc)[1][kColumns][4], int part, int row,
                                           int column, std::byte* shared) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int first_row = row - lane / 4;
    const int first_column = column - 2 * (lane % 4);
    const uint32_t target = shared_address(shared) + lane % 16 * 144 + lane / 16 * 16;
#pragma unroll
    for (int n = part; n < part + kPart; n += 2) {
      store_matrices(target + (n - part) * 16, pack_bfloat16(acc[0][n][0], acc[0][n][1]),
                     pack_bfloat16(acc[0][n][2], acc[0][n][3]),
                     pack_bfloat16(acc[0][n + 1][0], acc[0][n + 1][1]),
                     pack_bfloat16(acc[0][n + 1][2], acc[0][n + 1][3]));
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int line = 4 * i + lane / 8;
      const int64_t place = first_column + 8 * part + lane % 8 * 8;
      const uint4 piece = *reinterpret_cast<const uint4*>(shared + line * 144 + lane % 8 * 16);
      if (first_row + line < window.rows && place < stride) {
        *reinterpret_cast<uint4*>(gradient + (first_row + line) * stride + place) = piece;
      }
    }
    __syncwarp();
  }

  __device__ __forceinline__ void finish(const State& state) const {
    const double values[kPairSums] = {lane_sum(state.loss), lane_sum(state.g),
                                      lane_sum(state.dot)};
    if (threadIdx.x % 32 != 0) return;
    const int warp = static_cast<int>(threadIdx.x) / 32 - 4;
    double* target =
        partials + (static_cast<int64_t>(blockIdx.x) * kWgmmaConsumers + warp) * kPairSums;
    for (int i = 0; i < kPairSums; ++i) target[i] = values[i];
  }
};

struct WgmmaAddTo {
  struct State {};

  AddTo add_to;

  template <int kColumns>
  __device__ __forceinline__ void tile(State&, float (&acc)[1][kColumns][4], int row, int column,
                                       std::byte*) const {
    add_to(acc, row, column, 0);
  }
  [[maybe_unused]] __device__ __forceinline__ void finish(const State&) const {}
};

// A matrix in memory (rows, columns), in boxes of 64 columns and so many rows.
CUtensorMap matrix_map(const __nv_bfloat16* data, int64_t rows, int64_t columns, int64_t stride,
                       int box_rows) {
  const int64_t extents[] = {columns, rows};
  const int box[] = {64, box_rows};
  return tensor_map(data, 2, extents, &stride, box, Swizzle::k128);
}

template <int kColumns, bool kAcrossA, bool kAcrossB, typename Epilogue>
void launch(const CudaContext& cuda, const char* name, const CUtensorMap& a, const CUtensorMap& b,
            const TileShape& shape, const Epilogue& epilogue) {
  const auto kernel = wgmma_product_kernel<kColumns, kAcrossA, kAcrossB, Epilogue>;
  constexpr int kShared = WgmmaTile<kColumns>::kShared;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
             name);
  const int tiles = (shape.m + kWgmmaRows - 1) / kWgmmaRows * ((shape.n + kColumns - 1) / kColumns);
  const int blocks = tiles < cuda.multiprocessors ? tiles : cuda.multiprocessors;
  kernel<<<static_cast<unsigned>(blocks), kWgmmaThreads, kShared, cuda.stream>>>(a, b, shape,
                                                                                epilogue);
  check_launch(name);
}

TileShape tile_shape(int64_t m, int64_t n, int64_t k) {
  return {static_cast<int>(m), static_cast<int>(n), static_cast<int>(k)};
}

template <int kColumns>
void launch_add(const CudaContext& cuda, const char* name, const WgmmaAdd& p) {
  const TileShape shape = tile_shape(p.m, p.n, p.k);
  const WgmmaAddTo epilogue = {
      {p.y, p.n, shape.m, shape.n, p.add, reinterpret_cast<uintptr_t>(p.y) % 8 == 0}};
  const CUtensorMap b = matrix_map(p.b, p.k, p.n, p.n, kWgmmaDepth);
  if (p.transpose) {
    const CUtensorMap a = matrix_map(p.g, p.k, p.m, p.stride, kWgmmaDepth);
    launch<kColumns, true, true>(cuda, name, a, b, shape, epilogue);
  } else {
    const CUtensorMap a = matrix_map(p.g, p.m, p.k, p.stride, kWgmmaRows);
    launch<kColumns, false, true>(cuda, name, a, b, shape, epilogue);
  }
}

}  // namespace

void wgmma_pairs(const CudaContext& cuda, const char* name, const WgmmaPairs& p) {
  const TileShape shape = tile_shape(p.rows, p.columns, p.width);
  const CUtensorMap a = matrix_map(p.images, p.rows, p.width, p.width, kWgmmaRows);
  const CUtensorMap b = matrix_map(p.texts, p.columns, p.width, p.width, kLogitColumns);
  const auto with = [&](auto epilogue) {
    epilogue.scalars = p.scalars;
    epilogue.window = {shape.m, shape.n, p.offset};
    epilogue.partials = p.partials;
    epilogue.gradient = p.gradient;
    epilogue.stride = p.stride;
    launch<kLogitColumns, false, false>(cuda, name, a, b, shape, epilogue);
  };
  // Blocks beyond the number of tiles write no partial sums.
  check_cuda(cudaMemsetAsync(p.partials, 0,
                             static_cast<size_t>(wgmma_partials(cuda.multiprocessors) * kPairSums) *
                                 sizeof(double),
                             cuda.stream),
             name);
  if (p.gradient == nullptr) {
    with(WgmmaPairBlock<true, false>());
  } else if (p.loss) {
    with(WgmmaPairBlock<true, true>());
  } else {
    with(WgmmaPairBlock<false, true>());
  }
}

void wgmma_add(const CudaContext& cuda, const char* name, const WgmmaAdd& product) {
  if (product.n % 256 != 0 && product.n % 192 == 0) {
    launch_add<192>(cuda, name, product);
  } else {
    launch_add<256>(cuda, name, product);
  }
}

}  // namespace siglip::cuda
