// Products by float32 multiply-adds, for float32, and for bfloat16 whose rows are not aligned: an element
// of C is one chain of multiply-adds over its range of k.
//
// 256 threads compute a square tile of C, each 4 × 4 sums, or four such blocks half a tile apart; the
// next step along k is on its way from memory while one is worked off.
#include <cuda_bf16.h>

#include "cuda/gemm_epilogue.cuh"
#include "cuda/gemm_task.h"

namespace siglip::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kSide = 16;    // threads to a side of the tile
constexpr int kPadding = 4;  // spreads the columns that rows over k are written to

template <int kTile>
struct Step {
  static constexpr int kDepth = 4 * kThreads / kTile;  // elements of k: four a thread
  float v[kDepth][kTile + kPadding];
};

template <typename T, int kTile>
class Loader {
 public:
  __device__ Loader(const GemmOperand& operand, int group, int start, int extent, int k_end)
      : data_(static_cast<const T*>(operand.data) + group * operand.group_stride),
        stride_(operand.stride),
        along_k_(operand.along_k),
        by_four_(operand.by_four),
        start_(start),
        extent_(extent),
        k_end_(k_end) {
    const int thread = static_cast<int>(threadIdx.x);
    constexpr int kDepthFours = Step<kTile>::kDepth / 4;
    constexpr int kTileFours = kTile / 4;
    depth_ = along_k_ ? thread % kDepthFours * 4 : thread / kTileFours;
    own_ = along_k_ ? thread / kDepthFours : thread % kTileFours * 4;
  }

  // This thread's four elements of the step from k on, zeros outside the operand.
  __device__ GemmFour load(int k) const {
    const int row = along_k_ ? start_ + own_ : k + depth_;
    const int column = along_k_ ? k + depth_ : start_ + own_;
    const int rows = along_k_ ? extent_ : k_end_;
    const int columns = along_k_ ? k_end_ : extent_;
    GemmFour four = {};
    if (row >= rows) return four;
    const T* from = data_ + row * stride_ + column;
    if (by_four_ && column + 4 <= columns) return load_four(from, sizeof(T) == 2, 0);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (column + i < columns) four.v[i] = load_one(from, sizeof(T) == 2, i);
    }
    return four;
  }

  __device__ void store(Step<kTile>* step, const GemmFour& four) const {
    if (along_k_) {
#pragma unroll
      for (int i = 0; i < 4; ++i) step->v[depth_ + i][own_] = four.v[i];
    } else {
      *reinterpret_cast<float4*>(&step->v[depth_][own_]) =
          make_float4(four.v[0], four.v[1], four.v[2], four.v[3]);
    }
  }

 private:
  const T* data_;
  int64_t stride_;
  bool along_k_;
  bool by_four_;
  int start_;
  int extent_;
  int k_end_;
  int depth_;  // of this thread's elements in a step: along k, and along the operand's own axis
  int own_;
};

template <typename T, int kTile>
__global__ void __launch_bounds__(kThreads, 2)
    gemm_simple_kernel(const __grid_constant__ GemmTask task) {
  constexpr int kBlocks = kTile / (4 * kSide);  // of 4 × 4 sums, to a side
  constexpr int kDepth = Step<kTile>::kDepth;
  __shared__ __align__(16) Step<kTile> a_steps[2];
  __shared__ __align__(16) Step<kTile> b_steps[2];

  const GemmPlace where = place_of_block(task, kTile);
  const Loader<T, kTile> a(task.a, where.group, where.row, task.m, where.k_end);
  const Loader<T, kTile> b(task.b, where.group, where.column, task.n, where.k_end);
  const int y = static_cast<int>(threadIdx.x) / kSide * 4;
  const int x = static_cast<int>(threadIdx.x) % kSide * 4;

  float sums[4 * kBlocks][4 * kBlocks] = {};
  GemmFour a_next = a.load(where.k_begin);
  GemmFour b_next = b.load(where.k_begin);
  int buffer = 0;
  for (int k = where.k_begin; k < where.k_end; k += kDepth) {
    a.store(&a_steps[buffer], a_next);
    b.store(&b_steps[buffer], b_next);
    // A thread comes here only when it has read the other buffer, which is written after this: two are
    // enough.
    __syncthreads();
    if (k + kDepth < where.k_end) {
      a_next = a.load(k + kDepth);
      b_next = b.load(k + kDepth);
    }
#pragma unroll
    for (int depth = 0; depth < kDepth; ++depth) {
      float a_part[4 * kBlocks];
      float b_part[4 * kBlocks];
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        const int apart = block * 4 * kSide;
        const float4 a_four =
            *reinterpret_cast<const float4*>(&a_steps[buffer].v[depth][y + apart]);
        const float4 b_four =
            *reinterpret_cast<const float4*>(&b_steps[buffer].v[depth][x + apart]);
        a_part[4 * block] = a_four.x;
        a_part[4 * block + 1] = a_four.y;
        a_part[4 * block + 2] = a_four.z;
        a_part[4 * block + 3] = a_four.w;
        b_part[4 * block] = b_four.x;
        b_part[4 * block + 1] = b_four.y;
        b_part[4 * block + 2] = b_four.z;
        b_part[4 * block + 3] = b_four.w;
      }
#pragma unroll
      for (int i = 0; i < 4 * kBlocks; ++i) {
#pragma unroll
        for (int j = 0; j < 4 * kBlocks; ++j) {
          sums[i][j] = fmaf(a_part[i], b_part[j], sums[i][j]);
        }
      }
    }
    buffer ^= 1;
  }
#pragma unroll
  for (int i = 0; i < 4 * kBlocks; ++i) {
    const int row = where.row + y + i / 4 * 4 * kSide + i % 4;
#pragma unroll
    for (int j = 0; j < 4 * kBlocks; j += 4) {
      store_sums(task, where, row, where.column + x + j * kSide,
                 {{sums[i][j], sums[i][j + 1], sums[i][j + 2], sums[i][j + 3]}});
    }
  }
}

template <typename T>
void launch(const CudaContext& context, const GemmTask& task, int tile) {
  if (tile == 128) {
    gemm_simple_kernel<T, 128><<<task.blocks(), kThreads, 0, context.stream>>>(task);
  } else {
    gemm_simple_kernel<T, 64><<<task.blocks(), kThreads, 0, context.stream>>>(task);
  }
  check_launch("gemm_simple");
}

}  // namespace

void gemm_simple(const CudaContext& context, const GemmTask& task, int tile, DType input) {
  input == DType::kBfloat16 ? launch<__nv_bfloat16>(context, task, tile)
                            : launch<float>(context, task, tile);
}

}  // namespace siglip::cuda
