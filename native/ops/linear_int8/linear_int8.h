// Linear layer with an int8 weight that was packed once, for inference:
//
//   pre = scale_m scale_n Σ_k q_mk w_nk + bias_n        y = act(pre) + residual
//
// Weight rows and rows of x (one per token) are quantised symmetrically, each by its own largest
// magnitude; q is found anew in every call. With rounding to nearest, ties to even:
//
//   w_nk = round(W_nk · (127 / max_k |W_nk|))     scale_n = max_k |W_nk| / 127
//   q_mk = round(x_mk · (L / max_k |x_mk|))       scale_m = max_k |x_mk| / L
//
// all of it float32. L is 127 where bytes are multiplied (Features::vnni), else the most that 16 bits
// and an int32 sum hold, min(32767, ⌊(2³¹ − 1) / (127 K)⌋): the pairwise products of int16 cost the
// same. Sums of integers are exact, so y depends on L, but not on the instruction set, beyond the
// epilogue's roundings. A row whose magnitudes are all below 2⁻¹⁰⁰ counts as zeros. A row with an
// infinity or a NaN gives NaN throughout: a row of x a row of y, a row of the weight a column.
//
// A GELU in the epilogue is exact to 2⁻¹⁴, as its results are for the next such layer, which rounds them more.
#pragma once

#include "cpu/isa.h"

namespace siglip {

// K may be no larger: sums of 2¹⁷ products of bytes fit an int32.
inline constexpr int64_t kLinearInt8MaxInputs = int64_t{1} << 17;

// Bytes of a packed weight (N, K): a row for each of N rounded up to 64, in it K bytes rounded up to 4
// and 8 more (scale and correction). Only the instruction set that packed one can read it.
constexpr int64_t linear_int8_packed_bytes(int64_t n, int64_t k) {
  return (n + 63) / 64 * 64 * ((k + 3) / 4 * 4 + 8);
}

SIGLIP_FOR_EACH_TARGET(
    // weight (N, K) -> packed (linear_int8_packed_bytes(N, K)) uint8.
    void linear_int8_pack(Stream&, In weight, Out packed);
    // x (…, K), packed, bias (N), residual (…, N) -> pre (…, N) if asked for, y (…, N).
    // `activation` as for linear_forward.
    void linear_int8_forward(Stream&, In x, In packed, MaybeIn bias, MaybeIn residual,
                             int64_t activation, MaybeOut pre, Out y, Scratch);
    size_t linear_int8_forward_scratch(int threads, In x, Out y);)

}  // namespace siglip
