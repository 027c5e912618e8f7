// What this machine, or the container we are in, grants us.
#pragma once

#include <cstddef>

namespace siglip {

// Physical cores this process may run on, bounded by the container's processor quota; at least 1.
int usable_cores();

// Bytes of memory: what is installed, bounded by the container's limit.
size_t usable_memory();

// The number of threads to use: SIGLIP2_THREADS, or else usable_cores(). Throws ERR_ARGUMENT when
// the variable is not a whole number from 1 to 1024.
int configured_threads();

}  // namespace siglip
