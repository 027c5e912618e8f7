// Attention pooling by a query that is folded into the keys' projection. With u_h = Wk_hᵀ q_h the
// score of a token is ⟨x_t, u_h⟩ (the key's bias shifts all scores of a head alike and cancels), and
// with weights that sum to 1 the values' projection can follow the mean instead of preceding it:
//   p_ht = softmax_t ⟨u_h, x_t⟩     y_h = Σ_t p_ht x_t     (then Wv_h y_h + bv_h)
// So K and V, two products of (N, D) by (D, D), are never computed. The backward, from
// lse_h = log Σ_t exp ⟨u_h, x_t⟩:
//   dp_ht = ⟨dy_h, x_t⟩   ds_ht = p_ht (dp_ht − ⟨dy_h, y_h⟩)
//   dx_t = Σ_h ds_ht u_h + p_ht dy_h    du_h = Σ_t ds_ht x_t
// key_mask (B, N) uint8 and segments (S + 1) int32 as in attention.h; segments want x (1, N, D), and S
// takes the place of B. A sequence without tokens gives zeros.
#pragma once

#include "cpu/isa.h"

namespace siglip {

SIGLIP_FOR_EACH_TARGET(
    // x (B, N, D), u (H, D) for all sequences or (B, H, D) -> y (B, H, D), lse (B, H).
    void attention_pool_forward(Stream&, In x, In u, MaybeIn key_mask, MaybeIn segments, Out y,
                                Out lse, Scratch);
    size_t attention_pool_forward_scratch(int threads, In x, In u, MaybeIn segments);
    // du has the shape of u; one that all sequences share gets the sum over them.
    void attention_pool_backward(Stream&, In dy, In x, In u, MaybeIn key_mask, MaybeIn segments,
                                 In y, In lse, Out dx, Out du, Scratch);
    size_t attention_pool_backward_scratch(int threads, In x, In u, MaybeIn segments);)

}  // namespace siglip
