// What becomes of the tiles of device/tile_product_sm90.cuh.
#pragma once

#include "device/store_matrices.cuh"
#include "device/tile_epilogues.cuh"
#include "device/tile_product_sm90.cuh"

namespace siglip::cuda {

inline constexpr int kPart = 8;  // eights of columns that are worked off at a time

// Losses, and with kGradient factor · G in rows `stride` apart, a multiple of 64: zeros behind the last
// column.
template <bool kGradient>
struct WgmmaPairBlock {
  using State = PairSums;

  const PairScalars* scalars;
  PairWindow window;
  double* partials;
  __nv_bfloat16* gradient;
  int64_t stride;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
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
      add_negatives<kGradient>(acc, part, part + kPart, s, &sums);
      if (kGradient) {
        put_positives(positives, g, part, part + kPart, acc);
        put_part(acc, part, row, column, shared);
      }
    }
    close_tile<kGradient>(sums, &state);
  }

  // 16 rows of 64 columns through shared memory, 144 bytes a row, and from there to memory in whole rows
  // of 128 bytes.
  template <int kColumns>
  __device__ __forceinline__ void put_part(float (&acc)[1][kColumns][4], int part, int row,
                                           int column, std::byte* shared) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int first_row = row - lane / 4 + lane / 8;
    const int first_column = column - 2 * (lane % 4) + 8 * (lane % 8);
    const int row_stride = static_cast<int>(stride);
    const uint32_t target = shared_address(shared) + lane % 16 * 144 + lane / 16 * 16;
#pragma unroll
    for (int n = part; n < part + kPart; n += 2) {
      store_matrices(target + (n - part) * 16, pack_bfloat16(acc[0][n][0], acc[0][n][1]),
                     pack_bfloat16(acc[0][n][2], acc[0][n][3]),
                     pack_bfloat16(acc[0][n + 1][0], acc[0][n + 1][1]),
                     pack_bfloat16(acc[0][n + 1][2], acc[0][n + 1][3]));
    }
    __syncwarp();
    __nv_bfloat16* out = gradient + first_row * stride + first_column + 8 * part;
    const bool inside = first_column + 8 * part < row_stride;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint4 piece =
          *reinterpret_cast<const uint4*>(shared + (4 * i + lane / 8) * 144 + lane % 8 * 16);
      if (inside && first_row + 4 * i < window.rows) {
        *reinterpret_cast<uint4*>(out + 4 * i * row_stride) = piece;
      }
    }
    __syncwarp();
  }

  __device__ __forceinline__ void finish(const State& state) const {
    const double values[kPairSums] = {lane_sum(state.loss), lane_sum(state.g), lane_sum(state.dot)};
    if (threadIdx.x % 32 != 0) return;
    const int warp = static_cast<int>(threadIdx.x) / 32 - 4;
    double* target =
        partials + (static_cast<int64_t>(blockIdx.x) * kWgmmaConsumers + warp) * kPairSums;
    for (int i = 0; i < kPairSums; ++i) target[i] = values[i];
  }
#endif  // sm_90a
};

// y (m, n) = C, or += C.
struct WgmmaAddTo {
  struct State {};

  AddTo add_to;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  template <int kColumns>
  __device__ __forceinline__ void tile(State&, float (&acc)[1][kColumns][4], int row, int column,
                                       std::byte*) const {
    add_to(acc, row, column, 0);
  }
  __device__ __forceinline__ void finish(const State&) const {}
#endif  // sm_90a
};

}  // namespace siglip::cuda
