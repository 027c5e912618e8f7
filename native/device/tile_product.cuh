// Products whose results an epilogue takes from registers, on any GPU: float32 by plain multiply-adds,
// bfloat16 by mma.sync. A block makes a tile of kTile × kTile results of
//   C[i][j] = Σ_k A[i][k] B[j][k]
// and hands its warps' parts to the epilogue, laid out as device/pair_tile.cuh says:
//   epilogue(acc, row, column, tile)     (row, column): of acc[0][0][0];  tile: number of the tile
// Every sum runs over k in order, whatever the tile. Any extents; memory outside the operands is not read.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "device/mma.cuh"

namespace siglip::cuda {

inline constexpr int kTile = 128;
inline constexpr int kTileThreads = 256;
inline constexpr int kTileWarpRows = 64;  // of C, per warp
inline constexpr int kTileWarpColumns = 32;
inline constexpr int kTileShared = 3 * 2 * 10240;

// A matrix in memory: rows of A or B are rows of memory, or (`across`) its columns.
template <typename T>
struct TileOperand {
  const T* data;
  int64_t stride;
  bool aligned;  // rows begin at multiples of 16 bytes and are readable up to one
};

struct TileShape {
  int m;
  int n;
  int k;

  __host__ __device__ int tiles_down() const { return (m + kTile - 1) / kTile; }
  __host__ __device__ int tiles_across() const { return (n + kTile - 1) / kTile; }
  __host__ __device__ int tiles() const { return tiles_down() * tiles_across(); }
};

// Tiles in groups of kGroupRows rows of tiles, column by column within a group, so that blocks that run
// at a time share operands.
struct TilePlace {
  int down;
  int across;
};
template <int kGroupRows = 16>
__device__ __forceinline__ TilePlace place_tile(int tile, int tiles_down, int tiles_across) {
  const int group = tile / (kGroupRows * tiles_across);
  const int rest = tile - group * kGroupRows * tiles_across;
  const int left = tiles_down - group * kGroupRows;
  const int rows = left < kGroupRows ? left : kGroupRows;
  return {group * kGroupRows + rest % rows, rest / rows};
}

// ---- bfloat16 ----------------------------------------------------------------------------------

inline constexpr int kBfloat16Depth = 32;  // of a stage
inline constexpr int kBfloat16Stages = 3;
inline constexpr int kAlongBytes = 80;     // of a row of k in shared memory, padded: no bank twice
inline constexpr int kAcrossBytes = 272;   // of a row of the other axis
inline constexpr int kStageBytes = 10240;  // of an operand

// A 16-byte piece of a row: `count` elements from p on, zeros behind; count may be negative.
__device__ __forceinline__ uint4 gather_piece(const __nv_bfloat16* p, int count) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t low = 2 * i < count ? __bfloat16_as_ushort(p[2 * i]) : 0U;
    const uint32_t high = 2 * i + 1 < count ? __bfloat16_as_ushort(p[2 * i + 1]) : 0U;
    words[i] = low | (high << 16);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

template <bool kAcross>
__device__ __forceinline__ void load_stage(const TileOperand<__nv_bfloat16>& operand, int first,
                                           int extent, int first_k, int k, std::byte* stage) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int piece = static_cast<int>(threadIdx.x) + i * kTileThreads;
    const int line = kAcross ? piece / 16 : piece / 4;
    const int within = 8 * (kAcross ? piece % 16 : piece % 4);
    std::byte* target = stage + line * (kAcross ? kAcrossBytes : kAlongBytes) + 2 * within;
    const int row = kAcross ? first_k + line : first + line;
    const int column = kAcross ? first + within : first_k + within;
    const int rows = kAcross ? k : extent;
    const int columns = kAcross ? extent : k;
    const __nv_bfloat16* source = operand.data + row * operand.stride + column;
    if (operand.aligned) {
      const bool valid = row < rows && column < columns;
      copy_async(shared_address(target), valid ? source : operand.data, valid);
    } else {
      *reinterpret_cast<uint4*>(target) = gather_piece(source, row < rows ? columns - column : 0);
    }
  }
}

template <bool kAcrossA, bool kAcrossB>
__device__ __forceinline__ void multiply_stage(uint32_t a_stage, uint32_t b_stage, int warp_row,
                                               int warp_column, float (&acc)[4][4][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int inner = lane % 8;
  const int second = lane / 8 % 2;
  const int fourth = lane / 16;
#pragma unroll
  for (int step = 0; step < kBfloat16Depth; step += 16) {
    uint32_t a[4][4];
    uint32_t b[2][4];
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      const int row = warp_row + 16 * m + 8 * second;
      if (kAcrossA) {
        load_matrices_transposed(a[m],
                                 a_stage + (step + inner + 8 * fourth) * kAcrossBytes + 2 * row);
      } else {
        load_matrices(a[m], a_stage + (row + inner) * kAlongBytes + 2 * (step + 8 * fourth));
      }
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int row = warp_column + 16 * n + 8 * fourth;
      if (kAcrossB) {
        load_matrices_transposed(b[n],
                                 b_stage + (step + inner + 8 * second) * kAcrossBytes + 2 * row);
      } else {
        load_matrices(b[n], b_stage + (row + inner) * kAlongBytes + 2 * (step + 8 * second));
      }
    }
#pragma unroll
    for (int m = 0; m < 4; ++m) {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        mma_bfloat16(acc[m][n], a[m], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
      }
    }
  }
}

template <bool kAcrossA, bool kAcrossB>
__device__ __forceinline__ void multiply_tile(const TileOperand<__nv_bfloat16>& a,
                                              const TileOperand<__nv_bfloat16>& b,
                                              const TileShape& shape, int first_row,
                                              int first_column, int warp_row, int warp_column,
                                              std::byte* shared, float (&acc)[4][4][4]) {
  const auto load = [&](int stage) {
    std::byte* target = shared + stage % kBfloat16Stages * 2 * kStageBytes;
    const int k = stage * kBfloat16Depth;
    load_stage<kAcrossA>(a, first_row, shape.m, k, shape.k, target);
    load_stage<kAcrossB>(b, first_column, shape.n, k, shape.k, target + kStageBytes);
  };
  const int stages = (shape.k + kBfloat16Depth - 1) / kBfloat16Depth;
#pragma unroll
  for (int stage = 0; stage < kBfloat16Stages - 1; ++stage) {
    if (stage < stages) load(stage);
    copy_async_commit();
  }
  for (int stage = 0; stage < stages; ++stage) {
    copy_async_wait<kBfloat16Stages - 2>();
    // The stage has arrived for all, and all are done with the one that is loaded next.
    __syncthreads();
    if (stage + kBfloat16Stages - 1 < stages) load(stage + kBfloat16Stages - 1);
    copy_async_commit();
    const uint32_t address = shared_address(shared + stage % kBfloat16Stages * 2 * kStageBytes);
    multiply_stage<kAcrossA, kAcrossB>(address, address + kStageBytes, warp_row, warp_column, acc);
  }
}

// ---- float32 -----------------------------------------------------------------------------------

inline constexpr int kFloatDepth = 16;
inline constexpr int kFloatStride = kTile + 4;  // floats of a row of shared memory

// A thread's eight consecutive elements of a stage.
template <bool kAcross>
__device__ __forceinline__ void fetch_stage(const TileOperand<float>& operand, int first,
                                            int extent, int first_k, int k, float (&values)[8]) {
  const int thread = static_cast<int>(threadIdx.x);
  const int row = kAcross ? first_k + thread / 16 : first + thread % kTile;
  const int column = kAcross ? first + thread % 16 * 8 : first_k + thread / kTile * 8;
  const int rows = kAcross ? k : extent;
  const int columns = kAcross ? extent : k;
  const int count = row < rows ? columns - column : 0;
  const float* source = operand.data + row * operand.stride + column;
#pragma unroll
  for (int i = 0; i < 8; i += 4) {
    if (operand.aligned) {
      const float4 four = i < count ? *reinterpret_cast<const float4*>(source + i)
                                    : make_float4(0.0F, 0.0F, 0.0F, 0.0F);
      values[i] = four.x;
      values[i + 1] = four.y;
      values[i + 2] = four.z;
      values[i + 3] = four.w;
    } else {
#pragma unroll
      for (int j = i; j < i + 4; ++j) values[j] = j < count ? source[j] : 0.0F;
    }
  }
}

// stage (kFloatDepth, kFloatStride): the other axis runs along its rows.
template <bool kAcross>
__device__ __forceinline__ void put_stage(const float (&values)[8], float* stage) {
  const int thread = static_cast<int>(threadIdx.x);
  if (kAcross) {
    float4* target =
        reinterpret_cast<float4*>(stage + thread / 16 * kFloatStride + thread % 16 * 8);
    target[0] = make_float4(values[0], values[1], values[2], values[3]);
    target[1] = make_float4(values[4], values[5], values[6], values[7]);
  } else {
    float* target = stage + thread / kTile * 8 * kFloatStride + thread % kTile;
#pragma unroll
    for (int i = 0; i < 8; ++i) target[i * kFloatStride] = values[i];
  }
}

template <bool kAcrossA, bool kAcrossB>
__device__ __forceinline__ void multiply_tile(const TileOperand<float>& a,
                                              const TileOperand<float>& b, const TileShape& shape,
                                              int first_row, int first_column, int warp_row,
                                              int warp_column, std::byte* shared,
                                              float (&acc)[4][4][4]) {
  constexpr int kStage = kFloatDepth * kFloatStride;
  float* stages = reinterpret_cast<float*>(shared);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int a_place = warp_row + lane / 4;
  const int b_place = warp_column + 2 * (lane % 4);
  float a_next[8];
  float b_next[8];
  fetch_stage<kAcrossA>(a, first_row, shape.m, 0, shape.k, a_next);
  fetch_stage<kAcrossB>(b, first_column, shape.n, 0, shape.k, b_next);
  for (int k = 0; k < shape.k; k += kFloatDepth) {
    float* a_stage = stages + k / kFloatDepth % 2 * 2 * kStage;
    float* b_stage = a_stage + kStage;
    put_stage<kAcrossA>(a_next, a_stage);
    put_stage<kAcrossB>(b_next, b_stage);
    // Also: everybody is done with the other stage, which is written next.
    __syncthreads();
    if (k + kFloatDepth < shape.k) {
      fetch_stage<kAcrossA>(a, first_row, shape.m, k + kFloatDepth, shape.k, a_next);
      fetch_stage<kAcrossB>(b, first_column, shape.n, k + kFloatDepth, shape.k, b_next);
    }
#pragma unroll 4
    for (int i = 0; i < kFloatDepth; ++i) {
      float x[8];
      float2 y[4];
#pragma unroll
      for (int j = 0; j < 8; ++j) x[j] = a_stage[i * kFloatStride + a_place + 8 * j];
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        y[n] = *reinterpret_cast<const float2*>(b_stage + i * kFloatStride + b_place + 8 * n);
      }
#pragma unroll
      for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          acc[m][n][0] = fmaf(x[2 * m], y[n].x, acc[m][n][0]);
          acc[m][n][1] = fmaf(x[2 * m], y[n].y, acc[m][n][1]);
          acc[m][n][2] = fmaf(x[2 * m + 1], y[n].x, acc[m][n][2]);
          acc[m][n][3] = fmaf(x[2 * m + 1], y[n].y, acc[m][n][3]);
        }
      }
    }
  }
}

// ---- The kernel --------------------------------------------------------------------------------

// kAcrossA: A (k, m) in memory, else (m, k); kAcrossB: B (k, n), else (n, k). One block a tile.
template <bool kAcrossA, bool kAcrossB, typename T, typename Epilogue>
__global__ void __launch_bounds__(kTileThreads, sizeof(T) == 2 ? 2 : 1)
    tile_product_kernel(TileOperand<T> a, TileOperand<T> b, TileShape shape, Epilogue epilogue) {
  extern __shared__ __align__(128) std::byte tile_shared[];
  const TilePlace place =
      place_tile(static_cast<int>(blockIdx.x), shape.tiles_down(), shape.tiles_across());
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = warp / 4 * kTileWarpRows;
  const int warp_column = warp % 4 * kTileWarpColumns;
  float acc[4][4][4] = {};
  multiply_tile<kAcrossA, kAcrossB>(a, b, shape, place.down * kTile, place.across * kTile, warp_row,
                                    warp_column, tile_shared, acc);
  epilogue(acc, place.down * kTile + warp_row + lane / 4,
           place.across * kTile + warp_column + 2 * (lane % 4),
           place.down * shape.tiles_across() + place.across);
}

}  // namespace siglip::cuda
