#include "runtime/finite.h"

#include <algorithm>
#include <cstring>

namespace siglip {
namespace {

// All bits of the exponent are set in what is not finite.
bool is_finite(float value) {
  constexpr uint32_t kExponent = 0x7f800000;
  uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof(bits));
  return (bits & kExponent) != kExponent;
}

}  // namespace

// A piece is looked at as a whole, which compilers make vector instructions of.
int64_t first_not_finite(const float* values, int64_t count) {
  constexpr int64_t kPiece = 1024;
  for (int64_t begin = 0; begin < count; begin += kPiece) {
    const int64_t end = std::min(begin + kPiece, count);
    uint32_t found = 0;
    for (int64_t i = begin; i < end; ++i) found |= is_finite(values[i]) ? 0 : 1;
    if (found == 0) continue;
    return std::find_if_not(values + begin, values + end, is_finite) - values;
  }
  return -1;
}

}  // namespace siglip
