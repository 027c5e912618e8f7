// GELU, y = x Φ(x), in its tanh approximation y = 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))) or with
// the normal distribution itself, Φ(x) = 0.5 erfc(−x/√2), as the form says (cpu/activation.h).
// backward: dx = dy · gelu'(x), from the pre-activation x.
#pragma once

#include "cpu/isa.h"

namespace siglip {

SIGLIP_FOR_EACH_TARGET(
    // x -> y, same shape.
    void gelu_forward(Stream&, In x, int64_t form, Out y);
    // dy, x -> dx, same shape.
    void gelu_backward(Stream&, In dy, In x, int64_t form, Out dx);)

}  // namespace siglip
