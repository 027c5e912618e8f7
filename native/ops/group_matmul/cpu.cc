#include "ops/group_matmul/group_matmul.h"

#include "cpu/check.h"
#include "cpu/gemm.h"

namespace siglip::SIGLIP_CPU {
namespace {

// Of one group.
GemmShape forward_shape(const In& a, const In& b, bool transpose_b) {
  return {a.extent(0), b.extent(transpose_b ? 1 : 2), a.extent(2), false, transpose_b};
}

GemmShape outer_shape(const In& x, const In& y) {
  return {x.extent(2), y.extent(2), x.extent(0), true, false};
}

}  // namespace

size_t group_matmul_forward_scratch(int threads, In a, In b, int64_t transpose_b) {
  if (a.rank() != 3 || b.rank() != 3) return 0;
  return gemm_scratch(threads, forward_shape(a, b, transpose_b != 0));
}

void group_matmul_forward(Stream& stream, In a, In b, int64_t transpose_b, Out y, Scratch scratch) {
  constexpr char kWho[] = "group_matmul_forward";
  check_rank(kWho, "a", a, 3);
  check_rank(kWho, "b", b, 3);
  const int64_t groups = a.extent(1);
  const GemmShape shape = forward_shape(a, b, transpose_b != 0);
  check_extent(kWho, "b", b, 0, groups);
  check_extent(kWho, "b", b, transpose_b != 0 ? 2 : 1, shape.k);
  check_elements(kWho, "y", y, shape.m * groups * shape.n);
  check_scratch(kWho, scratch, gemm_scratch(stream.threads(), shape));
  for (int64_t g = 0; g < groups; ++g) {
    GemmOutput output;
    output.data = y.data() + g * shape.n;
    output.stride = groups * shape.n;
    gemm(stream, shape, {a.data() + g * shape.k, groups * shape.k},
         {b.data() + g * shape.k * shape.n, b.extent(2)}, output, scratch);
  }
}

size_t group_matmul_outer_scratch(int threads, In x, In y) {
  if (x.rank() != 3 || y.rank() != 3) return 0;
  return gemm_scratch(threads, outer_shape(x, y));
}

void group_matmul_outer(Stream& stream, In x, In y, Out products, Scratch scratch) {
  constexpr char kWho[] = "group_matmul_outer";
  check_rank(kWho, "x", x, 3);
  check_rank(kWho, "y", y, 3);
  const int64_t groups = x.extent(1);
  const GemmShape shape = outer_shape(x, y);
  check_extent(kWho, "y", y, 0, shape.k);
  check_extent(kWho, "y", y, 1, groups);
  check_elements(kWho, "products", products, groups * shape.m * shape.n);
  check_scratch(kWho, scratch, gemm_scratch(stream.threads(), shape));
  for (int64_t g = 0; g < groups; ++g) {
    GemmOutput output;
    output.data = products.data() + g * shape.m * shape.n;
    output.stride = shape.n;
    gemm(stream, shape, {x.data() + g * shape.m, groups * shape.m},
         {y.data() + g * shape.n, groups * shape.n}, output, scratch);
  }
}

}  // namespace siglip::SIGLIP_CPU
