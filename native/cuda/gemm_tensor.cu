// Products of bfloat16 by the tensor cores of sm_80 and later (mma.sync m16n8k16), float32 sums.
//
// A block of four warps computes a square tile of C from steps of 32 along k, of which four are in
// shared memory or on their way there. A warp holds 64 × 64 sums of a tile of 128, 32 × 32 of one of
// 64. Rows of an operand's tile in shared memory run as they do in memory, over k or across it, in
// pieces of 16 bytes; pieces of a row are exchanged so that the eight rows that one load reads lie in
// different banks.
#include <cuda_bf16.h>

#include "cuda/gemm_epilogue.cuh"
#include "cuda/gemm_task.h"

namespace siglip::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kStepK = 32;
constexpr int kStages = 4;
constexpr int kPiece = 8;  // elements in 16 bytes

__device__ __forceinline__ uint32_t shared_address_of(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Copies `bytes` of kBytes in the background, zeros for the rest.
template <int kBytes>
__device__ __forceinline__ void copy_part(uint32_t to, const void* from, int bytes) {
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(kBytes),
                 "r"(bytes)
                 : "memory");
  }
}

__device__ __forceinline__ void close_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// All but the last kGroups groups of copies are there.
template <int kGroups>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

template <bool kTransposed>
__device__ __forceinline__ void load_four_matrices(uint32_t (&r)[4], uint32_t address) {
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  }
}

__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// An operand's tiles: kTile of its own axis (m or n) by kStepK of k.
template <bool kAlongK, int kTile, int kCopyBytes>
class OperandTile {
 public:
  static constexpr int kBytes = kTile * kStepK * 2;

  // From `start` of the operand's own axis on, which has `extent`, and for k up to `k_end`.
  __device__ OperandTile(const GemmOperand& operand, int group, int start, int extent, int k_end)
      : stride_(operand.stride), k_end_(k_end) {
    data_ = static_cast<const __nv_bfloat16*>(operand.data) + group * operand.group_stride;
    first_ = data_ + (kAlongK ? (start + row()) * stride_ + part() * kPiece
                              : row() * stride_ + start + part() * kPiece);
    left_ = kAlongK ? extent - start : extent - start - part() * kPiece;
  }

  // Begins to copy the step from k on to the stage at `shared`.
  __device__ void copy(uint32_t shared, int k) const {
    const __nv_bfloat16* from = first_ + (kAlongK ? int64_t{k} : k * stride_);
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int row_i = row() + i * kRowStep;
      // Elements of the piece that the operand has.
      const int there = kAlongK ? (row_i < left_ ? k_end_ - k - part() * kPiece : 0)
                                : (k + row_i < k_end_ ? left_ : 0);
      const int bytes = min(max(there, 0), kPiece) * 2;
      const __nv_bfloat16* source = bytes > 0 ? from + i * kRowStep * stride_ : data_;
      const uint32_t to = shared + place(row_i, part());
#pragma unroll
      for (int byte = 0; byte < 16; byte += kCopyBytes) {
        const int valid = min(max(bytes - byte, 0), kCopyBytes);
        copy_part<kCopyBytes>(to + byte, valid > 0 ? source + byte / 2 : data_, valid);
      }
    }
  }

  // 16 × 16 of A from `start` of the warp's rows and the given step of 16 along k, as mma takes it.
  __device__ static void load_a(uint32_t (&r)[4], uint32_t shared, int start, int step) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if constexpr (kAlongK) {
      load_four_matrices<false>(r, shared + place(start + lane % 16, step * 2 + lane / 16));
    } else {
      load_four_matrices<true>(
          r, shared + place(step * 16 + lane % 8 + lane / 16 * 8, start / kPiece + lane / 8 % 2));
    }
  }

  // 16 of k × 16 of B: r[0], r[1] are the first eight columns, r[2], r[3] the next.
  __device__ static void load_b(uint32_t (&r)[4], uint32_t shared, int start, int step) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if constexpr (kAlongK) {
      load_four_matrices<false>(
          r, shared + place(start + lane % 8 + lane / 16 * 8, step * 2 + lane / 8 % 2));
    } else {
      load_four_matrices<true>(r,
                               shared + place(step * 16 + lane % 16, start / kPiece + lane / 16));
    }
  }

 private:
  static constexpr int kParts = (kAlongK ? kStepK : kTile) / kPiece;  // pieces in a row
  static constexpr int kRowStep = kThreads / kParts;
  static constexpr int kPieces = kTile * kStepK / kPiece / kThreads;

  __device__ static int row() { return static_cast<int>(threadIdx.x) / kParts; }
  __device__ static int part() { return static_cast<int>(threadIdx.x) % kParts; }

  // Where a piece lies. Rows over k are 64 bytes, so two of them share the 128 bytes of all banks.
  __device__ static uint32_t place(int row, int part) {
    const int exchanged = part ^ (kAlongK ? row / 2 % 4 : row % 8);
    return static_cast<uint32_t>((row * kParts + exchanged) * 16);
  }

  const __nv_bfloat16* data_;
  const __nv_bfloat16* first_;  // this thread's first piece, at k = 0
  int64_t stride_;
  int k_end_;
  int left_;  // along k: rows that the operand has; across: elements from this thread's piece on
};

// Sums pass through shared memory, so that a warp stores whole rows. Groups of eight columns are
// exchanged so that the four rows that half a warp writes lie in different banks.
template <int kTile>
__device__ __forceinline__ int sum_place(int row, int column) {
  return row * kTile + (column ^ (row % 4 * 8));
}

template <bool kAlongA, bool kAlongB, int kTile, int kCopyBytes>
__global__ void __launch_bounds__(kThreads, kTile == 128       ? 2
                                            : kCopyBytes == 16 ? 4
                                                               : 3)
    gemm_tensor_kernel(const __grid_constant__ GemmTask task) {
  using TileA = OperandTile<kAlongA, kTile, kCopyBytes>;
  using TileB = OperandTile<kAlongB, kTile, kCopyBytes>;
  constexpr int kStageBytes = TileA::kBytes + TileB::kBytes;
  constexpr int kWarpTile = kTile / 2;
  constexpr int kHigh = kWarpTile / 16;  // fragments of A
  constexpr int kWide = kWarpTile / 16;  // pairs of fragments of B
  extern __shared__ __align__(128) unsigned char memory[];

  const GemmPlace where = place_of_block(task, kTile);
  const uint32_t shared = shared_address_of(memory);
  const TileA a(task.a, where.group, where.row, task.m, where.k_end);
  const TileB b(task.b, where.group, where.column, task.n, where.k_end);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_row = warp / 2 * kWarpTile;
  const int warp_column = warp % 2 * kWarpTile;
  const int steps = (where.k_end - where.k_begin + kStepK - 1) / kStepK;

  const auto copy = [&](int step) {
    if (step < steps) {
      const uint32_t stage = shared + step % kStages * kStageBytes;
      a.copy(stage, where.k_begin + step * kStepK);
      b.copy(stage + TileA::kBytes, where.k_begin + step * kStepK);
    }
    close_copies();
  };
  uint32_t a_part[2][kHigh][4];
  uint32_t b_part[2][kWide][4];
  const auto load = [&](int half, int step) {
    const uint32_t stage = shared + step % kStages * kStageBytes;
#pragma unroll
    for (int i = 0; i < kHigh; ++i) {
      TileA::load_a(a_part[half][i], stage, warp_row + i * 16, half);
    }
#pragma unroll
    for (int j = 0; j < kWide; ++j) {
      TileB::load_b(b_part[half][j], stage + TileA::kBytes, warp_column + j * 16, half);
    }
  };
  float sums[kHigh][2 * kWide][4] = {};
  const auto multiply = [&](int half) {
#pragma unroll
    for (int i = 0; i < kHigh; ++i) {
#pragma unroll
      for (int j = 0; j < 2 * kWide; ++j) {
        multiply_add(sums[i][j], a_part[half][i], b_part[half][j / 2][j % 2 * 2],
                     b_part[half][j / 2][j % 2 * 2 + 1]);
      }
    }
  };

#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) copy(step);
  wait_for_copies<kStages - 2>();
  __syncthreads();
  load(0, 0);
  for (int step = 0; step < steps; ++step) {
    // Into the stage that every warp had finished with at the last synchronisation.
    copy(step + kStages - 1);
    load(1, step);
    multiply(0);
    wait_for_copies<kStages - 2>();
    __syncthreads();
    if (step + 1 < steps) load(0, step + 1);
    multiply(1);
  }
  wait_for_copies<0>();
  __syncthreads();

  float* tile = reinterpret_cast<float*>(memory);
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < kHigh; ++i) {
#pragma unroll
    for (int j = 0; j < 2 * kWide; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = warp_row + i * 16 + half * 8 + lane / 4;
        const int column = warp_column + j * 8 + lane % 4 * 2;
        *reinterpret_cast<float2*>(tile + sum_place<kTile>(row, column)) =
            make_float2(sums[i][j][half * 2], sums[i][j][half * 2 + 1]);
      }
    }
  }
  __syncthreads();
  constexpr int kRowThreads = kTile / 4;
  const int column = static_cast<int>(threadIdx.x) % kRowThreads * 4;
#pragma unroll 4
  for (int row = static_cast<int>(threadIdx.x) / kRowThreads; row < kTile;
       row += kThreads / kRowThreads) {
    const float4 four = *reinterpret_cast<const float4*>(tile + sum_place<kTile>(row, column));
    store_sums(task, where, where.row + row, where.column + column,
               {{four.x, four.y, four.z, four.w}});
  }
}

template <bool kAlongA, bool kAlongB, int kTile, int kCopyBytes>
void launch(const CudaContext& context, const GemmTask& task) {
  constexpr int kBytes = kStages * 2 * kTile * kStepK * 2;
  static_assert(kBytes >= kTile * kTile * 4, "the sums must fit in the stages' memory");
  const auto kernel = gemm_tensor_kernel<kAlongA, kAlongB, kTile, kCopyBytes>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
             "gemm_tensor");
  kernel<<<task.blocks(), kThreads, kBytes, context.stream>>>(task);
  check_launch("gemm_tensor");
}

template <bool kAlongA, bool kAlongB>
void launch_tile(const CudaContext& context, const GemmTask& task, int tile, int copy_bytes) {
  if (copy_bytes == 4) return launch<kAlongA, kAlongB, 64, 4>(context, task);
  if (tile == 64) return launch<kAlongA, kAlongB, 64, 16>(context, task);
  launch<kAlongA, kAlongB, 128, 16>(context, task);
}

}  // namespace

void gemm_tensor(const CudaContext& context, const GemmTask& task, int tile, int copy_bytes) {
  if (task.a.along_k) {
    task.b.along_k ? launch_tile<true, true>(context, task, tile, copy_bytes)
                   : launch_tile<true, false>(context, task, tile, copy_bytes);
  } else {
    task.b.along_k ? launch_tile<false, true>(context, task, tile, copy_bytes)
                   : launch_tile<false, false>(context, task, tile, copy_bytes);
  }
}

}  // namespace siglip::cuda
