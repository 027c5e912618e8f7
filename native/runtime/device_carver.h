// Hands out parts of a kernel's scratch on a GPU, each at a multiple of 256 bytes; without a base it
// only counts, so that one function serves a kernel and its scratch size.
#pragma once

#include <cstddef>
#include <cstdint>

namespace siglip {

class DeviceCarver {
 public:
  // `base` need not be aligned so far: the first part begins at the next multiple.
  explicit DeviceCarver(std::byte* base) : base_(base) {
    if (base != nullptr) bytes_ = (kAlignment - reinterpret_cast<uintptr_t>(base)) % kAlignment;
  }

  template <typename T>
  T* take(int64_t count) {
    T* part = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += (static_cast<size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return part;
  }
  // With room for the way to the first multiple.
  size_t bytes() const { return bytes_ + kAlignment; }

 private:
  static constexpr size_t kAlignment = 256;
  std::byte* base_;
  size_t bytes_ = 0;
};

}  // namespace siglip
