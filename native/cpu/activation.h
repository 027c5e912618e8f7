// The forms of GELU; the tanh approximation is also what a product can apply in its epilogue.
#pragma once

#include <cstdint>

namespace siglip {

// Values of the arguments `activation` and, but for none, `form`.
inline constexpr int64_t kActivationNone = 0;
inline constexpr int64_t kActivationGeluTanh = 1;
inline constexpr int64_t kActivationGeluErf = 2;

}  // namespace siglip
