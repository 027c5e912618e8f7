// The logits are worked off in blocks. For each, one product makes the dot products and, in its
// epilogue, their losses and factor · G, which goes to the workspace in the dtype of the embeddings;
// two more add G · Y to dX and Gᵀ · X to dY, block after block. Sums go through float64 partials that
// are added up in a fixed order.
#include <cuda_bf16.h>

#include <type_traits>

#include "device/tile_epilogues.cuh"
#include "ops/sigmoid_loss/sigmoid_loss.h"
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

int64_t tiles_of(const Extents& e) { return divide_up(e.rows, kTile) * divide_up(e.columns, kTile); }

struct Workspace {
  PairScalars* scalars;
  double* partials;  // (tiles, kPairSums)
  std::byte* gradient;
};

Workspace workspace(const Extents& e, DType dtype, int multiprocessors, bool with_gradient,
                    DeviceCarver& carver) {
  Workspace w;
  w.scalars = carver.take<PairScalars>(1);
  w.partials = carver.take<double>(tiles_of(e) * kPairSums);
  w.gradient = nullptr;
  if (with_gradient) {
    const Blocks blocks = blocks_of(e, dtype, multiprocessors);
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
  return {data, width,
          reinterpret_cast<uintptr_t>(data) % 16 == 0 && width * sizeof(T) % 16 == 0};
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

template <bool kLoss, typename T>
void run_gradient(const CudaContext& cuda, const Call<T>& call, const Workspace& w) {
  const Extents& e = call.extents;
  const Blocks blocks = blocks_of(e, kDTypeOf<T>, cuda.multiprocessors);
  T* gradient = reinterpret_cast<T*>(w.gradient);
  const int64_t stride = blocks.gradient_stride();
  int64_t tiles = 0;
  for (int64_t column = 0; column < e.columns; column += blocks.columns) {
    for (int64_t row = 0; row < e.rows; row += blocks.rows) {
      const int64_t rows = smaller(blocks.rows, e.rows - row);
      const int64_t columns = smaller(blocks.columns, e.columns - column);
      const TileOperand<T> x = embeddings(call.images + row * e.width, e.width);
      const TileOperand<T> y = embeddings(call.texts + column * e.width, e.width);
      const TileOperand<T> g = {gradient, stride, true};
      const TileShape logits = tile_shape(rows, columns, e.width);
      launch_tiles<false, false>(
          cuda, call.name, x, y, logits,
          PairBlock<kLoss, true, T>{
              w.scalars,
              {logits.m, logits.n, clamp_offset(call.offset) + row - column},
              w.partials + tiles * kPairSums,
              gradient,
              stride});
      launch_tiles<false, true>(
          cuda, call.name, g, y, tile_shape(rows, e.width, columns),
          add_to(call.dimages + row * e.width, rows, e.width, column > 0));
      launch_tiles<true, true>(
          cuda, call.name, g, x, tile_shape(columns, e.width, rows),
          add_to(call.dtexts + column * e.width, columns, e.width, row > 0));
      tiles += logits.tiles();
    }
  }
}

template <typename T>
void run(Stream& stream, const Call<T>& call, Scratch scratch) {
  const CudaContext& cuda = stream.cuda();
  const Extents& e = call.extents;
  DeviceCarver carver(scratch.data);
  const Workspace w = workspace(e, kDTypeOf<T>, cuda.multiprocessors,
                                call.dimages != nullptr, carver);
  prepare_kernel<<<1, 1, 0, cuda.stream>>>(call.logit_scale, call.logit_bias, call.dloss,
                                           call.batch, w.scalars);
  check_launch(call.name);
  if (call.dimages == nullptr) {
    const TileShape logits = tile_shape(e.rows, e.columns, e.width);
    launch_tiles<false, false>(cuda, call.name, embeddings(call.images, e.width),
                               embeddings(call.texts, e.width), logits,
                               PairBlock<true, false, T>{w.scalars,
                                                         {logits.m, logits.n,
                                                          clamp_offset(call.offset)},
                                                         w.partials,
                                                         nullptr,
                                                         0});
  } else if (call.loss != nullptr) {
    run_gradient<true>(cuda, call, w);
  } else {
    run_gradient<false>(cuda, call, w);
  }
  finish_kernel<<<1, kFinishThreads, 0, cuda.stream>>>(w.partials, tiles_of(e), w.scalars,
                                                       call.batch, call.loss, call.dlogit_scale,
                                                       call.dlogit_bias);
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
