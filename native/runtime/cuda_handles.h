// Owners of what the CUDA runtime hands out, and the current device of a thread.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <type_traits>

namespace siglip {

// CUDA calls work for the device that is current on their thread: this one while it lives. Other code
// of the process may use CUDA too, so the former one comes back.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    if (cudaGetDevice(&before_) != cudaSuccess) before_ = device;
    if (before_ != device) cudaSetDevice(device);
    after_ = device;
  }
  ~CurrentDevice() {
    if (before_ != after_) cudaSetDevice(before_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int before_ = 0;
  int after_ = 0;
};

struct EventDeleter {
  void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
};
using Event = std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, EventDeleter>;

struct GraphDeleter {
  void operator()(cudaGraph_t graph) const { cudaGraphDestroy(graph); }
};
using Graph = std::unique_ptr<std::remove_pointer_t<cudaGraph_t>, GraphDeleter>;

using GraphExec = std::shared_ptr<std::remove_pointer_t<cudaGraphExec_t>>;

}  // namespace siglip
