#define SIGLIP_CPU cuda  // the namespace of the guards
#include "cpu/check.h"
#include "cuda/gemm.h"
#include "ops/group_matmul/group_matmul.h"
#include "runtime/cuda_context.h"

namespace siglip::cuda {
namespace {

// a[:, g] (M, K) · op(b[g]): rows of a group lie G · K apart.
MatrixProduct forward_product(const In& a, const In& b, bool transpose_b) {
  MatrixProduct product;
  product.groups = a.extent(1);
  product.m = a.extent(0);
  product.n = b.extent(transpose_b ? 1 : 2);
  product.k = a.extent(2);
  product.transpose_b = transpose_b;
  product.input = a.dtype();
  product.a = {a.bytes(), product.groups * product.k, product.k};
  product.b = {b.bytes(), b.extent(2), product.k * product.n};
  product.c_stride = product.groups * product.n;
  product.c_group_stride = product.n;
  return product;
}

// x[:, g]ᵀ · y[:, g].
MatrixProduct outer_product(const In& x, const In& y) {
  MatrixProduct product;
  product.groups = x.extent(1);
  product.m = x.extent(2);
  product.n = y.extent(2);
  product.k = x.extent(0);
  product.transpose_a = true;
  product.input = x.dtype();
  product.a = {x.bytes(), product.groups * product.m, product.m};
  product.b = {y.bytes(), product.groups * product.n, product.n};
  product.c_stride = product.n;
  product.c_group_stride = product.m * product.n;
  return product;
}

}  // namespace

size_t group_matmul_forward_scratch(int multiprocessors, In a, In b, int64_t transpose_b) {
  if (a.rank() != 3 || b.rank() != 3) return 0;
  return gemm_scratch(multiprocessors, forward_product(a, b, transpose_b != 0));
}

void group_matmul_forward(Stream& stream, In a, In b, int64_t transpose_b, Out y, Scratch scratch) {
  constexpr char kWho[] = "group_matmul_forward";
  check_rank(kWho, "a", a, 3);
  check_rank(kWho, "b", b, 3);
  check_float(kWho, "a", a);
  check_dtype(kWho, "b", b, a.dtype());
  if (y.dtype() != a.dtype()) check_dtype(kWho, "y", y, DType::kFloat32);
  MatrixProduct product = forward_product(a, b, transpose_b != 0);
  check_extent(kWho, "b", b, 0, product.groups);
  check_extent(kWho, "b", b, transpose_b != 0 ? 2 : 1, product.k);
  check_elements(kWho, "y", y, product.m * product.groups * product.n);
  check_scratch(kWho, scratch, gemm_scratch(stream.cuda().multiprocessors, product));
  product.output = y.dtype();
  product.c = y.bytes();
  gemm(stream, product, scratch);
}

size_t group_matmul_outer_scratch(int multiprocessors, In x, In y) {
  if (x.rank() != 3 || y.rank() != 3) return 0;
  return gemm_scratch(multiprocessors, outer_product(x, y));
}

void group_matmul_outer(Stream& stream, In x, In y, Out products, Scratch scratch) {
  constexpr char kWho[] = "group_matmul_outer";
  check_rank(kWho, "x", x, 3);
  check_rank(kWho, "y", y, 3);
  check_float(kWho, "x", x);
  check_dtype(kWho, "y", y, x.dtype());
  if (products.dtype() != x.dtype()) check_dtype(kWho, "products", products, DType::kFloat32);
  MatrixProduct product = outer_product(x, y);
  check_extent(kWho, "y", y, 0, product.k);
  check_extent(kWho, "y", y, 1, product.groups);
  check_elements(kWho, "products", products, product.groups * product.m * product.n);
  check_scratch(kWho, scratch, gemm_scratch(stream.cuda().multiprocessors, product));
  product.output = products.dtype();
  product.c = products.bytes();
  gemm(stream, product, scratch);
}

}  // namespace siglip::cuda
