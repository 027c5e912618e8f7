// The fastest arithmetic this machine can do, as the yardstick of a benchmark.
#pragma once

#include "cpu/isa.h"

namespace siglip {

SIGLIP_FOR_EACH_TARGET(
    // Fused multiply-adds on registers only, on every thread at once. Returns the floating point
    // operations done; the caller takes the time.
    double multiply_add(Stream&, int64_t rounds);
    // The same with the arithmetic that linear_int8 and linear_bfloat16 use on this machine (see
    // cpu/cells.h); a multiplication and its addition count as two operations here too.
    double multiply_add_int8(Stream&, int64_t rounds);
    double multiply_add_bfloat16(Stream&, int64_t rounds);)

}  // namespace siglip
