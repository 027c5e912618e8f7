// How kernels that work on pairs of embeddings launch their products: sigmoid_loss and learnability.
#pragma once

#include <cuda_bf16.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "device/tile_epilogues.cuh"
#include "device/tile_product_sm90.cuh"
#include "runtime/cuda_context.h"
#include "runtime/error.h"
#include "runtime/tensor_map.h"
#include "runtime/view.h"

namespace siglip::cuda {

template <typename T>
inline constexpr DType kDTypeOf = sizeof(T) == 2 ? DType::kBfloat16 : DType::kFloat32;

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

inline TileShape tile_shape(int64_t m, int64_t n, int64_t k) {
  return {static_cast<int>(m), static_cast<int>(n), static_cast<int>(k)};
}

// Rows of embeddings, one behind the other.
template <typename T>
TileOperand<T> embeddings(const T* data, int64_t width) {
  return {data, width, reinterpret_cast<uintptr_t>(data) % 16 == 0 && width * sizeof(T) % 16 == 0};
}

// How far the columns of positives may be from their rows: farther ones are outside of any block.
inline int64_t clamp_offset(int64_t offset) {
  constexpr int64_t kFar = int64_t{1} << 40;
  return offset < -kFar ? -kFar : offset > kFar ? kFar : offset;
}

// By what products of bfloat16 are made: by cuBLASLt where it is there and has no epilogue to run, by wgmma
// where the device has it, else by mma. SIGLIP2_CUDA_LOSS is mma or wgmma, where one wants to say so.
struct PairInstructions {
  bool library;
  bool wgmma;
};

inline PairInstructions pair_instructions(const CudaContext& cuda) {
  const char* word = std::getenv("SIGLIP2_CUDA_LOSS");
  const bool able = cuda.architecture >= 90;
  if (word == nullptr || *word == '\0') return {true, able};
  const bool wgmma = std::strcmp(word, "wgmma") == 0;
  if ((!wgmma && std::strcmp(word, "mma") != 0) || (wgmma && !able)) {
    throw Error("ERR_ARGUMENT", std::string("cuda: SIGLIP2_CUDA_LOSS must be mma") +
                                    (able ? " or wgmma" : "") + " on this device, got " + word);
  }
  return {false, wgmma};
}

// One thread makes the scalars of a call from t and b.
static __global__ void prepare_pairs_kernel(const float* logit_scale, const float* logit_bias,
                                            double batch, PairScalars* scalars) {
  constexpr double kLog2EDouble = 1.4426950408889634;
  const double scale = exp(static_cast<double>(*logit_scale));
  PairScalars s;
  s.scale2 = static_cast<float>(scale * kLog2EDouble);
  s.bias2 = static_cast<float>(static_cast<double>(*logit_bias) * kLog2EDouble);
  s.factor = static_cast<float>(scale / batch);
  s.scale = scale;
  *scalars = s;
}

template <bool kAcrossA, bool kAcrossB, typename T, typename Epilogue>
void launch_tiles(const CudaContext& cuda, const char* name, const TileOperand<T>& a,
                  const TileOperand<T>& b, const TileShape& shape, const Epilogue& epilogue) {
  const auto kernel = tile_product_kernel<kAcrossA, kAcrossB, T, Epilogue>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kTileShared),
             name);
  kernel<<<static_cast<unsigned>(shape.tiles()), kTileThreads, kTileShared, cuda.stream>>>(
      a, b, shape, epilogue);
  check_launch(name);
}

// A matrix in memory (rows, columns), in boxes of 64 columns and so many rows.
inline CUtensorMap matrix_map(const __nv_bfloat16* data, int64_t rows, int64_t columns,
                              int64_t stride, int box_rows) {
  const int64_t extents[] = {columns, rows};
  const int box[] = {64, box_rows};
  return tensor_map(data, 2, extents, &stride, box, Swizzle::k128);
}

template <int kColumns, bool kAcrossA, bool kAcrossB, typename Epilogue>
void launch_wgmma(const CudaContext& cuda, const char* name, const CUtensorMap& a,
                  const CUtensorMap& b, const TileShape& shape, const Epilogue& epilogue) {
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

}  // namespace siglip::cuda
