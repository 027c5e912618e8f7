// One product a model and group of columns; its epilogue leaves sums of tiles, which are added up in their
// order in float64.
#include <cuda_bf16.h>

#include "cuda/pair_products.cuh"
#include "device/softmax_tile.cuh"
#include "ops/learnability/learnability.h"
#include "runtime/cuda_dtype.h"
#include "runtime/device_carver.h"

#define SIGLIP_CPU cuda  // the namespace of the checks and keys
#include "cpu/check.h"
#include "ops/learnability/keys.h"

namespace siglip::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kGroupColumns = 8192;  // of partial sums at a time
constexpr int kScoreColumns = 256;       // of a tile on sm_90a
constexpr int kRadixThreads = 1024;

struct Model {
  In images;
  In texts;
  In scale;
  In bias;
  double weight;
  // Of softmax losses.
  const float* row_logs = nullptr;
  const float* column_logs = nullptr;

  int64_t width() const { return images.extent(1); }
};

void add_log_sums(const char* who, const MaybeIn& log_sums, int64_t examples, Model (&models)[2]) {
  if (!log_sums.present()) return;
  check_rank(who, "log_sums", log_sums, 2);
  check_dtype(who, "log_sums", log_sums, DType::kFloat32);
  check_extent(who, "log_sums", log_sums, 0, 4);
  check_extent(who, "log_sums", log_sums, 1, examples);
  for (int m = 0; m < 2; ++m) {
    models[m].row_logs = log_sums.data() + 2 * m * examples;
    models[m].column_logs = models[m].row_logs + examples;
  }
}

void check_model(const char* who, const Model& model, int64_t examples) {
  check_rank(who, "images", model.images, 2);
  check_rank(who, "texts", model.texts, 2);
  if (model.images.dtype() != DType::kBfloat16) {
    check_dtype(who, "images", model.images, DType::kFloat32);
  }
  check_dtype(who, "texts", model.texts, model.images.dtype());
  check_extent(who, "images", model.images, 0, examples);
  check_extent(who, "texts", model.texts, 0, examples);
  check_extent(who, "texts", model.texts, 1, model.width());
  check_elements(who, "scale", model.scale, 1);
  check_elements(who, "bias", model.bias, 1);
  constexpr int64_t kMost = int64_t{1} << 24;
  if (examples < 1 || examples > kMost || model.width() < 1 || model.width() > kMost) {
    fail("ERR_SHAPE", "%s: extents of images must be from 1 to 2^24, got %lld and %lld", who,
         static_cast<long long>(examples), static_cast<long long>(model.width()));
  }
}

// ---- Sums of losses ----------------------------------------------------------------------------

struct SumsWorkspace {
  PairScalars* scalars;
  double* sums[3];      // (examples): rows, columns, diagonal
  float* row_parts;     // (tiles across a group, examples)
  float* column_parts;  // (parts down, columns of a group): of 64 rows, of whole tiles
  float* chosen_logs;   // (K)
  std::byte* chosen;    // (K, width)
};

SumsWorkspace sums_workspace(int64_t examples, int64_t columns, bool by_column, int64_t chosen,
                             int64_t chosen_bytes, DeviceCarver& carver) {
  const int64_t group = smaller(columns, kGroupColumns);
  SumsWorkspace w;
  w.scalars = carver.take<PairScalars>(1);
  for (double*& sums : w.sums) sums = carver.take<double>(examples);
  w.row_parts = carver.take<float>(divide_up(group, kTile) * examples);
  const int64_t down = divide_up(examples, kWgmmaRows) * (kWgmmaRows / 64);
  w.column_parts = by_column ? carver.take<float>(down * group) : nullptr;
  w.chosen_logs = chosen > 0 ? carver.take<float>(chosen) : nullptr;
  w.chosen = chosen_bytes > 0 ? carver.take<std::byte>(chosen_bytes) : nullptr;
  return w;
}

unsigned blocks_for(int64_t threads) { return static_cast<unsigned>(divide_up(threads, kThreads)); }

// sums[i] += weight · Σ_p parts[p][i].
__global__ void __launch_bounds__(kThreads)
    add_parts_kernel(const float* parts, int count, int64_t n, double weight, double* sums) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= n) return;
  double sum = 0.0;
  for (int p = 0; p < count; ++p) sum += static_cast<double>(parts[p * n + i]);
  sums[i] += weight * sum;
}

void add_parts(const CudaContext& cuda, const char* name, const float* parts, int64_t count,
               int64_t n, double weight, double* sums) {
  add_parts_kernel<<<blocks_for(n), kThreads, 0, cuda.stream>>>(parts, static_cast<int>(count), n,
                                                                weight, sums);
  check_launch(name);
}

// One side of a model against some of the other: rows (examples, width), columns (count, width), and the
// logarithms of their sums where losses are softmax. Positives lie where j = i + offset.
template <typename T>
struct Sides {
  const T* rows;
  const float* row_logs;
  int64_t examples;
  const T* columns;
  const float* column_logs;
  int64_t count;
  int64_t width;
  int64_t offset;
};

// Adds weight · l_ij to the sums of rows and, where they are wanted, of columns.
template <bool kByColumn, typename T>
void add_losses(const CudaContext& cuda, const char* name, const Sides<T>& sides, double weight,
                const SumsWorkspace& w) {
  const int64_t width = sides.width;
  const TileOperand<T> a = embeddings(sides.rows, width);
  for (int64_t first = 0; first < sides.count; first += kGroupColumns) {
    const int64_t n = smaller(kGroupColumns, sides.count - first);
    const TileOperand<T> b = embeddings(sides.columns + first * width, width);
    const TileShape shape = tile_shape(sides.examples, n, width);
    const ScoreSums sums = {w.scalars,
                            {shape.m, shape.n, clamp_offset(sides.offset) - first},
                            w.row_parts,
                            w.column_parts};
    int64_t across = divide_up(n, kTile);
    int64_t down = divide_up(sides.examples, kTile);
    bool done = false;
    if (sides.row_logs != nullptr) {
      launch_tiles<false, false>(
          cuda, name, a, b, shape,
          SoftmaxScoreBlock<kByColumn>{sums, sides.row_logs, sides.column_logs + first});
      done = true;
    }
    if constexpr (sizeof(T) == 2) {
      if (!done && pair_instructions(cuda).wgmma && a.aligned && b.aligned) {
        launch_wgmma<kScoreColumns, false, false>(
            cuda, name, matrix_map(a.data, sides.examples, width, width, kWgmmaRows),
            matrix_map(b.data, n, width, width, kScoreColumns), shape,
            WgmmaScoreBlock<kByColumn>{sums});
        across = divide_up(n, kScoreColumns);
        down = divide_up(sides.examples, 64);
        done = true;
      }
    }
    if (!done) launch_tiles<false, false>(cuda, name, a, b, shape, ScoreBlock<kByColumn>{sums});
    add_parts(cuda, name, w.row_parts, across, sides.examples, weight, w.sums[0]);
    if (kByColumn) add_parts(cuda, name, w.column_parts, down, n, weight, w.sums[1] + first);
  }
}

// Brings log2 Σ of more columns, in parts, into most[i] + log2 sums[i].
__global__ void __launch_bounds__(kThreads)
    add_log_parts_kernel(const float* parts, int count, int64_t n, bool first, double* most,
                         double* sums) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= n) return;
  double highest = first ? static_cast<double>(parts[i]) : most[i];
  for (int p = 0; p < count; ++p) highest = fmax(highest, static_cast<double>(parts[p * n + i]));
  double sum = first ? 0.0 : sums[i] * exp2(most[i] - highest);
  for (int p = 0; p < count; ++p) sum += exp2(static_cast<double>(parts[p * n + i]) - highest);
  most[i] = highest;
  sums[i] = sum;
}

__global__ void __launch_bounds__(kThreads)
    store_logs_kernel(const double* most, const double* sums, int64_t n, float* logs) {
  constexpr double kLn2Double = 0.69314718055994531;
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < n) logs[i] = static_cast<float>(kLn2Double * (most[i] + log2(sums[i])));
}

// logs (examples) = log Σ_j exp(S_ij) of rows with all columns.
template <typename T>
void store_log_sums(const CudaContext& cuda, const char* name, const Sides<T>& sides,
                    const SumsWorkspace& w, float* logs) {
  const TileOperand<T> a = embeddings(sides.rows, sides.width);
  for (int64_t first = 0; first < sides.count; first += kGroupColumns) {
    const int64_t n = smaller(kGroupColumns, sides.count - first);
    const TileOperand<T> b = embeddings(sides.columns + first * sides.width, sides.width);
    const TileShape shape = tile_shape(sides.examples, n, sides.width);
    launch_tiles<false, false>(cuda, name, a, b, shape,
                               LogSumBlock{w.scalars, {shape.m, shape.n, 0}, w.row_parts});
    add_log_parts_kernel<<<blocks_for(sides.examples), kThreads, 0, cuda.stream>>>(
        w.row_parts, static_cast<int>(divide_up(n, kTile)), sides.examples, first == 0, w.sums[0],
        w.sums[1]);
    check_launch(name);
  }
  store_logs_kernel<<<blocks_for(sides.examples), kThreads, 0, cuda.stream>>>(w.sums[0], w.sums[1],
                                                                              sides.examples, logs);
  check_launch(name);
}

__device__ __forceinline__ float value_of(float x) { return x; }
__device__ __forceinline__ float value_of(__nv_bfloat16 x) { return __bfloat162float(x); }

// sums[i] += weight · l_ii, a warp an example; softmax where there are logarithms.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    diagonal_kernel(const T* images, const T* texts, int64_t examples, int64_t width,
                    const PairScalars* scalars, double weight, const float* row_logs,
                    const float* column_logs, double* sums) {
  const int64_t i = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32;
  if (i >= examples) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float dot = 0.0F;
  for (int64_t e = lane; e < width; e += 32) {
    dot = fmaf(value_of(images[i * width + e]), value_of(texts[i * width + e]), dot);
  }
  for (int distance = 16; distance > 0; distance /= 2) {
    dot += __shfl_xor_sync(0xffffffffU, dot, distance);
  }
  if (lane != 0) return;
  const float u = -fmaf(dot, scalars->scale2, scalars->bias2);
  const float loss = row_logs == nullptr ? loss_of(exp2_fast(-fabsf(u)), fmaxf(u, 0.0F))
                                         : fmaf(kLn2, u, 0.5F * (row_logs[i] + column_logs[i]));
  sums[i] += weight * static_cast<double>(loss);
}

// y = (x +) sums.
__global__ void __launch_bounds__(kThreads)
    store_sums_kernel(const double* sums, const float* x, int64_t n, float* y) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= n) return;
  y[i] = static_cast<float>(sums[i] + (x == nullptr ? 0.0 : static_cast<double>(x[i])));
}

void store_sums(const CudaContext& cuda, const char* name, const double* sums, const float* x,
                int64_t n, float* y) {
  store_sums_kernel<<<blocks_for(n), kThreads, 0, cuda.stream>>>(sums, x, n, y);
  check_launch(name);
}

void zero(const CudaContext& cuda, const char* name, double* sums, int64_t n) {
  check_cuda(cudaMemsetAsync(sums, 0, static_cast<size_t>(n) * sizeof(double), cuda.stream), name);
}

void prepare(const CudaContext& cuda, const char* name, const Model& model, PairScalars* scalars) {
  prepare_pairs_kernel<<<1, 1, 0, cuda.stream>>>(model.scale.data(), model.bias.data(), 1.0,
                                                 scalars);
  check_launch(name);
}

// rows (K, width): those of `from` that `chosen` names; outside of it the nearest.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const T* from, const int32_t* chosen, int64_t examples, int64_t width, T* rows) {
  const int64_t index = chosen[blockIdx.x];
  const int64_t source = index < 0 ? 0 : index < examples ? index : examples - 1;
  for (int64_t e = threadIdx.x; e < width; e += kThreads) {
    rows[blockIdx.x * width + e] = from[source * width + e];
  }
}

int64_t bytes_of_rows(const In& images, int64_t rows) {
  return rows * images.extent(1) * static_cast<int64_t>(size_of(images.dtype()));
}

// ---- Selection ---------------------------------------------------------------------------------

struct Selection {
  uint64_t last;  // key of the K-th
  int collected;
};

__global__ void __launch_bounds__(kThreads)
    key_kernel(const float* scores, const uint8_t* taken, const int32_t* draw, const float* noise,
               uint32_t chunk, float gain, int64_t n, uint64_t* keys) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= n) return;
  const uint32_t index = static_cast<uint32_t>(i);
  const Draw of_chunk = {static_cast<uint32_t>(draw[0]), static_cast<uint32_t>(draw[1]), chunk,
                         static_cast<uint32_t>(draw[2]), static_cast<uint32_t>(draw[3])};
  const double shift =
      noise != nullptr ? static_cast<double>(noise[i]) : gumbel_noise(random_word(of_chunk, index));
  const double value = static_cast<double>(gain) * static_cast<double>(scores[i]) + shift;
  keys[i] = selection_key(value, taken[i] != 0, index);
}

// Finds the count-th largest key, eight bits at a time from the highest on.
__global__ void __launch_bounds__(kRadixThreads)
    find_last_kernel(const uint64_t* keys, int64_t n, int64_t count, Selection* selection) {
  __shared__ unsigned histogram[256];
  __shared__ uint64_t prefix;
  __shared__ int64_t left;  // of those wanted, among the keys that begin with the prefix
  if (threadIdx.x == 0) {
    prefix = 0;
    left = count;
  }
  for (int shift = 56; shift >= 0; shift -= 8) {
    if (threadIdx.x < 256) histogram[threadIdx.x] = 0;
    __syncthreads();
    const uint64_t high = prefix;
    for (int64_t i = threadIdx.x; i < n; i += kRadixThreads) {
      const uint64_t key = keys[i];
      if (shift < 56 && (key ^ high) >> (shift + 8) != 0) continue;
      atomicAdd(&histogram[key >> shift & 255], 1U);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int digit = 255;
      while (digit > 0 && static_cast<int64_t>(histogram[digit]) < left) {
        left -= histogram[digit];
        --digit;
      }
      prefix = high | static_cast<uint64_t>(digit) << shift;
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) *selection = {prefix, 0};
}

// Keys down to the last in any order.
__global__ void __launch_bounds__(kThreads)
    collect_kernel(const uint64_t* keys, const uint8_t* taken, int64_t n, int64_t count,
                   Selection* selection, uint64_t* chosen, uint8_t* now_taken) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= n) return;
  const bool mine = keys[i] >= selection->last;
  now_taken[i] = mine ? 1 : taken[i];
  if (!mine) return;
  const int place = atomicAdd(&selection->collected, 1);
  if (place < count) chosen[place] = keys[i];
}

// Puts every chosen one to its rank.
__global__ void __launch_bounds__(kThreads)
    rank_kernel(const uint64_t* chosen, int64_t count, int32_t* indices) {
  __shared__ uint64_t others[kThreads];
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const uint64_t key = i < count ? chosen[i] : 0;
  int64_t rank = 0;
  for (int64_t first = 0; first < count; first += kThreads) {
    __syncthreads();
    others[threadIdx.x] = first + threadIdx.x < count ? chosen[first + threadIdx.x] : 0;
    __syncthreads();
    for (int j = 0; j < kThreads; ++j) rank += others[j] > key ? 1 : 0;
  }
  if (i < count) indices[rank] = index_of_key(key);
}

struct SelectWorkspace {
  uint64_t* keys;
  uint64_t* chosen;
  Selection* selection;
};

SelectWorkspace select_workspace(int64_t n, int64_t count, DeviceCarver& carver) {
  SelectWorkspace w;
  w.keys = carver.take<uint64_t>(n);
  w.chosen = carver.take<uint64_t>(count);
  w.selection = carver.take<Selection>(1);
  return w;
}

}  // namespace

size_t learnability_log_sums_scratch(int, In learner_images, In) {
  const int64_t n = learner_images.extent(0);
  DeviceCarver carver(nullptr);
  sums_workspace(n, n, false, 0, 0, carver);
  return carver.bytes();
}

void learnability_log_sums(Stream& stream, In learner_images, In learner_texts, In learner_scale,
                           In learner_bias, In reference_images, In reference_texts,
                           In reference_scale, In reference_bias, double learner_weight,
                           double reference_weight, Out log_sums, Scratch scratch) {
  constexpr char kName[] = "learnability_log_sums";
  const CudaContext& cuda = stream.cuda();
  const Model models[] = {
      {learner_images, learner_texts, learner_scale, learner_bias, learner_weight},
      {reference_images, reference_texts, reference_scale, reference_bias, reference_weight}};
  check_rank(kName, "images", learner_images, 2);
  const int64_t n = learner_images.extent(0);
  for (const Model& model : models) check_model(kName, model, n);
  check_elements(kName, "log_sums", log_sums, 4 * n);
  check_scratch(kName, scratch, learnability_log_sums_scratch(0, learner_images, reference_images));
  DeviceCarver carver(scratch.data);
  const SumsWorkspace w = sums_workspace(n, n, false, 0, 0, carver);
  float* logs = log_sums.data();
  for (const Model& model : models) {
    float* own = logs;
    logs += 2 * n;
    if (model.weight == 0.0) {
      check_cuda(cudaMemsetAsync(own, 0, static_cast<size_t>(2 * n) * sizeof(float), cuda.stream),
                 kName);
      continue;
    }
    prepare(cuda, kName, model, w.scalars);
    with_type(kName, "images", model.images, [&](auto type) {
      using T = decltype(type);
      const T* images = elements_of<T>(model.images);
      const T* texts = elements_of<T>(model.texts);
      const int64_t width = model.width();
      store_log_sums<T>(cuda, kName, {images, nullptr, n, texts, nullptr, n, width, 0}, w, own);
      store_log_sums<T>(cuda, kName, {texts, nullptr, n, images, nullptr, n, width, 0}, w, own + n);
    });
  }
}

size_t learnability_forward_scratch(int, In learner_images, In) {
  const int64_t n = learner_images.extent(0);
  DeviceCarver carver(nullptr);
  sums_workspace(n, n, true, 0, 0, carver);
  return carver.bytes();
}

void learnability_forward(Stream& stream, In learner_images, In learner_texts, In learner_scale,
                          In learner_bias, In reference_images, In reference_texts,
                          In reference_scale, In reference_bias, MaybeIn log_sums,
                          double learner_weight, double reference_weight, MaybeOut diagonal,
                          MaybeOut rows, MaybeOut columns, Scratch scratch) {
  constexpr char kName[] = "learnability_forward";
  const CudaContext& cuda = stream.cuda();
  Model models[] = {
      {learner_images, learner_texts, learner_scale, learner_bias, learner_weight},
      {reference_images, reference_texts, reference_scale, reference_bias, reference_weight}};
  check_rank(kName, "images", learner_images, 2);
  const int64_t n = learner_images.extent(0);
  for (const Model& model : models) check_model(kName, model, n);
  add_log_sums(kName, log_sums, n, models);
  if (diagonal.present()) check_elements(kName, "diagonal", diagonal, n);
  if (rows.present()) check_elements(kName, "rows", rows, n);
  if (columns.present()) check_elements(kName, "columns", columns, n);
  check_scratch(kName, scratch, learnability_forward_scratch(0, learner_images, reference_images));
  DeviceCarver carver(scratch.data);
  const SumsWorkspace w = sums_workspace(n, n, true, 0, 0, carver);
  for (double* sums : w.sums) zero(cuda, kName, sums, n);
  for (const Model& model : models) {
    if (model.weight == 0.0) continue;
    prepare(cuda, kName, model, w.scalars);
    with_type(kName, "images", model.images, [&](auto type) {
      using T = decltype(type);
      const T* images = elements_of<T>(model.images);
      const T* texts = elements_of<T>(model.texts);
      if (diagonal.present()) {
        diagonal_kernel<<<static_cast<unsigned>(divide_up(n, kThreads / 32)), kThreads, 0,
                          cuda.stream>>>(images, texts, n, model.width(), w.scalars, model.weight,
                                         model.row_logs, model.column_logs, w.sums[2]);
        check_launch(kName);
      }
      const Sides<T> sides = {images, model.row_logs, n, texts, model.column_logs,
                              n,      model.width(),  0};
      if (columns.present()) {
        add_losses<true>(cuda, kName, sides, model.weight, w);
      } else if (rows.present()) {
        add_losses<false>(cuda, kName, sides, model.weight, w);
      }
    });
  }
  if (rows.present()) store_sums(cuda, kName, w.sums[0], nullptr, n, rows.data());
  if (columns.present()) store_sums(cuda, kName, w.sums[1], nullptr, n, columns.data());
  if (diagonal.present()) store_sums(cuda, kName, w.sums[2], nullptr, n, diagonal.data());
}

size_t learnability_condition_scratch(int, In learner_images, In reference_images, In chosen) {
  const int64_t count = chosen.elements();
  const int64_t learner = bytes_of_rows(learner_images, count);
  const int64_t reference = bytes_of_rows(reference_images, count);
  DeviceCarver carver(nullptr);
  sums_workspace(learner_images.extent(0), count, false, count,
                 learner > reference ? learner : reference, carver);
  return carver.bytes();
}

void learnability_condition(Stream& stream, In learner_images, In learner_texts, In learner_scale,
                            In learner_bias, In reference_images, In reference_texts,
                            In reference_scale, In reference_bias, MaybeIn log_sums, In scores,
                            In chosen, double learner_weight, double reference_weight, Out y,
                            Scratch scratch) {
  constexpr char kName[] = "learnability_condition";
  constexpr int64_t kNoPositives = int64_t{1} << 40;
  const CudaContext& cuda = stream.cuda();
  Model models[] = {
      {learner_images, learner_texts, learner_scale, learner_bias, learner_weight},
      {reference_images, reference_texts, reference_scale, reference_bias, reference_weight}};
  check_rank(kName, "images", learner_images, 2);
  const int64_t n = learner_images.extent(0);
  for (const Model& model : models) check_model(kName, model, n);
  add_log_sums(kName, log_sums, n, models);
  const int64_t count = chosen.elements();
  check_elements(kName, "scores", scores, n);
  check_elements(kName, "y", y, n);
  check_scratch(kName, scratch,
                learnability_condition_scratch(0, learner_images, reference_images, chosen));
  const int32_t* indices = chosen.data<int32_t>();
  const int64_t learner = bytes_of_rows(learner_images, count);
  const int64_t reference = bytes_of_rows(reference_images, count);
  DeviceCarver carver(scratch.data);
  const SumsWorkspace w =
      sums_workspace(n, count, false, count, learner > reference ? learner : reference, carver);
  zero(cuda, kName, w.sums[0], n);
  for (const Model& model : models) {
    if (model.weight == 0.0 || count == 0) continue;
    prepare(cuda, kName, model, w.scalars);
    with_type(kName, "images", model.images, [&](auto type) {
      using T = decltype(type);
      const T* images = elements_of<T>(model.images);
      const T* texts = elements_of<T>(model.texts);
      T* gathered = reinterpret_cast<T*>(w.chosen);
      for (int side = 0; side < 2; ++side) {
        const bool of_images = side == 0;
        const float* other_logs = of_images ? model.column_logs : model.row_logs;
        gather_kernel<<<static_cast<unsigned>(count), kThreads, 0, cuda.stream>>>(
            of_images ? texts : images, indices, n, model.width(), gathered);
        check_launch(kName);
        if (other_logs != nullptr) {
          gather_kernel<<<static_cast<unsigned>(count), kThreads, 0, cuda.stream>>>(
              other_logs, indices, n, 1, w.chosen_logs);
          check_launch(kName);
        }
        const Sides<T> sides = {of_images ? images : texts,
                                of_images ? model.row_logs : model.column_logs,
                                n,
                                gathered,
                                w.chosen_logs,
                                count,
                                model.width(),
                                kNoPositives};
        add_losses<false>(cuda, kName, sides, model.weight, w);
      }
    });
  }
  store_sums(cuda, kName, w.sums[0], scores.data(), n, y.data());
}

size_t learnability_select_scratch(int, In scores, In indices) {
  DeviceCarver carver(nullptr);
  select_workspace(scores.elements(), indices.elements(), carver);
  return carver.bytes();
}

void learnability_select(Stream& stream, In scores, In taken, In draw, MaybeIn noise, int64_t chunk,
                         double gain, Out indices, Out now_taken, Scratch scratch) {
  constexpr char kName[] = "learnability_select";
  const CudaContext& cuda = stream.cuda();
  const int64_t n = scores.elements();
  const int64_t count = indices.elements();
  check_elements(kName, "taken", taken, n);
  check_elements(kName, "draw", draw, 4);
  check_elements(kName, "now_taken", now_taken, n);
  if (noise.present()) check_elements(kName, "noise", noise, n);
  if (count < 1 || count > n || n >= int64_t{1} << 31) {
    fail("ERR_SHAPE", "%s: size of indices must be from 1 to %lld, got %lld", kName,
         static_cast<long long>(n), static_cast<long long>(count));
  }
  check_scratch(kName, scratch,
                learnability_select_scratch(0, scores, In(nullptr, DType::kInt32, 1, &count)));
  DeviceCarver carver(scratch.data);
  const SelectWorkspace w = select_workspace(n, count, carver);
  const uint8_t* before = taken.data<uint8_t>();
  key_kernel<<<blocks_for(n), kThreads, 0, cuda.stream>>>(
      scores.data(), before, draw.data<int32_t>(), noise.present() ? noise.data() : nullptr,
      static_cast<uint32_t>(chunk), static_cast<float>(gain), n, w.keys);
  check_launch(kName);
  find_last_kernel<<<1, kRadixThreads, 0, cuda.stream>>>(w.keys, n, count, w.selection);
  check_launch(kName);
  collect_kernel<<<blocks_for(n), kThreads, 0, cuda.stream>>>(w.keys, before, n, count, w.selection,
                                                              w.chosen, now_taken.data<uint8_t>());
  check_launch(kName);
  rank_kernel<<<blocks_for(count), kThreads, 0, cuda.stream>>>(w.chosen, count,
                                                               indices.data<int32_t>());
  check_launch(kName);
}

}  // namespace siglip::cuda
