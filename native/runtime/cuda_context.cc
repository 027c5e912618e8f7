#include "runtime/cuda_context.h"

#include <string>

#include "runtime/error.h"

namespace siglip {

void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  const char* code = status == cudaErrorMemoryAllocation ? "ERR_OUT_OF_MEMORY" : "ERR_CUDA";
  throw Error(code, std::string(what) + ": must succeed on the device, got " +
                        cudaGetErrorName(status) + " (" + cudaGetErrorString(status) + ")");
}

}  // namespace siglip
