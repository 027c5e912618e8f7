#include "ops/linear/linear.h"

#include "cpu/check.h"
#include "cpu/epilogue.h"
#include "cpu/gemm.h"

namespace siglip::SIGLIP_CPU {
namespace {

// x (…, K) · Wᵀ, W (N, K).
GemmShape forward_shape(In x, In weight) {
  return {x.rows(), weight.extent(0), weight.extent(1), false, true};
}

// dy (…, N) · W.
GemmShape backward_input_shape(In dy, In weight) {
  return {dy.rows(), weight.extent(1), weight.extent(0), false, false};
}

// dyᵀ · x, summed over all rows.
GemmShape backward_weight_shape(In dy, In x) {
  return {dy.extent(-1), x.extent(-1), x.rows(), true, false};
}

}  // namespace

size_t linear_forward_scratch(int threads, In x, In weight) {
  return gemm_scratch(threads, forward_shape(x, weight));
}

void linear_forward(Stream& stream, In x, In weight, MaybeIn bias, MaybeIn residual,
                    int64_t activation, MaybeOut pre, Out y, Scratch scratch) {
  constexpr char kWho[] = "linear_forward";
  check_not_scalar(kWho, "x", x);
  check_rank(kWho, "weight", weight, 2);
  const GemmShape shape = forward_shape(x, weight);
  check_extent(kWho, "x", x, -1, shape.k);
  check_elements(kWho, "y", y, shape.m * shape.n);
  GemmOutput output =
      linear_output<GemmOutput>(kWho, shape.m, shape.n, bias, residual, activation, pre, y);
  output.stride = shape.n;
  check_scratch(kWho, scratch, gemm_scratch(stream.threads(), shape));
  gemm(stream, shape, {x.data(), shape.k}, {weight.data(), shape.k}, output, scratch);
}

size_t linear_backward_input_scratch(int threads, In dy, In weight) {
  return gemm_scratch(threads, backward_input_shape(dy, weight));
}

void linear_backward_input(Stream& stream, In dy, In weight, MaybeIn residual, MaybeIn pre, Out dx,
                           Scratch scratch) {
  constexpr char kWho[] = "linear_backward_input";
  check_not_scalar(kWho, "dy", dy);
  check_rank(kWho, "weight", weight, 2);
  const GemmShape shape = backward_input_shape(dy, weight);
  check_extent(kWho, "dy", dy, -1, shape.k);
  check_elements(kWho, "dx", dx, shape.m * shape.n);
  GemmOutput output;
  output.data = dx.data();
  output.stride = shape.n;
  if (residual.present()) {
    check_elements(kWho, "residual", residual, shape.m * shape.n);
    output.residual = residual.data();
  }
  if (pre.present()) {
    check_elements(kWho, "pre", pre, shape.m * shape.n);
    output.gelu_of = pre.data();
  }
  check_scratch(kWho, scratch, gemm_scratch(stream.threads(), shape));
  gemm(stream, shape, {dy.data(), shape.k}, {weight.data(), shape.n}, output, scratch);
}

size_t linear_backward_weight_scratch(int threads, In dy, In x) {
  return gemm_scratch(threads, backward_weight_shape(dy, x));
}

void linear_backward_weight(Stream& stream, In dy, In x, Out dweight, MaybeOut dbias,
                            Scratch scratch) {
  constexpr char kWho[] = "linear_backward_weight";
  check_not_scalar(kWho, "dy", dy);
  check_not_scalar(kWho, "x", x);
  const GemmShape shape = backward_weight_shape(dy, x);
  check_elements(kWho, "dy", dy, shape.k * shape.m);
  check_elements(kWho, "dweight", dweight, shape.m * shape.n);
  GemmOutput output;
  output.data = dweight.data();
  output.stride = shape.n;
  if (dbias.present()) {
    check_elements(kWho, "dbias", dbias, shape.m);
    output.row_sums = dbias.data();
  }
  check_scratch(kWho, scratch, gemm_scratch(stream.threads(), shape));
  gemm(stream, shape, {dy.data(), shape.m}, {x.data(), shape.n}, output, scratch);
}

}  // namespace siglip::SIGLIP_CPU
