// One token of every sequence: y[b] = x[b, index]. The backward puts dy there and zeros elsewhere.
// The mean over tokens is the other pooling without parameters. Writing puts the newest token of every
// sequence into a cache.
#pragma once

#include "cpu/isa.h"

namespace siglip {

SIGLIP_FOR_EACH_TARGET(
    // x (B, T, D) -> y (B, D).
    void token_select_forward(Stream&, In x, int64_t index, Out y);
    void token_select_backward(Stream&, In dy, int64_t index, Out dx);
    // x (B, T, D) -> y (B, D) = (1/T) Σ_t x[b, t].
    void token_mean_forward(Stream&, In x, Out y); void token_mean_backward(Stream&, In dy, Out dx);
    // y[b, positions[b]] = token[b], in place; token (B, D), positions (B) int32, y (B, T, D).
    void token_write(Stream&, In token, In positions, InOut y);)

}  // namespace siglip
