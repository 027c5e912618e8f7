// Sigmoid contrastive loss over tiles of the logits; the (R, C) matrix is never stored.
//   S = exp(t) · X Yᵀ + b        z = +1 where j = i + offset, −1 elsewhere
//   L = (1/batch) Σ_ij softplus(−z_ij S_ij) = (1/batch) (Σ_ij softplus(S_ij) − Σ_i S_{i,i+offset})
//   G = (σ(S) − 1[j = i + offset]) / batch
//   dX = exp(t) G Y,  dY = exp(t) Gᵀ X,  dt = Σ G ∘ (S − b),  db = Σ G       (for dL = 1)
// t is the logarithm of the logit scale, b the logit bias. A rectangular block with an offset is one
// step of a loss spread over ranks: an offset outside the block makes every pair a negative.
//
// The gradients are made together with the loss, from the same logits: that of the loss itself is but a
// factor, which the caller applies.
#pragma once

#include "cpu/isa.h"

namespace siglip {

SIGLIP_FOR_EACH_TARGET(
    // images (R, E), texts (C, E), logit_scale (1) = t, logit_bias (1) = b -> loss (1), and those that
    // are wanted of dimages, dtexts, dlogit_scale and dlogit_bias. On a GPU images and texts may be
    // bfloat16; what comes out is float32.
    void sigmoid_loss_forward(Stream&, In images, In texts, In logit_scale, In logit_bias,
                              int64_t offset, int64_t batch, Out loss, MaybeOut dimages,
                              MaybeOut dtexts, MaybeOut dlogit_scale, MaybeOut dlogit_bias,
                              Scratch);
    size_t sigmoid_loss_forward_scratch(int threads, In images, In texts, MaybeOut dimages,
                                        MaybeOut dtexts, MaybeOut dlogit_scale,
                                        MaybeOut dlogit_bias);)

}  // namespace siglip
