// Reading pieces of a file, and turning the element formats of weight files into ours. Every read
// goes through pread and never through a mapping: a file that somebody truncates meanwhile is then
// an error and not a signal that ends the process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "runtime/view.h"

namespace siglip {

class File {
 public:
  // Throws ERR_FILE when `path` is not a regular file that can be read.
  explicit File(const std::string& path);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  int64_t bytes() const { return bytes_; }

  // Fills `into`. Throws ERR_ARGUMENT for a range outside the file as it was when opened, ERR_FILE
  // when it cannot be read in full.
  void read(int64_t offset, std::byte* into, int64_t bytes) const;

 private:
  std::string path_;
  int descriptor_ = -1;
  int64_t bytes_ = 0;
};

// An element format of a file and the dtype it becomes.
struct FileFormat {
  const char* name;
  int64_t bytes;  // of one element in the file
  DType dtype;
  // From `elements` packed, possibly unaligned elements. Throws ERR_WEIGHTS for a value that the
  // dtype cannot hold.
  void (*convert)(const std::byte* from, int64_t elements, void* to);
};

// Throws ERR_ARGUMENT for an unknown name, listing the known ones.
const FileFormat& file_format(const std::string& name);

// Reads and converts. `into` has room for elements · size_of(format.dtype) bytes.
void load(const File& file, int64_t offset, const FileFormat& format, int64_t elements,
          std::byte* into);

}  // namespace siglip
