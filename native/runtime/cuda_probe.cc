// What the machine has of CUDA. Everything that can be missing is told apart here, since the CUDA
// runtime's own words leave people without a next step.
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include "runtime/cuda.h"
#include "runtime/cuda_context.h"
#include "runtime/cuda_handles.h"

namespace siglip {
namespace {

constexpr int kOldestArchitecture = 80;

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string architecture_text(int architecture) {
  return std::to_string(architecture / 10) + "." + std::to_string(architecture % 10);
}

// As nvidia-smi writes it.
std::string uuid_text(const cudaUUID_t& uuid) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text = "GPU";
  for (size_t i = 0; i < sizeof(uuid.bytes); ++i) {
    const auto byte = static_cast<unsigned char>(uuid.bytes[i]);
    if (i == 0 || (i >= 4 && i <= 10 && i % 2 == 0)) text += '-';
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

// Whether the driver's library opens; else why not.
bool open_driver(std::string* reason) {
  void* driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (driver == nullptr) {
    const char* error = dlerror();
    *reason = error == nullptr ? "libcuda.so.1 cannot be opened" : error;
    return false;
  }
  dlclose(driver);
  return true;
}

void look(CudaDescription* found) {
  found->built = true;
  int runtime = 0;
  cudaRuntimeGetVersion(&runtime);
  found->runtime = version_text(runtime);
  std::string reason;
  if (!open_driver(&reason)) {
    found->missing.push_back("no driver: " + reason +
                             "\nto do: install NVIDIA's driver, until `nvidia-smi` works; a "
                             "container needs `--gpus all`");
    return;
  }
  int driver = 0;
  cudaDriverGetVersion(&driver);
  if (driver > 0) found->driver = version_text(driver);
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  cudaGetLastError();
  if (status == cudaErrorInsufficientDriver) {
    found->missing.push_back("the driver must be for CUDA " + found->runtime + " or later, got " +
                             (driver > 0 ? "one for " + found->driver : "an unknown one") +
                             "\nto do: install a newer driver, or build with an older toolkit: "
                             "`npm run build:native`");
    return;
  }
  if (status != cudaSuccess || count == 0) {
    found->missing.push_back(
        std::string("no device: ") +
        (status == cudaSuccess ? "the driver lists none" : cudaGetErrorString(status)) +
        "\nto do: look at `nvidia-smi` and at CUDA_VISIBLE_DEVICES, which may hide devices");
    return;
  }
  for (int index = 0; index < count; ++index) {
    const std::string name = "cuda:" + std::to_string(index);
    cudaDeviceProp properties = {};
    const cudaError_t asked = cudaGetDeviceProperties(&properties, index);
    if (asked != cudaSuccess) {
      cudaGetLastError();
      found->missing.push_back(name + " does not answer: " + cudaGetErrorString(asked) +
                               "\nto do: look at `nvidia-smi`");
      continue;
    }
    const int architecture = 10 * properties.major + properties.minor;
    if (architecture < kOldestArchitecture) {
      found->missing.push_back(name + " (" + properties.name + ") must have compute capability " +
                               architecture_text(kOldestArchitecture) + " or more, got " +
                               architecture_text(architecture) +
                               "\nto do: use a device of the Ampere generation or later");
      continue;
    }
    found->devices.push_back({index, properties.name, architecture, properties.totalGlobalMem,
                              properties.multiProcessorCount, uuid_text(properties.uuid)});
  }
}

}  // namespace

const CudaDescription& cuda_description() {
  static const auto* description = [] {
    auto* found = new CudaDescription();
    look(found);
    return found;
  }();
  return *description;
}

size_t cuda_free_bytes(int index) {
  const CurrentDevice current(index);
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  check_cuda(cudaMemGetInfo(&free_bytes, &total_bytes), "the memory of the device");
  return free_bytes;
}

}  // namespace siglip
