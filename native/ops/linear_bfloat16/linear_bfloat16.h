// Linear layer with a bfloat16 weight that was packed once, for inference:
//
//   pre = Σ_k bf16(x_mk) bf16(W_nk) + bias_n        y = act(pre) + residual
//
// bf16 rounds to the nearest bfloat16, ties to even; a NaN stays NaN, an infinity an infinity. Products
// are exact and summed up in float32, by vdpbf16ps where Features::bf16 is set (it takes denormal
// numbers for zeros), else by multiply-adds on the same values widened to float32.
//
// A GELU in the epilogue is exact to 2⁻¹⁴, as its results are for the next such layer, which rounds them more.
#pragma once

#include "cpu/isa.h"

namespace siglip {

// Bytes of a packed weight (N, K): N rounded up to 64, K to 4, two bytes each. Only the instruction
// set that packed one can read it.
constexpr int64_t linear_bfloat16_packed_bytes(int64_t n, int64_t k) {
  return (n + 63) / 64 * 64 * ((k + 3) / 4 * 4) * 2;
}

SIGLIP_FOR_EACH_TARGET(
    // weight (N, K) -> packed (linear_bfloat16_packed_bytes(N, K)) uint8.
    void linear_bfloat16_pack(Stream&, In weight, Out packed);
    // x (…, K), packed, bias (N), residual (…, N) -> pre (…, N) if asked for, y (…, N).
    // `activation` as for linear_forward.
    void linear_bfloat16_forward(Stream&, In x, In packed, MaybeIn bias, MaybeIn residual,
                                 int64_t activation, MaybeOut pre, Out y, Scratch);
    size_t linear_bfloat16_forward_scratch(int threads, In x, Out y);)

}  // namespace siglip
