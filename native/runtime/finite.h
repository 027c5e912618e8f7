// Whether numbers are numbers.
#pragma once

#include <cstdint>

namespace siglip {

// The index of the first value that is infinite or not a number, or -1.
int64_t first_not_finite(const float* values, int64_t count);

}  // namespace siglip
