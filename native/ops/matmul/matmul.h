// y = op(a) · op(b), op being the transpose when asked for; plain two-dimensional product.
// It is its own derivative: da and db are matmuls again.
#pragma once

#include "cpu/isa.h"

namespace siglip {

SIGLIP_FOR_EACH_TARGET(
    // op(a) (M, K), op(b) (K, N) -> y (M, N).
    void matmul_forward(Stream&, In a, In b, int64_t transpose_a, int64_t transpose_b, Out y,
                        Scratch);
    size_t matmul_forward_scratch(int threads, In a, In b, int64_t transpose_a,
                                  int64_t transpose_b);)

}  // namespace siglip
