// A program: kernel calls over one arena and the buffers of a run. Everything that can be wrong is
// found when it is made; a run then resolves addresses and calls, without any allocation.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "runtime/device.h"
#include "runtime/kernel.h"
#include "runtime/launcher.h"
#include "runtime/memory.h"
#include "runtime/stream.h"

namespace siglip {

// The arena in a view's storage; others are indices of the run's buffers.
inline constexpr int64_t kArenaStorage = -1;

struct ViewDescription {
  int64_t storage = kArenaStorage;
  int64_t offset = 0;  // bytes
  int64_t dtype = 0;
  std::vector<int64_t> shape;
};

// monostate: an absent operand.
using ArgumentDescription =
    std::variant<std::monostate, double, ViewDescription, std::vector<ViewDescription>>;

struct StepDescription {
  int64_t kernel = 0;
  std::string label;
  std::vector<ArgumentDescription> arguments;
};

struct ProgramDescription {
  std::string name;
  int64_t arena_bytes = 0;
  std::vector<int64_t> buffer_bytes;
  std::vector<StepDescription> steps;
};

// Bytes of scratch one call needs; storages and offsets of the views are ignored. Throws as the
// constructor of Program does.
size_t scratch_bytes(const std::vector<Kernel>& kernels, int workers, const StepDescription& step);

// What a run needs until the device is done with it.
struct UnderWay {
  std::shared_ptr<Memory> arena;
  std::unique_ptr<Launch> launch;
};

class Program {
 public:
  // Claims its share of the arena. Throws ERR_ARGUMENT, ERR_SHAPE or ERR_DTYPE for a description
  // that does not hold together, ERR_DEVICE for a kernel the device has no form of, ERR_OUT_OF_MEMORY
  // for an arena it cannot give. `kernels`, which are the device's, have to outlive the program.
  Program(const std::vector<Kernel>& kernels, Device& device,
          const ProgramDescription& description);
  ~Program();
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  const std::string& name() const { return name_; }
  Device& device() const { return device_; }
  size_t step_count() const { return steps_.size(); }
  const std::vector<size_t>& buffer_bytes() const { return buffer_bytes_; }

  // On the scheduler thread of the device. `nanoseconds`, when given, has step_count() entries, which
  // are filled here, or where there is a launch, by its read_times(). Between two steps it stops with
  // ERR_ABORTED when `abandoned` is set or the device shuts down.
  UnderWay run(Stream& stream, const std::vector<BufferUse>& buffers, double* nanoseconds,
               const std::atomic<bool>& abandoned);

 private:
  // Where an address comes from: bases_[storage] + offset, for operands_ or list_views_ [target].
  struct Place {
    size_t target;
    size_t storage;
    int64_t offset;
  };
  struct Step {
    const Kernel* kernel;
    std::string label;
    size_t first_operand;
  };

  void build(const std::vector<Kernel>& kernels, const ProgramDescription& description);
  void add_step(const std::vector<Kernel>& kernels, const StepDescription& step);
  void add_operand(const Argument& argument, const ArgumentDescription& given);
  Place place(size_t target, const ViewDescription& view) const;
  void resolve(const std::vector<BufferUse>& buffers, const Memory* arena);
  // Fills with NaN what the program is to write before it reads it.
  void poison(const std::vector<BufferUse>& buffers, const Memory* arena);
  void call(Stream& stream, const Step& step) const;

  std::string name_;
  Device& device_;
  std::unique_ptr<Launcher> launcher_;  // null: steps are called one after the other
  size_t arena_bytes_ = 0;
  std::vector<size_t> buffer_bytes_;
  std::vector<Step> steps_;
  std::vector<Operand> operands_;
  std::vector<Place> operand_places_;
  std::vector<In> list_views_;
  std::vector<Place> list_places_;
  std::vector<std::byte*> bases_;  // of the buffers, then of the arena
  std::vector<bool> used_;       // buffers that a step has named so far, while the program is built
  std::vector<size_t> results_;  // buffers that a step writes whole before any reads them
};

}  // namespace siglip
