// How a device performs the steps of a program when it does more than to call them one by one.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <vector>

#include "runtime/stream.h"

namespace siglip {

// One run on its way: what has to live until the device is done with it.
class Launch {
 public:
  virtual ~Launch() = default;
  // Once the device is done with a profiled run: the nanoseconds of every step. Throws ERR_CUDA.
  virtual void read_times(double* nanoseconds) = 0;
};

// What is to be run: `call(i)` calls step i with the addresses of this run.
struct Steps {
  size_t count;
  const std::function<void(size_t)>& call;
};

// Made for one program and used by the scheduler thread alone.
class Launcher {
 public:
  virtual ~Launcher() = default;
  // Queues all steps and returns. `addresses` are those of the run's buffers and of the arena: runs
  // with equal ones are equal. Throws what the steps throw.
  virtual std::unique_ptr<Launch> launch(Stream& stream, const std::vector<std::byte*>& addresses,
                                         const Steps& steps, bool profile) = 0;
};

}  // namespace siglip
