// Linear layer whose float32 weight was packed once, for inference:
//
//   pre = x · Wᵀ + bias            y = act(pre) + residual
//
// The multiply-adds and their order are those of any product of that depth (see cpu/gemm.h), however
// few rows x has.
#pragma once

#include "cpu/isa.h"

namespace siglip {

// Bytes of a packed weight (N, K): N rounded up to 64, four bytes each. Only the instruction set that
// packed one can read it.
constexpr int64_t linear_float32_packed_bytes(int64_t n, int64_t k) {
  return (n + 63) / 64 * 64 * k * 4;
}

SIGLIP_FOR_EACH_TARGET(
    // weight (N, K) -> packed (linear_float32_packed_bytes(N, K)) uint8.
    void linear_float32_pack(Stream&, In weight, Out packed);
    // x (…, K), packed, bias (N), residual (…, N) -> pre (…, N) if asked for, y (…, N).
    // `activation` as for linear_forward.
    void linear_float32_forward(Stream&, In x, In packed, MaybeIn bias, MaybeIn residual,
                                int64_t activation, MaybeOut pre, Out y, Scratch);
    size_t linear_float32_forward_scratch(int threads, In x, Out y);)

}  // namespace siglip
