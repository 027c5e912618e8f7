// The resize of many pictures in one launch for each step.
#pragma once

#include "device/resample.h"
#include "runtime/stream.h"

namespace siglip::cuda {

// Everything `work` points to is memory of the device.
void resample(Stream& stream, const device::ResampleWork& work);

}  // namespace siglip::cuda
