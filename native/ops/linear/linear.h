// Linear layer with fused epilogue. The weight keeps the checkpoint layout (N, K) = (out, in).
//
//   pre = x · Wᵀ + bias            y = act(pre) + residual
//
// Backward, given dpre (M, N) (for act = GELU it comes from gelu_backward on the kept `pre`):
//   dx = dpre · W (+ residual)     dW = dpreᵀ · x     dbias = Σ_m dpre
#pragma once

#include "cpu/activation.h"
#include "cpu/isa.h"

namespace siglip {

SIGLIP_FOR_EACH_TARGET(
    // x (…, K), weight (N, K), bias (N), residual (…, N) -> pre (…, N) if asked for, y (…, N).
    void linear_forward(Stream&, In x, In weight, MaybeIn bias, MaybeIn residual,
                        int64_t activation, MaybeOut pre, Out y, Scratch);
    size_t linear_forward_scratch(int threads, In x, In weight);
    // dy (…, N), weight (N, K), pre (…, K), residual (…, K) -> dx (…, K) = dy · W ∘ gelu'(pre) + residual,
    // pre being what x is the GELU of, in its tanh form.
    void linear_backward_input(Stream&, In dy, In weight, MaybeIn residual, MaybeIn pre, Out dx,
                               Scratch);
    size_t linear_backward_input_scratch(int threads, In dy, In weight);
    // dy (…, N), x (…, K) -> dweight (N, K), dbias (N). The sum over rows runs in a fixed order.
    void linear_backward_weight(Stream&, In dy, In x, Out dweight, MaybeOut dbias, Scratch);
    size_t linear_backward_weight_scratch(int threads, In dy, In x);)

}  // namespace siglip
