// The products of device/tile_product.cuh for bfloat16 on sm_90a: tiles of 128 × kColumns by wgmma. Blocks
// stay and take every gridDim.x-th tile. One warp loads stages of both operands by the copy engine, two
// warpgroups multiply, each its 64 rows of the tile. The second starts a few stages behind the first and
// stays there, since it is the one that frees stages: so one's epilogue runs beside the other's product.
//
// An epilogue has a State that lives as long as the block:
//   tile(state, acc, row, column, shared)    (row, column): of acc[0][0][0]; shared: of the warp
//   finish(state)
#pragma once

#include <cuda.h>

#include "device/barrier.cuh"
#include "device/tile_product.cuh"
#include "device/tma.cuh"
#include "device/wgmma.cuh"

namespace siglip::cuda {

inline constexpr int kWgmmaThreads = 384;
inline constexpr int kWgmmaConsumers = 8;  // warps
inline constexpr int kWgmmaDepth = 64;     // of a stage: a row of 128 bytes
inline constexpr int kWgmmaRows = 128;
inline constexpr int kBoxBytes = 64 * 128;  // of a box that runs across k
inline constexpr int kWarpShared = 16 * 144;

template <int kColumns>
struct WgmmaTile {
  static constexpr int kBytesA = kWgmmaRows * 128;
  static constexpr int kBytesB = kColumns * 128;
  static constexpr int kStages = kColumns > 192 ? 4 : 5;
  static constexpr int kShared = kStages * (kBytesA + kBytesB) + kWgmmaConsumers * kWarpShared +
                                 2 * kStages * 8 + 1024;  // and the way to a multiple of 1024
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// One stage of an operand: 64 elements of k of `kRows` rows, from (row, k) on.
template <bool kAcross, int kRows>
__device__ __forceinline__ void load_operand(std::byte* target, const CUtensorMap* map,
                                             uint64_t* barrier, int row, int k) {
  if constexpr (kAcross) {
#pragma unroll
    for (int i = 0; i < kRows / 64; ++i) {
      tma_load(target + i * kBoxBytes, map, barrier, row + 64 * i, k);
    }
  } else {
    tma_load(target, map, barrier, k, row);
  }
}

template <bool kAcross>
__device__ __forceinline__ uint64_t operand_step(uint32_t address, int step) {
  return kAcross ? operand_across_k<128>(address + step * 16 * 128, kBoxBytes)
                 : operand_along_k<128>(address + step * 32);
}

#endif  // sm_90a

// A's map has boxes of 64 × 128 (k, m), or across k 64 × 64 (m, k); B's of 64 × kColumns (k, n), or
// across k 64 × 64 (n, k); all swizzled by 128 bytes.
template <int kColumns, bool kAcrossA, bool kAcrossB, typename Epilogue>
__global__ void __launch_bounds__(kWgmmaThreads, 1)
    wgmma_product_kernel(const __grid_constant__ CUtensorMap a,
                         const __grid_constant__ CUtensorMap b, TileShape shape,
                         Epilogue epilogue) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Tile = WgmmaTile<kColumns>;
  constexpr int kStages = Tile::kStages;
  constexpr int kStageBytes = Tile::kBytesA + Tile::kBytesB;
  extern __shared__ std::byte wgmma_shared[];
  std::byte* stages = wgmma_shared + (1024 - shared_address(wgmma_shared) % 1024) % 1024;
  std::byte* warp_shared = stages + kStages * kStageBytes;
  uint64_t* full = reinterpret_cast<uint64_t*>(warp_shared + kWgmmaConsumers * kWarpShared);
  uint64_t* empty = full + kStages;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&full[i], 1);
      barrier_init(&empty[i], kWgmmaConsumers);
    }
    barrier_init_fence();
  }
  __syncthreads();

  const int tiles_down = (shape.m + kWgmmaRows - 1) / kWgmmaRows;
  const int tiles_across = (shape.n + kColumns - 1) / kColumns;
  const int tiles = tiles_down * tiles_across;
  const int depths = (shape.k + kWgmmaDepth - 1) / kWgmmaDepth;
  int stage = 0;
  uint32_t parity = 0;
  const auto advance = [&] {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  };

  if (thread < 128) {
    registers_lower<40>();
    if (thread != 0) return;
    tma_prefetch_map(&a);
    tma_prefetch_map(&b);
    for (int tile = static_cast<int>(blockIdx.x); tile < tiles;
         tile += static_cast<int>(gridDim.x)) {
      const TilePlace place = place_tile(tile, tiles_down, tiles_across);
      for (int depth = 0; depth < depths; ++depth) {
        std::byte* target = stages + stage * kStageBytes;
        barrier_wait(&empty[stage], parity ^ 1);
        barrier_arrive_expect(&full[stage], kStageBytes);
        load_operand<kAcrossA, kWgmmaRows>(target, &a, &full[stage], place.down * kWgmmaRows,
                                           depth * kWgmmaDepth);
        load_operand<kAcrossB, kColumns>(target + Tile::kBytesA, &b, &full[stage],
                                         place.across * kColumns, depth * kWgmmaDepth);
        advance();
      }
    }
    return;
  }

  registers_raise<232>();
  constexpr int kBarrierStart = 1;
  const int group = thread / 128 - 1;
  const int warp = thread / 32 - 4;
  const int lane = thread % 32;
  const int lead = depths < kStages - 1 ? depths : kStages - 1;
  bool leading = group == 0;
  if (group == 1 && static_cast<int>(blockIdx.x) < tiles) named_barrier_sync(kBarrierStart, 256);
  typename Epilogue::State state;
  for (int tile = static_cast<int>(blockIdx.x); tile < tiles; tile += static_cast<int>(gridDim.x)) {
    float acc[1][kColumns / 8][4];
    auto& sums = *reinterpret_cast<float(*)[kColumns / 2]>(acc);
    int former = 0;
    for (int depth = 0; depth < depths; ++depth) {
      const uint32_t address = shared_address(stages + stage * kStageBytes);
      barrier_wait(&full[stage], parity);
      wgmma_fence();
#pragma unroll
      for (int step = 0; step < kWgmmaDepth / 16; ++step) {
        Wgmma<kColumns, kAcrossA, kAcrossB>::run(
            sums, operand_step<kAcrossA>(address + group * kBoxBytes, step),
            operand_step<kAcrossB>(address + Tile::kBytesA, step), depth > 0 || step > 0);
      }
      wgmma_commit();
      if (depth > 0) {
        wgmma_wait<1>();
        if (lane == 0) barrier_arrive(&empty[former]);
      }
      if (leading && depth + 1 == lead) {
        named_barrier_arrive(kBarrierStart, 256);
        leading = false;
      }
      former = stage;
      advance();
    }
    wgmma_wait<0>();
    if (lane == 0) barrier_arrive(&empty[former]);
    keep_in_place(sums);
    const TilePlace place = place_tile(tile, tiles_down, tiles_across);
    epilogue.tile(state, acc, place.down * kWgmmaRows + 16 * warp + lane / 4,
                  place.across * kColumns + 2 * (lane % 4), warp_shared + warp * kWarpShared);
  }
  epilogue.finish(state);
#endif  // sm_90a
}

}  // namespace siglip::cuda
