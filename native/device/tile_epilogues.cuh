// What becomes of the tiles of device/tile_product.cuh.
#pragma once

#include "device/pair_tile.cuh"
#include "device/tile_product.cuh"

namespace siglip::cuda {

// Two neighbours of a row, of which `count` are wanted.
__device__ __forceinline__ void put_pair(float* p, float first, float second, int count,
                                         bool paired) {
  if (paired && count > 1) {
    *reinterpret_cast<float2*>(p) = make_float2(first, second);
  } else {
    if (count > 0) p[0] = first;
    if (count > 1) p[1] = second;
  }
}
__device__ __forceinline__ float2 get_pair(const float* p, int count, bool paired) {
  if (paired && count > 1) return *reinterpret_cast<const float2*>(p);
  return make_float2(count > 0 ? p[0] : 0.0F, count > 1 ? p[1] : 0.0F);
}

// y (m, n) = C, or += C.
struct AddTo {
  float* y;
  int64_t stride;
  int m;
  int n;
  bool add;
  bool paired;  // elements of even columns are at multiples of 8 bytes

  template <int kRows, int kColumns>
  __device__ __forceinline__ void operator()(float (&acc)[kRows][kColumns][4], int row, int column,
                                             int) const {
#pragma unroll
    for (int i = 0; i < 2 * kRows; ++i) {
      if (row + 8 * i >= m) continue;
      float* line = y + (row + 8 * i) * stride + column;
#pragma unroll
      for (int n_tile = 0; n_tile < kColumns; ++n_tile) {
        const int count = n - column - 8 * n_tile;
        float first = acc[i / 2][n_tile][2 * (i % 2)];
        float second = acc[i / 2][n_tile][2 * (i % 2) + 1];
        if (add) {
          const float2 before = get_pair(line + 8 * n_tile, count, paired);
          first += before.x;
          second += before.y;
        }
        put_pair(line + 8 * n_tile, first, second, count, paired);
      }
    }
  }
};

// Sum over the 32 lanes, in all of them; the order is fixed.
__device__ __forceinline__ double lane_sum(double value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffU, value, distance);
  }
  return value;
}

// A row of partial sums.
inline constexpr int kPairSums = 3;

// Losses, and with kGradient factor · G in rows `stride` apart: zeros behind the last column.
template <bool kGradient, typename T>
struct PairBlock {
  const PairScalars* scalars;
  PairWindow window;
  double* partials;  // (tiles, kPairSums)
  T* gradient;
  int64_t stride;

  __device__ __forceinline__ void operator()(float (&acc)[4][4][4], int row, int column,
                                             int tile) const {
    const PairScalars s = *scalars;
    const Positives<4> positives = take_positives(acc, row, column, window);
    TileSums tile_sums;
    float g[8];
    add_positives(positives, s, &tile_sums, g);
    add_negatives<kGradient>(acc, 0, 4, s, &tile_sums);
    if (kGradient) {
      put_positives(positives, g, 0, 4, acc);
      put_gradient(acc, row, column);
    }
    PairSums sums;
    close_tile<kGradient>(tile_sums, &sums);
    __shared__ double warp_sums[kTileThreads / 32][kPairSums];
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const double values[kPairSums] = {lane_sum(sums.loss), lane_sum(sums.g), lane_sum(sums.dot)};
    if (threadIdx.x % 32 == 0) {
      for (int i = 0; i < kPairSums; ++i) warp_sums[warp][i] = values[i];
    }
    __syncthreads();
    if (threadIdx.x < kPairSums) {
      double sum = 0.0;
      for (int w = 0; w < kTileThreads / 32; ++w) sum += warp_sums[w][threadIdx.x];
      partials[static_cast<int64_t>(tile) * kPairSums + threadIdx.x] = sum;
    }
  }

  __device__ __forceinline__ void put_gradient(float (&acc)[4][4][4], int row, int column) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (row + 8 * i >= window.rows) continue;
      T* line = gradient + (row + 8 * i) * stride + column;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        if (column + 8 * n >= stride) continue;
        const float first = acc[i / 2][n][2 * (i % 2)];
        const float second = acc[i / 2][n][2 * (i % 2) + 1];
        if constexpr (sizeof(T) == 2) {
          *reinterpret_cast<uint32_t*>(line + 8 * n) = pack_bfloat16(first, second);
        } else {
          *reinterpret_cast<float2*>(line + 8 * n) = make_float2(first, second);
        }
      }
    }
  }
};

}  // namespace siglip::cuda
