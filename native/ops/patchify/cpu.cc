#include "ops/patchify/patchify.h"

#include "cpu/check.h"
#include "cpu/partition.h"
#include "cpu/simd.h"

namespace siglip::SIGLIP_CPU {
namespace {

// A patch's row is 14 or 16 floats: too short for a call of memcpy. The last vector may overlap the
// one before it.
inline void copy_run(const float* from, float* to, int64_t n) {
  if (n < kLanes) {
    std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
    return;
  }
  for (int64_t i = 0; i + kLanes < n; i += kLanes) store(to + i, load(from + i));
  store(to + n - kLanes, load(from + n - kLanes));
}

inline void zero(float* to, int64_t n) {
  std::memset(to, 0, static_cast<size_t>(n) * sizeof(float));
}

struct Geometry {
  int64_t images, colors, height, width, patch;
  int64_t grid_height, grid_width;

  int64_t patch_size() const { return colors * patch * patch; }
  // Where a band begins: the image rows of one row of patches, in all colours.
  int64_t band(int64_t image, int64_t grid_y) const {
    return (image * colors * height + grid_y * patch) * width;
  }
};

Geometry geometry(const char* who, const View& images, const View& patches, int64_t patch) {
  check_rank(who, "images", images, 4);
  const int64_t height = images.extent(2);
  const int64_t width = images.extent(3);
  if (patch < 1 || patch > height || patch > width) {
    fail("ERR_ARGUMENT", "%s: patch must be in [1, %lld], got %lld", who,
         static_cast<long long>(height < width ? height : width), static_cast<long long>(patch));
  }
  const Geometry g = {images.extent(0), images.extent(1), height, width, patch,
                      height / patch,   width / patch};
  check_elements(who, "patches", patches, g.images * g.grid_height * g.grid_width * g.patch_size());
  return g;
}

}  // namespace

void patchify_forward(Stream& stream, In images, int64_t patch, Out patches) {
  const Geometry g = geometry("patchify_forward", images, patches, patch);
  const float* images_data = images.data();
  float* patches_data = patches.data();
  const Partition part = partition(g.images * g.grid_height, g.grid_width * g.patch_size());
  stream.parallel(part.tasks(), [&](int64_t task, int) {
    for (int64_t item = part.begin(task); item < part.end(task); ++item) {
      const float* band = images_data + g.band(item / g.grid_height, item % g.grid_height);
      float* out = patches_data + item * g.grid_width * g.patch_size();
      for (int64_t color = 0; color < g.colors; ++color) {
        for (int64_t row = 0; row < g.patch; ++row) {
          const float* from = band + (color * g.height + row) * g.width;
          float* to = out + (color * g.patch + row) * g.patch;
          for (int64_t grid_x = 0; grid_x < g.grid_width; ++grid_x) {
            copy_run(from + grid_x * g.patch, to + grid_x * g.patch_size(), g.patch);
          }
        }
      }
    }
  });
}

void patchify_backward(Stream& stream, In dpatches, int64_t patch, Out dimages) {
  const Geometry g = geometry("patchify_backward", dimages, dpatches, patch);
  const float* dpatches_data = dpatches.data();
  float* dimages_data = dimages.data();
  // The rows below the last whole patch are one more band, of zeros.
  const int64_t bands = (g.height + g.patch - 1) / g.patch;
  const int64_t covered_width = g.grid_width * g.patch;
  const Partition part = partition(g.images * bands, g.colors * g.patch * g.width);
  stream.parallel(part.tasks(), [&](int64_t task, int) {
    for (int64_t item = part.begin(task); item < part.end(task); ++item) {
      const int64_t image = item / bands;
      const int64_t grid_y = item % bands;
      float* band = dimages_data + g.band(image, grid_y);
      const bool whole = grid_y < g.grid_height;
      const float* from =
          dpatches_data + (image * g.grid_height + grid_y) * g.grid_width * g.patch_size();
      const int64_t rows = whole ? g.patch : g.height - g.grid_height * g.patch;
      for (int64_t color = 0; color < g.colors; ++color) {
        for (int64_t row = 0; row < rows; ++row) {
          float* to = band + (color * g.height + row) * g.width;
          if (!whole) {
            zero(to, g.width);
            continue;
          }
          const float* source = from + (color * g.patch + row) * g.patch;
          for (int64_t grid_x = 0; grid_x < g.grid_width; ++grid_x) {
            copy_run(source + grid_x * g.patch_size(), to + grid_x * g.patch, g.patch);
          }
          zero(to + covered_width, g.width - covered_width);
        }
      }
    }
  });
}

}  // namespace siglip::SIGLIP_CPU
