// Packed float32 matrix product with a fused epilogue, the workhorse of linear and matmul:
//
//   C = epilogue(op(A) · op(B))        op(A) (m, k), op(B) (k, n), C (m, n)
//
// Which multiply-adds make an element of C, and in which order, follows from the shape alone. So
// neither the tile an element falls in nor the number of threads can change a bit of it. Nothing
// outside the operands is read.
#pragma once

#include "cpu/isa.h"

namespace siglip::SIGLIP_CPU {

// With no more rows than this, B transposed and A not, every element is a dot product of two rows,
// whatever k is; with more it depends on k. So bits are those of any number of rows up to this, or of
// any number where B is not transposed or packed.
inline constexpr int64_t kGemmFewRows = 6;

struct GemmShape {
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  bool transpose_a = false;
  bool transpose_b = false;
  // B is what gemm_pack() wrote for this n and k; transpose_b and its stride mean nothing then.
  bool packed_b = false;
};

// Row-major as stored: A (m, k), or (k, m) when transposed; B (k, n), or (n, k) when transposed.
struct GemmOperand {
  const float* data = nullptr;
  int64_t stride = 0;  // floats from one row to the next
};

// In this order: sum += bias; pre = sum; sum = gelu(sum); sum *= gelu'(gelu_of); sum += residual; C = sum.
// No output may overlap an input: partial sums stay in C while k is worked off in blocks.
struct GemmOutput {
  float* data = nullptr;            // C (m, n)
  int64_t stride = 0;               // of C, pre, gelu_of and residual
  const float* bias = nullptr;      // (n), or none
  float* pre = nullptr;             // (m, n), or none
  bool gelu = false;                // the tanh approximation
  const float* gelu_of = nullptr;   // (m, n), or none
  const float* residual = nullptr;  // (m, n), or none
  // (m), or none: the sums of op(A) over k. Only where A is transposed, since its packing comes by
  // every element anyway.
  float* row_sums = nullptr;
};

// Bytes of scratch for gemm() on so many threads.
size_t gemm_scratch(int threads, const GemmShape& shape);

// Floats of a packed op(B) (k, n), whatever the instruction set.
constexpr int64_t gemm_packed_floats(int64_t n, int64_t k) { return (n + 63) / 64 * 64 * k; }

// Packs Bᵀ (n, k) for products with any number of rows.
void gemm_pack(Stream& stream, int64_t n, int64_t k, const float* b, float* packed);

void gemm(Stream& stream, const GemmShape& shape, const GemmOperand& a, const GemmOperand& b,
          const GemmOutput& output, Scratch scratch);

}  // namespace siglip::SIGLIP_CPU
