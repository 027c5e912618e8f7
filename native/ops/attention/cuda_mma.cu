// Attention in bfloat16 by mma.sync: four warps, each with 16 rows of its own (or 32), whose scores and
// sums stay in registers; the other side goes by in blocks, two of which are in shared memory.
//   forward:   S = Q Kᵀ, online softmax, O += P V
//   backward:  a tile of keys     Sᵀ = K Qᵀ, dPᵀ = V dOᵀ, dV += Pᵀ dO, dK += dSᵀ Q
//              a tile of queries  S = Q Kᵀ, dP = dO Vᵀ, dQ += dS K
// Rows that are not there, and masked keys, are zeros in shared memory, whatever global memory holds.
#include <type_traits>

#include "device/mma.cuh"
#include "ops/attention/cuda_call.cuh"

namespace siglip::cuda::attention {
namespace {

using Element = __nv_bfloat16;

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr unsigned kWholeWarp = 0xffffffffU;

constexpr int padded(int width) { return (width + 15) / 16 * 16; }

// Bytes of a row in shared memory: an odd number of 16-byte pieces, so that eight rows lie in different
// banks.
constexpr int row_bytes(int width) { return (padded(width) + 8) * 2; }

// Starts to copy kRows rows of a head, of which `rows` are there (and mask[row] is not 0).
template <int kWidth, int kRows>
__device__ __forceinline__ void copy_rows(const Element* x, int64_t stride, int rows, int width,
                                          const uint8_t* mask, uint32_t shared) {
  constexpr int kPieces = padded(kWidth) / 8;
  for (int i = threadIdx.x; i < kRows * kPieces; i += kThreads) {
    const int row = i / kPieces;
    const int d = i % kPieces * 8;
    const bool there = row < rows && d < width && (mask == nullptr || mask[row] != 0);
    copy_async(shared + row * row_bytes(kWidth) + d * 2, there ? x + row * stride + d : x, there);
  }
}

// Addresses of this lane in load_matrices() for a 16 × 16 piece at (row, column) of a tile: as an A
// operand, and as two B operands (of the transposed piece) side by side.
template <int kWidth>
__device__ __forceinline__ uint32_t a_address(uint32_t tile, int row, int column) {
  const int lane = threadIdx.x % 32;
  return tile + (row + lane % 16) * row_bytes(kWidth) + (column + lane / 16 * 8) * 2;
}
template <int kWidth>
__device__ __forceinline__ uint32_t b_address(uint32_t tile, int row, int column) {
  const int lane = threadIdx.x % 32;
  return tile + (row + lane / 16 * 8 + lane % 8) * row_bytes(kWidth) +
         (column + lane / 8 % 2 * 8) * 2;
}

// c (16 × kRows) = a · bᵀ over the width; a is at row `first` of its tile.
template <int kWidth, int kRows>
__device__ __forceinline__ void multiply_rows(uint32_t a, int first, uint32_t b,
                                              float (&c)[kRows / 8][4]) {
#pragma unroll
  for (int n = 0; n < kRows / 8; ++n) c[n][0] = c[n][1] = c[n][2] = c[n][3] = 0.0F;
#pragma unroll
  for (int d = 0; d < padded(kWidth); d += 16) {
    uint32_t x[4];
    load_matrices(x, a_address<kWidth>(a, first, d));
#pragma unroll
    for (int n = 0; n < kRows / 16; ++n) {
      uint32_t y[4];
      load_matrices(y, b_address<kWidth>(b, 16 * n, d));
      mma_bfloat16(c[2 * n], x, y[0], y[1]);
      mma_bfloat16(c[2 * n + 1], x, y[2], y[3]);
    }
  }
}

// sums (16 × kWidth) += p (16 × kRows) · b (kRows × kWidth); p is rounded to bfloat16.
template <int kWidth, int kRows>
__device__ __forceinline__ void mix_rows(const float (&p)[kRows / 8][4], uint32_t b,
                                         float (&sums)[kWidth / 8][4]) {
#pragma unroll
  for (int r = 0; r < kRows / 16; ++r) {
    const uint32_t x[4] = {pack_bfloat16(p[2 * r][0], p[2 * r][1]),
                           pack_bfloat16(p[2 * r][2], p[2 * r][3]),
                           pack_bfloat16(p[2 * r + 1][0], p[2 * r + 1][1]),
                           pack_bfloat16(p[2 * r + 1][2], p[2 * r + 1][3])};
#pragma unroll
    for (int d = 0; d < kWidth; d += 16) {
      uint32_t y[4];
      load_matrices_transposed(y, a_address<kWidth>(b, 16 * r, d));
      mma_bfloat16(sums[d / 8], x, y[0], y[1]);
      if (d + 8 < kWidth) mma_bfloat16(sums[d / 8 + 1], x, y[2], y[3]);
    }
  }
}

// Rows row … row + 15 of a tile, times a factor for this thread's upper and lower row, to shared
// memory (which was this warp's alone) and from there, 16 bytes at a time, to y.
template <int kWidth>
__device__ __forceinline__ void store_rows(const float (&sums)[kWidth / 8][4], float upper,
                                           float lower, uint32_t tile, int first, int rows,
                                           int64_t stride, int width, Element* y) {
  const int lane = threadIdx.x % 32;
  const uint32_t at = tile + (first + lane / 4) * row_bytes(kWidth) + lane % 4 * 4;
#pragma unroll
  for (int n = 0; n < kWidth / 8; ++n) {
    const uint32_t high_rows = pack_bfloat16(sums[n][0] * upper, sums[n][1] * upper);
    const uint32_t low_rows = pack_bfloat16(sums[n][2] * lower, sums[n][3] * lower);
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(at + n * 16), "r"(high_rows) : "memory");
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(at + n * 16 + 8 * row_bytes(kWidth)), "r"(low_rows)
                 : "memory");
  }
  __syncwarp();
  constexpr int kPieces = (kWidth + 7) / 8;
  for (int i = lane; i < 16 * kPieces; i += 32) {
    const int row = first + i / kPieces;
    const int d = i % kPieces * 8;
    if (row >= rows || d >= width) continue;
    uint4 piece;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(piece.x), "=r"(piece.y), "=r"(piece.z), "=r"(piece.w)
                 : "r"(tile + row * row_bytes(kWidth) + d * 2)
                 : "memory");
    *reinterpret_cast<uint4*>(y + row * stride + d) = piece;
  }
}

// Over the four threads that share a row.
__device__ __forceinline__ float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kWholeWarp, x, 1));
  return fmaxf(x, __shfl_xor_sync(kWholeWarp, x, 2));
}
__device__ __forceinline__ float row_sum(float x) {
  x += __shfl_xor_sync(kWholeWarp, x, 1);
  return x + __shfl_xor_sync(kWholeWarp, x, 2);
}

// ---- Forward -----------------------------------------------------------------------------------

constexpr int kForwardKeys = 64;  // of a block

template <int kWidth, int kPanels>
constexpr int forward_bytes() {
  return (16 * kWarps * kPanels + 4 * kForwardKeys) * row_bytes(kWidth) + 2 * kForwardKeys * 4;
}

// kPanels: groups of 16 rows of a warp.
template <int kWidth, int kPanels>
__global__ void __launch_bounds__(kThreads)
    attention_forward_mma(Shape shape, const Element* q, const Element* k, const Element* v,
                          float c, Element* o, float* lse) {
  constexpr int kTile = 16 * kWarps * kPanels;
  constexpr int kKeys = kForwardKeys;
  constexpr int kBlockBytes = kKeys * row_bytes(kWidth);
  const Tile tile = find_tile<kTile, false>(shape);
  if (tile.rows <= 0) return;
  extern __shared__ uint4 memory[];
  const uint32_t q_tile = shared_address(memory);
  const uint32_t k_blocks = q_tile + kTile * row_bytes(kWidth);
  const uint32_t v_blocks = k_blocks + 2 * kBlockBytes;
  // For each key of the two blocks, 0 or, if it does not count, −∞.
  float(*const biases)[kKeys] = reinterpret_cast<float(*)[kKeys]>(
      reinterpret_cast<char*>(memory) + kTile * row_bytes(kWidth) + 4 * kBlockBytes);

  const int64_t stride = shape.row_stride;
  const int64_t column = static_cast<int64_t>(tile.head) * shape.width;
  const Element* const keys = k + tile.other * stride + column;
  const Element* const values = v + tile.other * stride + column;
  const uint8_t* const mask = shape.mask == nullptr ? nullptr : shape.mask + tile.other;
  const int blocks = ceil_div(tile.others, kKeys);
  const int lane = threadIdx.x % 32;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * 16 * kPanels;

  const auto start_block = [&](int block) {
    const int first = block * kKeys;
    const int left = tile.others - first;
    const uint8_t* const block_mask = mask == nullptr ? nullptr : mask + first;
    const uint32_t at = block % 2 * kBlockBytes;
    copy_rows<kWidth, kKeys>(keys + first * stride, stride, left, shape.width, block_mask,
                             k_blocks + at);
    copy_rows<kWidth, kKeys>(values + first * stride, stride, left, shape.width, block_mask,
                             v_blocks + at);
    copy_async_commit();
    for (int i = threadIdx.x; i < kKeys; i += kThreads) {
      const bool counts = i < left && (block_mask == nullptr || block_mask[i] != 0);
      biases[block % 2][i] = counts ? 0.0F : -INFINITY;
    }
  };

  copy_rows<kWidth, kTile>(q + tile.row * stride + column, stride, tile.rows, shape.width, nullptr,
                           q_tile);
  copy_async_commit();
  if (blocks > 0) start_block(0);
  float sums[kPanels][kWidth / 8][4] = {};
  float highest[kPanels][2];
  float total[kPanels][2];  // of this thread's columns
#pragma unroll
  for (int panel = 0; panel < kPanels; ++panel) {
    highest[panel][0] = highest[panel][1] = -INFINITY;
    total[panel][0] = total[panel][1] = 0.0F;
  }

  for (int block = 0; block < blocks; ++block) {
    copy_async_wait<0>();
    __syncthreads();
    if (block + 1 < blocks) start_block(block + 1);
    const uint32_t k_block = k_blocks + block % 2 * kBlockBytes;
    const uint32_t v_block = v_blocks + block % 2 * kBlockBytes;

    float s[kPanels][kKeys / 8][4] = {};
#pragma unroll
    for (int d = 0; d < padded(kWidth); d += 16) {
      uint32_t x[kPanels][4];
#pragma unroll
      for (int panel = 0; panel < kPanels; ++panel) {
        load_matrices(x[panel], a_address<kWidth>(q_tile, warp_row + 16 * panel, d));
      }
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        uint32_t y[4];
        load_matrices(y, b_address<kWidth>(k_block, 16 * n, d));
#pragma unroll
        for (int panel = 0; panel < kPanels; ++panel) {
          mma_bfloat16(s[panel][2 * n], x[panel], y[0], y[1]);
          mma_bfloat16(s[panel][2 * n + 1], x[panel], y[2], y[3]);
        }
      }
    }

    if (mask != nullptr || tile.others - block * kKeys < kKeys) {
      const float* bias = biases[block % 2] + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
        const float2 b = *reinterpret_cast<const float2*>(bias + 8 * n);
#pragma unroll
        for (int panel = 0; panel < kPanels; ++panel) {
          s[panel][n][0] += b.x;
          s[panel][n][1] += b.y;
          s[panel][n][2] += b.x;
          s[panel][n][3] += b.y;
        }
      }
    }

#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float now = highest[panel][half];
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
          now = fmaxf(now, fmaxf(s[panel][n][2 * half], s[panel][n][2 * half + 1]));
        }
        now = row_max(now);
        const float reference = now == -INFINITY ? 0.0F : now * c;  // −∞: no key yet
        const float rescale = exp2_fast(highest[panel][half] * c - reference);
        float sum = 0.0F;
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) {
            s[panel][n][i] = exp2_fast(fmaf(s[panel][n][i], c, -reference));
            sum += s[panel][n][i];
          }
        }
        total[panel][half] = total[panel][half] * rescale + sum;
        highest[panel][half] = now;
#pragma unroll
        for (int n = 0; n < kWidth / 8; ++n) {
          sums[panel][n][2 * half] *= rescale;
          sums[panel][n][2 * half + 1] *= rescale;
        }
      }
    }

#pragma unroll
    for (int r = 0; r < kKeys / 16; ++r) {
      uint32_t x[kPanels][4];
#pragma unroll
      for (int panel = 0; panel < kPanels; ++panel) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* pair = &s[panel][2 * r + i / 2][i % 2 * 2];
          x[panel][i] = pack_bfloat16(pair[0], pair[1]);
        }
      }
#pragma unroll
      for (int d = 0; d < kWidth; d += 16) {
        uint32_t y[4];
        load_matrices_transposed(y, a_address<kWidth>(v_block, 16 * r, d));
#pragma unroll
        for (int panel = 0; panel < kPanels; ++panel) {
          mma_bfloat16(sums[panel][d / 8], x[panel], y[0], y[1]);
          if (d + 8 < kWidth) mma_bfloat16(sums[panel][d / 8 + 1], x[panel], y[2], y[3]);
        }
      }
    }
  }
  copy_async_wait<0>();
  __syncthreads();

  Element* const target = o + tile.row * shape.result_stride() + column;
#pragma unroll
  for (int panel = 0; panel < kPanels; ++panel) {
    float inverse[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = row_sum(total[panel][half]);
      inverse[half] = sum == 0.0F ? 0.0F : 1.0F / sum;
      const int row = warp_row + 16 * panel + 8 * half + lane / 4;
      if (lane % 4 == 0 && row < tile.rows) {
        lse[tile.statistic + row] =
            sum == 0.0F ? -INFINITY : (highest[panel][half] * c + __log2f(sum)) * kLn2;
      }
    }
    store_rows<kWidth>(sums[panel], inverse[0], inverse[1], q_tile, warp_row + 16 * panel,
                       tile.rows, shape.result_stride(), shape.width, target);
  }
}

// ---- Backward ----------------------------------------------------------------------------------

constexpr int backward_others(int width) { return width <= 96 ? 64 : 32; }

template <int kWidth>
constexpr int backward_bytes() {
  return (2 * kBackwardMmaTileRows + 4 * backward_others(kWidth)) * row_bytes(kWidth) +
         4 * backward_others(kWidth) * 4;
}

// lse in powers of 2 of a query, +∞ for one that has no keys, so that its probabilities are zeros.
__device__ __forceinline__ float log2_total(float lse) {
  return lse == -INFINITY ? INFINITY : lse * static_cast<float>(kLog2E);
}

template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    attention_backward_keys_mma(Shape shape, const Element* q, const Element* dout,
                                const Element* k, const Element* v, const float* lse,
                                const float* delta, float scale, Element* dk, Element* dv) {
  constexpr int kTile = kBackwardMmaTileRows;
  constexpr int kQueries = backward_others(kWidth);
  constexpr int kBlockBytes = kQueries * row_bytes(kWidth);
  const Tile tile = find_tile<kTile, true>(shape);
  if (tile.rows <= 0) return;
  extern __shared__ uint4 memory[];
  const uint32_t k_tile = shared_address(memory);
  const uint32_t v_tile = k_tile + kTile * row_bytes(kWidth);
  const uint32_t q_blocks = v_tile + kTile * row_bytes(kWidth);
  const uint32_t dout_blocks = q_blocks + 2 * kBlockBytes;
  float(*const log2_totals)[kQueries] = reinterpret_cast<float(*)[kQueries]>(
      reinterpret_cast<char*>(memory) + 2 * kTile * row_bytes(kWidth) + 4 * kBlockBytes);
  float(*const deltas)[kQueries] = log2_totals + 2;

  const int64_t stride = shape.row_stride;
  const int64_t column = static_cast<int64_t>(tile.head) * shape.width;
  const int64_t at = tile.row * stride + column;
  const Element* const queries = q + tile.other * stride + column;
  const int64_t dout_stride = shape.result_stride();
  const Element* const douts = dout + tile.other * dout_stride + column;
  const uint8_t* const mask = shape.mask == nullptr ? nullptr : shape.mask + tile.row;
  const int blocks = ceil_div(tile.others, kQueries);
  const int lane = threadIdx.x % 32;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * 16;
  const float c = scale * static_cast<float>(kLog2E);

  const auto start_block = [&](int block) {
    const int first = block * kQueries;
    const int left = tile.others - first;
    const uint32_t offset = block % 2 * kBlockBytes;
    copy_rows<kWidth, kQueries>(queries + first * stride, stride, left, shape.width, nullptr,
                                q_blocks + offset);
    copy_rows<kWidth, kQueries>(douts + first * dout_stride, dout_stride, left, shape.width,
                                nullptr, dout_blocks + offset);
    copy_async_commit();
    for (int i = threadIdx.x; i < kQueries; i += kThreads) {
      const bool there = i < left;
      log2_totals[block % 2][i] = there ? log2_total(lse[tile.statistic + first + i]) : INFINITY;
      deltas[block % 2][i] = there ? delta[tile.statistic + first + i] : 0.0F;
    }
  };

  copy_rows<kWidth, kTile>(k + at, stride, tile.rows, shape.width, mask, k_tile);
  copy_rows<kWidth, kTile>(v + at, stride, tile.rows, shape.width, mask, v_tile);
  copy_async_commit();
  if (blocks > 0) start_block(0);
  float dk_sums[kWidth / 8][4] = {};
  float dv_sums[kWidth / 8][4] = {};
  for (int block = 0; block < blocks; ++block) {
    copy_async_wait<0>();
    __syncthreads();
    if (block + 1 < blocks) start_block(block + 1);
    const uint32_t q_block = q_blocks + block % 2 * kBlockBytes;
    const uint32_t dout_block = dout_blocks + block % 2 * kBlockBytes;
    float p[kQueries / 8][4];
    float ds[kQueries / 8][4];
    multiply_rows<kWidth, kQueries>(k_tile, warp_row, q_block, p);
    multiply_rows<kWidth, kQueries>(v_tile, warp_row, dout_block, ds);
#pragma unroll
    for (int n = 0; n < kQueries / 8; ++n) {
      const int query = 8 * n + lane % 4 * 2;
      const float2 total = *reinterpret_cast<const float2*>(log2_totals[block % 2] + query);
      const float2 offset = *reinterpret_cast<const float2*>(deltas[block % 2] + query);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        p[n][i] = exp2_fast(fmaf(p[n][i], c, -(i % 2 == 0 ? total.x : total.y)));
        ds[n][i] = p[n][i] * (ds[n][i] - (i % 2 == 0 ? offset.x : offset.y));
      }
    }
    mix_rows<kWidth, kQueries>(p, dout_block, dv_sums);
    mix_rows<kWidth, kQueries>(ds, q_block, dk_sums);
  }
  copy_async_wait<0>();
  __syncthreads();

  // A masked key has no gradient; what was summed up for it is of no meaning, and may be infinite.
  bool counts[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = warp_row + 8 * half + lane / 4;
    counts[half] = row < tile.rows && (mask == nullptr || mask[row] != 0);
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        if (!counts[half]) dk_sums[n][i] = dv_sums[n][i] = 0.0F;
      }
    }
  }
  store_rows<kWidth>(dk_sums, scale, scale, k_tile, warp_row, tile.rows, stride, shape.width,
                     dk + at);
  store_rows<kWidth>(dv_sums, 1.0F, 1.0F, v_tile, warp_row, tile.rows, stride, shape.width,
                     dv + at);
}

template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    attention_backward_queries_mma(Shape shape, const Element* q, const Element* dout,
                                   const Element* k, const Element* v, const float* lse,
                                   const float* delta, float scale, Element* dq) {
  constexpr int kTile = kBackwardMmaTileRows;
  constexpr int kKeys = backward_others(kWidth);
  constexpr int kBlockBytes = kKeys * row_bytes(kWidth);
  const Tile tile = find_tile<kTile, false>(shape);
  if (tile.rows <= 0) return;
  extern __shared__ uint4 memory[];
  const uint32_t q_tile = shared_address(memory);
  const uint32_t dout_tile = q_tile + kTile * row_bytes(kWidth);
  const uint32_t k_blocks = dout_tile + kTile * row_bytes(kWidth);
  const uint32_t v_blocks = k_blocks + 2 * kBlockBytes;
  float(*const biases)[kKeys] = reinterpret_cast<float(*)[kKeys]>(
      reinterpret_cast<char*>(memory) + 2 * kTile * row_bytes(kWidth) + 4 * kBlockBytes);

  const int64_t stride = shape.row_stride;
  const int64_t column = static_cast<int64_t>(tile.head) * shape.width;
  const int64_t at = tile.row * stride + column;
  const Element* const keys = k + tile.other * stride + column;
  const Element* const values = v + tile.other * stride + column;
  const uint8_t* const mask = shape.mask == nullptr ? nullptr : shape.mask + tile.other;
  const int blocks = ceil_div(tile.others, kKeys);
  const int lane = threadIdx.x % 32;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * 16;
  const float c = scale * static_cast<float>(kLog2E);

  const auto start_block = [&](int block) {
    const int first = block * kKeys;
    const int left = tile.others - first;
    const uint8_t* const block_mask = mask == nullptr ? nullptr : mask + first;
    const uint32_t offset = block % 2 * kBlockBytes;
    copy_rows<kWidth, kKeys>(keys + first * stride, stride, left, shape.width, block_mask,
                             k_blocks + offset);
    copy_rows<kWidth, kKeys>(values + first * stride, stride, left, shape.width, block_mask,
                             v_blocks + offset);
    copy_async_commit();
    for (int i = threadIdx.x; i < kKeys; i += kThreads) {
      const bool counts = i < left && (block_mask == nullptr || block_mask[i] != 0);
      biases[block % 2][i] = counts ? 0.0F : -INFINITY;
    }
  };

  copy_rows<kWidth, kTile>(q + at, stride, tile.rows, shape.width, nullptr, q_tile);
  copy_rows<kWidth, kTile>(dout + tile.row * shape.result_stride() + column, shape.result_stride(),
                           tile.rows, shape.width, nullptr, dout_tile);
  copy_async_commit();
  if (blocks > 0) start_block(0);
  float total[2];
  float offset[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = warp_row + 8 * half + lane / 4;
    const bool there = row < tile.rows;
    total[half] = there ? log2_total(lse[tile.statistic + row]) : INFINITY;
    offset[half] = there ? delta[tile.statistic + row] : 0.0F;
  }
  float sums[kWidth / 8][4] = {};
  for (int block = 0; block < blocks; ++block) {
    copy_async_wait<0>();
    __syncthreads();
    if (block + 1 < blocks) start_block(block + 1);
    const uint32_t k_block = k_blocks + block % 2 * kBlockBytes;
    const uint32_t v_block = v_blocks + block % 2 * kBlockBytes;
    float p[kKeys / 8][4];
    float ds[kKeys / 8][4];
    multiply_rows<kWidth, kKeys>(q_tile, warp_row, k_block, p);
    multiply_rows<kWidth, kKeys>(dout_tile, warp_row, v_block, ds);
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
      const float2 bias =
          *reinterpret_cast<const float2*>(biases[block % 2] + 8 * n + lane % 4 * 2);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float score = p[n][i] + (i % 2 == 0 ? bias.x : bias.y);
        ds[n][i] = exp2_fast(fmaf(score, c, -total[i / 2])) * (ds[n][i] - offset[i / 2]);
      }
    }
    mix_rows<kWidth, kKeys>(ds, k_block, sums);
  }
  copy_async_wait<0>();
  __syncthreads();
  store_rows<kWidth>(sums, scale, scale, q_tile, warp_row, tile.rows, stride, shape.width, dq + at);
}

// ---- Launches ----------------------------------------------------------------------------------

// Runs body with the least width the kernels are compiled for that holds this one.
template <typename Body>
void with_width(int width, const Body& body) {
  if (width <= 32) return body(std::integral_constant<int, 32>());
  if (width <= 64) return body(std::integral_constant<int, 64>());
  if (width <= 72) return body(std::integral_constant<int, 72>());
  if (width <= 96) return body(std::integral_constant<int, 96>());
  return body(std::integral_constant<int, 128>());
}

template <typename Kernel, typename... Arguments>
void launch(const CudaContext& cuda, const char* name, Kernel* kernel, unsigned blocks, int bytes,
            Arguments... arguments) {
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
             name);
  kernel<<<blocks, kThreads, bytes, cuda.stream>>>(arguments...);
  check_launch(name);
}

const Element* elements(const void* x) { return static_cast<const Element*>(x); }
Element* elements(void* x) { return static_cast<Element*>(x); }

}  // namespace

int forward_mma_tile_rows(const Shape& shape) {
  return shape.queries <= 64 || shape.width > 96 ? 16 * kWarps : 32 * kWarps;
}

void forward_mma(const CudaContext& cuda, const ForwardCall& call) {
  const int tile_rows = forward_mma_tile_rows(call.shape);
  const unsigned blocks = tile_blocks(call.shape, call.shape.queries, tile_rows);
  const auto run = [&](auto* kernel, int bytes) {
    launch(cuda, "attention_forward_mma", kernel, blocks, bytes, call.shape, elements(call.q),
           elements(call.k), elements(call.v), static_cast<float>(call.scale * kLog2E),
           elements(call.o), call.lse);
  };
  with_width(call.shape.width, [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    if constexpr (kWidth <= 96) {
      if (tile_rows == 32 * kWarps) {
        return run(attention_forward_mma<kWidth, 2>, forward_bytes<kWidth, 2>());
      }
    }
    run(attention_forward_mma<kWidth, 1>, forward_bytes<kWidth, 1>());
  });
}

void backward_mma(const CudaContext& cuda, const BackwardCall& call) {
  const Shape& shape = call.shape;
  const float scale = static_cast<float>(call.scale);
  with_width(shape.width, [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    launch(cuda, "attention_backward_keys_mma", attention_backward_keys_mma<kWidth>,
           tile_blocks(shape, shape.keys, kBackwardMmaTileRows), backward_bytes<kWidth>(), shape,
           elements(call.q), elements(call.dout), elements(call.k), elements(call.v), call.lse,
           call.delta, scale, elements(call.dk), elements(call.dv));
    launch(cuda, "attention_backward_queries_mma", attention_backward_queries_mma<kWidth>,
           tile_blocks(shape, shape.queries, kBackwardMmaTileRows), backward_bytes<kWidth>(), shape,
           elements(call.q), elements(call.dout), elements(call.k), elements(call.v), call.lse,
           call.delta, scale, elements(call.dq));
  });
}

}  // namespace siglip::cuda::attention
