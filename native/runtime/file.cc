#include "runtime/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "runtime/error.h"

namespace siglip {
namespace {

constexpr int64_t kChunkBytes = int64_t{1} << 18;  // stays in the second-level cache

template <typename T>
T element(const std::byte* from, int64_t i) {
  T value;
  std::memcpy(&value, from + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// bfloat16 is the upper half of a float32.
void convert_bfloat16(const std::byte* from, int64_t elements, void* to) {
  auto* out = static_cast<float*>(to);
  for (int64_t i = 0; i < elements; ++i) {
    out[i] = from_bits(static_cast<uint32_t>(element<uint16_t>(from, i)) << 16);
  }
}

// Moving exponent and mantissa into place leaves the exponent too small by 127 − 15 = 112, which a
// product repairs, denormals included; infinities and NaN get the largest exponent instead.
void convert_float16(const std::byte* from, int64_t elements, void* to) {
  auto* out = static_cast<float*>(to);
  for (int64_t i = 0; i < elements; ++i) {
    const uint32_t half = element<uint16_t>(from, i);
    const uint32_t sign = (half & 0x8000U) << 16;
    const uint32_t magnitude = (half & 0x7fffU) << 13;
    const float scaled = from_bits(magnitude) * 0x1p112F;
    uint32_t bits;
    std::memcpy(&bits, &scaled, sizeof(bits));
    out[i] = from_bits(sign | (magnitude >= 0x0f800000U ? magnitude | 0x7f800000U : bits));
  }
}

template <typename From, typename To>
void convert_plain(const std::byte* from, int64_t elements, void* to) {
  if constexpr (std::is_same_v<From, To>) {
    std::memcpy(to, from, static_cast<size_t>(elements) * sizeof(To));
  } else {
    auto* out = static_cast<To*>(to);
    for (int64_t i = 0; i < elements; ++i) out[i] = static_cast<To>(element<From>(from, i));
  }
}

void convert_int64(const std::byte* from, int64_t elements, void* to) {
  using Limits = std::numeric_limits<int32_t>;
  auto* out = static_cast<int32_t*>(to);
  for (int64_t i = 0; i < elements; ++i) {
    const auto value = element<int64_t>(from, i);
    if (value < Limits::min() || value > Limits::max()) {
      throw Error("ERR_WEIGHTS",
                  "load: an int64 must fit into int32, got " + std::to_string(value));
    }
    out[i] = static_cast<int32_t>(value);
  }
}

constexpr FileFormat kFormats[] = {
    {"float64", 8, DType::kFloat32, convert_plain<double, float>},
    {"float32", 4, DType::kFloat32, convert_plain<float, float>},
    {"float16", 2, DType::kFloat32, convert_float16},
    {"bfloat16", 2, DType::kFloat32, convert_bfloat16},
    {"int64", 8, DType::kInt32, convert_int64},
    {"int32", 4, DType::kInt32, convert_plain<int32_t, int32_t>},
    {"int16", 2, DType::kInt32, convert_plain<int16_t, int32_t>},
    {"int8", 1, DType::kInt32, convert_plain<int8_t, int32_t>},
    {"uint8", 1, DType::kUint8, convert_plain<uint8_t, uint8_t>},
    {"bool", 1, DType::kUint8, convert_plain<uint8_t, uint8_t>},
};

[[noreturn]] void fail(const std::string& path, const std::string& what,
                       const std::string& actual) {
  throw Error("ERR_FILE", path + ": " + what + ", got " + actual);
}

}  // namespace

File::File(const std::string& path) : path_(path) {
  // Not blocking, so that a pipe is refused below and not waited for.
  descriptor_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor_ < 0) fail(path, "it must be a readable file", std::strerror(errno));
  struct stat status = {};
  if (fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode)) {
    close(descriptor_);
    fail(path, "it must be a readable file", "something else");
  }
  bytes_ = static_cast<int64_t>(status.st_size);
}

File::~File() { close(descriptor_); }

void File::read(int64_t offset, std::byte* into, int64_t bytes) const {
  if (offset < 0 || bytes < 0 || bytes > bytes_ || offset > bytes_ - bytes) {
    throw Error("ERR_ARGUMENT", path_ + ": a range must lie inside " + std::to_string(bytes_) +
                                    " bytes, got " + std::to_string(bytes) + " bytes at " +
                                    std::to_string(offset));
  }
  int64_t done = 0;
  while (done < bytes) {
    const ssize_t got = pread(descriptor_, into + done, static_cast<size_t>(bytes - done),
                              static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(path_, "it must be readable", std::strerror(errno));
    if (got == 0) {
      fail(path_, "it must keep its " + std::to_string(bytes_) + " bytes while open",
           std::to_string(offset + done));
    }
    done += got;
  }
}

const FileFormat& file_format(const std::string& name) {
  std::string known;
  for (const FileFormat& format : kFormats) {
    if (name == format.name) return format;
    known += (known.empty() ? "" : ", ") + std::string(format.name);
  }
  throw Error("ERR_ARGUMENT", "load: format must be one of " + known + ", got " + name);
}

void load(const File& file, int64_t offset, const FileFormat& format, int64_t elements,
          std::byte* into) {
  const auto size = static_cast<int64_t>(size_of(format.dtype));
  if (elements < 0 || elements > file.bytes() / format.bytes) {
    throw Error("ERR_ARGUMENT", "load: elements must fit into a file of " +
                                    std::to_string(file.bytes()) + " bytes, got " +
                                    std::to_string(elements) + " of " + format.name);
  }
  const bool same = format.convert == convert_plain<float, float> ||
                    format.convert == convert_plain<int32_t, int32_t> ||
                    format.convert == convert_plain<uint8_t, uint8_t>;
  if (same) {
    file.read(offset, into, elements * format.bytes);
    return;
  }
  std::vector<std::byte> chunk(static_cast<size_t>(kChunkBytes));
  const int64_t per_chunk = kChunkBytes / format.bytes;
  for (int64_t done = 0; done < elements; done += per_chunk) {
    const int64_t count = std::min(per_chunk, elements - done);
    file.read(offset + done * format.bytes, chunk.data(), count * format.bytes);
    format.convert(chunk.data(), count, into + done * size);
  }
}

}  // namespace siglip
