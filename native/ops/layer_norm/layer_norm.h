// Layer norm over the last axis: y = (x − mean) · rstd · weight + bias, rstd = 1/√(var + eps), with
// the biased variance taken in two passes. Statistics are float32 and kept for the backward:
//   x̂ = (x − mean) rstd,  g = dy · weight
//   dx = rstd (g − mean(g) − x̂ mean(g x̂)) (+ residual),  dweight = Σ dy x̂,  dbias = Σ dy
#pragma once

#include "cpu/isa.h"

namespace siglip {

SIGLIP_FOR_EACH_TARGET(
    // x (…, D), weight (D), bias (D) or none -> y (…, D), mean (rows), rstd (rows).
    void layer_norm_forward(Stream&, In x, In weight, MaybeIn bias, double eps, Out y, Out mean,
                            Out rstd);
    // `residual` (…, D), when present, is added to dx: the gradient that bypasses the norm.
    void layer_norm_backward(Stream&, In dy, In x, In weight, In mean, In rstd, MaybeIn residual,
                             Out dx, Out dweight, MaybeOut dbias, Scratch);
    size_t layer_norm_backward_scratch(int threads, In dy);)

}  // namespace siglip
