// What the kernels for sm_90a share: how a head's rows lie in shared memory, and products of them.
//
// A tile of R rows is kept in columns of rows: first those of 64 elements (128 bytes), then the rest
// of the padded width, 16 or 32 elements. The copy engine fills in zeros for rows and elements that
// are not there, so 72 is 64 + 16 of which 8 are zeros.
#pragma once

#include "device/mma.cuh"
#include "device/tma.cuh"
#include "device/wgmma.cuh"
#include "ops/attention/cuda_call.cuh"
#include "runtime/tensor_map.h"

namespace siglip::cuda::attention {

inline constexpr int kBoxRows = 64;  // of every copy
inline constexpr int kSharedLimit = 227 * 1024;

// Of a head width, which is a multiple of 16 here.
template <int kWidth>
struct Columns {
  static constexpr int kMain = kWidth / 64;
  static constexpr int kRest = kWidth % 64;
  static_assert(kMain == 1 && (kRest == 0 || kRest == 16 || kRest == 32), "no such layout");
  static constexpr int kMainBytes = 128;
  static constexpr int kRestBytes = kRest == 0 ? 32 : kRest * 2;  // of a row
  static constexpr int tile_bytes(int rows) { return rows * kWidth * 2; }
};

// A tensor (batch, rows, heads, width) by boxes of kBoxRows rows of one head: its columns of 64, and
// the rest.
struct TensorMaps {
  CUtensorMap main;
  CUtensorMap rest;
};

struct ForwardMaps {
  TensorMaps q;
  TensorMaps k;
  TensorMaps v;
  TensorMaps o;
};

inline TensorMaps head_maps(const void* data, const Shape& shape, int rows, int rest) {
  const int64_t extents[4] = {shape.width, shape.heads, rows, shape.batch};
  const int64_t strides[3] = {shape.width, shape.stride(), shape.stride() * rows};
  const int main_box[4] = {64, 1, kBoxRows, 1};
  TensorMaps maps;
  maps.main = tensor_map(data, 4, extents, strides, main_box, Swizzle::k128);
  maps.rest = maps.main;
  if (rest > 0) {
    const int rest_box[4] = {rest, 1, kBoxRows, 1};
    maps.rest =
        tensor_map(data, 4, extents, strides, rest_box, rest == 16 ? Swizzle::k32 : Swizzle::k64);
  }
  return maps;
}

inline ForwardMaps forward_maps(const ForwardCall& call, int rest) {
  const Shape& shape = call.shape;
  return {head_maps(call.q, shape, shape.queries, rest), head_maps(call.k, shape, shape.keys, rest),
          head_maps(call.v, shape, shape.keys, rest),
          head_maps(call.o, shape, shape.queries, rest)};
}

// More than 256 keys, which go by in blocks. kWidth is padded.
template <int kWidth>
void forward_long(const CudaContext& cuda, const ForwardCall& call);
extern template void forward_long<64>(const CudaContext&, const ForwardCall&);
extern template void forward_long<80>(const CudaContext&, const ForwardCall&);
extern template void forward_long<96>(const CudaContext&, const ForwardCall&);

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Starts to load kRows rows of a head, from `row` on. The barrier expects Columns::tile_bytes(kRows).
template <int kWidth, int kRows>
__device__ __forceinline__ void load_tile(char* shared, const TensorMaps& maps, uint64_t* barrier,
                                          int head, int row, int image) {
  using C = Columns<kWidth>;
#pragma unroll
  for (int r = 0; r < kRows; r += kBoxRows) {
    tma_load(shared + r * C::kMainBytes, &maps.main, barrier, 0, head, row + r, image);
    if constexpr (C::kRest > 0) {
      tma_load(shared + kRows * C::kMainBytes + r * C::kRestBytes, &maps.rest, barrier, 64, head,
               row + r, image);
    }
  }
}

// Starts to store the kBoxRows rows of a tile.
template <int kWidth>
__device__ __forceinline__ void store_tile(const char* shared, const TensorMaps& maps, int head,
                                           int row, int image) {
  using C = Columns<kWidth>;
  tma_store(&maps.main, shared, 0, head, row, image);
  if constexpr (C::kRest > 0) {
    tma_store(&maps.rest, shared + kBoxRows * C::kMainBytes, 64, head, row, image);
  }
}

// Queues s (64 × kCount) = a · bᵀ over the width. a: 64 rows from a_row on of a tile of kRowsA rows;
// b: kCount rows from b_row on of a tile of kRowsB.
template <int kWidth, int kRowsA, int kRowsB, int kCount>
__device__ __forceinline__ void multiply_rows(float (&s)[kCount / 2], uint32_t a, int a_row,
                                              uint32_t b, int b_row) {
  using C = Columns<kWidth>;
#pragma unroll
  for (int d = 0; d < 64; d += 16) {
    wgmma<kCount>(s, operand_along_k<128>(a + a_row * 128 + d * 2),
                  operand_along_k<128>(b + b_row * 128 + d * 2), d == 0 ? 0 : 1);
  }
  constexpr int kBytes = C::kRestBytes;
#pragma unroll
  for (int d = 0; d < C::kRest; d += 16) {
    wgmma<kCount>(s, operand_along_k<kBytes>(a + kRowsA * 128 + a_row * kBytes + d * 2),
                  operand_along_k<kBytes>(b + kRowsB * 128 + b_row * kBytes + d * 2), 1);
  }
}

// Sums of 64 rows over the width, as wgmma leaves them.
template <int kWidth>
struct WidthSums {
  using C = Columns<kWidth>;
  float main[32];
  float rest[C::kRest == 0 ? 1 : C::kRest / 2];

  __device__ __forceinline__ void keep() {
    keep_in_place(main);
    keep_in_place(rest);
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (float& x : main) x = 0.0F;
#pragma unroll
    for (float& x : rest) x = 0.0F;
  }
  // The upper (row g) and lower (g + 8) row of the thread.
  __device__ __forceinline__ void scale(float upper, float lower) {
#pragma unroll
    for (int i = 0; i < 32; ++i) main[i] *= i % 4 < 2 ? upper : lower;
    if constexpr (C::kRest > 0) {
#pragma unroll
      for (int i = 0; i < C::kRest / 2; ++i) rest[i] *= i % 4 < 2 ? upper : lower;
    }
  }
};

// Queues sums (64 × kWidth) (+)= p (64 × 16, a fragment) · the 16 rows of b from b_row on.
template <int kWidth, int kRowsB>
__device__ __forceinline__ void mix_rows(WidthSums<kWidth>& sums, const uint32_t (&p)[4],
                                         uint32_t b, int b_row, int add) {
  using C = Columns<kWidth>;
  wgmma<64, true>(sums.main, p, operand_across_k<128>(b + b_row * 128, 0), add);
  if constexpr (C::kRest > 0) {
    constexpr int kBytes = C::kRestBytes;
    wgmma<C::kRest, true>(sums.rest, p,
                          operand_across_k<kBytes>(b + kRowsB * 128 + b_row * kBytes, 0), add);
  }
}

// Where byte `offset` of a column of rows of kBytes bytes lies: what the copy engine does.
template <int kBytes>
__host__ __device__ __forceinline__ constexpr uint32_t swizzled(uint32_t offset) {
  return offset ^ (offset >> 7 & (kBytes / 16 - 1)) << 4;
}

// Writes sums times a factor for the upper and lower row, rounded, to a tile of kBoxRows rows.
template <int kWidth>
__device__ __forceinline__ void write_tile(const WidthSums<kWidth>& sums, float upper, float lower,
                                           uint32_t tile) {
  using C = Columns<kWidth>;
  const int lane = threadIdx.x % 32;
  const int row = threadIdx.x % 128 / 32 * 16 + lane / 4;
  const auto write = [](uint32_t address, float low, float high) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(pack_bfloat16(low, high))
                 : "memory");
  };
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const float* x = sums.main + 4 * n;
    const uint32_t at = row * 128 + n * 16 + lane % 4 * 4;
    write(tile + swizzled<128>(at), x[0] * upper, x[1] * upper);
    write(tile + swizzled<128>(at + 8 * 128), x[2] * lower, x[3] * lower);
  }
#pragma unroll
  for (int n = 0; n < C::kRest / 8; ++n) {
    constexpr int kBytes = C::kRestBytes;
    const float* x = sums.rest + 4 * n;
    const uint32_t at = row * kBytes + n * 16 + lane % 4 * 4;
    const uint32_t rest = tile + kBoxRows * 128;
    write(rest + swizzled<kBytes>(at), x[0] * upper, x[1] * upper);
    write(rest + swizzled<kBytes>(at + 8 * kBytes), x[2] * lower, x[3] * lower);
  }
}

// Over the four threads that share a row.
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffU, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffU, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffU, x, 1);
  return x + __shfl_xor_sync(0xffffffffU, x, 2);
}

// Scores of keys from `count` on become −∞.
template <int kCount>
__device__ __forceinline__ void limit_keys(float (&s)[kCount / 2], int count) {
  const int column = threadIdx.x % 4 * 2;
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) {
    if (i / 4 * 8 + column + i % 2 >= count) s[i] = -INFINITY;
  }
}

// Greatest of the thread's two rows.
template <int kCount>
__device__ __forceinline__ void row_maxima(const float (&s)[kCount], float (&highest)[2]) {
  float most[4] = {s[0], s[1], s[2], s[3]};
#pragma unroll
  for (int i = 4; i < kCount; ++i) most[i % 4] = fmaxf(most[i % 4], s[i]);
  highest[0] = quad_max(fmaxf(most[0], most[1]));
  highest[1] = quad_max(fmaxf(most[2], most[3]));
}

// A ring of kStages places in shared memory: which one the n-th item takes, and the parity of the
// phase of its barriers then.
template <int kStages>
struct Place {
  int stage;
  uint32_t parity;
  __device__ __forceinline__ explicit Place(unsigned n)
      : stage(static_cast<int>(n % kStages)), parity(n / kStages & 1U) {}
};

#endif  // sm_90a

}  // namespace siglip::cuda::attention
