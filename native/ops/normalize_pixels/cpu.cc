#include "ops/normalize_pixels/normalize_pixels.h"

#include "cpu/check.h"
#include "cpu/partition.h"
#include "cpu/resample.h"

namespace siglip::SIGLIP_CPU {

void normalize_pixels_forward(Stream& stream, In pixels, In table, Out images) {
  constexpr char kName[] = "normalize_pixels_forward";
  constexpr int64_t kColors = 3;
  constexpr int64_t kLevels = 256;
  check_rank(kName, "pixels", pixels, 4);
  check_extent(kName, "pixels", pixels, 3, kColors);
  check_elements(kName, "table", table, kColors * kLevels);
  check_elements(kName, "images", images, pixels.elements());
  const int64_t height = pixels.extent(1);
  const int64_t width = pixels.extent(2);
  const uint8_t* pixels_data = pixels.data<uint8_t>();
  const float* table_data = table.data();
  float* images_data = images.data();
  const Partition part = partition(pixels.extent(0) * height, kColors * width);
  stream.parallel(part.tasks(), [&](int64_t task, int) {
    for (int64_t row = part.begin(task); row < part.end(task); ++row) {
      const uint8_t* from = pixels_data + row * width * kColors;
      float* red = images_data + (row / height * kColors * height + row % height) * width;
      float* green = red + height * width;
      float* blue = green + height * width;
      pixels_to_planes(table_data, from, width, red, green, blue);
    }
  });
}

}  // namespace siglip::SIGLIP_CPU
