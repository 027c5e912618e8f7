// The products of the sigmoid loss on sm_90a, bfloat16 throughout. Rows of every operand begin at multiples
// of 16 bytes.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "runtime/cuda_context.h"

namespace siglip::cuda {

struct PairScalars;  // device/pair_tile.cuh

// Rows of partial sums that one call of wgmma_pairs() writes.
constexpr int64_t wgmma_partials(int multiprocessors) { return int64_t{8} * multiprocessors; }

// A block of the logits, as PairBlock of device/tile_epilogues.cuh.
struct WgmmaPairs {
  const __nv_bfloat16* images;  // (rows, width)
  const __nv_bfloat16* texts;   // (columns, width)
  int64_t rows;
  int64_t columns;
  int64_t width;
  int64_t offset;
  const PairScalars* scalars;
  double* partials;
  __nv_bfloat16* gradient;  // or none
  int64_t stride;
};
void wgmma_pairs(const CudaContext& cuda, const char* name, const WgmmaPairs& pairs);

// y (m, n) (+)= op(G) · B with B (k, n) and op(G) = G (m, k), or G (k, m) transposed.
struct WgmmaAdd {
  const __nv_bfloat16* g;
  int64_t stride;  // of G
  bool transpose;
  const __nv_bfloat16* b;
  int64_t m;
  int64_t n;
  int64_t k;
  float* y;
  bool add;
};
void wgmma_add(const CudaContext& cuda, const char* name, const WgmmaAdd& product);

}  // namespace siglip::cuda
