// Linear layer with fused epilogue. The weight keeps the checkpoint layout (N, K) = (out, in).
//
//   pre = x · Wᵀ + bias            y = act(pre) + residual
//
// Backward, given dpre (M, N) (for act = GELU it comes from gelu_backward on the kept `pre`):
//   dx = dpre · W (+ residual)     dW = dpreᵀ · x     dbias = Σ_m dpre
#pragma once

#include "cpu/isa.h"

namespace siglip {

// Values of the `activation` argument.
inline constexpr int64_t kActivationNone = 0;
inline constexpr int64_t kActivationGeluTanh = 1;

SIGLIP_FOR_EACH_TARGET(
    // x (…, K), weight (N, K), bias (N), residual (…, N) -> pre (…, N) if asked for, y (…, N).
    void linear_forward(Stream&, In x, In weight, MaybeIn bias, MaybeIn residual,
                        int64_t activation, MaybeOut pre, Out y, Scratch);
    size_t linear_forward_scratch(int threads, In x, In weight);
    // weight (N, K) -> packed, 4·K·⌈N/64⌉·64 bytes in an order of the instruction set's own.
    void linear_pack(Stream&, In weight, Out packed);
    // As linear_forward, with the weight packed by linear_pack; `pre` is not to be had.
    void linear_packed_forward(Stream&, In x, In packed, MaybeIn bias, MaybeIn residual,
                               int64_t activation, Out y, Scratch);
    size_t linear_packed_forward_scratch(int threads, In x, In y);
    // dy (…, N), weight (N, K), residual (…, K) -> dx (…, K) = dy · W + residual.
    void linear_backward_input(Stream&, In dy, In weight, MaybeIn residual, Out dx, Scratch);
    size_t linear_backward_input_scratch(int threads, In dy, In weight);
    // dy (…, N), x (…, K) -> dweight (N, K), dbias (N). The sum over rows runs in a fixed order.
    void linear_backward_weight(Stream&, In dy, In x, Out dweight, MaybeOut dbias, Scratch);
    size_t linear_backward_weight_scratch(int threads, In dy, In x);)

}  // namespace siglip
