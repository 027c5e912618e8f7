// CUDA as the rest of the runtime sees it, also in a build without it.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

namespace siglip {

class Device;

struct CudaDeviceDescription {
  int index;
  std::string name;
  int architecture;  // 10 · major + minor of the compute capability
  size_t memory_bytes;
  int multiprocessors;
  std::string uuid;  // the same in every process and under every index
};

// What there is, and what is missing for there to be more.
struct CudaDescription {
  bool built = false;
  std::string driver;   // the CUDA version of the driver, "13.0"; empty without a driver
  std::string runtime;  // that of this build; empty in a build without CUDA
  std::vector<CudaDeviceDescription> devices;  // those that can be used
  std::vector<std::string> missing;            // each with what to do, on a line of its own
};

// Looked up once. Makes no context on a device.
const CudaDescription& cuda_description();

// Bytes of memory that are free on one of the devices above. Makes a context there when this process
// has none. Throws ERR_CUDA.
size_t cuda_free_bytes(int index);

// Opens one of the devices above. It is never destroyed. Throws ERR_CUDA, ERR_OUT_OF_MEMORY, and
// ERR_ARGUMENT when SIGLIP2_CUDA_GRAPHS cannot be used.
Device* open_cuda_device(int index);

}  // namespace siglip
