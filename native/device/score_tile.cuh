// Sums of the losses of a tile's pairs over its rows and over its columns. Losses as in
// device/pair_tile.cuh: of factors 1 + e the product, less one, and the parts above beside it.
#pragma once

#include "device/pair_tile.cuh"
#include "device/tile_product_sm90.cuh"

namespace siglip::cuda {

// ln Π (1 + e) + ln 2 · above.
__device__ __forceinline__ float loss_of(float product, float above) {
  return fmaf(kLn2, above, log1pf(product));
}

// Turns dot products into u = ±S · log2 e, the sign a positive's (−) or a negative's, and a number below
// all where a pair is outside of the window.
template <int kRows, int kColumns>
__device__ __forceinline__ void make_logits(float (&acc)[kRows][kColumns][4], int row, int column,
                                            const PairWindow& window, const PairScalars& scalars) {
  int positive[2 * kRows];
  bool any = false;
#pragma unroll
  for (int i = 0; i < 2 * kRows; ++i) {
    const int64_t distance = row + 8 * i + window.offset - column;
    const bool here = distance >= 0 && distance < 8 * kColumns;
    positive[i] = here ? static_cast<int>(distance) : -1;
    any |= here;
  }
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        acc[m][n][q] = fmaf(acc[m][n][q], scalars.scale2, scalars.bias2);
      }
    }
  }
  const bool whole =
      row + 16 * kRows - 8 < window.rows && column + 8 * kColumns - 7 < window.columns;
  if (whole && !any) return;
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const int i = 2 * m + (q >> 1);
        const int c = 8 * n + (q & 1);
        if (c == positive[i]) acc[m][n][q] = -acc[m][n][q];
        if (row + 8 * i >= window.rows || column + c >= window.columns) acc[m][n][q] = kNoPair;
      }
    }
  }
}

// Which column of the warp's tile a thread's column_losses[i] is of.
template <int kColumns>
__device__ __forceinline__ int column_of_sum(int i) {
  constexpr int kShare = kColumns / 4;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int column = lane / 4 * kShare + i;
  return column / 2 * 8 + lane % 4 * 2 + column % 2;
}

// acc[0][n] holds the products of two columns and what is above in them. Of what two lanes hold for the
// same columns each takes half over.
template <int kDistance, int kRows, int kColumns>
__device__ __forceinline__ void halve_columns(float (&acc)[kRows][kColumns][4]) {
  constexpr int kHalf = kColumns * kDistance / 16;
  const bool upper = (threadIdx.x & kDistance) != 0;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const int j = i + kHalf;
    const float low_product = acc[0][i / 2][i % 2];
    const float low_above = acc[0][i / 2][2 + i % 2];
    const float high_product = acc[0][j / 2][j % 2];
    const float high_above = acc[0][j / 2][2 + j % 2];
    const float product =
        __shfl_xor_sync(0xffffffffU, upper ? low_product : high_product, kDistance);
    const float above = __shfl_xor_sync(0xffffffffU, upper ? low_above : high_above, kDistance);
    acc[0][i / 2][i % 2] = extend_product(upper ? high_product : low_product, product);
    acc[0][i / 2][2 + i % 2] = (upper ? high_above : low_above) + above;
  }
}

// row_losses[i]: of the thread's i-th row, over the tile's columns, in all lanes of the row. With kByColumn
// column_losses: of the thread's share of the columns, over the tile's rows. Leaves nothing in acc.
template <bool kByColumn, int kRows, int kColumns>
__device__ __forceinline__ void score_tile(float (&acc)[kRows][kColumns][4],
                                           float (&row_losses)[2 * kRows],
                                           float (&column_losses)[kColumns / 4]) {
  static_assert(kColumns <= 32, "a product has at most 64 factors");
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
    float product[2] = {0.0F, 0.0F};
    float above[2] = {0.0F, 0.0F};
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      float e[4];
      float a[4];
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const float u = acc[m][n][q];
        e[q] = exp2_fast(-fabsf(u));
        a[q] = fmaxf(u, 0.0F);
        product[q >> 1] = extend_product(product[q >> 1], e[q]);
        above[q >> 1] += a[q];
      }
      if constexpr (kByColumn) {
        // From here on acc[0][n] holds the products of two columns, then what is above in them.
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const float two = extend_product(e[c], e[2 + c]);
          acc[0][n][c] = m == 0 ? two : extend_product(acc[0][n][c], two);
          acc[0][n][2 + c] = a[c] + a[2 + c] + (m == 0 ? 0.0F : acc[0][n][2 + c]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float loss = loss_of(product[i], above[i]);
      loss += __shfl_xor_sync(0xffffffffU, loss, 1);
      loss += __shfl_xor_sync(0xffffffffU, loss, 2);
      row_losses[2 * m + i] = loss;
    }
  }
  if constexpr (kByColumn) {
    halve_columns<16>(acc);
    halve_columns<8>(acc);
    halve_columns<4>(acc);
#pragma unroll
    for (int i = 0; i < kColumns / 4; ++i) {
      column_losses[i] = loss_of(acc[0][i / 2][i % 2], acc[0][i / 2][2 + i % 2]);
    }
  }
}

// ---- Epilogues ---------------------------------------------------------------------------------

// Where partial sums go: rows (tiles across, window.rows), columns (parts down, window.columns).
struct ScoreSums {
  const PairScalars* scalars;
  PairWindow window;
  float* rows;
  float* columns;
};

// Of device/tile_product.cuh.
template <bool kByColumn>
struct ScoreBlock {
  ScoreSums sums;

  __device__ __forceinline__ void operator()(float (&acc)[4][4][4], int row, int column,
                                             int) const {
    __shared__ float by_row[4][kTile];     // of the warps side by side
    __shared__ float by_column[2][kTile];  // of those on top of each other
    float rows[8];
    float columns[1];
    make_logits(acc, row, column, sums.window, *sums.scalars);
    score_tile<kByColumn>(acc, rows, columns);
    const int thread = static_cast<int>(threadIdx.x);
    const int warp = thread / 32;
    const int lane = thread % 32;
    if (lane % 4 == 0) {
#pragma unroll
      for (int i = 0; i < 8; ++i) by_row[warp % 4][(row + 8 * i) % kTile] = rows[i];
    }
    if (kByColumn) {
      by_column[warp / 4][warp % 4 * kTileWarpColumns + column_of_sum<4>(0)] = columns[0];
    }
    __syncthreads();
    const int place = thread % kTile;
    if (thread < kTile) {
      const int target = row / kTile * kTile + place;
      if (target >= sums.window.rows) return;
      sums.rows[static_cast<int64_t>(column / kTile) * sums.window.rows + target] =
          (by_row[0][place] + by_row[1][place]) + (by_row[2][place] + by_row[3][place]);
    } else if (kByColumn) {
      const int target = column / kTile * kTile + place;
      if (target >= sums.window.columns) return;
      sums.columns[static_cast<int64_t>(row / kTile) * sums.window.columns + target] =
          by_column[0][place] + by_column[1][place];
    }
  }
};

// Of device/tile_product_sm90.cuh: a part down is the 64 rows of a warpgroup.
template <bool kByColumn>
struct WgmmaScoreBlock {
  struct State {};

  ScoreSums sums;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  template <int kColumns>
  __device__ __forceinline__ void tile(State&, float (&acc)[1][kColumns][4], int row, int column,
                                       std::byte* shared) const {
    float rows[2];
    float columns[kColumns / 4];
    make_logits(acc, row, column, sums.window, *sums.scalars);
    score_tile<kByColumn>(acc, rows, columns);
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int across = column / (8 * kColumns);
    if (lane % 4 == 0) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (row + 8 * i >= sums.window.rows) continue;
        sums.rows[static_cast<int64_t>(across) * sums.window.rows + row + 8 * i] = rows[i];
      }
    }
    if constexpr (kByColumn) put_columns(columns, row, across, shared);
  }

  // Sums the columns' losses of the warpgroup's four warps.
  template <int kShare>
  __device__ __forceinline__ void put_columns(const float (&columns)[kShare], int row, int across,
                                              std::byte* shared) const {
    constexpr int kColumns = 4 * kShare;
    const int thread = static_cast<int>(threadIdx.x);
    float* of_warp = reinterpret_cast<float*>(shared);
#pragma unroll
    for (int i = 0; i < kColumns / 4; ++i) of_warp[column_of_sum<kColumns>(i)] = columns[i];
    // Barriers 2 and 3 are the warpgroups'.
    const int barrier = 1 + thread / 128;
    named_barrier_sync(barrier, 128);
    const std::byte* group = shared - thread / 32 % 4 * kWarpShared;
    for (int place = thread % 128; place < 8 * kColumns; place += 128) {
      float sum = 0.0F;
#pragma unroll
      for (int warp = 0; warp < 4; ++warp) {
        sum += reinterpret_cast<const float*>(group + warp * kWarpShared)[place];
      }
      const int target = across * 8 * kColumns + place;
      if (target < sums.window.columns) {
        sums.columns[static_cast<int64_t>(row / 64) * sums.window.columns + target] = sum;
      }
    }
    named_barrier_sync(barrier, 128);
  }
  __device__ __forceinline__ void finish(const State&) const {}
#endif  // sm_90a
};

}  // namespace siglip::cuda
