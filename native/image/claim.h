// A part of the arena of a device for as long as a job of images works in it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "runtime/error.h"
#include "runtime/memory.h"

namespace siglip {

// No new memory where a program has claimed as much.
class Claim {
 public:
  Claim(Arena& arena, size_t bytes) : arena_(arena), bytes_(bytes) {
    arena_.claim(bytes_);
    memory_ = arena_.memory();
  }
  ~Claim() { arena_.release(bytes_); }
  Claim(const Claim&) = delete;
  Claim& operator=(const Claim&) = delete;

  // Throws ERR_OUT_OF_MEMORY.
  uint8_t* data() const {
    if (!memory_ || memory_->bytes() < bytes_) {
      throw Error("ERR_OUT_OF_MEMORY", "prepare: the arena must have " + std::to_string(bytes_) +
                                           " bytes, got " +
                                           std::to_string(memory_ ? memory_->bytes() : 0));
    }
    return reinterpret_cast<uint8_t*>(memory_->data());
  }

 private:
  Arena& arena_;
  size_t bytes_;
  std::shared_ptr<Memory> memory_;
};

}  // namespace siglip
