// The logits are worked off in blocks. For each, one product makes the dot products and, in its
// epilogue, their losses and factor · G, which goes to the workspace in the dtype of the embeddings;
// two more add G · Y to dX and Gᵀ · X to dY, block after block. Sums go through float64 partials that
// are added up in a fixed order.
#include <cuda_bf16.h>

#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "device/tile_epilogues.cuh"
#include "ops/sigmoid_loss/sigmoid_loss.h"
#include "ops/sigmoid_loss/wgmma.h"
#include "runtime/cuda_context.h"
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

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

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
  const int64_t across = divide_up(width, tile_columns);
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

size_t scratch_bytes(int multiprocessors, const In& images, const In& texts, bool with_gradient) {
  const Extents e = {images.extent(0), texts.extent(0), images.extent(1)};
  DeviceCarver carver(nullptr);
  workspace(e, images.dtype(), multiprocessors, with_gradient, carver);
  return carver.bytes();
}

// ---- Kernels -----------------------------------------------------------------------------------

// dloss: none means 1.
__global__ void prepare_kernel(const float* logit_scale, const float* logit_bias,
                               const float* dloss, double batch, PairScalars* scalars) {
  constexpr double kLog2EDouble = 1.4426950408889634;
  const double scale = exp(static_cast<double>(*logit_scale));
  const double upstream = (dloss == nullptr ? 1.0 : static_cast<double>(*dloss)) / batch;
  PairScalars s;
  s.scale2 = static_cast<float>(scale * kLog2EDouble);
  s.bias2 = static_cast<float>(static_cast<double>(*logit_bias) * kLog2EDouble);
  s.factor = static_cast<float>(scale * upstream);
  s.scale = scale;
  s.upstream = upstream;
  *scalars = s;
}

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
  if (loss != nullptr) *loss = static_cast<float>(shared[0][0] / batch);
  if (dlogit_bias != nullptr) *dlogit_bias = static_cast<float>(shared[1][0] * scalars->upstream);
  if (dlogit_scale != nullptr) {
    *dlogit_scale = static_cast<float>(shared[2][0] * scalars->scale * scalars->upstream);
  }
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

// ---- The call ----------------------------------------------------------------------------------

template <typename T>
constexpr DType kDTypeOf = sizeof(T) == 2 ? DType::kBfloat16 : DType::kFloat32;

template <typename T>
struct Call {
  const char* name;
  Extents extents;
  const T* images;
  const T* texts;
  const float* logit_scale;
  const float* logit_bias;
  const float* dloss;  // none: 1
  int64_t offset;
  double batch;
  float* loss;     // or none
  float* dimages;  // with the other gradients, or none
  float* dtexts;
  float* dlogit_scale;
  float* dlogit_bias;
};

template <typename T>
TileOperand<T> embeddings(const T* data, int64_t width) {
  return {data, width, reinterpret_cast<uintptr_t>(data) % 16 == 0 && width * sizeof(T) % 16 == 0};
}

AddTo add_to(float* y, int64_t rows, int64_t width, bool add) {
  return {y,
          width,
          static_cast<int>(rows),
          static_cast<int>(width),
          add,
          reinterpret_cast<uintptr_t>(y) % 8 == 0 && width % 2 == 0};
}

TileShape tile_shape(int64_t m, int64_t n, int64_t k) {
  return {static_cast<int>(m), static_cast<int>(n), static_cast<int>(k)};
}

// Positions outside any block need not be told apart.
int64_t clamp_offset(int64_t offset) {
  constexpr int64_t kFar = int64_t{1} << 40;
  return offset < -kFar ? -kFar : offset > kFar ? kFar : offset;
}

// SIGLIP2_CUDA_LOSS is mma or wgmma, where one wants to say which products bfloat16 takes.
bool wgmma_wanted(const CudaContext& cuda) {
  const char* word = std::getenv("SIGLIP2_CUDA_LOSS");
  if (word == nullptr || *word == '\0') return cuda.architecture >= 90;
  const bool wgmma = std::strcmp(word, "wgmma") == 0;
  if ((!wgmma && std::strcmp(word, "mma") != 0) || (wgmma && cuda.architecture < 90)) {
    fail("ERR_ARGUMENT", "cuda: SIGLIP2_CUDA_LOSS must be mma%s on this device, got %s",
         cuda.architecture < 90 ? "" : " or wgmma", word);
  }
  return wgmma;
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
template <bool kLoss, bool kGradient, typename T>
int64_t make_pairs(const CudaContext& cuda, const Call<T>& call, bool wgmma, const Block& block,
                   const PairScalars* scalars, double* partials, T* gradient, int64_t stride) {
  const int64_t width = call.extents.width;
  const T* images = call.images + block.row * width;
  const T* texts = call.texts + block.column * width;
  const int64_t offset = clamp_offset(call.offset) + block.row - block.column;
  if constexpr (sizeof(T) == 2) {
    if (wgmma) {
      wgmma_pairs(cuda, call.name,
                  {images, texts, block.rows, block.columns, width, offset, scalars, partials,
                   gradient, stride, kLoss});
      return wgmma_partials(cuda.multiprocessors);
    }
  }
  const TileShape shape = tile_shape(block.rows, block.columns, width);
  launch_tiles<false, false>(cuda, call.name, embeddings(images, width), embeddings(texts, width),
                             shape,
                             PairBlock<kLoss, kGradient, T>{
                                 scalars, {shape.m, shape.n, offset}, partials, gradient, stride});
  return shape.tiles();
}

// Adds a block's G · Y to dX and Gᵀ · X to dY.
template <typename T>
void add_gradients(const CudaContext& cuda, const Call<T>& call, bool wgmma, const Block& block,
                   const T* gradient, int64_t stride) {
  const int64_t width = call.extents.width;
  const T* images = call.images + block.row * width;
  const T* texts = call.texts + block.column * width;
  float* dimages = call.dimages + block.row * width;
  float* dtexts = call.dtexts + block.column * width;
  if constexpr (sizeof(T) == 2) {
    if (wgmma) {
      wgmma_add(cuda, call.name,
                {gradient, stride, false, texts, block.rows, width, block.columns, dimages,
                 block.column > 0});
      wgmma_add(cuda, call.name,
                {gradient, stride, true, images, block.columns, width, block.rows, dtexts,
                 block.row > 0});
      return;
    }
  }
  const TileOperand<T> g = {gradient, stride, true};
  launch_tiles<false, true>(cuda, call.name, g, embeddings(texts, width),
                            tile_shape(block.rows, width, block.columns),
                            add_to(dimages, block.rows, width, block.column > 0));
  launch_tiles<true, true>(cuda, call.name, g, embeddings(images, width),
                           tile_shape(block.columns, width, block.rows),
                           add_to(dtexts, block.columns, width, block.row > 0));
}

// Both return the rows of partial sums that were written.
template <bool kLoss, typename T>
int64_t run_gradient(const CudaContext& cuda, const Call<T>& call, bool wgmma, const Workspace& w) {
  const Extents& e = call.extents;
  const Blocks blocks = blocks_of(e, kDTypeOf<T>, cuda.multiprocessors);
  T* gradient = reinterpret_cast<T*>(w.gradient);
  const int64_t stride = blocks.gradient_stride();
  int64_t partials = 0;
  for (int64_t column = 0; column < e.columns; column += blocks.columns) {
    for (int64_t row = 0; row < e.rows; row += blocks.rows) {
      const Block block = {row, smaller(blocks.rows, e.rows - row), column,
                           smaller(blocks.columns, e.columns - column)};
      partials += make_pairs<kLoss, true>(cuda, call, wgmma, block, w.scalars,
                                          w.partials + partials * kPairSums, gradient, stride);
      add_gradients(cuda, call, wgmma, block, gradient, stride);
    }
  }
  return partials;
}

template <typename T>
int64_t run_loss(const CudaContext& cuda, const Call<T>& call, bool wgmma, const Workspace& w) {
  const Block all = {0, call.extents.rows, 0, call.extents.columns};
  return make_pairs<true, false, T>(cuda, call, wgmma, all, w.scalars, w.partials, nullptr, 0);
}

template <typename T>
void run(Stream& stream, const Call<T>& call, Scratch scratch) {
  const CudaContext& cuda = stream.cuda();
  const Extents& e = call.extents;
  const bool with_gradient = call.dimages != nullptr;
  DeviceCarver carver(scratch.data);
  const Workspace w = workspace(e, kDTypeOf<T>, cuda.multiprocessors, with_gradient, carver);
  const bool wgmma = sizeof(T) == 2 && wgmma_wanted(cuda) &&
                     embeddings(call.images, e.width).aligned &&
                     embeddings(call.texts, e.width).aligned;
  prepare_kernel<<<1, 1, 0, cuda.stream>>>(call.logit_scale, call.logit_bias, call.dloss,
                                           call.batch, w.scalars);
  check_launch(call.name);
  int64_t partials;
  if (!with_gradient) {
    partials = run_loss(cuda, call, wgmma, w);
  } else if (call.loss == nullptr) {
    partials = run_gradient<false>(cuda, call, wgmma, w);
  } else {
    partials = run_gradient<true>(cuda, call, wgmma, w);
  }
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

struct Gradients {
  const Out& images;
  const Out& texts;
  const Out& logit_scale;
  const Out& logit_bias;
};

// Loss, gradients or both, of either dtype.
void dispatch(Stream& stream, const char* name, const Extents& e, const In* dloss, const In& images,
              const In& texts, const In& logit_scale, const In& logit_bias, int64_t offset,
              int64_t batch, const Out* loss, const Gradients* gradients, Scratch scratch) {
  const auto with = [&](auto* images_data, auto* texts_data) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(images_data)>>;
    Call<T> call = {};
    call.name = name;
    call.extents = e;
    call.images = images_data;
    call.texts = texts_data;
    call.logit_scale = logit_scale.data();
    call.logit_bias = logit_bias.data();
    call.dloss = dloss == nullptr ? nullptr : dloss->data();
    call.offset = offset;
    call.batch = static_cast<double>(batch);
    call.loss = loss == nullptr ? nullptr : loss->data();
    if (gradients != nullptr) {
      call.dimages = gradients->images.data();
      call.dtexts = gradients->texts.data();
      call.dlogit_scale = gradients->logit_scale.data();
      call.dlogit_bias = gradients->logit_bias.data();
    }
    run(stream, call, scratch);
  };
  if (images.dtype() == DType::kFloat32) {
    with(images.data(), texts.data());
  } else {
    with(reinterpret_cast<const __nv_bfloat16*>(images.data<bfloat16>()),
         reinterpret_cast<const __nv_bfloat16*>(texts.data<bfloat16>()));
  }
}

}  // namespace

size_t sigmoid_loss_forward_scratch(int multiprocessors, In images, In texts) {
  return scratch_bytes(multiprocessors, images, texts, false);
}

void sigmoid_loss_forward(Stream& stream, In images, In texts, In logit_scale, In logit_bias,
                          int64_t offset, int64_t batch, Out loss, Scratch scratch) {
  constexpr char kName[] = "sigmoid_loss_forward";
  const Extents e = check_operands(kName, images, texts, logit_scale, logit_bias);
  check_elements(kName, "loss", loss, 1);
  check_scratch(kName, scratch,
                sigmoid_loss_forward_scratch(stream.cuda().multiprocessors, images, texts));
  dispatch(stream, kName, e, nullptr, images, texts, logit_scale, logit_bias, offset, batch, &loss,
           nullptr, scratch);
}

size_t sigmoid_loss_backward_scratch(int multiprocessors, In images, In texts) {
  return scratch_bytes(multiprocessors, images, texts, true);
}

void sigmoid_loss_backward(Stream& stream, In dloss, In images, In texts, In logit_scale,
                           In logit_bias, int64_t offset, int64_t batch, Out dimages, Out dtexts,
                           Out dlogit_scale, Out dlogit_bias, Scratch scratch) {
  constexpr char kName[] = "sigmoid_loss_backward";
  const Extents e = check_operands(kName, images, texts, logit_scale, logit_bias);
  check_elements(kName, "dloss", dloss, 1);
  check_elements(kName, "dimages", dimages, images.elements());
  check_elements(kName, "dtexts", dtexts, texts.elements());
  check_elements(kName, "dlogit_scale", dlogit_scale, 1);
  check_elements(kName, "dlogit_bias", dlogit_bias, 1);
  check_scratch(kName, scratch,
                sigmoid_loss_backward_scratch(stream.cuda().multiprocessors, images, texts));
  const Gradients gradients = {dimages, dtexts, dlogit_scale, dlogit_bias};
  dispatch(stream, kName, e, &dloss, images, texts, logit_scale, logit_bias, offset, batch, nullptr,
           &gradients, scratch);
}

}  // namespace siglip::cuda
