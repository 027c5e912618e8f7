// The table of operations: one row per kernel.
#pragma once

#include <vector>

#include "cpu/resample.h"
#include "runtime/dispatch.h"
#include "runtime/kernel.h"
#include "runtime/memory.h"
#include "runtime/stream.h"

namespace siglip {

// The instruction set of this process. Throws ERR_ARGUMENT when SIGLIP2_ISA cannot be used.
Isa active_isa();

// All kernels in the form for a kind of device; on the CPU, the one compiled for active_isa(). An index
// into this list is a kernel's number. Where there is no form, Kernel::present() is false.
const std::vector<Kernel>& kernels(DeviceKind kind);

// The loops of cpu/resample.h, likewise.
const ResampleKernels& resample_kernels();

enum class Precision { kFloat32, kInt8, kBfloat16 };

// multiply_add of cpu/peak.h in that precision, likewise.
double multiply_add(Stream& stream, Precision precision, int64_t rounds);

}  // namespace siglip
