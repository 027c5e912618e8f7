// Cross-entropy over a vocabulary, in blocks of the logits; the (N, V) matrix is never stored.
//   z = hidden · Wᵀ + bias        lse_n = log Σ_v exp(z_nv)
//   L = Σ_n r_n (lse_n − z_n,label)
//   G = dL · r ∘ (exp(z − lse) − onehot(label)),  dhidden = G W,  dW = Gᵀ hidden,  dbias = Σ_n G
// The backward makes the logits again. A row whose r is 0 costs nothing: neither its label nor its
// hidden state is looked at, its gradient is zero, and so are its lse and its term.
#pragma once

#include "cpu/isa.h"

namespace siglip {

SIGLIP_FOR_EACH_TARGET(
    // hidden (N, D), weight (V, D), bias (V), labels (N) int32, row_weights (N) = r
    // -> loss (1), lse (N), and if wanted the terms of the sum, row_losses (N). A label outside of [0, V) in a row that counts is ERR_ARGUMENT.
    void vocabulary_loss_forward(Stream&, In hidden, In weight, In bias, In labels, In row_weights,
                                 Out loss, Out lse, MaybeOut row_losses, Scratch);
    size_t vocabulary_loss_forward_scratch(int threads, In hidden, In weight);
    // dloss (1) -> those that are wanted of dhidden (N, D), dweight (V, D) and dbias (V).
    void vocabulary_loss_backward(Stream&, In dloss, In hidden, In weight, In bias, In labels,
                                  In row_weights, In lse, MaybeOut dhidden, MaybeOut dweight,
                                  MaybeOut dbias, Scratch);
    size_t vocabulary_loss_backward_scratch(int threads, In hidden, In weight);)

}  // namespace siglip
