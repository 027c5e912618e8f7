// Device memory: aligned and counted. What is of the CPU stands here.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>

namespace siglip {

inline constexpr size_t kAlignment = 64;

enum class DeviceKind { kCpu = 0, kCuda = 1 };

// What new memory holds: zeros, or, for who writes all of it before anyone reads, whatever was there.
enum class Contents { kZeros, kUndefined };

// What is alive in the process on all devices of a kind.
struct MemoryInUse {
  int64_t buffers;
  int64_t buffer_bytes;
  int64_t arena_bytes;
};
MemoryInUse memory_in_use(DeviceKind kind);

// "12 MiB"
std::string in_mib(size_t bytes);

// Some bytes of a device, given back by the destructor.
class Memory {
 public:
  virtual ~Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 protected:
  explicit Memory(size_t bytes) : bytes_(bytes) {}
  std::byte* data_ = nullptr;

 private:
  size_t bytes_;
};

// Who gives memory: a device.
class MemorySource {
 public:
  virtual DeviceKind kind() const = 0;
  // At a multiple of kAlignment. From any thread. Throws ERR_OUT_OF_MEMORY.
  virtual std::shared_ptr<Memory> allocate(size_t bytes, Contents contents) = 0;

 protected:
  ~MemorySource() = default;
};

// A block of memory of the CPU. Large ones are mapped on their own, with huge pages where the system has them,
// and take physical memory only as they are touched. Throws ERR_OUT_OF_MEMORY when the block, with
// what is already alive, exceeds the memory of the machine, or when the system refuses.
class Block final : public Memory {
 public:
  explicit Block(size_t bytes, Contents contents = Contents::kZeros);
  ~Block() override;

 private:
  void* mapping_ = nullptr;  // null when data_ came from the heap
  size_t mapping_bytes_ = 0;
};

// Memory that outlives a program: weights, states, batches.
class Buffer {
 public:
  Buffer(MemorySource& source, size_t bytes, Contents contents);
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  std::byte* data() const { return memory_->data(); }
  size_t bytes() const { return memory_->bytes(); }

  // True when no queued or running work uses the buffer: then the thread that alone queues work for
  // it may touch the memory directly, in keeping with the order of the queue.
  bool idle() const { return uses_.load(std::memory_order_acquire) == 0; }

 private:
  friend class BufferUse;
  DeviceKind kind_;
  std::shared_ptr<Memory> memory_;
  std::atomic<int> uses_{0};
};

// Keeps a buffer alive, and not idle, as long as queued work needs it.
class BufferUse {
 public:
  explicit BufferUse(std::shared_ptr<Buffer> buffer) : buffer_(std::move(buffer)) {
    buffer_->uses_.fetch_add(1, std::memory_order_relaxed);
  }
  ~BufferUse() {
    if (buffer_) buffer_->uses_.fetch_sub(1, std::memory_order_release);
  }
  BufferUse(BufferUse&&) = default;
  BufferUse(const BufferUse&) = delete;
  BufferUse& operator=(const BufferUse&) = delete;
  BufferUse& operator=(BufferUse&&) = delete;

  Buffer& operator*() const { return *buffer_; }
  Buffer* operator->() const { return buffer_.get(); }

 private:
  std::shared_ptr<Buffer> buffer_;
};

// The memory for intermediates that all programs of a device share, since they run one at a time.
// As large as the largest claim; dropped with the last one. Contents do not survive a run.
class Arena {
 public:
  explicit Arena(MemorySource& source) : source_(source) {}

  // Both from any thread. claim() throws ERR_OUT_OF_MEMORY and then changes nothing.
  void claim(size_t bytes);
  void release(size_t bytes) noexcept;

  // What a run works in; holding it keeps it through a later claim or release. Null when no program
  // has asked for any.
  std::shared_ptr<Memory> memory() const;

 private:
  void resize();

  MemorySource& source_;
  mutable std::mutex mutex_;
  std::multiset<size_t> claims_;
  std::shared_ptr<Memory> memory_;
};

}  // namespace siglip
