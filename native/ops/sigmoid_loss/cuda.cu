// The logits are worked off in blocks. For each, one product makes the dot products and, in its
// epilogue, their losses and factor · G, which goes to the workspace in the dtype of the embeddings;
// two more add G · Y to dX and Gᵀ · X to dY, block after block. Sums go through float64 partials that
// are added up in a fixed order.
#include <cuda_bf16.h>

#include "cuda/pair_products.cuh"
#include "device/tile_epilogues.cuh"
#include "ops/sigmoid_loss/sigmoid_loss.h"
#include "ops/sigmoid_loss/wgmma.h"
#include "runtime/cublaslt.h"
#include "runtime/cuda_context.h"
#include "runtime/cuda_dtype.h"
#include "runtime/device_carver.h"

#define SIGLIP_CPU cuda  // the namespace of the checks
#include "cpu/check.h"

namespace siglip::cuda {
namespace {

constexpr int kFinishThreads = 1024;

// Of the block of G, in elements.
constexpr int64_t kFloatRows = 4096;
constexpr int64_t kFloatColumns = 4096;
constexpr int64_t kLeastRows = 4096;
constexpr int64_t kMostRows = 8192;
constexpr int64_t kColumns = 16384;
constexpr int64_t kGradientAlignment = 64;  // of its rows

struct Extents {
  int64_t rows;
  int64_t columns;
  int64_t width;
};

// Blocks of the logits: multiples of kTile but for the last.
struct Blocks {
  int64_t rows;
  int64_t columns;

  int64_t gradient_stride() const {
    return divide_up(columns, kGradientAlignment) * kGradientAlignment;
  }
};

// Rows such that the tiles of dX, 128 × 256 or 192, fill the multiprocessors a whole number of times.
int64_t rows_of_block(int64_t width, int multiprocessors) {
  const int64_t tile_columns = width % 256 != 0 && width % 192 == 0 ? 192 : 256;
  const int64_t across = width < 1 ? 1 : divide_up(width, tile_columns);
  int64_t down = 0;
  for (int64_t waves = 1; down * kTile < kLeastRows; ++waves) {
    down = waves * multiprocessors / across;
  }
  return smaller(down * kTile, kMostRows);
}

Blocks blocks_of(const Extents& e, DType dtype, int multiprocessors) {
  if (dtype == DType::kFloat32) {
    return {smaller(e.rows, kFloatRows), smaller(e.columns, kFloatColumns)};
  }
  return {smaller(e.rows, rows_of_block(e.width, multiprocessors)), smaller(e.columns, kColumns)};
}

// Rows of partial sums: one for each tile, or what the products of sm_90a take.
int64_t partials_of(const Extents& e, const Blocks& blocks, int multiprocessors) {
  const int64_t tiles = divide_up(e.rows, kTile) * divide_up(e.columns, kTile);
  const int64_t calls = divide_up(e.rows, blocks.rows) * divide_up(e.columns, blocks.columns);
  const int64_t of_calls = calls * wgmma_partials(multiprocessors);
  return tiles > of_calls ? tiles : of_calls;
}

int64_t tiles_of(const Extents& e) {
  return divide_up(e.rows, kTile) * divide_up(e.columns, kTile);
}

struct Workspace {
  PairScalars* scalars;
  double* partials;  // (partials_of(), kPairSums)
  std::byte* gradient;
};

Workspace workspace(const Extents& e, DType dtype, int multiprocessors, bool with_gradient,
                    DeviceCarver& carver) {
  Workspace w;
  w.scalars = carver.take<PairScalars>(1);
  const Blocks blocks = blocks_of(e, dtype, multiprocessors);
  w.partials = carver.take<double>(partials_of(e, blocks, multiprocessors) * kPairSums);
  w.gradient = nullptr;
  if (with_gradient) {
    w.gradient = carver.take<std::byte>(blocks.rows * blocks.gradient_stride() *
                                        static_cast<int64_t>(size_of(dtype)));
  }
  return w;
}

// ---- Kernels -----------------------------------------------------------------------------------

// Adds up `rows` partials and makes of them the scalars that are asked for.
__global__ void __launch_bounds__(kFinishThreads)
    finish_kernel(const double* partials, int64_t rows, const PairScalars* scalars, double batch,
                  float* loss, float* dlogit_scale, float* dlogit_bias) {
  __shared__ double shared[kPairSums][kFinishThreads];
  double sums[kPairSums] = {};
  for (int64_t row = threadIdx.x; row < rows; row += kFinishThreads) {
    for (int i = 0; i < kPairSums; ++i) sums[i] += partials[row * kPairSums + i];
  }
  for (int i = 0; i < kPairSums; ++i) shared[i][threadIdx.x] = sums[i];
  for (int half = kFinishThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x >= half) continue;
    for (int i = 0; i < kPairSums; ++i) shared[i][threadIdx.x] += shared[i][threadIdx.x + half];
  }
  if (threadIdx.x != 0) return;
  *loss = static_cast<float>(shared[0][0] / batch);
  if (dlogit_bias != nullptr) *dlogit_bias = static_cast<float>(shared[1][0] / batch);
  if (dlogit_scale != nullptr) {
    *dlogit_scale = static_cast<float>(shared[2][0] * scalars->scale / batch);
  }
}

// ---- The call ----------------------------------------------------------------------------------

template <typename T>
struct Call {
  const char* name;
  Extents extents;
  const T* images;
  const T* texts;
  const float* logit_scale;
  const float* logit_bias;
  int64_t offset;
  double batch;
  float* loss;
  float* dimages;  // null where it is not wanted, as the others
  float* dtexts;
  float* dlogit_scale;
  float* dlogit_bias;
};

AddTo add_to(float* y, int64_t rows, int64_t width, bool add) {
  return {y,
          width,
          static_cast<int>(rows),
          static_cast<int>(width),
          add,
          reinterpret_cast<uintptr_t>(y) % 8 == 0 && width % 2 == 0};
}

// A part of the logits.
struct Block {
  int64_t row;
  int64_t rows;
  int64_t column;
  int64_t columns;
};

// Makes the losses of a block, and its G where `gradient` is given, and returns how many rows of partial
// sums it wrote.
template <bool kGradient, typename T>
int64_t make_pairs(const CudaContext& cuda, const Call<T>& call, const PairInstructions& by,
                   const Block& block, const PairScalars* scalars, double* partials, T* gradient,
                   int64_t stride) {
  const int64_t width = call.extents.width;
  const T* images = call.images + block.row * width;
  const T* texts = call.texts + block.column * width;
  const int64_t offset = clamp_offset(call.offset) + block.row - block.column;
  if constexpr (sizeof(T) == 2) {
    if (by.wgmma) {
      wgmma_pairs(cuda, call.name,
                  {images, texts, block.rows, block.columns, width, offset, scalars, partials,
                   gradient, stride});
      return wgmma_partials(cuda.multiprocessors);
    }
  }
  const TileShape shape = tile_shape(block.rows, block.columns, width);
  launch_tiles<false, false>(
      cuda, call.name, embeddings(images, width), embeddings(texts, width), shape,
      PairBlock<kGradient, T>{scalars, {shape.m, shape.n, offset}, partials, gradient, stride});
  return shape.tiles();
}

// y (m, width) (+)= op(G) · B with B (k, width) and op(G) = G (m, k), or G (k, m) transposed.
template <bool kTranspose, typename T>
void add_product(const CudaContext& cuda, const char* name, const PairInstructions& by, const T* g,
                 int64_t stride, const T* b, int64_t m, int64_t width, int64_t k, float* y,
                 bool add) {
  if constexpr (sizeof(T) == 2) {
    if (by.library && cuda.blas != nullptr) {
      MatrixProduct product;
      product.m = m;
      product.n = width;
      product.k = k;
      product.transpose_a = kTranspose;
      product.input = DType::kBfloat16;
      product.a = {g, stride, 0};
      product.b = {b, width, 0};
      product.c = y;
      product.c_stride = width;
      product.residual = add ? y : nullptr;
      if (cuda.blas->multiply(product)) return;
    }
    if (by.wgmma) {
      wgmma_add(cuda, name, {g, stride, kTranspose, b, m, width, k, y, add});
      return;
    }
  }
  launch_tiles<kTranspose, true>(cuda, name, TileOperand<T>{g, stride, true}, embeddings(b, width),
                                 tile_shape(m, width, k), add_to(y, m, width, add));
}

// Adds a block's G · Y to dX and Gᵀ · X to dY.
template <typename T>
void add_gradients(const CudaContext& cuda, const Call<T>& call, const PairInstructions& by,
                   const Block& block, const T* gradient, int64_t stride) {
  const int64_t width = call.extents.width;
  if (call.dimages != nullptr) {
    add_product<false>(cuda, call.name, by, gradient, stride, call.texts + block.column * width,
                       block.rows, width, block.columns, call.dimages + block.row * width,
                       block.column > 0);
  }
  if (call.dtexts != nullptr) {
    add_product<true>(cuda, call.name, by, gradient, stride, call.images + block.row * width,
                      block.columns, width, block.rows, call.dtexts + block.column * width,
                      block.row > 0);
  }
}

// Both return the rows of partial sums that were written.
template <typename T>
int64_t run_gradient(const CudaContext& cuda, const Call<T>& call, const PairInstructions& by,
                     const Workspace& w) {
  const Extents& e = call.extents;
  const Blocks blocks = blocks_of(e, kDTypeOf<T>, cuda.multiprocessors);
  T* gradient = reinterpret_cast<T*>(w.gradient);
  const int64_t stride = blocks.gradient_stride();
  int64_t partials = 0;
  for (int64_t column = 0; column < e.columns; column += blocks.columns) {
    for (int64_t row = 0; row < e.rows; row += blocks.rows) {
      const Block block = {row, smaller(blocks.rows, e.rows - row), column,
                           smaller(blocks.columns, e.columns - column)};
      partials += make_pairs<true>(cuda, call, by, block, w.scalars,
                                   w.partials + partials * kPairSums, gradient, stride);
      add_gradients(cuda, call, by, block, gradient, stride);
    }
  }
  return partials;
}

template <typename T>
int64_t run_loss(const CudaContext& cuda, const Call<T>& call, const PairInstructions& by,
                 const Workspace& w) {
  const Block all = {0, call.extents.rows, 0, call.extents.columns};
  return make_pairs<false, T>(cuda, call, by, all, w.scalars, w.partials, nullptr, 0);
}

template <typename T>
void run(Stream& stream, const Call<T>& call, Scratch scratch) {
  const CudaContext& cuda = stream.cuda();
  const Extents& e = call.extents;
  const bool with_gradient = call.dimages != nullptr || call.dtexts != nullptr ||
                             call.dlogit_scale != nullptr || call.dlogit_bias != nullptr;
  DeviceCarver carver(scratch.data);
  const Workspace w = workspace(e, kDTypeOf<T>, cuda.multiprocessors, with_gradient, carver);
  PairInstructions by = pair_instructions(cuda);
  by.wgmma = by.wgmma && embeddings(call.images, e.width).aligned &&
             embeddings(call.texts, e.width).aligned;
  prepare_pairs_kernel<<<1, 1, 0, cuda.stream>>>(call.logit_scale, call.logit_bias, call.batch,
                                                 w.scalars);
  check_launch(call.name);
  const int64_t partials =
      with_gradient ? run_gradient(cuda, call, by, w) : run_loss(cuda, call, by, w);
  finish_kernel<<<1, kFinishThreads, 0, cuda.stream>>>(
      w.partials, partials, w.scalars, call.batch, call.loss, call.dlogit_scale, call.dlogit_bias);
  check_launch(call.name);
}

Extents check_operands(const char* who, const In& images, const In& texts, const In& logit_scale,
                       const In& logit_bias) {
  check_rank(who, "images", images, 2);
  check_rank(who, "texts", texts, 2);
  if (images.dtype() != DType::kBfloat16) check_dtype(who, "images", images, DType::kFloat32);
  check_dtype(who, "texts", texts, images.dtype());
  check_extent(who, "texts", texts, 1, images.extent(1));
  check_elements(who, "logit_scale", logit_scale, 1);
  check_elements(who, "logit_bias", logit_bias, 1);
  constexpr int64_t kMost = int64_t{1} << 30;
  const Extents e = {images.extent(0), texts.extent(0), images.extent(1)};
  if (e.rows < 1 || e.columns < 1 || e.width < 1 || e.rows > kMost || e.columns > kMost ||
      e.width > kMost || tiles_of(e) > kMost) {
    fail("ERR_SHAPE", "%s: extents must be from 1 to 2^30, got %lld, %lld and %lld", who,
         static_cast<long long>(e.rows), static_cast<long long>(e.columns),
         static_cast<long long>(e.width));
  }
  return e;
}

// Null where it is not wanted.
float* data_of(const MaybeOut& y) { return y.present() ? y.data() : nullptr; }

}  // namespace

size_t sigmoid_loss_forward_scratch(int multiprocessors, In images, In texts, MaybeOut dimages,
                                    MaybeOut dtexts, MaybeOut dlogit_scale, MaybeOut dlogit_bias) {
  const Extents e = {images.extent(0), texts.extent(0), images.extent(1)};
  DeviceCarver carver(nullptr);
  workspace(
      e, images.dtype(), multiprocessors,
      dimages.present() || dtexts.present() || dlogit_scale.present() || dlogit_bias.present(),
      carver);
  return carver.bytes();
}

void sigmoid_loss_forward(Stream& stream, In images, In texts, In logit_scale, In logit_bias,
                          int64_t offset, int64_t batch, Out loss, MaybeOut dimages,
                          MaybeOut dtexts, MaybeOut dlogit_scale, MaybeOut dlogit_bias,
                          Scratch scratch) {
  constexpr char kName[] = "sigmoid_loss_forward";
  const Extents e = check_operands(kName, images, texts, logit_scale, logit_bias);
  check_elements(kName, "loss", loss, 1);
  if (dimages.present()) check_elements(kName, "dimages", dimages, images.elements());
  if (dtexts.present()) check_elements(kName, "dtexts", dtexts, texts.elements());
  if (dlogit_scale.present()) check_elements(kName, "dlogit_scale", dlogit_scale, 1);
  if (dlogit_bias.present()) check_elements(kName, "dlogit_bias", dlogit_bias, 1);
  check_scratch(kName, scratch,
                sigmoid_loss_forward_scratch(stream.cuda().multiprocessors, images, texts, dimages,
                                             dtexts, dlogit_scale, dlogit_bias));
  with_type(kName, "images", images, [&](auto type) {
    using T = decltype(type);
    run(stream,
        Call<T>{kName, e, elements_of<T>(images), elements_of<T>(texts), logit_scale.data(),
                logit_bias.data(), offset, static_cast<double>(batch), loss.data(),
                data_of(dimages), data_of(dtexts), data_of(dlogit_scale), data_of(dlogit_bias)},
        scratch);
  });
}

}  // namespace siglip::cuda
