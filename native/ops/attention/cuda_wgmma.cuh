// What the kernels for sm_90a share: how a head's rows lie in shared memory, and products of them.
//
// Widths up to 64 and up to 96: a tile of R rows is kept in columns of rows, first those of 64 elements
// (128 bytes), then the rest of the padded width, 32 elements. The copy engine fills in zeros for rows
// and elements that are not there.
// Width 72: its rows of 144 bytes suit the copy engine badly, so the producer's threads copy them in
// pieces of 16 bytes, each to the column of its place in the row. Columns are a piece longer than R, so
// that a row's pieces are in different banks. A tenth column of zeros fills up the last product.
#pragma once

#include <type_traits>

#include "device/mma.cuh"
#include "device/tma.cuh"
#include "device/wgmma.cuh"
#include "ops/attention/cuda_call.cuh"
#include "runtime/tensor_map.h"

namespace siglip::cuda::attention {

inline constexpr int kBoxRows = 64;  // of every copy
inline constexpr int kSharedLimit = 227 * 1024;

// Of a head width.
template <int kWidth>
struct Columns {
  static constexpr bool kByEngine = true;
  static constexpr int kMain = 64;
  static constexpr int kRest = kWidth - kMain;
  static_assert(kRest == 0 || kRest == 32, "no such layout");
  static constexpr int kMainBytes = 128;
  static constexpr int kRestBytes = 64;  // of a row
  static constexpr int tile_bytes(int rows) { return rows * kWidth * 2; }
  static constexpr int kLoaders = 1;  // arrivals that make a tile full,
  static constexpr int kStorers = 1;  // and of a warpgroup those that make one empty
};

template <>
struct Columns<72> {
  static constexpr bool kByEngine = false;
  static constexpr int kMain = 72;
  static constexpr int kRest = 0;
  static constexpr int kPieces = 9;  // of 16 bytes
  static constexpr int column_bytes(int rows) { return (rows + 1) * 16; }
  static constexpr int tile_bytes(int rows) { return (kPieces + 1) * column_bytes(rows); }
  static constexpr int kLoaders = 128;
  static constexpr int kStorers = 4;
};

// Of the warpgroup that loads and of two that compute, 128 · 504 together: what a block has.
template <int kWidth>
inline constexpr int kProducerRegisters = Columns<kWidth>::kByEngine ? 24 : 40;
template <int kWidth>
inline constexpr int kConsumerRegisters = Columns<kWidth>::kByEngine ? 240 : 232;

// A tensor (batch, rows, heads, width) by boxes of kBoxRows rows of one head: its columns of 64, and
// the rest.
struct TensorMaps {
  CUtensorMap main;
  CUtensorMap rest;
};

// The same tensor as its first row, for those without the copy engine.
struct TensorRows {
  char* data;
  int64_t stride;  // bytes
  int rows;        // of an image
};

template <int kWidth>
using Tensor = std::conditional_t<Columns<kWidth>::kByEngine, TensorMaps, TensorRows>;

template <int kWidth>
struct ForwardTensors {
  Tensor<kWidth> q;
  Tensor<kWidth> k;
  Tensor<kWidth> v;
  Tensor<kWidth> o;
};

inline TensorMaps tensor_maps(const void* data, const Shape& shape, int rows, int64_t stride,
                              int rest) {
  const int64_t extents[4] = {shape.width, shape.heads, rows, shape.batch};
  const int64_t strides[3] = {shape.width, stride, stride * rows};
  const int main_box[4] = {64, 1, kBoxRows, 1};
  TensorMaps maps;
  maps.main = tensor_map(data, 4, extents, strides, main_box, Swizzle::k128);
  maps.rest = maps.main;
  if (rest > 0) {
    const int rest_box[4] = {rest, 1, kBoxRows, 1};
    maps.rest = tensor_map(data, 4, extents, strides, rest_box, Swizzle::k64);
  }
  return maps;
}

template <int kWidth>
Tensor<kWidth> head_tensor(const void* data, const Shape& shape, int rows, int64_t stride) {
  using C = Columns<kWidth>;
  if constexpr (C::kByEngine) {
    return tensor_maps(data, shape, rows, stride, C::kRest);
  } else {
    return {static_cast<char*>(const_cast<void*>(data)), stride * 2, rows};
  }
}

template <int kWidth>
ForwardTensors<kWidth> forward_tensors(const ForwardCall& call) {
  const Shape& shape = call.shape;
  return {head_tensor<kWidth>(call.q, shape, shape.queries, shape.row_stride),
          head_tensor<kWidth>(call.k, shape, shape.keys, shape.row_stride),
          head_tensor<kWidth>(call.v, shape, shape.keys, shape.row_stride),
          head_tensor<kWidth>(call.o, shape, shape.queries, shape.result_stride())};
}

// More than 256 keys, which go by in blocks. kWidth is padded.
template <int kWidth>
void forward_long(const CudaContext& cuda, const ForwardCall& call);
extern template void forward_long<64>(const CudaContext&, const ForwardCall&);
extern template void forward_long<72>(const CudaContext&, const ForwardCall&);
extern template void forward_long<96>(const CudaContext&, const ForwardCall&);

// More than 256 queries or keys; reads delta.
template <int kWidth>
void backward_long(const CudaContext& cuda, const BackwardCall& call);
extern template void backward_long<64>(const CudaContext&, const BackwardCall&);
extern template void backward_long<72>(const CudaContext&, const BackwardCall&);
extern template void backward_long<96>(const CudaContext&, const BackwardCall&);

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Starts to load kRows rows of a head, from `row` on; kLoaders threads call it, and arrive at the
// barrier when they are there.
template <int kWidth, int kRows>
__device__ __forceinline__ void load_tile(char* shared, const Tensor<kWidth>& tensor,
                                          uint64_t* barrier, int head, int row, int image) {
  using C = Columns<kWidth>;
  if constexpr (C::kByEngine) {
    barrier_arrive_expect(barrier, C::tile_bytes(kRows));
#pragma unroll
    for (int r = 0; r < kRows; r += kBoxRows) {
      tma_load(shared + r * C::kMainBytes, &tensor.main, barrier, 0, head, row + r, image);
      if constexpr (C::kRest > 0) {
        tma_load(shared + kRows * C::kMainBytes + r * C::kRestBytes, &tensor.rest, barrier, 64,
                 head, row + r, image);
      }
    }
  } else {
    constexpr int kTogether = 128 / C::kPieces;  // rows
    const int thread = threadIdx.x % 128;
    if (thread < kTogether * C::kPieces) {
      const int first = thread / C::kPieces;
      const int piece = thread % C::kPieces;
      const int count = tensor.rows - row;
      const char* source =
          tensor.data + (static_cast<int64_t>(image) * tensor.rows + row + first) * tensor.stride +
          head * (kWidth * 2) + piece * 16;
      uint32_t target = shared_address(shared) + piece * C::column_bytes(kRows) + first * 16;
#pragma unroll 4
      for (int r = first; r < kRows; r += kTogether) {
        // What it fetches besides belongs to the neighbouring heads, which other blocks read now.
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(target),
                     "l"(r < count ? source : tensor.data), "r"(r < count ? 16 : 0)
                     : "memory");
        source += kTogether * tensor.stride;
        target += kTogether * 16;
      }
    }
    barrier_arrive_after_copies(barrier);
  }
}

// The threads that load call it before they end.
template <int kWidth>
__device__ __forceinline__ void finish_loads() {
  if constexpr (!Columns<kWidth>::kByEngine) asm volatile("cp.async.wait_all;" ::: "memory");
}

// Waits for what load_tile() loads.
template <int kWidth>
__device__ __forceinline__ void wait_loaded(uint64_t* barrier, uint32_t parity) {
  barrier_wait(barrier, parity);
  if constexpr (!Columns<kWidth>::kByEngine) fence_async_shared();
}

// The zeros that fill up the rows of `count` tiles of kRows rows, by all threads of the block, which
// synchronises afterwards.
template <int kWidth, int kRows>
__device__ __forceinline__ void fill_up_tiles(char* tiles, int count) {
  using C = Columns<kWidth>;
  if constexpr (!C::kByEngine) {
    for (int i = threadIdx.x; i < count * kRows; i += blockDim.x) {
      char* const column =
          tiles + i / kRows * C::tile_bytes(kRows) + C::kPieces * C::column_bytes(kRows);
      *reinterpret_cast<uint4*>(column + i % kRows * 16) = make_uint4(0, 0, 0, 0);
    }
    fence_async_shared();
  }
}

// Starts to store the kBoxRows rows of a tile: one thread.
template <int kWidth>
__device__ __forceinline__ void store_tile(const char* shared, const TensorMaps& maps, int head,
                                           int row, int image) {
  using C = Columns<kWidth>;
  tma_store(&maps.main, shared, 0, head, row, image);
  if constexpr (C::kRest > 0) {
    tma_store(&maps.rest, shared + kBoxRows * C::kMainBytes, 64, head, row, image);
  }
}

// Stores them: every warp of the warpgroup its 16 rows.
template <int kWidth>
__device__ __forceinline__ void store_tile(const char* shared, const TensorRows& tensor, int head,
                                           int row, int image) {
  using C = Columns<kWidth>;
  const int first = threadIdx.x % 128 / 32 * 16;
  const int count = tensor.rows - row;
  char* const target = tensor.data +
                       (static_cast<int64_t>(image) * tensor.rows + row) * tensor.stride +
                       head * (kWidth * 2);
#pragma unroll
  for (int i = 0; i < 16 * C::kPieces; i += 32) {
    const int at = i + threadIdx.x % 32;
    const int r = first + at / C::kPieces;
    const int piece = at % C::kPieces;
    if (at < 16 * C::kPieces && r < count) {
      *reinterpret_cast<uint4*>(target + r * tensor.stride + piece * 16) =
          *reinterpret_cast<const uint4*>(shared + piece * C::column_bytes(kBoxRows) + r * 16);
    }
  }
}

// Queues s (64 × kCount) = a · bᵀ over the width. a: 64 rows from a_row on of a tile of kRowsA rows;
// b: kCount rows from b_row on of a tile of kRowsB.
template <int kWidth, int kRowsA, int kRowsB, int kCount>
__device__ __forceinline__ void multiply_rows(float (&s)[kCount / 2], uint32_t a, int a_row,
                                              uint32_t b, int b_row) {
  using C = Columns<kWidth>;
  if constexpr (C::kByEngine) {
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
  } else {
    constexpr int kNextA = C::column_bytes(kRowsA);
    constexpr int kNextB = C::column_bytes(kRowsB);
#pragma unroll
    for (int piece = 0; piece < C::kPieces; piece += 2) {
      wgmma<kCount>(s, columns_along_k(a + a_row * 16 + piece * kNextA, kNextA),
                    columns_along_k(b + b_row * 16 + piece * kNextB, kNextB), piece == 0 ? 0 : 1);
    }
  }
}

// Sums of 64 rows over the width, as wgmma leaves them.
template <int kWidth>
struct WidthSums {
  using C = Columns<kWidth>;
  float main[C::kMain / 2];
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
    for (int i = 0; i < C::kMain / 2; ++i) main[i] *= i % 4 < 2 ? upper : lower;
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
  if constexpr (C::kByEngine) {
    wgmma<64, true>(sums.main, p, operand_across_k<128>(b + b_row * 128, 0), add);
    if constexpr (C::kRest > 0) {
      constexpr int kBytes = C::kRestBytes;
      wgmma<C::kRest, true>(sums.rest, p,
                            operand_across_k<kBytes>(b + kRowsB * 128 + b_row * kBytes, 0), add);
    }
  } else {
    wgmma<C::kMain, true>(sums.main, p, columns_across_k(b + b_row * 16, C::column_bytes(kRowsB)),
                          add);
  }
}

// Where byte `offset` of a column of rows of kBytes bytes lies: what the copy engine does.
template <int kBytes>
__host__ __device__ __forceinline__ constexpr uint32_t swizzled(uint32_t offset) {
  return offset ^ (offset >> 7 & (kBytes / 16 - 1)) << 4;
}

// Writes sums times a factor for the upper and lower row, rounded, to a tile of kBoxRows rows, every
// warp its 16.
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
  for (int n = 0; n < C::kMain / 8; ++n) {
    const float* x = sums.main + 4 * n;
    if constexpr (C::kByEngine) {
      const uint32_t at = row * 128 + n * 16 + lane % 4 * 4;
      write(tile + swizzled<128>(at), x[0] * upper, x[1] * upper);
      write(tile + swizzled<128>(at + 8 * 128), x[2] * lower, x[3] * lower);
    } else {
      const uint32_t at = tile + n * C::column_bytes(kBoxRows) + row * 16 + lane % 4 * 4;
      write(at, x[0] * upper, x[1] * upper);
      write(at + 8 * 16, x[2] * lower, x[3] * lower);
    }
  }
  if constexpr (C::kRest > 0) {
    constexpr int kBytes = C::kRestBytes;
    const uint32_t rest = tile + kBoxRows * 128;
#pragma unroll
    for (int n = 0; n < C::kRest / 8; ++n) {
      const float* x = sums.rest + 4 * n;
      const uint32_t at = row * kBytes + n * 16 + lane % 4 * 4;
      write(rest + swizzled<kBytes>(at), x[0] * upper, x[1] * upper);
      write(rest + swizzled<kBytes>(at + 8 * kBytes), x[2] * lower, x[3] * lower);
    }
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

// Fragments of the scores of kCount columns.
template <int kCount>
__device__ __forceinline__ void pack_scores(const float (&s)[kCount / 2],
                                            uint32_t (&p)[kCount / 16][4]) {
#pragma unroll
  for (int i = 0; i < kCount / 4; ++i) p[i / 4][i % 4] = pack_bfloat16(s[2 * i], s[2 * i + 1]);
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
