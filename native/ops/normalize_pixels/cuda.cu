#include "ops/normalize_pixels/normalize_pixels.h"

#include "device/vector.cuh"
#include "runtime/cuda_context.h"

#define SIGLIP_CPU cuda  // the namespace of the checks
#include "cpu/check.h"

namespace siglip::cuda {
namespace {

using device::Floats;

constexpr int kColors = 3;
constexpr int kLevels = 256;
constexpr int kThreads = 256;
constexpr int kRounds = 4;  // of a block

// kPixels neighbours a thread: 4, as three words in and 16 bytes a colour out, or 1.
template <int kPixels>
__global__ void __launch_bounds__(kThreads)
    look_up(const uint8_t* __restrict__ pixels, const float* __restrict__ table, int64_t area,
            int64_t blocks_per_image, float* __restrict__ images) {
  __shared__ float levels[kColors * kLevels];
  for (int i = threadIdx.x; i < kColors * kLevels; i += kThreads) levels[i] = table[i];
  __syncthreads();
  const int64_t image = blockIdx.x / blocks_per_image;
  const int64_t first = blockIdx.x % blocks_per_image * (kThreads * kRounds * kPixels);
  const uint8_t* from = pixels + image * area * kColors;
  float* to = images + image * area * kColors;
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const int64_t p = first + (round * kThreads + threadIdx.x) * kPixels;
    if (p >= area) return;
    uint8_t bytes[kPixels * kColors];
    if constexpr (kPixels == 4) {
      const auto* words = reinterpret_cast<const uint32_t*>(from + p * kColors);
#pragma unroll
      for (int i = 0; i < kPixels * kColors; ++i) bytes[i] = words[i / 4] >> (8 * (i % 4));
    } else {
#pragma unroll
      for (int i = 0; i < kPixels * kColors; ++i) bytes[i] = from[p * kColors + i];
    }
#pragma unroll
    for (int color = 0; color < kColors; ++color) {
      Floats<kPixels> values;
#pragma unroll
      for (int i = 0; i < kPixels; ++i) {
        values[i] = levels[color * kLevels + bytes[i * kColors + color]];
      }
      device::store(to + color * area + p, values);
    }
  }
}

}  // namespace

void normalize_pixels_forward(Stream& stream, In pixels, In table, Out images) {
  constexpr char kName[] = "normalize_pixels_forward";
  check_rank(kName, "pixels", pixels, 4);
  check_extent(kName, "pixels", pixels, 3, kColors);
  check_elements(kName, "table", table, kColors * kLevels);
  check_elements(kName, "images", images, pixels.elements());
  const int64_t area = pixels.extent(1) * pixels.extent(2);
  const uint8_t* pixels_data = pixels.data<uint8_t>();
  const float* table_data = table.data();
  float* images_data = images.data();
  const bool vectors = area % 4 == 0 && device::aligned16(pixels_data, images_data);
  const int64_t block_pixels = kThreads * kRounds * (vectors ? 4 : 1);
  const int64_t blocks_per_image = (area + block_pixels - 1) / block_pixels;
  const auto kernel = vectors ? look_up<4> : look_up<1>;
  kernel<<<static_cast<unsigned>(pixels.extent(0) * blocks_per_image), kThreads, 0,
           stream.cuda().stream>>>(pixels_data, table_data, area, blocks_per_image, images_data);
  check_launch("look_up");
}

}  // namespace siglip::cuda
