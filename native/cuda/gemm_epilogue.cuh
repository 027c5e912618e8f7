// What our own kernels of matrix products do with finished sums, and which block does which tile.
#pragma once

#include <cuda_bf16.h>

#include "cuda/gemm_task.h"
#include "device/gelu.cuh"

namespace siglip::cuda {

struct GemmFour {
  float v[4];
};

__device__ __forceinline__ float load_one(const void* data, bool bfloat16, int64_t at) {
  return bfloat16 ? __bfloat162float(static_cast<const __nv_bfloat16*>(data)[at])
                  : static_cast<const float*>(data)[at];
}

__device__ __forceinline__ void store_one(void* data, bool bfloat16, int64_t at, float value) {
  if (bfloat16) {
    static_cast<__nv_bfloat16*>(data)[at] = __float2bfloat16_rn(value);
  } else {
    static_cast<float*>(data)[at] = value;
  }
}

// Four from a place that is aligned to their size.
__device__ __forceinline__ GemmFour load_four(const void* data, bool bfloat16, int64_t at) {
  if (bfloat16) {
    const uint2 words =
        *reinterpret_cast<const uint2*>(static_cast<const __nv_bfloat16*>(data) + at);
    return {{__uint_as_float(words.x << 16), __uint_as_float(words.x & 0xffff0000U),
             __uint_as_float(words.y << 16), __uint_as_float(words.y & 0xffff0000U)}};
  }
  const float4 four = *reinterpret_cast<const float4*>(static_cast<const float*>(data) + at);
  return {{four.x, four.y, four.z, four.w}};
}

__device__ __forceinline__ void store_four(void* data, bool bfloat16, int64_t at,
                                           const GemmFour& four) {
  if (bfloat16) {
    const __nv_bfloat162 low = __floats2bfloat162_rn(four.v[0], four.v[1]);
    const __nv_bfloat162 high = __floats2bfloat162_rn(four.v[2], four.v[3]);
    *reinterpret_cast<uint2*>(static_cast<__nv_bfloat16*>(data) + at) = make_uint2(
        *reinterpret_cast<const unsigned*>(&low), *reinterpret_cast<const unsigned*>(&high));
    return;
  }
  *reinterpret_cast<float4*>(static_cast<float*>(data) + at) =
      make_float4(four.v[0], four.v[1], four.v[2], four.v[3]);
}

// Sums of a row from `column` on, a multiple of 4; those from column n on are not stored.
__device__ __forceinline__ void store_result(const GemmEpilogue& out, int group, int row,
                                             int column, int n, GemmFour sum) {
  const int64_t at = group * out.group_stride + row * out.stride + column;
  if (out.by_four && column + 4 <= n) {
    if (out.bias != nullptr) {
      const GemmFour bias = load_four(out.bias, out.bfloat16_bias, column);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum.v[i] += bias.v[i];
    }
    if (out.pre != nullptr) store_four(out.pre, out.bfloat16, at, sum);
    if (out.gelu) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum.v[i] = device::gelu(sum.v[i]);
    }
    if (out.residual != nullptr) {
      const GemmFour residual = load_four(out.residual, out.bfloat16, at);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum.v[i] += residual.v[i];
    }
    store_four(out.c, out.bfloat16, at, sum);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (column + i >= n) return;
    float value = sum.v[i];
    if (out.bias != nullptr) value += load_one(out.bias, out.bfloat16_bias, column + i);
    if (out.pre != nullptr) store_one(out.pre, out.bfloat16, at + i, value);
    if (out.gelu) value = device::gelu(value);
    if (out.residual != nullptr) value += load_one(out.residual, out.bfloat16, at + i);
    store_one(out.c, out.bfloat16, at + i, value);
  }
}

// The tile, range of k and group of this block. Blocks that run together share rows and columns: eight
// tiles high, then on to the next column.
struct GemmPlace {
  int group;
  int split;
  int row;  // of the tile's first element
  int column;
  int k_begin;
  int k_end;
};

__device__ __forceinline__ GemmPlace place_of_block(const GemmTask& task, int tile) {
  constexpr int kBand = 8;
  const int tiles = task.tiles_m * task.tiles_n;
  const int product = static_cast<int>(blockIdx.x) / tiles;
  const int index = static_cast<int>(blockIdx.x) % tiles;
  const int band = index / (kBand * task.tiles_n);
  const int in_band = index % (kBand * task.tiles_n);
  const int height = min(kBand, task.tiles_m - band * kBand);
  GemmPlace place;
  place.split = product % task.splits;
  place.group = product / task.splits;
  place.row = (band * kBand + in_band % height) * tile;
  place.column = in_band / height * tile;
  place.k_begin = place.split * task.split_k;
  place.k_end = min(task.k, place.k_begin + task.split_k);
  return place;
}

// Four sums of this block's tile: to their range's partial sums, or to C.
__device__ __forceinline__ void store_sums(const GemmTask& task, const GemmPlace& place, int row,
                                           int column, const GemmFour& sum) {
  if (row >= task.m || column >= task.n) return;
  if (task.splits == 1) {
    store_result(task.epilogue, place.group, row, column, task.n, sum);
    return;
  }
  const int64_t product = int64_t{place.split} * task.groups + place.group;
  float* to = task.partial + (product * task.m + row) * task.n + column;
  if (task.n % 4 == 0) {
    store_four(to, false, 0, sum);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (column + i < task.n) to[i] = sum.v[i];
  }
}

}  // namespace siglip::cuda
