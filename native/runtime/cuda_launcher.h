// Runs of a program on a GPU. A program is static, so its launches are recorded once for the addresses
// they work on and then replayed as one graph, which spares the processor some microseconds a kernel.
#pragma once

#include <memory>

#include "runtime/address_cache.h"
#include "runtime/cuda_context.h"
#include "runtime/cuda_handles.h"
#include "runtime/launcher.h"

namespace siglip {

class CudaLauncher final : public Launcher {
 public:
  // `recorder` is a stream of the device on which nothing else is queued. Without `graphs` all runs
  // are eager.
  CudaLauncher(CudaContext& context, cudaStream_t recorder, bool graphs);
  ~CudaLauncher() override;

  // Eager for addresses that are new, since kernels may choose their algorithms then, and when
  // profiled; recorded when the addresses come back; from then on replayed. What cannot be recorded
  // goes on eagerly.
  std::unique_ptr<Launch> launch(Stream& stream, const Addresses& addresses, const Steps& steps,
                                 bool profile) override;

 private:
  // Null when the steps cannot be recorded.
  GraphExec record(const Steps& steps);

  CudaContext& context_;
  cudaStream_t recorder_;
  bool graphs_;
  AddressCache<GraphExec> recorded_;
};

}  // namespace siglip
