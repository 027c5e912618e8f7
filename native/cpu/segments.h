// A packed batch: sequences of different lengths, one after the other without padding. Segment s is
// rows [starts[s], starts[s + 1]); rows from starts[S] on belong to none.
#pragma once

#include "cpu/check.h"

namespace siglip::SIGLIP_CPU {

// Refuses starts that do not begin at 0, fall, or leave the `rows` rows there are.
static inline void check_segments(const char* who, const char* what, const In& segments,
                                  int64_t rows) {
  check_rank(who, what, segments, 1);
  const int32_t* starts = segments.data<int32_t>();
  const int64_t last = segments.extent(0) - 1;
  if (last < 0) fail("ERR_SHAPE", "%s: %s must have at least 1 element, got 0", who, what);
  if (starts[0] != 0) {
    fail("ERR_ARGUMENT", "%s: %s[0] must be 0, got %lld", who, what,
         static_cast<long long>(starts[0]));
  }
  for (int64_t s = 1; s <= last; ++s) {
    if (starts[s - 1] <= starts[s] && starts[s] <= rows) continue;
    fail("ERR_ARGUMENT", "%s: %s[%lld] must be in [%lld, %lld], got %lld", who, what,
         static_cast<long long>(s), static_cast<long long>(starts[s - 1]),
         static_cast<long long>(rows), static_cast<long long>(starts[s]));
  }
}

// The segments by falling length, equal ones in their order: Shell's sort, as there are few.
// order (S) is overwritten.
static inline void longest_first(const int32_t* starts, int64_t count, int32_t* order) {
  const auto before = [starts](int32_t a, int32_t b) {
    const int32_t a_size = starts[a + 1] - starts[a];
    const int32_t b_size = starts[b + 1] - starts[b];
    return a_size != b_size ? a_size > b_size : a < b;
  };
  for (int64_t s = 0; s < count; ++s) order[s] = static_cast<int32_t>(s);
  for (int64_t gap = count / 2; gap > 0; gap /= 2) {
    for (int64_t s = gap; s < count; ++s) {
      const int32_t moving = order[s];
      int64_t at = s;
      for (; at >= gap && before(moving, order[at - gap]); at -= gap) order[at] = order[at - gap];
      order[at] = moving;
    }
  }
}

// body(task, worker) for every task in [0, tasks), each taken by the next worker that is free: for
// tasks of unequal work, the longest first. Which worker runs a task must not show in its result.
template <typename Body>
inline void parallel_as_free(Stream& stream, int64_t tasks, const Body& body) {
  int64_t next = 0;
  const int64_t workers = tasks < stream.threads() ? tasks : stream.threads();
  stream.parallel(workers, [&](int64_t, int worker) {
    while (!stream.cancelled()) {
      const int64_t task = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
      if (task >= tasks) return;
      body(task, worker);
    }
  });
}

}  // namespace siglip::SIGLIP_CPU
