// q, k and v as one array: three parts of a token, side by side.
#pragma once

#include "runtime/view.h"

namespace siglip {

// Whether q (k, v, dq, dk, dv) is an array (B, T, 3, H, hd) of all three.
inline bool is_joined(const View& q) { return q.rank() == 5; }

// Where the part of q, k or v (0, 1 or 2) begins in an array of all three; 0 in one of its own.
inline int64_t part_offset(const View& q, int part) {
  return is_joined(q) ? part * q.extent(3) * q.extent(4) : 0;
}

// Elements from one row of q, k or v to the next.
inline int64_t part_stride(const View& q) {
  return (is_joined(q) ? 3 : 1) * q.extent(-2) * q.extent(-1);
}

}  // namespace siglip
