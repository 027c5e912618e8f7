#include "runtime/tensor_map.h"

#include <cuda_runtime_api.h>

#include <string>

#include "runtime/cuda_context.h"
#include "runtime/error.h"

namespace siglip {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

constexpr int kMostAxes = 5;

// From the driver that is loaded, so that the addon links to none.
Encode find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  check_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                              cudaEnableDefault, &found),
             "cuTensorMapEncodeTiled");
  if (found != cudaDriverEntryPointSuccess || function == nullptr) {
    throw Error("ERR_CUDA", "cuTensorMapEncodeTiled: must be in the driver, got none");
  }
  return reinterpret_cast<Encode>(function);
}

CUtensorMapSwizzle driver_swizzle(Swizzle swizzle) {
  switch (swizzle) {
    case Swizzle::k32:
      return CU_TENSOR_MAP_SWIZZLE_32B;
    case Swizzle::k64:
      return CU_TENSOR_MAP_SWIZZLE_64B;
    case Swizzle::k128:
      return CU_TENSOR_MAP_SWIZZLE_128B;
    default:
      return CU_TENSOR_MAP_SWIZZLE_NONE;
  }
}

}  // namespace

CUtensorMap tensor_map(const void* data, int rank, const int64_t* extents, const int64_t* strides,
                       const int* box, Swizzle swizzle) {
  static const Encode encode = find_encode();
  cuuint64_t sizes[kMostAxes] = {};
  cuuint64_t bytes[kMostAxes] = {};  // of the axes from 1 on
  cuuint32_t box_sizes[kMostAxes] = {};
  cuuint32_t steps[kMostAxes] = {};
  for (int axis = 0; axis < rank; ++axis) {
    sizes[axis] = static_cast<cuuint64_t>(extents[axis]);
    if (axis > 0) bytes[axis - 1] = static_cast<cuuint64_t>(strides[axis - 1]) * 2;
    box_sizes[axis] = static_cast<cuuint32_t>(box[axis]);
    steps[axis] = 1;
  }
  CUtensorMap map;
  const CUresult status =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, static_cast<cuuint32_t>(rank),
             const_cast<void*>(data), sizes, bytes, box_sizes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             driver_swizzle(swizzle), CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw Error("ERR_CUDA", "cuTensorMapEncodeTiled: must succeed, got status " +
                                std::to_string(static_cast<int>(status)));
  }
  return map;
}

}  // namespace siglip
