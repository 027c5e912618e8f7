// Descriptions of tensors for the copy engine of sm_90 (device/tma.cuh).
#pragma once

#include <cuda.h>

#include <cstdint>

namespace siglip {

// How 16-byte pieces are exchanged within the rows of a box in shared memory, to spread columns over
// the banks: the piece at byte address a comes to a with its bits 4 .. 6 (128 bytes), 4 .. 5 (64) or
// 4 (32) changed by exclusive or with as many bits from 7 on. The inner extent of the box is that
// many bytes.
enum class Swizzle { kNone, k32, k64, k128 };

// A tensor of bfloat16 in global memory, up to 5 axes, the innermost first and contiguous there.
// strides[i], in elements, is that of axis i + 1, a multiple of 8; `data` is a multiple of 16 bytes;
// every extent of a box is at most 256. Throws ERR_CUDA where the driver refuses.
CUtensorMap tensor_map(const void* data, int rank, const int64_t* extents, const int64_t* strides,
                       const int* box, Swizzle swizzle);

}  // namespace siglip
