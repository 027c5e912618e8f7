// Host memory on its way to or from a device.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

namespace siglip {

class Staging {
 public:
  virtual ~Staging() = default;
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  std::byte* data() const { return data_; }
  // Whether it is a block of a pool.
  virtual bool pooled() const { return false; }

 protected:
  explicit Staging(std::byte* data) : data_(data) {}

 private:
  std::byte* data_;
};

// From the heap, contents undefined.
class HeapStaging final : public Staging {
 public:
  explicit HeapStaging(size_t bytes) : HeapStaging(new std::byte[bytes], bytes) {}

 private:
  HeapStaging(std::byte* data, size_t) : Staging(data), owned_(data) {}
  std::unique_ptr<std::byte[]> owned_;
};

// Blocks that are costly to make and kept for reuse: memory of the host that the system has promised
// not to move, from and to which a GPU copies by itself.
class StagingPool {
 public:
  using Make = std::function<std::byte*(size_t bytes)>;  // null when refused
  using Free = std::function<void(std::byte*)>;

  // Keeps at most `limit` bytes.
  StagingPool(Make make, Free free, size_t limit)
      : make_(std::move(make)), free_(std::move(free)), limit_(limit) {}

  // A free block of at least that size and not far beyond it, or null. From any thread, and quick. The
  // pool must outlive it.
  std::unique_ptr<Staging> take(size_t bytes);

  // Makes a block of that size and adds it; free ones of other sizes go when the limit asks for it.
  // Does nothing when it does not fit beside those in use, or is refused. May take milliseconds.
  void grow(size_t bytes);

  // Frees what is not in use.
  void shrink();

  size_t bytes() const;

 private:
  using Blocks = std::multimap<size_t, std::byte*>;  // by size
  class Pooled;
  static size_t rounded(size_t bytes);
  void give_back(Blocks::node_type block) noexcept;
  // The free block to be given up first, taken out; null when there is none. With the lock held.
  std::byte* evict();

  Make make_;
  Free free_;
  size_t limit_;
  mutable std::mutex mutex_;
  size_t bytes_ = 0;  // of all blocks
  Blocks free_blocks_;
};

}  // namespace siglip
