// A block a band: the image rows of one row of patches, in all colours. Patches of the released models
// are compiled for, so that no index costs a division.
#include "ops/patchify/patchify.h"

#include <type_traits>

#include "device/vector.cuh"
#include "runtime/cuda_context.h"
#include "runtime/cuda_dtype.h"

#define SIGLIP_CPU cuda  // the namespace of the checks
#include "cpu/check.h"

namespace siglip::cuda {
namespace {

using device::Floats;

constexpr int kThreads = 256;

struct Geometry {
  int64_t images, colors, height, width, patch;
  int64_t grid_height, grid_width;

  __host__ __device__ int64_t patch_size() const { return colors * patch * patch; }
  // Where a band begins.
  __device__ int64_t band(int64_t image, int64_t grid_y) const {
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

// kPatch 0: any.
template <int kPatch, int kVector, typename T>
struct Variant {
  using Index = std::conditional_t<kPatch != 0, uint32_t, int64_t>;  // within a band

  __device__ static Index patch(const Geometry& g) {
    if constexpr (kPatch != 0) return kPatch;
    return static_cast<Index>(g.patch);
  }
};

// Threads along the patches.
template <int kPatch, int kVector, typename T>
__global__ void __launch_bounds__(kThreads)
    cut_patches(const float* __restrict__ images, Geometry g, T* __restrict__ patches) {
  using Index = typename Variant<kPatch, kVector, T>::Index;
  const Index patch = Variant<kPatch, kVector, T>::patch(g);
  const Index area = patch * patch;
  const Index size = static_cast<Index>(g.colors) * area;
  const Index elements = static_cast<Index>(g.grid_width) * size;
  const float* band = images + g.band(blockIdx.x / g.grid_height, blockIdx.x % g.grid_height);
  T* out = patches + int64_t{blockIdx.x} * g.grid_width * g.patch_size();
#pragma unroll 2
  for (Index i = threadIdx.x * kVector; i < elements; i += kThreads * kVector) {
    const Index grid_x = i / size;
    const Index color = i % size / area;
    const Index row = i % size % area / patch;
    const Index column = i % size % area % patch;
    const float* from = band + (color * g.height + row) * g.width + (grid_x * patch + column);
    device::store(out + i, device::load<kVector>(from));
  }
}

// Threads along the rows of the image; the rows below the last whole patch are one more band, of zeros.
template <int kPatch, int kVector, typename T>
__global__ void __launch_bounds__(kThreads)
    join_patches(const T* __restrict__ dpatches, Geometry g, int64_t bands,
                 float* __restrict__ dimages) {
  using Index = typename Variant<kPatch, kVector, T>::Index;
  const Index patch = Variant<kPatch, kVector, T>::patch(g);
  const int64_t image = blockIdx.x / bands;
  const int64_t grid_y = blockIdx.x % bands;
  const bool whole = grid_y < g.grid_height;
  const auto rows = static_cast<Index>(whole ? g.patch : g.height - grid_y * g.patch);
  const auto width = static_cast<Index>(g.width);
  const auto covered = static_cast<Index>(g.grid_width * g.patch);
  const Index elements = static_cast<Index>(g.colors) * rows * width;
  const T* from = dpatches + (image * g.grid_height + grid_y) * g.grid_width * g.patch_size();
  float* band = dimages + g.band(image, grid_y);
  for (Index i = threadIdx.x * kVector; i < elements; i += kThreads * kVector) {
    const Index x = i % width;
    const Index row = i / width % rows;
    const Index color = i / width / rows;
    Floats<kVector> values = device::splat<kVector>(0.0F);
    if (whole && x < covered) {
      const int64_t at = x / patch * g.patch_size() + (color * patch + row) * patch + x % patch;
      values = device::load<kVector>(from + at);
    }
    device::store(band + (color * g.height + row) * g.width + x, values);
  }
}

// body(Variant) for the patch.
template <typename T, typename Body>
void with_variant(const Geometry& g, bool aligned, const Body& body) {
  constexpr int64_t kMostElements = int64_t{1} << 30;  // of a band, for indices of 32 bits
  const bool small = g.colors * (g.patch + 1) * g.width < kMostElements;
  if (g.patch == 16 && g.width % 8 == 0 && aligned && small) {
    body(Variant<16, 8, T>{});
  } else if (g.patch == 32 && g.width % 8 == 0 && aligned && small) {
    body(Variant<32, 8, T>{});
  } else if (g.patch == 14 && g.width % 2 == 0 && aligned && small) {
    body(Variant<14, 2, T>{});
  } else {
    body(Variant<0, 1, T>{});
  }
}

template <int kPatch, int kVector, typename T>
void cut(cudaStream_t stream, Variant<kPatch, kVector, T>, const float* images, const Geometry& g,
         T* patches) {
  const auto blocks = static_cast<unsigned>(g.images * g.grid_height);
  cut_patches<kPatch, kVector, T><<<blocks, kThreads, 0, stream>>>(images, g, patches);
  check_launch("cut_patches");
}

template <int kPatch, int kVector, typename T>
void join(cudaStream_t stream, Variant<kPatch, kVector, T>, const T* dpatches, const Geometry& g,
          float* dimages) {
  const int64_t bands = (g.height + g.patch - 1) / g.patch;
  const auto blocks = static_cast<unsigned>(g.images * bands);
  join_patches<kPatch, kVector, T><<<blocks, kThreads, 0, stream>>>(dpatches, g, bands, dimages);
  check_launch("join_patches");
}

}  // namespace

void patchify_forward(Stream& stream, In images, int64_t patch, Out patches) {
  constexpr char kName[] = "patchify_forward";
  const Geometry g = geometry(kName, images, patches, patch);
  const float* images_data = images.data();
  with_type(kName, "patches", patches, [&](auto type) {
    using T = decltype(type);
    T* patches_data = elements_of<T>(patches);
    with_variant<T>(g, device::aligned16(images_data, patches_data), [&](auto variant) {
      cut(stream.cuda().stream, variant, images_data, g, patches_data);
    });
  });
}

void patchify_backward(Stream& stream, In dpatches, int64_t patch, Out dimages) {
  constexpr char kName[] = "patchify_backward";
  const Geometry g = geometry(kName, dimages, dpatches, patch);
  float* dimages_data = dimages.data();
  with_type(kName, "dpatches", dpatches, [&](auto type) {
    using T = decltype(type);
    const T* dpatches_data = elements_of<T>(dpatches);
    with_variant<T>(g, device::aligned16(dimages_data, dpatches_data), [&](auto variant) {
      join(stream.cuda().stream, variant, dpatches_data, g, dimages_data);
    });
  });
}

}  // namespace siglip::cuda
