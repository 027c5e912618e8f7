// The operands of a call: q, k and v as arrays of their own, or as one array, three parts of a token
// side by side; and what limits the keys of a query.
#pragma once

#include "cpu/check.h"
#include "runtime/view.h"

namespace siglip::SIGLIP_CPU {

// Whether q (k, v, dq, dk, dv) is an array (B, T, 3, H, hd) of all three.
static inline bool is_joined(const View& q) { return q.rank() == 5; }

// Where the part of q, k or v (0, 1 or 2) begins in an array of all three; 0 in one of its own.
static inline int64_t part_offset(const View& q, int part) {
  return is_joined(q) ? part * q.extent(3) * q.extent(4) : 0;
}

// Elements from one row of q, k or v to the next.
static inline int64_t part_stride(const View& q) {
  return (is_joined(q) ? 3 : 1) * q.extent(-2) * q.extent(-1);
}

struct Limits {
  const MaybeIn& key_mask;
  const MaybeIn& segments;
  const MaybeIn& key_segments;
  const MaybeIn& causal;
};

// k or v, dk or dv, of arrays of all three: the very array that q, or dq, is.
template <typename Role>
static void check_joined(const char* who, const char* what, const Role& view, const Role& whole) {
  if (view.bytes() == whole.bytes() && view.elements() == whole.elements()) return;
  fail("ERR_ARGUMENT", "%s: %s must be the same array as the first of the three", who, what);
}

// All but the types, and what segments hold.
static inline void check_operands(const char* who, const In& q, const In& k, const In& v,
                                  const Limits& limits) {
  const auto& [key_mask, segments, key_segments, causal] = limits;
  if (is_joined(q)) {
    check_extent(who, "q", q, 2, 3);
    check_joined(who, "k", k, q);
    check_joined(who, "v", v, q);
  } else {
    check_rank(who, "q", q, 4);
    check_rank(who, "k", k, 4);
    check_extent(who, "k", k, 0, key_segments.present() ? 1 : q.extent(0));
    check_extent(who, "k", k, 2, q.extent(2));
    check_extent(who, "k", k, 3, q.extent(3));
    check_elements(who, "v", v, k.elements());
  }
  const int64_t batch = q.extent(0);
  const int64_t queries = q.extent(1);
  if (key_mask.present()) check_elements(who, "key_mask", key_mask, batch * k.extent(1));
  if (segments.present()) {
    check_extent(who, "q", q, 0, 1);
    check_extent(who, "k", k, 1, queries);
    if (key_mask.present()) {
      fail("ERR_ARGUMENT", "%s: key_mask must be absent with segments, got both", who);
    }
  }
  if (key_segments.present()) {
    if (key_mask.present() || segments.present()) {
      fail("ERR_ARGUMENT", "%s: key_mask and segments must be absent with key_segments, got both",
           who);
    }
    check_elements(who, "key_segments", key_segments, batch + 1);
  }
  if (causal.present()) {
    if (key_mask.present() || segments.present() || key_segments.present()) {
      fail("ERR_ARGUMENT", "%s: causal must be the only limit of the keys, got another", who);
    }
    check_elements(who, "causal", causal, batch);
    check_extent(who, "k", k, 1, queries);
  }
}

}  // namespace siglip::SIGLIP_CPU
