// The guards of a kernel: only what keeps it inside its operands' memory.
#pragma once

#include <cstdarg>
#include <cstdio>

#include "cpu/isa.h"

namespace siglip::SIGLIP_CPU {

[[noreturn, gnu::cold, gnu::noinline, gnu::format(printf, 2, 3), maybe_unused]] static void fail(
    const char* code, const char* format, ...) {
  char message[256];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof(message), format, arguments);
  va_end(arguments);
  throw Error(code, message);
}

static inline void check_rank(const char* who, const char* what, const View& view, int rank) {
  if (view.rank() == rank) return;
  fail("ERR_SHAPE", "%s: rank of %s must be %d, got %d", who, what, rank, view.rank());
}

static inline void check_dtype(const char* who, const char* what, const View& view, DType dtype) {
  if (view.dtype() == dtype) return;
  fail("ERR_DTYPE", "%s: dtype of %s must be number %d, got %d", who, what, static_cast<int>(dtype),
       static_cast<int>(view.dtype()));
}

// Of kernels that take either type.
static inline void check_float(const char* who, const char* what, const View& view) {
  if (view.dtype() == DType::kFloat32 || view.dtype() == DType::kBfloat16) return;
  fail("ERR_DTYPE", "%s: dtype of %s must be float32 or bfloat16, got number %d", who, what,
       static_cast<int>(view.dtype()));
}

// Before extent(-1) is asked of a view of any rank.
static inline void check_not_scalar(const char* who, const char* what, const View& view) {
  if (view.rank() >= 1) return;
  fail("ERR_SHAPE", "%s: rank of %s must be at least 1, got %d", who, what, view.rank());
}

static inline void check_extent(const char* who, const char* what, const View& view, int axis,
                                int64_t expected) {
  if (view.extent(axis) == expected) return;
  fail("ERR_SHAPE", "%s: extent %d of %s must be %lld, got %lld", who, axis, what,
       static_cast<long long>(expected), static_cast<long long>(view.extent(axis)));
}

static inline void check_elements(const char* who, const char* what, const View& view,
                                  int64_t expected) {
  if (view.elements() == expected) return;
  fail("ERR_SHAPE", "%s: size of %s must be %lld, got %lld", who, what,
       static_cast<long long>(expected), static_cast<long long>(view.elements()));
}

static inline void check_scratch(const char* who, const Scratch& scratch, size_t bytes) {
  if (scratch.bytes >= bytes) return;
  fail("ERR_SHAPE", "%s: scratch must have at least %zu bytes, got %zu", who, bytes, scratch.bytes);
}

}  // namespace siglip::SIGLIP_CPU
