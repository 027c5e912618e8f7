// Every CPU kernel source is compiled once per instruction set, each time into its own namespace:
// SIGLIP_CPU is cpu_generic, cpu_avx2 or cpu_avx512 (set by the build, see native/sources.json).
// The binding table picks one set at load time (runtime/dispatch.h).
//
// Rule for sources compiled under a wider instruction set: no inline function or template with
// external linkage may be instantiated from them unless it lives in namespace SIGLIP_CPU or an
// anonymous namespace, or the linker may keep the wide copy for everyone. The generic objects come
// first in link order as a second safeguard.
#pragma once

#include "runtime/stream.h"
#include "runtime/view.h"

// Declares the contents once per instruction set (and, with CUDA, for the device).
// clang-format off
#define SIGLIP_FOR_EACH_TARGET(...)     \
  namespace cpu_generic { __VA_ARGS__ } \
  namespace cpu_avx2 { __VA_ARGS__ }    \
  namespace cpu_avx512 { __VA_ARGS__ }  \
  namespace cuda { __VA_ARGS__ }
// clang-format on
