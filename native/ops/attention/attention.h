// Fused multi-head attention, O = softmax(scale · Q Kᵀ) V per image and head, never storing the
// (Tq, Tk) scores. The forward keeps lse = log Σ_j exp(s_ij) (natural log) per query; the backward
// recomputes the probabilities from it:
//   P = exp(S − lse),  dV = Pᵀ dO,  dP = dO Vᵀ,  δ = Σ_d dO ∘ O,  dS = P ∘ (dP − δ)
//   dQ = scale · dS K,  dK = scale · dSᵀ Q
// Layout is (B, T, H, hd): heads interleaved in a token, as the projections produce them.
// q, k and v may be parts of one array (B, T, 3, H, hd), which is then given for each of them, as one of
// the same shape is for dq, dk and dv.
// key_mask (B, Tk) uint8, 1 = attend, 0 = ignore (padding). A row without any key gives zeros.
// segments (S + 1) int32 instead of a mask: with B = 1 and Tq = Tk, sequences of different lengths lie
// one after the other without padding, sequence s in rows [segments[s], segments[s + 1]); a query
// attends to the keys of its own sequence. Rows behind the last belong to none: their results and
// gradients are zeros, their lse is −∞, and what they hold reaches nothing.
// key_segments (B + 1) int32, for cross-attention to packed memory: the keys are one batch of Tk rows, and
// the queries of example b attend to rows [key_segments[b], key_segments[b + 1]). Rows behind the last
// get zeros as gradients. Excludes a mask and segments.
// causal (B) uint8, with Tq = Tk: in an example where it is not 0, query i attends to the keys 0 to i
// alone. Excludes a mask and segments.
// narrow, for inference: where Features::bf16 is set, products are of q · scale · log2 e, k, v and probabilities
// rounded to bfloat16, summed up in float32; elsewhere, and with causal, it changes nothing.
#pragma once

#include "cpu/isa.h"

namespace siglip {

SIGLIP_FOR_EACH_TARGET(
    // q (B, Tq, H, hd), k, v (B, Tk, H, hd) -> o (B, Tq, H, hd), lse (B, H, Tq).
    void attention_forward(Stream&, In q, In k, In v, MaybeIn key_mask, MaybeIn segments,
                           MaybeIn key_segments, MaybeIn causal, double scale, int64_t narrow,
                           Out o, Out lse, Scratch);
    size_t attention_forward_scratch(int threads, In q, In k, MaybeIn segments,
                                     MaybeIn key_segments, int64_t narrow);
    void attention_backward(Stream&, In dout, In q, In k, In v, MaybeIn key_mask, MaybeIn segments,
                            MaybeIn key_segments, MaybeIn causal, In o, In lse, double scale,
                            Out dq, Out dk, Out dv, Scratch);
    size_t attention_backward_scratch(int threads, In q, In k, MaybeIn segments,
                                      MaybeIn key_segments);)

}  // namespace siglip
