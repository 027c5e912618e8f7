// What our own kernels of matrix products have in common. A block computes one tile of C, over one range
// of k where the sum is split: then the ranges' sums go to `partial`, and gemm_finish() adds them.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "runtime/cuda_context.h"
#include "runtime/matrix_product.h"

namespace siglip::cuda {

// Where a product's sums go.
struct GemmEpilogue {
  void* c = nullptr;
  int64_t stride = 0;
  int64_t group_stride = 0;
  const void* bias = nullptr;
  void* pre = nullptr;
  const void* residual = nullptr;
  bool bfloat16 = false;  // C, pre and residual; else float32
  bool bfloat16_bias = false;
  bool gelu = false;
  bool by_four =
      false;  // four elements of a row, from a multiple of four on, are aligned to their size
};

struct GemmOperand {
  const void* data = nullptr;
  int64_t stride = 0;
  int64_t group_stride = 0;
  bool along_k = false;  // rows in memory run over k
  bool by_four = false;
};

struct GemmTask {
  GemmOperand a;
  GemmOperand b;
  int m = 0;
  int n = 0;
  int k = 0;
  int tiles_m = 0;
  int tiles_n = 0;
  int splits = 1;
  int split_k = 0;           // elements of k to a range: a multiple of 32
  float* partial = nullptr;  // (splits, groups, m, n) where splits > 1
  int groups = 1;
  GemmEpilogue epilogue;

  unsigned blocks() const {
    return static_cast<unsigned>(int64_t{tiles_m} * tiles_n * splits * groups);
  }
};

// Bytes that the copies of the bfloat16 kernel move at once: 16, 4, or 0 where rows are odd, which it
// does not take.
int gemm_copy_bytes(const MatrixProduct& product);

// Products of bfloat16 by tensor cores; tile is 128 or 64, and 64 where the copies are of 4 bytes.
void gemm_tensor(const CudaContext& context, const GemmTask& task, int tile, int copy_bytes);
// Products of float32 or bfloat16 by float32 multiply-adds; tile is 128 or 64.
void gemm_simple(const CudaContext& context, const GemmTask& task, int tile, DType input);
// C from the partial sums of the ranges.
void gemm_finish(const CudaContext& context, const GemmTask& task);

}  // namespace siglip::cuda
