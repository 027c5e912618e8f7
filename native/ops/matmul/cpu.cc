#include "ops/matmul/matmul.h"

#include "cpu/check.h"
#include "cpu/gemm.h"

namespace siglip::SIGLIP_CPU {
namespace {

GemmShape product_shape(In a, In b, bool transpose_a, bool transpose_b) {
  return {a.extent(transpose_a ? 1 : 0), b.extent(transpose_b ? 0 : 1),
          a.extent(transpose_a ? 0 : 1), transpose_a, transpose_b};
}

}  // namespace

size_t matmul_forward_scratch(int threads, In a, In b, int64_t transpose_a, int64_t transpose_b) {
  return gemm_scratch(threads, product_shape(a, b, transpose_a != 0, transpose_b != 0));
}

void matmul_forward(Stream& stream, In a, In b, int64_t transpose_a, int64_t transpose_b, Out y,
                    Scratch scratch) {
  constexpr char kWho[] = "matmul_forward";
  check_rank(kWho, "a", a, 2);
  check_rank(kWho, "b", b, 2);
  const GemmShape shape = product_shape(a, b, transpose_a != 0, transpose_b != 0);
  check_extent(kWho, "b", b, transpose_b != 0 ? 1 : 0, shape.k);
  check_elements(kWho, "y", y, shape.m * shape.n);
  check_scratch(kWho, scratch, gemm_scratch(stream.threads(), shape));
  GemmOutput output;
  output.data = y.data();
  output.stride = shape.n;
  gemm(stream, shape, {a.data(), a.extent(1)}, {b.data(), b.extent(1)}, output, scratch);
}

}  // namespace siglip::SIGLIP_CPU
