// The fastest arithmetic this machine can do, as the yardstick of a benchmark.
#pragma once

#include "cpu/isa.h"

namespace siglip {

SIGLIP_FOR_EACH_TARGET(
    // Fused multiply-adds on registers only, on every thread at once. Returns the floating point
    // operations done; the caller takes the time.
    double multiply_add(Stream&, int64_t rounds);)

}  // namespace siglip
