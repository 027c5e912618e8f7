#include "ops/linear_float32/linear_float32.h"

#include "cpu/check.h"
#include "cpu/epilogue.h"
#include "cpu/gemm.h"

namespace siglip::SIGLIP_CPU {
namespace {

// x (…, K) by a packed weight to y (…, N), checked.
GemmShape packed_shape(const View& x, const View& y) {
  constexpr char kWho[] = "linear_float32_forward";
  check_not_scalar(kWho, "x", x);
  check_not_scalar(kWho, "y", y);
  GemmShape shape = {x.rows(), y.extent(-1), x.extent(-1)};
  shape.packed_b = true;
  check_elements(kWho, "y", y, shape.m * shape.n);
  return shape;
}

}  // namespace

void linear_float32_pack(Stream& stream, In weight, Out packed) {
  constexpr char kWho[] = "linear_float32_pack";
  check_rank(kWho, "weight", weight, 2);
  const int64_t n = weight.extent(0);
  const int64_t k = weight.extent(1);
  check_elements(kWho, "packed", packed, linear_float32_packed_bytes(n, k));
  gemm_pack(stream, n, k, weight.data(), reinterpret_cast<float*>(packed.data<uint8_t>()));
}

size_t linear_float32_forward_scratch(int threads, In x, Out y) {
  return gemm_scratch(threads, packed_shape(x, y));
}

void linear_float32_forward(Stream& stream, In x, In packed, MaybeIn bias, MaybeIn residual,
                            int64_t activation, MaybeOut pre, Out y, Scratch scratch) {
  constexpr char kWho[] = "linear_float32_forward";
  const GemmShape shape = packed_shape(x, y);
  check_elements(kWho, "packed", packed, linear_float32_packed_bytes(shape.n, shape.k));
  GemmOutput output =
      linear_output<GemmOutput>(kWho, shape.m, shape.n, bias, residual, activation, pre, y);
  output.stride = shape.n;
  check_scratch(kWho, scratch, gemm_scratch(stream.threads(), shape));
  const auto* weight = reinterpret_cast<const float*>(packed.data<uint8_t>());
  gemm(stream, shape, {x.data(), shape.k}, {weight, 0}, output, scratch);
}

}  // namespace siglip::SIGLIP_CPU
