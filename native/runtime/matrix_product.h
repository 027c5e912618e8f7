// A product of matrices on a GPU with what is applied to it before it is stored, as both our own kernels
// (cuda/gemm.h) and cuBLASLt (runtime/cublaslt.h) take it:
//
//   sum = op(A) · op(B)        op(A) (m, k), op(B) (k, n), C (m, n)
//   pre = sum + bias           C = gelu(pre) + residual
//
// once for each of `groups`. Sums are float32 whatever the operands are.
#pragma once

#include <cstdint>

#include "runtime/view.h"

namespace siglip {

struct MatrixProduct {
  // Row-major as stored: A (m, k), or (k, m) when transposed; B (k, n), or (n, k) when transposed.
  struct Operand {
    const void* data = nullptr;
    int64_t stride = 0;        // elements from one row to the next
    int64_t group_stride = 0;  // and from one group to the next
  };

  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  bool transpose_a = false;
  bool transpose_b = false;
  int64_t groups = 1;

  DType input = DType::kFloat32;  // of A and B: float32 or bfloat16
  Operand a;
  Operand b;

  DType output = DType::kFloat32;  // of C, pre and residual: as the input, or float32
  void* c = nullptr;
  int64_t c_stride = 0;  // of pre and residual too
  int64_t c_group_stride = 0;

  // What follows is for one group only.
  const void* bias = nullptr;  // (n), or none
  DType bias_dtype = DType::kFloat32;
  void* pre = nullptr;             // (m, n), or none
  bool gelu = false;               // the tanh approximation
  const void* residual = nullptr;  // (m, n), or none
  // (m, n), or none: C = sum ∘ gelu'(gelu_of), of a product with none of the above. cuBLASLt alone
  // takes it.
  const void* gelu_of = nullptr;
  // (m), or none: the sums of op(A) over k. Only where A is transposed.
  float* row_sums = nullptr;
};

}  // namespace siglip
