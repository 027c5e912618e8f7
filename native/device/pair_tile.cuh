// The sigmoid loss of pairs whose dot products are a tile in registers, laid out as tensor cores give
// it: with lane = 4 · g + t, acc[m][n][2 h + e] is the pair of row 16 m + 8 h + g and column
// 8 n + 2 t + e of the warp's tile. Logits are handled in base 2:
//   u = S · log2 e,   softplus(S) = ln 2 · max(u, 0) + log1p(2^-|u|),   σ(S) = 1 / (1 + 2^-u)
// Of factors 1 + e_i only their product is needed: Q = Π (1 + e_i) − 1 follows from Q + e + Q e, which
// keeps its accuracy where all e are tiny, and one log1p(Q) serves up to 64 pairs (Q < 2^64).
#pragma once

#include <cstdint>

#include "device/fast_math.cuh"
#include "device/mma.cuh"

namespace siglip::cuda {

// Stands in for a pair that does not count: its softplus, its σ and their products are zero.
inline constexpr float kNoPair = -3.0e38F;
inline constexpr float kLog2E = 1.4426950408889634F;
inline constexpr float kLn2 = 0.6931471805599453F;

// What a kernel needs of the scalars, made once for a call.
struct PairScalars {
  float scale2;  // exp(t) · log2 e
  float bias2;   // b · log2 e
  float factor;  // exp(t) / batch: of G in the gradients of embeddings
  double scale;  // exp(t)
};

// A block of the logits: the pairs with row < rows and column < columns; the positive of row i is in
// column i + offset, if there.
struct PairWindow {
  int rows;
  int columns;
  int64_t offset;
};

// Π (1 + e) − 1 with one more factor.
__device__ __forceinline__ float extend_product(float q, float e) { return q + fmaf(q, e, e); }

// The positive pairs of a thread's rows: columns of the tile counted from the thread's own first
// (−1: none that counts), and their dot products.
template <int kRows>
struct Positives {
  int column[2 * kRows];
  float dot[2 * kRows];
  bool any;
};

// Takes the positives, and pairs outside the window, out of a thread's tile, whose first element is
// (row, column).
template <int kRows, int kColumns>
__device__ __forceinline__ Positives<kRows> take_positives(float (&acc)[kRows][kColumns][4],
                                                           int row, int column,
                                                           const PairWindow& window) {
  Positives<kRows> positives;
  positives.any = false;
#pragma unroll
  for (int i = 0; i < 2 * kRows; ++i) {
    const int r = row + 8 * i;
    const int64_t target = r + window.offset;
    const int64_t distance = target - column;
    const bool here = r < window.rows && target < window.columns && distance >= 0 &&
                      distance < 8 * kColumns && (distance & 7) < 2;
    positives.column[i] = here ? static_cast<int>(distance) : -1;
    positives.dot[i] = 0.0F;
    positives.any |= here;
  }
  const bool whole =
      row + 16 * kRows - 8 < window.rows && column + 8 * kColumns - 7 < window.columns;
  if (whole && !positives.any) return positives;
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const int i = 2 * m + (q >> 1);
        const int c = 8 * n + (q & 1);
        const bool positive = c == positives.column[i];
        if (positive) positives.dot[i] = acc[m][n][q];
        if (positive || row + 8 * i >= window.rows || column + c >= window.columns) {
          acc[m][n][q] = kNoPair;
        }
      }
    }
  }
  return positives;
}

// Sums over pairs.
struct PairSums {
  double loss = 0.0;  // softplus(−z S)
  double g = 0.0;     // G, for batch 1
  double dot = 0.0;   // G times the dot product
};

// The same over a thread's part of one tile.
struct TileSums {
  float product[2] = {0.0F, 0.0F};
  float above = 0.0F;  // max(u, 0)
  float log = 0.0F;
  float g = 0.0F;
  float dot = 0.0F;
};

// Adds the positives that were taken out; g[i] is factor · G of the i-th.
template <int kRows>
__device__ __forceinline__ void add_positives(const Positives<kRows>& positives,
                                              const PairScalars& scalars, TileSums* sums,
                                              float (&g)[2 * kRows]) {
#pragma unroll
  for (int i = 0; i < 2 * kRows; ++i) {
    if (positives.column[i] < 0) continue;
    const float dot = positives.dot[i];
    const float u = -fmaf(dot, scalars.scale2, scalars.bias2);
    const float e = exp2_fast(-fabsf(u));
    const float high = reciprocal_fast(1.0F + e);
    const float sigmoid = u > 0.0F ? high : e * high;
    sums->above += fmaxf(u, 0.0F);
    sums->log += log1pf(e);
    sums->g -= sigmoid;
    sums->dot = fmaf(-sigmoid, dot, sums->dot);
    g[i] = -sigmoid * scalars.factor;
  }
}

// Adds the negatives of the columns 8 · first .. 8 · last. With kGradient the dot products become
// factor · G, zero for pairs that were taken out.
template <bool kGradient, int kRows, int kColumns>
__device__ __forceinline__ void add_negatives(float (&acc)[kRows][kColumns][4], int first, int last,
                                              const PairScalars& scalars, TileSums* sums) {
  static_assert(4 * kRows * kColumns <= 128, "a product has at most 64 factors");
#pragma unroll
  for (int m = 0; m < kRows; ++m) {
#pragma unroll
    for (int n = first; n < last; ++n) {
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const float dot = acc[m][n][q];
        const float u = fmaf(dot, scalars.scale2, scalars.bias2);
        const float e = exp2_fast(-fabsf(u));
        sums->product[q >> 1] = extend_product(sums->product[q >> 1], e);
        sums->above += fmaxf(u, 0.0F);
        if (kGradient) {
          const float high = reciprocal_fast(1.0F + e);
          const float g = u > 0.0F ? high : e * high;
          sums->g += g;
          sums->dot = fmaf(g, dot, sums->dot);
          acc[m][n][q] = g * scalars.factor;
        }
      }
    }
  }
}

// Writes the positives' factor · G to where they were, among the columns 8 · first .. 8 · last.
template <int kRows, int kColumns>
__device__ __forceinline__ void put_positives(const Positives<kRows>& positives,
                                              const float (&g)[2 * kRows], int first, int last,
                                              float (&acc)[kRows][kColumns][4]) {
  if (!positives.any) return;
#pragma unroll
  for (int i = 0; i < 2 * kRows; ++i) {
#pragma unroll
    for (int n = first; n < last; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        if (8 * n + c == positives.column[i]) acc[i / 2][n][2 * (i % 2) + c] = g[i];
      }
    }
  }
}

template <bool kGradient>
__device__ __forceinline__ void close_tile(const TileSums& tile, PairSums* sums) {
  const float log = tile.log + log1pf(tile.product[0]) + log1pf(tile.product[1]);
  sums->loss += static_cast<double>(fmaf(kLn2, tile.above, log));
  if (kGradient) {
    sums->g += static_cast<double>(tile.g);
    sums->dot += static_cast<double>(tile.dot);
  }
}

}  // namespace siglip::cuda
