#include "runtime/program.h"

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <utility>

#include "runtime/error.h"

namespace siglip {
namespace {

// Sizes beyond this are mistakes; below it, sums of two never overflow.
constexpr int64_t kMaxBytes = int64_t{1} << 48;
constexpr double kMaxSafeInteger = 9007199254740991.0;

// All bits set is a NaN in float32 and in bfloat16.
constexpr int kPoison = 0xFF;

// SIGLIP2_POISON=1, for tests: a value that no step wrote shows as NaN in whatever depends on it.
bool poisons() {
  static const bool on = [] {
    const char* text = std::getenv("SIGLIP2_POISON");
    const std::string value = text == nullptr ? "" : text;
    if (value.empty() || value == "0" || value == "1") return value == "1";
    throw Error("ERR_ARGUMENT", "SIGLIP2_POISON must be 0 or 1, got " + value);
  }();
  return on;
}

// Where it went wrong, the callers put in front.
[[noreturn]] void fail(const char* code, const std::string& what, const std::string& actual) {
  throw Error(code, what + ", got " + actual);
}

std::string text(const std::vector<int64_t>& shape) {
  std::string result = "[";
  for (size_t axis = 0; axis < shape.size(); ++axis) {
    result += (axis == 0 ? "" : ", ") + std::to_string(shape[axis]);
  }
  return result + "]";
}

const char* kind_of(const ArgumentDescription& argument) {
  constexpr const char* kNames[] = {"nothing", "a number", "a view", "a list of views"};
  return kNames[argument.index()];
}

// Bytes of a view whose dtype and extents are in range.
int64_t checked_bytes(const ViewDescription& view) {
  if (view.dtype < 0 || view.dtype >= kDTypes) {
    fail("ERR_DTYPE", "dtype must be in [0, " + std::to_string(kDTypes) + ")",
         std::to_string(view.dtype));
  }
  if (view.shape.empty() || view.shape.size() > static_cast<size_t>(kMaxRank)) {
    fail("ERR_SHAPE", "shape must have 1 to " + std::to_string(kMaxRank) + " axes",
         std::to_string(view.shape.size()));
  }
  int64_t bytes = static_cast<int64_t>(size_of(static_cast<DType>(view.dtype)));
  for (const int64_t extent : view.shape) {
    if (extent < 1 || extent > kMaxBytes / bytes) {
      fail("ERR_SHAPE", "extents must be positive and their product below 2^48 bytes",
           text(view.shape));
    }
    bytes *= extent;
  }
  return bytes;
}

// The operand of a checked view, its address still unknown.
Operand operand_of(const ViewDescription& view) {
  Operand operand;
  operand.dtype = static_cast<DType>(view.dtype);
  operand.rank = static_cast<int>(view.shape.size());
  for (size_t axis = 0; axis < view.shape.size(); ++axis) operand.extents[axis] = view.shape[axis];
  return operand;
}

In list_view_of(const ViewDescription& view) {
  const Operand operand = operand_of(view);
  return In(nullptr, operand.dtype, operand.rank, operand.extents);
}

const Kernel& kernel_of(const std::vector<Kernel>& kernels, const StepDescription& step) {
  if (step.kernel < 0 || step.kernel >= static_cast<int64_t>(kernels.size())) {
    fail("ERR_ARGUMENT", "kernel must be in [0, " + std::to_string(kernels.size()) + ")",
         std::to_string(step.kernel));
  }
  const Kernel& kernel = kernels[static_cast<size_t>(step.kernel)];
  if (!kernel.present()) throw Error("ERR_DEVICE", kernel.name() + " has no CUDA form");
  if (step.arguments.size() != kernel.arguments().size()) {
    fail("ERR_ARGUMENT",
         kernel.name() + " must have " + std::to_string(kernel.arguments().size()) + " arguments",
         std::to_string(step.arguments.size()));
  }
  return kernel;
}

// What the kernel will see of one argument, addresses apart. Items of a list go to `list`.
Operand describe_operand(const Argument& argument, const ArgumentDescription& given,
                         std::vector<In>* list) {
  const auto wrong_kind = [&](const char* expected) {
    fail("ERR_ARGUMENT", std::string("it must be ") + expected, kind_of(given));
  };
  Operand operand;
  switch (argument.kind) {
    case ArgumentKind::kInt: {
      const double* number = std::get_if<double>(&given);
      if (number == nullptr) wrong_kind("an integer");
      if (!(std::abs(*number) <= kMaxSafeInteger) || std::trunc(*number) != *number) {
        fail("ERR_ARGUMENT", "it must be an integer", std::to_string(*number));
      }
      operand.integer = static_cast<int64_t>(*number);
      return operand;
    }
    case ArgumentKind::kFloat: {
      const double* number = std::get_if<double>(&given);
      if (number == nullptr) wrong_kind("a number");
      operand.real = *number;
      return operand;
    }
    case ArgumentKind::kInList: {
      const auto* views = std::get_if<std::vector<ViewDescription>>(&given);
      if (views == nullptr || views->empty()) wrong_kind("a list of at least one view");
      for (const ViewDescription& view : *views) {
        checked_bytes(view);
        list->push_back(list_view_of(view));
      }
      operand.list.count = static_cast<int64_t>(views->size());
      return operand;
    }
    default: {
      const bool optional = argument.kind == ArgumentKind::kMaybeIn ||
                            argument.kind == ArgumentKind::kMaybeOut ||
                            argument.kind == ArgumentKind::kScratch;
      if (optional && std::holds_alternative<std::monostate>(given)) return operand;
      const auto* view = std::get_if<ViewDescription>(&given);
      if (view == nullptr) wrong_kind(optional ? "a view or null" : "a view");
      const int64_t bytes = checked_bytes(*view);
      operand = operand_of(*view);
      if (argument.kind == ArgumentKind::kScratch) {
        operand.scratch_bytes = static_cast<size_t>(bytes);
      }
      return operand;
    }
  }
}

// Lets lists point to their items, which follow one another in `items`.
void point_to_items(Operand* operands, size_t count, const In* items) {
  for (size_t i = 0; i < count; ++i) {
    operands[i].list.items = items;
    items += operands[i].list.count;
  }
}

// "bias of linear_forward: "
std::string place_of(const Kernel& kernel, const Argument& argument) {
  return argument.name + " of " + kernel.name() + ": ";
}

}  // namespace

size_t scratch_bytes(const std::vector<Kernel>& kernels, int workers, const StepDescription& step) {
  return located([] { return std::string("scratchBytes: "); },
                 [&] {
                   const Kernel& kernel = kernel_of(kernels, step);
                   std::vector<Operand> operands;
                   std::vector<In> list;
                   for (size_t i = 0; i < step.arguments.size(); ++i) {
                     const Argument& argument = kernel.arguments()[i];
                     operands.push_back(located(
                         [&] { return place_of(kernel, argument); },
                         [&] { return describe_operand(argument, step.arguments[i], &list); }));
                   }
                   point_to_items(operands.data(), operands.size(), list.data());
                   return kernel.scratch_bytes(workers, operands.data());
                 });
}

Program::Program(const std::vector<Kernel>& kernels, Device& device,
                 const ProgramDescription& description)
    : name_(description.name), device_(device), launcher_(device.launcher()) {
  located([&] { return name_ + ": "; }, [&] { build(kernels, description); });
  if (arena_bytes_ > 0) device_.arena().claim(arena_bytes_);
}

Program::~Program() {
  if (arena_bytes_ > 0) device_.arena().release(arena_bytes_);
}

void Program::build(const std::vector<Kernel>& kernels, const ProgramDescription& description) {
  if (description.arena_bytes < 0 || description.arena_bytes > kMaxBytes) {
    fail("ERR_ARGUMENT", "arenaBytes must be in [0, 2^48]",
         std::to_string(description.arena_bytes));
  }
  arena_bytes_ = static_cast<size_t>(description.arena_bytes);
  for (const int64_t bytes : description.buffer_bytes) {
    if (bytes < 0 || bytes > kMaxBytes) {
      fail("ERR_ARGUMENT", "bufferBytes must be in [0, 2^48]", std::to_string(bytes));
    }
    buffer_bytes_.push_back(static_cast<size_t>(bytes));
  }
  bases_.resize(buffer_bytes_.size() + 1);
  used_.resize(buffer_bytes_.size());
  for (size_t i = 0; i < description.steps.size(); ++i) {
    const StepDescription& step = description.steps[i];
    located([&] { return "step " + std::to_string(i) + " '" + step.label + "': "; },
            [&] { add_step(kernels, step); });
  }
  // From here on the items of lists no longer move.
  point_to_items(operands_.data(), operands_.size(), list_views_.data());
}

void Program::add_step(const std::vector<Kernel>& kernels, const StepDescription& step) {
  const Kernel& kernel = kernel_of(kernels, step);
  const size_t first_operand = operands_.size();
  const size_t first_view = list_views_.size();
  for (size_t i = 0; i < step.arguments.size(); ++i) {
    const Argument& argument = kernel.arguments()[i];
    located([&] { return place_of(kernel, argument); },
            [&] { add_operand(argument, step.arguments[i]); });
  }
  Operand* operands = operands_.data() + first_operand;
  point_to_items(operands, step.arguments.size(), list_views_.data() + first_view);
  const size_t needed = kernel.scratch_bytes(device_.workers(), operands);
  if (operands_.back().scratch_bytes < needed) {
    fail("ERR_ARGUMENT", "scratch must have " + std::to_string(needed) + " bytes",
         std::to_string(operands_.back().scratch_bytes));
  }
  steps_.push_back({&kernel, step.label, first_operand});
}

void Program::add_operand(const Argument& argument, const ArgumentDescription& given) {
  const size_t first_view = list_views_.size();
  operands_.push_back(describe_operand(argument, given, &list_views_));
  if (const auto* view = std::get_if<ViewDescription>(&given)) {
    operand_places_.push_back(place(operands_.size() - 1, *view));
    if (view->storage != kArenaStorage) {
      const auto buffer = static_cast<size_t>(view->storage);
      const bool writes =
          argument.kind == ArgumentKind::kOut || argument.kind == ArgumentKind::kMaybeOut;
      const bool whole = static_cast<size_t>(checked_bytes(*view)) == buffer_bytes_[buffer];
      if (writes && whole && !used_[buffer]) results_.push_back(buffer);
      used_[buffer] = true;
    }
    if (argument.kind == ArgumentKind::kScratch &&
        view->offset % static_cast<int64_t>(kAlignment) != 0) {
      fail("ERR_ARGUMENT", "its offset must be a multiple of 64", std::to_string(view->offset));
    }
  } else if (const auto* views = std::get_if<std::vector<ViewDescription>>(&given)) {
    for (size_t i = 0; i < views->size(); ++i) {
      list_places_.push_back(place(first_view + i, (*views)[i]));
      const int64_t storage = (*views)[i].storage;
      if (storage != kArenaStorage) used_[static_cast<size_t>(storage)] = true;
    }
  }
}

Program::Place Program::place(size_t target, const ViewDescription& view) const {
  const auto buffers = static_cast<int64_t>(buffer_bytes_.size());
  if (view.storage < kArenaStorage || view.storage >= buffers) {
    fail("ERR_ARGUMENT", "storage must be in [-1, " + std::to_string(buffers) + ")",
         std::to_string(view.storage));
  }
  const bool in_arena = view.storage == kArenaStorage;
  const auto storage = static_cast<size_t>(in_arena ? buffers : view.storage);
  const auto available = static_cast<int64_t>(in_arena ? arena_bytes_ : buffer_bytes_[storage]);
  const int64_t bytes = checked_bytes(view);
  if (view.offset < 0 || bytes > available || view.offset > available - bytes) {
    fail("ERR_ARGUMENT",
         "it must lie inside the " + std::to_string(available) + " bytes of storage " +
             std::to_string(view.storage),
         std::to_string(bytes) + " bytes at " + std::to_string(view.offset));
  }
  if (view.offset % static_cast<int64_t>(size_of(static_cast<DType>(view.dtype))) != 0) {
    fail("ERR_ARGUMENT", "its offset must be a multiple of the element size",
         std::to_string(view.offset));
  }
  return {target, storage, view.offset};
}

void Program::resolve(const std::vector<BufferUse>& buffers, const Memory* arena) {
  for (size_t i = 0; i < buffers.size(); ++i) bases_[i] = buffers[i]->data();
  bases_.back() = arena == nullptr ? nullptr : arena->data();
  for (const Place& place : operand_places_) {
    operands_[place.target].data = bases_[place.storage] + place.offset;
  }
  for (const Place& place : list_places_) {
    In& view = list_views_[place.target];
    int64_t extents[kMaxRank];
    for (int axis = 0; axis < view.rank(); ++axis) extents[axis] = view.extent(axis);
    view = In(bases_[place.storage] + place.offset, view.dtype(), view.rank(), extents);
  }
}

void Program::poison(const std::vector<BufferUse>& buffers, const Memory* arena) {
  if (arena != nullptr && arena_bytes_ > 0) device_.fill(arena->data(), kPoison, arena_bytes_);
  for (const size_t buffer : results_) {
    device_.fill(buffers[buffer]->data(), kPoison, buffer_bytes_[buffer]);
  }
}

void Program::call(Stream& stream, const Step& step) const {
  try {
    step.kernel->run(stream, operands_.data() + step.first_operand);
  } catch (const Error& error) {
    throw Error(error.code(),
                std::string(error.what()) + " (in " + name_ + ", step '" + step.label + "')");
  }
}

UnderWay Program::run(Stream& stream, const std::vector<BufferUse>& buffers, double* nanoseconds,
                      const std::atomic<bool>& abandoned) {
  using Clock = std::chrono::steady_clock;
  std::shared_ptr<Memory> arena = device_.arena().memory();
  if (arena_bytes_ > 0 && (!arena || arena->bytes() < arena_bytes_)) {
    fail("ERR_OUT_OF_MEMORY",
         name_ + ": the arena must have " + std::to_string(arena_bytes_) + " bytes",
         std::to_string(arena ? arena->bytes() : 0));
  }
  resolve(buffers, arena.get());
  if (poisons()) poison(buffers, arena.get());
  const std::function<void(size_t)> call_step = [&](size_t i) {
    call(stream, steps_[i]);
    if (abandoned.load(std::memory_order_relaxed) || stream.cancelled()) {
      fail("ERR_ABORTED", name_ + ": a run must end before its environment", "the end of it");
    }
  };
  if (launcher_) {
    const Steps steps = {steps_.size(), call_step};
    std::unique_ptr<Launch> launch =
        launcher_->launch(stream, bases_, steps, nanoseconds != nullptr);
    return {std::move(arena), std::move(launch)};
  }
  Clock::time_point before = Clock::now();
  for (size_t i = 0; i < steps_.size(); ++i) {
    call_step(i);
    if (nanoseconds != nullptr) {
      const Clock::time_point after = Clock::now();
      nanoseconds[i] = std::chrono::duration<double, std::nano>(after - before).count();
      before = after;
    }
  }
  return {};
}

}  // namespace siglip
