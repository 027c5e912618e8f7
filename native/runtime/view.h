// Views are what kernels see: pointer + dtype + extents, row-major and contiguous. They own nothing.
// The type of a view is its role (In, Out, InOut, and the Maybe forms for optional operands), so a
// kernel's C++ signature is also the description from which the binding table is generated.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/error.h"

namespace siglip {

enum class DType : uint8_t { kFloat32 = 0, kInt32 = 1, kUint8 = 2, kBfloat16 = 3 };
inline constexpr int64_t kDTypes = 4;

constexpr size_t size_of(DType dtype) {
  return dtype == DType::kUint8 ? 1 : dtype == DType::kBfloat16 ? 2 : 4;
}

// The upper half of a float32, as it lies in memory.
struct Bfloat16 {
  uint16_t bits;
};

template <typename T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::kFloat32;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr DType value = DType::kInt32;
};
template <>
struct DTypeOf<uint8_t> {
  static constexpr DType value = DType::kUint8;
};
template <>
struct DTypeOf<Bfloat16> {
  static constexpr DType value = DType::kBfloat16;
};

inline constexpr int kMaxRank = 6;

class View {
 public:
  View() = default;
  View(void* data, DType dtype, int rank, const int64_t* extents)
      : data_(data), dtype_(dtype), rank_(rank) {
    for (int axis = 0; axis < rank; ++axis) extents_[axis] = extents[axis];
  }

  DType dtype() const { return dtype_; }
  int rank() const { return rank_; }
  // Negative axes count from the end, as in Python.
  int64_t extent(int axis) const { return extents_[axis < 0 ? axis + rank_ : axis]; }
  int64_t elements() const {
    int64_t n = 1;
    for (int axis = 0; axis < rank_; ++axis) n *= extents_[axis];
    return n;
  }
  // elements() / extent(-1): the number of rows when everything but the last axis is flattened.
  int64_t rows() const {
    int64_t n = 1;
    for (int axis = 0; axis + 1 < rank_; ++axis) n *= extents_[axis];
    return n;
  }

 protected:
  template <typename T>
  T* typed() const {
    if (dtype_ != DTypeOf<T>::value) {
      throw Error("ERR_DTYPE", "kernel: dtype of a view must match the kernel's, got another");
    }
    return static_cast<T*>(data_);
  }

  void* data_ = nullptr;
  DType dtype_ = DType::kFloat32;
  int rank_ = 0;
  int64_t extents_[kMaxRank] = {};
};

class In : public View {
 public:
  using View::View;
  template <typename T = float>
  const T* data() const {
    return typed<T>();
  }
  // Whatever the dtype.
  const std::byte* bytes() const { return static_cast<const std::byte*>(data_); }
};

// Fully overwritten by the kernel; its former contents are undefined.
class Out : public View {
 public:
  using View::View;
  template <typename T = float>
  T* data() const {
    return typed<T>();
  }
  std::byte* bytes() const { return static_cast<std::byte*>(data_); }
};

// Read and updated in place.
class InOut : public Out {
 public:
  using Out::Out;
};

// Optional operands. When absent, data() is null and present() is false.
class MaybeIn : public In {
 public:
  using In::In;
  bool present() const { return rank_ > 0; }
};

class MaybeOut : public Out {
 public:
  using Out::Out;
  bool present() const { return rank_ > 0; }
};

// Any number of operands of one role.
struct InList {
  const In* items = nullptr;
  int64_t count = 0;
  const In& operator[](int64_t i) const { return items[i]; }
};

// Memory the kernel may scribble on during the call. Its size comes from the kernel's scratch
// function, asked when the program is compiled, so that the planner can place it. 64-byte aligned.
struct Scratch {
  std::byte* data = nullptr;
  size_t bytes = 0;
};

}  // namespace siglip
