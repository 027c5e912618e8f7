// What a product can apply in its epilogue.
#pragma once

#include <cstdint>

namespace siglip {

// Values of the `activation` argument.
inline constexpr int64_t kActivationNone = 0;
inline constexpr int64_t kActivationGeluTanh = 1;

}  // namespace siglip
