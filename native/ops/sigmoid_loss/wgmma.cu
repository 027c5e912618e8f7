#include "ops/sigmoid_loss/wgmma.h"

#include "cuda/pair_products.cuh"
#include "device/tile_epilogues_sm90.cuh"
#include "device/tile_product_sm90.cuh"

namespace siglip::cuda {
namespace {

constexpr int kLogitColumns = 256;

template <int kColumns>
void launch_add(const CudaContext& cuda, const char* name, const WgmmaAdd& p) {
  const TileShape shape = tile_shape(p.m, p.n, p.k);
  const WgmmaAddTo epilogue = {
      {p.y, p.n, shape.m, shape.n, p.add, reinterpret_cast<uintptr_t>(p.y) % 8 == 0}};
  const CUtensorMap b = matrix_map(p.b, p.k, p.n, p.n, kWgmmaDepth);
  if (p.transpose) {
    const CUtensorMap a = matrix_map(p.g, p.k, p.m, p.stride, kWgmmaDepth);
    launch_wgmma<kColumns, true, true>(cuda, name, a, b, shape, epilogue);
  } else {
    const CUtensorMap a = matrix_map(p.g, p.m, p.k, p.stride, kWgmmaRows);
    launch_wgmma<kColumns, false, true>(cuda, name, a, b, shape, epilogue);
  }
}

}  // namespace

void wgmma_pairs(const CudaContext& cuda, const char* name, const WgmmaPairs& p) {
  const TileShape shape = tile_shape(p.rows, p.columns, p.width);
  const CUtensorMap a = matrix_map(p.images, p.rows, p.width, p.width, kWgmmaRows);
  const CUtensorMap b = matrix_map(p.texts, p.columns, p.width, p.width, kLogitColumns);
  const auto with = [&](auto epilogue) {
    epilogue.scalars = p.scalars;
    epilogue.window = {shape.m, shape.n, p.offset};
    epilogue.partials = p.partials;
    epilogue.gradient = p.gradient;
    epilogue.stride = p.stride;
    launch_wgmma<kLogitColumns, false, false>(cuda, name, a, b, shape, epilogue);
  };
  // Blocks beyond the number of tiles write no partial sums.
  check_cuda(cudaMemsetAsync(p.partials, 0,
                             static_cast<size_t>(wgmma_partials(cuda.multiprocessors) * kPairSums) *
                                 sizeof(double),
                             cuda.stream),
             name);
  if (p.gradient == nullptr) {
    with(WgmmaPairBlock<false>());
  } else {
    with(WgmmaPairBlock<true>());
  }
}

void wgmma_add(const CudaContext& cuda, const char* name, const WgmmaAdd& product) {
  if (product.n % 256 != 0 && product.n % 192 == 0) {
    launch_add<192>(cuda, name, product);
  } else {
    launch_add<256>(cuda, name, product);
  }
}

}  // namespace siglip::cuda
