#define SIGLIP_CPU cuda  // the namespace of the guards
#include "cpu/check.h"
#include "cuda/gemm.h"
#include "ops/matmul/matmul.h"
#include "runtime/cuda_context.h"

namespace siglip::cuda {
namespace {

MatrixProduct product_of(const In& a, const In& b, bool transpose_a, bool transpose_b) {
  MatrixProduct product;
  product.m = a.extent(transpose_a ? 1 : 0);
  product.n = b.extent(transpose_b ? 0 : 1);
  product.k = a.extent(transpose_a ? 0 : 1);
  product.transpose_a = transpose_a;
  product.transpose_b = transpose_b;
  product.input = a.dtype();
  product.a = {a.bytes(), a.extent(1)};
  product.b = {b.bytes(), b.extent(1)};
  return product;
}

}  // namespace

size_t matmul_forward_scratch(int multiprocessors, In a, In b, int64_t transpose_a,
                              int64_t transpose_b) {
  return gemm_scratch(multiprocessors, product_of(a, b, transpose_a != 0, transpose_b != 0));
}

void matmul_forward(Stream& stream, In a, In b, int64_t transpose_a, int64_t transpose_b, Out y,
                    Scratch scratch) {
  constexpr char kWho[] = "matmul_forward";
  check_rank(kWho, "a", a, 2);
  check_rank(kWho, "b", b, 2);
  check_float(kWho, "a", a);
  check_dtype(kWho, "b", b, a.dtype());
  if (y.dtype() != a.dtype()) check_dtype(kWho, "y", y, DType::kFloat32);
  MatrixProduct product = product_of(a, b, transpose_a != 0, transpose_b != 0);
  check_extent(kWho, "b", b, transpose_b != 0 ? 1 : 0, product.k);
  check_elements(kWho, "y", y, product.m * product.n);
  check_scratch(kWho, scratch, gemm_scratch(stream.cuda().multiprocessors, product));
  product.output = y.dtype();
  product.c = y.bytes();
  product.c_stride = product.n;
  gemm(stream, product, scratch);
}

}  // namespace siglip::cuda
