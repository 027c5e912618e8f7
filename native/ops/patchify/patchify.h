// Non-overlapping patches of an image, flattened as (colour, row, column): the order of a
// convolution weight (D, 3, P, P), so that the patch embedding is a linear layer.
// Rows and columns beyond the last whole patch are dropped (valid convolution with stride P).
#pragma once

#include "cpu/isa.h"

namespace siglip {

SIGLIP_FOR_EACH_TARGET(
    // images (B, C, height, width) -> patches (B, N, C·P·P), N = ⌊height/P⌋ ⌊width/P⌋, row-major.
    void patchify_forward(Stream&, In images, int64_t patch, Out patches);
    // dpatches -> dimages, fully overwritten (zero in the dropped border).
    void patchify_backward(Stream&, In dpatches, int64_t patch, Out dimages);)

}  // namespace siglip
