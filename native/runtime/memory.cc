#include "runtime/memory.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>

#include "runtime/error.h"
#include "runtime/machine.h"

namespace siglip {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

// Plain atomics: no destructor, so that threads may still count while the process exits.
struct Counts {
  std::atomic<int64_t> buffers{0};
  std::atomic<int64_t> buffer_bytes{0};
  std::atomic<int64_t> arena_bytes{0};
};
std::atomic<int64_t> live_bytes{0};  // NOLINT(cppcoreguidelines-avoid-non-const-global-variables)
Counts counts[2];                    // NOLINT(cppcoreguidelines-avoid-non-const-global-variables)

Counts& counts_of(DeviceKind kind) { return counts[static_cast<size_t>(kind)]; }

[[noreturn]] void refuse(size_t bytes, const std::string& reason) {
  throw Error("ERR_OUT_OF_MEMORY", "memory: an allocation must fit on the device, got " +
                                       std::to_string(bytes) + " bytes\n" + reason);
}

size_t rounded_up(size_t bytes, size_t multiple) {
  return (bytes + multiple - 1) / multiple * multiple;
}

}  // namespace

MemoryInUse memory_in_use(DeviceKind kind) {
  const Counts& of = counts_of(kind);
  return {of.buffers.load(), of.buffer_bytes.load(), of.arena_bytes.load()};
}

std::string in_mib(size_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

Block::Block(size_t bytes, Contents contents) : Memory(bytes) {
  static const size_t limit = usable_memory();
  const auto counted = static_cast<int64_t>(bytes);
  const size_t alive = static_cast<size_t>(live_bytes.load());
  if (bytes > limit || alive > limit - bytes) {
    refuse(bytes, in_mib(alive) + " are in use of " + in_mib(limit));
  }
  if (bytes < kHugePage) {
    const size_t padded = rounded_up(bytes, kAlignment);
    data_ = static_cast<std::byte*>(std::aligned_alloc(kAlignment, padded));
    if (data_ == nullptr) refuse(bytes, "the system has no more memory");
    if (contents == Contents::kZeros) std::memset(data_, 0, padded);
  } else {
    // One huge page more than needed, so that the block can begin on a huge page.
    mapping_bytes_ = rounded_up(bytes, kHugePage) + kHugePage;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#if defined(MAP_NORESERVE)
    flags |= MAP_NORESERVE;
#endif
    mapping_ = mmap(nullptr, mapping_bytes_, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (mapping_ == MAP_FAILED) {
      mapping_ = nullptr;
      refuse(bytes, std::string("the system refuses: ") + std::strerror(errno));
    }
    const auto address = reinterpret_cast<uintptr_t>(mapping_);
    data_ = static_cast<std::byte*>(mapping_) + (rounded_up(address, kHugePage) - address);
#if defined(MADV_HUGEPAGE)
    madvise(data_, rounded_up(bytes, kHugePage), MADV_HUGEPAGE);
#endif
  }
  live_bytes += counted;
}

Block::~Block() {
  live_bytes -= static_cast<int64_t>(bytes());
  if (mapping_ != nullptr) {
    munmap(mapping_, mapping_bytes_);
  } else {
    std::free(data_);
  }
}

Buffer::Buffer(MemorySource& source, size_t bytes, Contents contents)
    : kind_(source.kind()), memory_(source.allocate(bytes, contents)) {
  Counts& of = counts_of(kind_);
  of.buffers += 1;
  of.buffer_bytes += static_cast<int64_t>(bytes);
}

Buffer::~Buffer() {
  Counts& of = counts_of(kind_);
  of.buffers -= 1;
  of.buffer_bytes -= static_cast<int64_t>(bytes());
}

void Arena::claim(size_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto claim = claims_.insert(bytes);
  try {
    resize();
  } catch (const Error&) {
    claims_.erase(claim);
    resize();
    throw;
  }
}

void Arena::release(size_t bytes) noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  claims_.erase(claims_.find(bytes));
  try {
    resize();
  } catch (const Error&) {
    // Refused less than what was just given back: memory() is null now, and a run says so.
  }
}

std::shared_ptr<Memory> Arena::memory() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return memory_;
}

// Grows at once; shrinks only by half or more, since memory given back has to be faulted in again.
void Arena::resize() {
  const size_t largest = claims_.empty() ? 0 : *claims_.rbegin();
  const size_t present = memory_ ? memory_->bytes() : 0;
  if (largest == present || (largest < present && largest > present / 2)) return;
  Counts& of = counts_of(source_.kind());
  // The old memory goes first, so that both need not fit at once (unless a run still holds it).
  memory_.reset();
  of.arena_bytes -= static_cast<int64_t>(present);
  if (largest == 0) return;
  memory_ = source_.allocate(largest, Contents::kZeros);
  of.arena_bytes += static_cast<int64_t>(largest);
}

}  // namespace siglip
