// One product per group, as many as there are heads: y[m, g] = a[m, g] · op(b[g]), op being the
// transpose when asked for. Its derivative by a is the same with b transposed the other way.
#pragma once

#include "cpu/isa.h"

namespace siglip {

SIGLIP_FOR_EACH_TARGET(
    // a (M, G, K), op(b[g]) (K, N) -> y (M, G, N).
    void group_matmul_forward(Stream&, In a, In b, int64_t transpose_b, Out y, Scratch);
    size_t group_matmul_forward_scratch(int threads, In a, In b, int64_t transpose_b);
    // x (M, G, K), y (M, G, N) -> products (G, K, N) = Σ_m x[m, g] ⊗ y[m, g].
    void group_matmul_outer(Stream&, In x, In y, Out products, Scratch);
    size_t group_matmul_outer_scratch(int threads, In x, In y);)

}  // namespace siglip
