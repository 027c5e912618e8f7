// Reductions, in a fixed order whatever the number of threads; partial sums in float64.
#pragma once

#include "cpu/isa.h"

namespace siglip {

SIGLIP_FOR_EACH_TARGET(
    // x (B, …) -> y (…) = Σ_i x[i]: the gradient of a term shared by the batch.
    void sum_rows_forward(Stream&, In x, Out y);
    // x (…, D) -> y (…, D) = x / Σ_D x; zeros where the sum of a row is 0.
    void row_shares_forward(Stream&, In x, Out y);
    // a, b same shape -> y (1) = Σ a ∘ b.
    void dot_forward(Stream&, In a, In b, Out y, Scratch);
    size_t dot_forward_scratch(int threads, In a);
    // y (1) = √(Σ over all tensors and elements of x²): the global norm.
    void global_norm_forward(Stream&, InList tensors, Out y, Scratch);
    size_t global_norm_forward_scratch(int threads, InList tensors);
    // scalars (1) each, already sums of squares -> y (1) = √(Σ scalars).
    void root_sum_forward(Stream&, InList scalars, Out y);)

}  // namespace siglip
