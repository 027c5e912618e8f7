// z = u / (n + eps), n = ‖u‖₂ over the last axis.
// backward: du = dz/(n + eps) − u (u·dz) / (n (n + eps)²); zero where n = 0.
#pragma once

#include "cpu/isa.h"

namespace siglip {

SIGLIP_FOR_EACH_TARGET(
    // x (…, D) -> y (…, D), norm (rows).
    void l2_normalize_forward(Stream&, In x, double eps, Out y, Out norm);
    void l2_normalize_backward(Stream&, In dy, In x, In norm, double eps, Out dx);)

}  // namespace siglip
