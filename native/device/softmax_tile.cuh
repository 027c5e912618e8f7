// Over a tile of pairs: logarithms of sums of exponentials of its rows, and sums of softmax losses
// (ops/learnability/learnability.h) over its rows and columns. Epilogues of device/tile_product.cuh; logits
// are times log2 e, and so are logarithms of sums.
#pragma once

#include "device/score_tile.cuh"

namespace siglip::cuda {

// Whether a thread's number at (m, n, q) of a tile is of a pair in the window.
__device__ __forceinline__ bool is_inside(const PairWindow& window, int row, int column, int m,
                                          int n, int q) {
  return row + 8 * (2 * m + (q >> 1)) < window.rows && column + 8 * n + (q & 1) < window.columns;
}

// logs (tiles across, window.rows) = log2 Σ_j 2^u_ij over the tile's columns.
struct LogSumBlock {
  const PairScalars* scalars;
  PairWindow window;
  float* logs;

  __device__ __forceinline__ void operator()(float (&acc)[4][4][4], int row, int column,
                                             int) const {
    __shared__ float most[4][kTile];  // of the warps side by side
    __shared__ float sums[4][kTile];
    const int thread = static_cast<int>(threadIdx.x);
    const int warp = thread / 32;
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      float highest[2] = {kNoPair, kNoPair};
      float sum[2] = {0.0F, 0.0F};
#pragma unroll
      for (int n = 0; n < 4; ++n) {
#pragma unroll
        for (int q = 0; q < 4; ++q) {
          const float u = fmaf(acc[m][n][q], scalars->scale2, scalars->bias2);
          acc[m][n][q] = is_inside(window, row, column, m, n, q) ? u : kNoPair;
          highest[q >> 1] = fmaxf(highest[q >> 1], acc[m][n][q]);
        }
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        highest[i] = fmaxf(highest[i], __shfl_xor_sync(0xffffffffU, highest[i], 1));
        highest[i] = fmaxf(highest[i], __shfl_xor_sync(0xffffffffU, highest[i], 2));
      }
#pragma unroll
      for (int n = 0; n < 4; ++n) {
#pragma unroll
        for (int q = 0; q < 4; ++q) sum[q >> 1] += exp2_fast(acc[m][n][q] - highest[q >> 1]);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        sum[i] += __shfl_xor_sync(0xffffffffU, sum[i], 1);
        sum[i] += __shfl_xor_sync(0xffffffffU, sum[i], 2);
        if (thread % 4 == 0) {
          most[warp % 4][(row + 8 * (2 * m + i)) % kTile] = highest[i];
          sums[warp % 4][(row + 8 * (2 * m + i)) % kTile] = sum[i];
        }
      }
    }
    __syncthreads();
    const int target = row / kTile * kTile + thread;
    if (thread >= kTile || target >= window.rows) return;
    float highest = most[0][thread];
    for (int w = 1; w < 4; ++w) highest = fmaxf(highest, most[w][thread]);
    float sum = 0.0F;
    for (int w = 0; w < 4; ++w) sum += sums[w][thread] * exp2_fast(most[w][thread] - highest);
    logs[static_cast<int64_t>(column / kTile) * window.rows + target] = highest + log2f(sum);
  }
};

// −ln(1 − 2^x), 2^x at most the largest share.
__device__ __forceinline__ float loss_of_share(float x) {
  constexpr float kLargestShare = 1.0F - 0x1p-12F;
  return -log1pf(-fminf(exp2_fast(x), kLargestShare));
}

// As ScoreBlock, of softmax losses. row_logs (window.rows), column_logs (window.columns): natural
// logarithms of the sums of whole rows and columns.
template <bool kByColumn>
struct SoftmaxScoreBlock {
  ScoreSums sums;
  const float* row_logs;
  const float* column_logs;

  __device__ __forceinline__ void operator()(float (&acc)[4][4][4], int row, int column,
                                             int) const {
    __shared__ float by_row[4][kTile];     // of the warps side by side
    __shared__ float by_column[2][kTile];  // of those on top of each other
    const PairWindow& window = sums.window;
    const int thread = static_cast<int>(threadIdx.x);
    const int warp = thread / 32;
    const int lane = thread % 32;
    float columns[8];
    float column_log[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int at = column + 8 * (j / 2) + j % 2;
      columns[j] = 0.0F;
      column_log[j] = at < window.columns ? column_logs[at] * kLog2E : 0.0F;
    }
#pragma unroll
    for (int m = 0; m < 4; ++m) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int at = row + 8 * (2 * m + i);
        const float row_log = at < window.rows ? row_logs[at] * kLog2E : 0.0F;
        float sum = 0.0F;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const int q = 2 * i + j % 2;
          const float u = fmaf(acc[m][j / 2][q], sums.scalars->scale2, sums.scalars->bias2);
          const bool positive = at + window.offset == column + 8 * (j / 2) + j % 2;
          float loss = positive
                           ? kLn2 * (0.5F * (row_log + column_log[j]) - u)
                           : 0.5F * (loss_of_share(u - row_log) + loss_of_share(u - column_log[j]));
          if (!is_inside(window, row, column, m, j / 2, q)) loss = 0.0F;
          sum += loss;
          columns[j] += loss;
        }
        sum += __shfl_xor_sync(0xffffffffU, sum, 1);
        sum += __shfl_xor_sync(0xffffffffU, sum, 2);
        if (lane % 4 == 0) by_row[warp % 4][at % kTile] = sum;
      }
    }
    if (kByColumn) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        for (int distance = 4; distance < 32; distance *= 2) {
          columns[j] += __shfl_xor_sync(0xffffffffU, columns[j], distance);
        }
        if (lane < 4) by_column[warp / 4][(column + 8 * (j / 2) + j % 2) % kTile] = columns[j];
      }
    }
    __syncthreads();
    const int own = thread % kTile;
    if (thread < kTile) {
      const int target = row / kTile * kTile + own;
      if (target >= window.rows) return;
      sums.rows[static_cast<int64_t>(column / kTile) * window.rows + target] =
          (by_row[0][own] + by_row[1][own]) + (by_row[2][own] + by_row[3][own]);
    } else if (kByColumn) {
      const int target = column / kTile * kTile + own;
      if (target >= window.columns) return;
      sums.columns[static_cast<int64_t>(row / kTile) * window.columns + target] =
          by_column[0][own] + by_column[1][own];
    }
  }
};

}  // namespace siglip::cuda
