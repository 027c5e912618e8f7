#include "ops/sigmoid_loss/wgmma.h"

#include "device/tile_epilogues_sm90.cuh"
#include "device/tile_product_sm90.cuh"
#include "runtime/tensor_map.h"

namespace siglip::cuda {
namespace {

constexpr int kLogitColumns = 256;

// A matrix in memory (rows, columns), in boxes of 64 columns and so many rows.
CUtensorMap matrix_map(const __nv_bfloat16* data, int64_t rows, int64_t columns, int64_t stride,
                       int box_rows) {
  const int64_t extents[] = {columns, rows};
  const int box[] = {64, box_rows};
  return tensor_map(data, 2, extents, &stride, box, Swizzle::k128);
}

template <int kColumns, bool kAcrossA, bool kAcrossB, typename Epilogue>
void launch(const CudaContext& cuda, const char* name, const CUtensorMap& a, const CUtensorMap& b,
            const TileShape& shape, const Epilogue& epilogue) {
  const auto kernel = wgmma_product_kernel<kColumns, kAcrossA, kAcrossB, Epilogue>;
  constexpr int kShared = WgmmaTile<kColumns>::kShared;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared),
             name);
  const int tiles = (shape.m + kWgmmaRows - 1) / kWgmmaRows * ((shape.n + kColumns - 1) / kColumns);
  const int blocks = tiles < cuda.multiprocessors ? tiles : cuda.multiprocessors;
  kernel<<<static_cast<unsigned>(blocks), kWgmmaThreads, kShared, cuda.stream>>>(a, b, shape,
                                                                                 epilogue);
  check_launch(name);
}

TileShape tile_shape(int64_t m, int64_t n, int64_t k) {
  return {static_cast<int>(m), static_cast<int>(n), static_cast<int>(k)};
}

template <int kColumns>
void launch_add(const CudaContext& cuda, const char* name, const WgmmaAdd& p) {
  const TileShape shape = tile_shape(p.m, p.n, p.k);
  const WgmmaAddTo epilogue = {
      {p.y, p.n, shape.m, shape.n, p.add, reinterpret_cast<uintptr_t>(p.y) % 8 == 0}};
  const CUtensorMap b = matrix_map(p.b, p.k, p.n, p.n, kWgmmaDepth);
  if (p.transpose) {
    const CUtensorMap a = matrix_map(p.g, p.k, p.m, p.stride, kWgmmaDepth);
    launch<kColumns, true, true>(cuda, name, a, b, shape, epilogue);
  } else {
    const CUtensorMap a = matrix_map(p.g, p.m, p.k, p.stride, kWgmmaRows);
    launch<kColumns, false, true>(cuda, name, a, b, shape, epilogue);
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
    launch<kLogitColumns, false, false>(cuda, name, a, b, shape, epilogue);
  };
  // Blocks beyond the number of tiles write no partial sums.
  check_cuda(cudaMemsetAsync(p.partials, 0,
                             static_cast<size_t>(wgmma_partials(cuda.multiprocessors) * kPairSums) *
                                 sizeof(double),
                             cuda.stream),
             name);
  if (p.gradient == nullptr) {
    with(WgmmaPairBlock<true, false>());
  } else if (p.loss) {
    with(WgmmaPairBlock<true, true>());
  } else {
    with(WgmmaPairBlock<false, true>());
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
