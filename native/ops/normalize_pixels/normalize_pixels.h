// uint8 pixels (B, height, width, 3) -> float images (B, 3, height, width) by a table of 256 values
// per colour, computed by the host so that every published normalisation can be exact.
#pragma once

#include "cpu/isa.h"

namespace siglip {

SIGLIP_FOR_EACH_TARGET(
    // pixels (B, height, width, 3) uint8, table (3, 256) -> images (B, 3, height, width).
    void normalize_pixels_forward(Stream&, In pixels, In table, Out images);)

}  // namespace siglip
