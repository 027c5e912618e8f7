// The parts one after the other, by the casts of the target whose namespace SIGLIP_CPU names.
#pragma once

#include "cpu/check.h"
#include "ops/elementwise/elementwise.h"

namespace siglip::SIGLIP_CPU {

static inline void cast_parts(Stream& stream, const InList& parts, const Out& y) {
  int64_t size = 0;
  for (int64_t i = 0; i < parts.count; ++i) size += parts[i].elements();
  check_elements("join_rows_forward", "y", y, size);
  int64_t begin = 0;
  for (int64_t i = 0; i < parts.count; ++i) {
    const int64_t count = parts[i].elements();
    std::byte* const target = y.bytes() + begin * static_cast<int64_t>(size_of(y.dtype()));
    cast_forward(stream, parts[i], Out(target, y.dtype(), 1, &count));
    begin += count;
  }
}

}  // namespace siglip::SIGLIP_CPU
