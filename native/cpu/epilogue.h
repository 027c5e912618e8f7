// What a linear layer applies to its product before it is stored, as its kernels get it.
#pragma once

#include "cpu/activation.h"
#include "cpu/check.h"
#include "cpu/isa.h"

namespace siglip::SIGLIP_CPU {

// The operands of the epilogue of a product y (m, n), all but y checked, in the output of either kind of product:
// GemmOutput or PackedOutput.
template <typename Output>
static Output linear_output(const char* who, int64_t m, int64_t n, MaybeIn bias, MaybeIn residual,
                            int64_t activation, MaybeOut pre, Out y) {
  Output output;
  output.data = y.data();
  output.gelu = activation == kActivationGeluTanh;
  if (bias.present()) {
    check_elements(who, "bias", bias, n);
    output.bias = bias.data();
  }
  if (residual.present()) {
    check_elements(who, "residual", residual, m * n);
    output.residual = residual.data();
  }
  if (pre.present()) {
    check_elements(who, "pre", pre, m * n);
    output.pre = pre.data();
  }
  return output;
}

}  // namespace siglip::SIGLIP_CPU
