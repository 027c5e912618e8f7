// What the kernels for sm_90a share: how a head's rows lie in shared memory, and products of them.
//
// A tile of R rows is kept in columns of rows, first those of 64 elements (128 bytes), then the rest of
// the padded width. The copy engine fills in zeros for rows and elements that are not there.
// Heads of 72 begin at multiples of 144 bytes, every other one in the middle of a 32-byte sector, which
// the copy engine loads slowly. Tiles of those begin 8 elements earlier, outside the head, with zeros:
// it is products of such tiles that are taken, and sums over the width are as far to the right.
#pragma once

#include "device/mma.cuh"
#include "device/tma.cuh"
#include "device/wgmma.cuh"
#include "ops/attention/cuda_call.cuh"
#include "runtime/tensor_map.h"

namespace siglip::cuda::attention {

inline constexpr int kBoxRows = 64;  // of every copy
inline constexpr int kSharedLimit = 227 * 1024;

// Of a head width, which is padded unless it is 72.
template <int kWidth>
struct Columns {
  static constexpr bool kShifted = kWidth == 72;
  static constexpr int kMain = 64;
  static constexpr int kRest = kShifted ? 16 : kWidth - kMain;
  static_assert(kRest == 0 || kRest == 16 || kRest == 32, "no such layout");
  static constexpr int kMainBytes = 128;
  static constexpr int kRestBytes = kRest == 0 ? 32 : kRest * 2;  // of a row
  static constexpr int kResultBytes = kWidth * 2;                 // where rows are shifted
  static constexpr int tile_bytes(int rows) { return rows * (kMain + kRest) * 2; }

  // Element of a head that a tile begins with.
  __device__ static int first(int head) { return kShifted ? -8 * (head & 1) : 0; }
};

// Of the warpgroup that loads and of those that compute: what a block has.
template <int kConsumers>
inline constexpr int kProducerRegisters = kConsumers == 2 ? 24 : 32;
template <int kConsumers>
inline constexpr int kConsumerRegisters = kConsumers == 2 ? 240 : 160;

// A tensor (batch, rows, heads, width) by boxes of kBoxRows rows of one head: its columns of 64, and
// the rest.
struct TensorMaps {
  CUtensorMap main;
  CUtensorMap rest;
};

struct ForwardTensors {
  TensorMaps q;
  TensorMaps k;
  TensorMaps v;
  TensorMaps o;
};

// One to load from.
template <int kWidth>
TensorMaps head_tensor(const void* data, const Shape& shape, int rows, int64_t stride) {
  constexpr int kRest = Columns<kWidth>::kRest;
  const int64_t extents[4] = {shape.width, shape.heads, rows, shape.batch};
  const int64_t strides[3] = {shape.width, stride, stride * rows};
  const int main_box[4] = {64, 1, kBoxRows, 1};
  TensorMaps maps;
  maps.main = tensor_map(data, 4, extents, strides, main_box, Swizzle::k128);
  maps.rest = maps.main;
  if constexpr (kRest > 0) {
    const int rest_box[4] = {kRest, 1, kBoxRows, 1};
    maps.rest =
        tensor_map(data, 4, extents, strides, rest_box, kRest == 16 ? Swizzle::k32 : Swizzle::k64);
  }
  return maps;
}

// One to store to.
template <int kWidth>
TensorMaps result_tensor(void* data, const Shape& shape, int rows, int64_t stride) {
  if constexpr (!Columns<kWidth>::kShifted) {
    return head_tensor<kWidth>(data, shape, rows, stride);
  } else {
    const int64_t extents[4] = {kWidth, shape.heads, rows, shape.batch};
    const int64_t strides[3] = {kWidth, stride, stride * rows};
    const int box[4] = {kWidth, 1, kBoxRows, 1};
    const CUtensorMap map = tensor_map(data, 4, extents, strides, box, Swizzle::kNone);
    return {map, map};
  }
}

template <int kWidth>
ForwardTensors forward_tensors(const ForwardCall& call) {
  const Shape& shape = call.shape;
  return {head_tensor<kWidth>(call.q, shape, shape.queries, shape.row_stride),
          head_tensor<kWidth>(call.k, shape, shape.keys, shape.row_stride),
          head_tensor<kWidth>(call.v, shape, shape.keys, shape.row_stride),
          result_tensor<kWidth>(call.o, shape, shape.queries, shape.result_stride())};
}

// What the backwards read and write, but for o.
struct BackwardMaps {
  TensorMaps q;
  TensorMaps k;
  TensorMaps v;
  TensorMaps dout;
  TensorMaps dq;
  TensorMaps dk;
  TensorMaps dv;
};

template <int kWidth>
BackwardMaps backward_maps(const BackwardCall& call) {
  const Shape& shape = call.shape;
  return {head_tensor<kWidth>(call.q, shape, shape.queries, shape.row_stride),
          head_tensor<kWidth>(call.k, shape, shape.keys, shape.row_stride),
          head_tensor<kWidth>(call.v, shape, shape.keys, shape.row_stride),
          head_tensor<kWidth>(call.dout, shape, shape.queries, shape.result_stride()),
          result_tensor<kWidth>(call.dq, shape, shape.queries, shape.row_stride),
          result_tensor<kWidth>(call.dk, shape, shape.keys, shape.row_stride),
          result_tensor<kWidth>(call.dv, shape, shape.keys, shape.row_stride)};
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

// Starts to load kRows rows of a head, from `row` on: one thread, which arrives at the barrier.
template <int kWidth, int kRows>
__device__ __forceinline__ void load_tile(char* shared, const TensorMaps& maps, uint64_t* barrier,
                                          int head, int row, int image) {
  using C = Columns<kWidth>;
  const int x = C::first(head);
  barrier_arrive_expect(barrier, C::tile_bytes(kRows));
#pragma unroll
  for (int r = 0; r < kRows; r += kBoxRows) {
    tma_load(shared + r * C::kMainBytes, &maps.main, barrier, x, head, row + r, image);
    if constexpr (C::kRest > 0) {
      tma_load(shared + kRows * C::kMainBytes + r * C::kRestBytes, &maps.rest, barrier, x + 64,
               head, row + r, image);
    }
  }
}

// Starts to store the kBoxRows rows of a tile as write_tile() leaves them: one thread.
template <int kWidth>
__device__ __forceinline__ void store_tile(const char* shared, const TensorMaps& maps, int head,
                                           int row, int image) {
  using C = Columns<kWidth>;
  tma_store(&maps.main, shared, 0, head, row, image);
  if constexpr (C::kRest > 0 && !C::kShifted) {
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

// Queues sums (+)= p (64 × 16, a fragment) · the 16 rows of b from b_row on.
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

// Writes sums times a factor for the upper and lower row, rounded, to a tile of kBoxRows rows, every
// warp its 16. Where rows are shifted, these are as the head has them, one behind the other.
template <int kWidth>
__device__ __forceinline__ void write_tile(const WidthSums<kWidth>& sums, float upper, float lower,
                                           uint32_t tile, int head) {
  using C = Columns<kWidth>;
  const int lane = threadIdx.x % 32;
  const int row = threadIdx.x % 128 / 32 * 16 + lane / 4;
  const auto write = [](uint32_t address, float low, float high) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(pack_bfloat16(low, high))
                 : "memory");
  };
  constexpr int kBytes = C::kRestBytes;
  const bool shifted = C::first(head) != 0;
#pragma unroll
  for (int n = 0; n < (C::kMain + C::kRest) / 8; ++n) {
    const int piece = n < 8 ? n : n - 8;  // of the column
    const float* x = n < 8 ? sums.main + 4 * piece : sums.rest + 4 * piece;
    uint32_t at[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = row + 8 * half;
      if constexpr (C::kShifted) {
        at[half] = r * C::kResultBytes + (shifted ? n - 1 : n) * 16 + lane % 4 * 4;
      } else {
        at[half] = n < 8
                       ? swizzled<128>(r * 128 + piece * 16 + lane % 4 * 4)
                       : kBoxRows * 128 + swizzled<kBytes>(r * kBytes + piece * 16 + lane % 4 * 4);
      }
    }
    if (!C::kShifted || (n > 0 && n < kWidth / 8) || shifted == (n > 0)) {
      write(tile + at[0], x[0] * upper, x[1] * upper);
      write(tile + at[1], x[2] * lower, x[3] * lower);
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

// Greatest of the thread's scores in its two rows.
template <int kCount>
__device__ __forceinline__ void thread_maxima(const float (&s)[kCount], float (&highest)[2]) {
  float most[4] = {s[0], s[1], s[2], s[3]};
#pragma unroll
  for (int i = 4; i < kCount; ++i) most[i % 4] = fmaxf(most[i % 4], s[i]);
  highest[0] = fmaxf(most[0], most[1]);
  highest[1] = fmaxf(most[2], most[3]);
}

// Greatest of the two rows.
template <int kCount>
__device__ __forceinline__ void row_maxima(const float (&s)[kCount], float (&highest)[2]) {
  thread_maxima(s, highest);
  highest[0] = quad_max(highest[0]);
  highest[1] = quad_max(highest[1]);
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
