// One learned token in the place of masked ones: y[b, t] = mask[b, t] ? token : x[b, t].
// backward: dx[b, t] = mask[b, t] ? 0 : dy[b, t],  dtoken = Σ_{b, t: mask[b, t]} dy[b, t].
#pragma once

#include "cpu/isa.h"

namespace siglip {

SIGLIP_FOR_EACH_TARGET(
    // x (B, T, D), mask (B, T) uint8, token (D) -> y (B, T, D).
    void mask_tokens_forward(Stream&, In x, In mask, In token, Out y);
    // dy (B, T, D), mask (B, T) -> dx (B, T, D), dtoken (D).
    void mask_tokens_backward(Stream&, In dy, In mask, Out dx, Out dtoken);)

}  // namespace siglip
