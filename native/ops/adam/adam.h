// Adam with big_vision's decoupled weight decay (optax.py): the decay is NOT multiplied by the
// learning rate, and the schedule multiplies both.
//   g ← grad · min(1, clip_norm / grad_norm)
//   m ← β1 m + (1−β1) g,  v ← β2 v + (1−β2) g²,  u = (m/c1) / (√(v/c2) + eps)
//   update = schedule · (lr · u + weight_decay · θ),  θ ← θ − update
// c1 = 1 − β1^k and c2 = 1 − β2^k are this parameter's own bias corrections.
#pragma once

#include "cpu/isa.h"

namespace siglip {

SIGLIP_FOR_EACH_TARGET(
    // With a grad_norm that is not finite no step is taken: param, m and v stay as they are.
    // param, m, v updated in place; grad as computed; grad_norm (1): the global norm before clipping;
    // schedule (3) = [multiplier, c1, c2]. clip_norm <= 0 means no clipping.
    // update_squares (1) = Σ update², param_squares (1) = Σ θ² after the update.
    void adam_update(Stream&, InOut param, InOut m, InOut v, In grad, In grad_norm, In schedule,
                     double learning_rate, double beta1, double beta2, double eps,
                     double weight_decay, double clip_norm, Out update_squares, Out param_squares,
                     Scratch);
    size_t adam_update_scratch(int threads, In param);)

}  // namespace siglip
