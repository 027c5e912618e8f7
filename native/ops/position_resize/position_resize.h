// Bilinear, antialiased resize of the learned position grid to each image's own patch grid.
// Per axis n -> m: s = n/m, f = max(s, 1), centre c = s (i + ½), weight_k = max(0, 1 − |k − c + ½|/f)
// for k in [max(⌊c − f + ½⌋, 0), min(⌊c + f + ½⌋, n)), normalised to sum 1; result = Wy · G · Wxᵀ.
// Rows of `positions` beyond gh·gw are zero. The backward is the transpose, summed over the batch.
// segments (B + 1) int32: positions are (1, L, D), image b in rows [segments[b], segments[b + 1]), of
// which there must be gh·gw; rows behind the last image are zero.
#pragma once

#include "cpu/isa.h"

namespace siglip {

SIGLIP_FOR_EACH_TARGET(
    // grid (n·n, D), shapes (B, 2) int32 rows (gh, gw), gh·gw <= L -> positions (B, L, D).
    void position_resize_forward(Stream&, In grid, In shapes, MaybeIn segments, Out positions);
    // dpositions (B, L, D), shapes -> dgrid (n·n, D), fully overwritten.
    void position_resize_backward(Stream&, In dpositions, In shapes, MaybeIn segments, Out dgrid,
                                  Scratch);
    size_t position_resize_backward_scratch(int threads, In dpositions, In shapes);)

}  // namespace siglip
