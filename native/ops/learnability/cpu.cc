// Blocks of kRows by kColumns dot products at a time: rows of a block are summed by rows' tasks, columns
// by columns' tasks, in float64 and in the order of the blocks.
#include "cpu/check.h"
#include "cpu/float64.h"
#include "cpu/gemm.h"
#include "cpu/partition.h"
#include "cpu/simd.h"
#include "cpu/tile.h"
#include "ops/learnability/keys.h"
#include "ops/learnability/learnability.h"

namespace siglip::SIGLIP_CPU {
namespace {

constexpr int64_t kRows = 256;
constexpr int64_t kColumns = 4096;
constexpr int64_t kColumnGrain = 64;       // columns of a task
constexpr int64_t kSoftplusElements = 16;  // that take as long as one softplus

// One of the two models.
struct Model {
  const float* images;
  const float* texts;
  int64_t examples;
  int64_t width;
  float scale;  // exp(t)
  float bias;
  double weight;
};

Model check_model(const char* who, const In& images, const In& texts, const In& scale,
                  const In& bias, double weight) {
  check_rank(who, "images", images, 2);
  check_rank(who, "texts", texts, 2);
  check_extent(who, "texts", texts, 0, images.extent(0));
  check_extent(who, "texts", texts, 1, images.extent(1));
  check_elements(who, "scale", scale, 1);
  check_elements(who, "bias", bias, 1);
  return {images.data(),
          texts.data(),
          images.extent(0),
          images.extent(1),
          static_cast<float>(::exp(static_cast<double>(*scale.data()))),
          *bias.data(),
          weight};
}

// Both, the learner first.
struct Models {
  Model model[2];
};

Models check_models(const char* who, const In& learner_images, const In& learner_texts,
                    const In& learner_scale, const In& learner_bias, const In& reference_images,
                    const In& reference_texts, const In& reference_scale, const In& reference_bias,
                    double learner_weight, double reference_weight) {
  const Models models = {
      check_model(who, learner_images, learner_texts, learner_scale, learner_bias, learner_weight),
      check_model(who, reference_images, reference_texts, reference_scale, reference_bias,
                  reference_weight)};
  check_extent(who, "reference_images", reference_images, 0, models.model[0].examples);
  return models;
}

GemmShape block_shape(int64_t rows, int64_t columns, int64_t width) {
  GemmShape shape;
  shape.m = rows;
  shape.n = columns;
  shape.k = width;
  shape.transpose_b = true;
  return shape;
}

// Enough for every block of a (rows, columns) matrix of dot products.
size_t product_scratch(int threads, int64_t rows, int64_t columns, int64_t width) {
  const int64_t heights[] = {smaller(rows, kRows), rows % kRows};
  const int64_t widths[] = {smaller(columns, kColumns), columns % kColumns};
  size_t most = 0;
  for (const int64_t m : heights) {
    for (const int64_t n : widths) {
      if (m == 0 || n == 0) continue;
      const size_t bytes = gemm_scratch(threads, block_shape(m, n, width));
      if (bytes > most) most = bytes;
    }
  }
  return most;
}

// The sums lie first, and so at the same place for both models.
struct Workspace {
  double* sums[3];  // (examples) each: rows, columns, diagonal
  float* losses;    // a block
  float* chosen;    // (K, width)
  Scratch product;
};

Workspace workspace(int threads, int64_t examples, int64_t columns, int64_t chosen, int64_t width,
                    Carver& carver) {
  Workspace w;
  for (double*& sums : w.sums) sums = carver.take<double>(examples);
  w.losses = carver.take<float>(smaller(examples, kRows) * smaller(columns, kColumns));
  w.chosen = carver.take<float>(chosen * width);
  w.product.bytes = product_scratch(threads, examples, columns, width);
  w.product.data = carver.take<std::byte>(static_cast<int64_t>(w.product.bytes));
  return w;
}

void zero(double* sums, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sums[i] = 0.0;
}

float softplus(float u) { return ::fmaxf(u, 0.0F) + ::log1pf(::expf(-::fabsf(u))); }

// dots (n) of a row become softplus(S).
void softplus_row(const Model& model, float* dots, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const Vec dot = n - i >= kLanes ? load(dots + i) : load_partial(dots + i, n - i);
    const Vec u = multiply_add(dot, splat(model.scale), splat(model.bias));
    const Vec loss = max(u, splat(0.0F)) + log1p_unit(exp(-abs(u)));
    if (n - i >= kLanes) {
      store(dots + i, loss);
    } else {
      store_partial(dots + i, loss, n - i);
    }
  }
}

double sum_row(const float* row, int64_t n) {
  return sum_float64(n, [=](Float64Vec* sum, int64_t i, int64_t lanes) {
    add(sum, lanes == kLanes ? load(row + i) : load_partial(row + i, lanes));
  });
}

// For blocks of l_ij of images with texts calls visit(row, rows, column, columns); with `positives`
// pairs i = j count as such, and diagonal[i] += weight · l_ii.
template <typename Visit>
void for_blocks(Stream& stream, const Model& model, const float* rows_data,
                const float* columns_data, int64_t columns, bool positives, const Workspace& w,
                double* row_sums, const Visit& visit) {
  double* diagonal = w.sums[2];
  for (int64_t row = 0; row < model.examples; row += kRows) {
    const int64_t rows = smaller(kRows, model.examples - row);
    for (int64_t column = 0; column < columns; column += kColumns) {
      const int64_t n = smaller(kColumns, columns - column);
      gemm(stream, block_shape(rows, n, model.width), {rows_data + row * model.width, model.width},
           {columns_data + column * model.width, model.width}, {w.losses, n}, w.product);
      const Partition part = partition_by_thread(stream, rows, n * kSoftplusElements);
      stream.parallel(part.tasks(), [&](int64_t task, int) {
        for (int64_t i = part.begin(task); i < part.end(task); ++i) {
          float* losses = w.losses + i * n;
          const int64_t own = row + i - column;
          const bool here = positives && own >= 0 && own < n;
          const float logit = here ? losses[own] * model.scale + model.bias : 0.0F;
          softplus_row(model, losses, n);
          if (here) {
            losses[own] = softplus(-logit);
            diagonal[row + i] += model.weight * static_cast<double>(losses[own]);
          }
          row_sums[row + i] += model.weight * sum_row(losses, n);
        }
      });
      visit(rows, column, n);
    }
  }
}

void store_sums(const double* sums, const MaybeOut& y) {
  if (!y.present()) return;
  float* data = y.data();
  for (int64_t i = 0; i < y.elements(); ++i) data[i] = static_cast<float>(sums[i]);
}

// ---- Selection ---------------------------------------------------------------------------------

// Restores the heap below `parent`: no key is larger than that of its parent.
void sift_down(uint64_t* keys, int64_t count, int64_t parent) {
  const uint64_t key = keys[parent];
  for (int64_t child = 2 * parent + 1; child < count; child = 2 * parent + 1) {
    if (child + 1 < count && keys[child + 1] > keys[child]) ++child;
    if (keys[child] <= key) break;
    keys[parent] = keys[child];
    parent = child;
  }
  keys[parent] = key;
}

int64_t larger_width(const View& a, const View& b) { return larger(a.extent(1), b.extent(1)); }

}  // namespace

size_t learnability_forward_scratch(int threads, In learner_images, In reference_images) {
  const int64_t n = learner_images.extent(0);
  const int64_t widths[] = {learner_images.extent(1), reference_images.extent(1)};
  size_t bytes = 0;
  for (const int64_t width : widths) {
    Carver carver(nullptr);
    workspace(threads, n, n, 0, width, carver);
    if (carver.bytes() > bytes) bytes = carver.bytes();
  }
  return bytes;
}

void learnability_forward(Stream& stream, In learner_images, In learner_texts, In learner_scale,
                          In learner_bias, In reference_images, In reference_texts,
                          In reference_scale, In reference_bias, double learner_weight,
                          double reference_weight, MaybeOut diagonal, MaybeOut rows,
                          MaybeOut columns, Scratch scratch) {
  constexpr char kName[] = "learnability_forward";
  const Models models = check_models(
      kName, learner_images, learner_texts, learner_scale, learner_bias, reference_images,
      reference_texts, reference_scale, reference_bias, learner_weight, reference_weight);
  const int64_t n = models.model[0].examples;
  if (diagonal.present()) check_elements(kName, "diagonal", diagonal, n);
  if (rows.present()) check_elements(kName, "rows", rows, n);
  if (columns.present()) check_elements(kName, "columns", columns, n);
  check_scratch(kName, scratch,
                learnability_forward_scratch(stream.threads(), learner_images, reference_images));
  for (const Model& model : models.model) {
    Carver carver(scratch.data);
    const Workspace w = workspace(stream.threads(), n, n, 0, model.width, carver);
    if (&model == models.model) {
      for (double* sums : w.sums) zero(sums, n);
    }
    if (model.weight == 0.0) continue;
    double* column_sums = w.sums[1];
    for_blocks(stream, model, model.images, model.texts, n, true, w, w.sums[0],
               [&](int64_t count, int64_t column, int64_t width) {
                 const Partition part = partition_by_thread(stream, width, count, kColumnGrain);
                 stream.parallel(part.tasks(), [&](int64_t task, int) {
                   const int64_t begin = part.begin(task);
                   const int64_t end = part.end(task);
                   for (int64_t first = begin; first < end; first += kColumnGrain) {
                     const int64_t some = smaller(kColumnGrain, end - first);
                     double sums[kColumnGrain] = {};
                     add_rows_float64(w.losses + first, count, width, some, sums);
                     for (int64_t j = 0; j < some; ++j) {
                       column_sums[column + first + j] += model.weight * sums[j];
                     }
                   }
                 });
               });
  }
  Carver carver(scratch.data);
  const Workspace w = workspace(stream.threads(), n, n, 0, models.model[0].width, carver);
  store_sums(w.sums[0], rows);
  store_sums(w.sums[1], columns);
  store_sums(w.sums[2], diagonal);
}

size_t learnability_condition_scratch(int threads, In learner_images, In reference_images,
                                      In chosen) {
  Carver carver(nullptr);
  workspace(threads, learner_images.extent(0), chosen.elements(), chosen.elements(),
            larger_width(learner_images, reference_images), carver);
  // Products of the narrower model may take more.
  const size_t narrow =
      product_scratch(threads, learner_images.extent(0), chosen.elements(),
                      smaller(learner_images.extent(1), reference_images.extent(1)));
  return carver.bytes() + narrow;
}

void learnability_condition(Stream& stream, In learner_images, In learner_texts, In learner_scale,
                            In learner_bias, In reference_images, In reference_texts,
                            In reference_scale, In reference_bias, In scores, In chosen,
                            double learner_weight, double reference_weight, Out y,
                            Scratch scratch) {
  constexpr char kName[] = "learnability_condition";
  const Models models = check_models(
      kName, learner_images, learner_texts, learner_scale, learner_bias, reference_images,
      reference_texts, reference_scale, reference_bias, learner_weight, reference_weight);
  const int64_t n = models.model[0].examples;
  const int64_t count = chosen.elements();
  check_elements(kName, "scores", scores, n);
  check_elements(kName, "y", y, n);
  check_scratch(
      kName, scratch,
      learnability_condition_scratch(stream.threads(), learner_images, reference_images, chosen));
  const int32_t* indices = chosen.data<int32_t>();
  for (int64_t i = 0; i < count; ++i) {
    if (indices[i] >= 0 && indices[i] < n) continue;
    fail("ERR_ARGUMENT", "%s: chosen must be in [0, %lld), got %d", kName,
         static_cast<long long>(n), indices[i]);
  }
  const float* before = scores.data();
  float* after = y.data();
  Carver carver(scratch.data);
  Workspace w = workspace(stream.threads(), n, count, count,
                          larger_width(learner_images, reference_images), carver);
  w.product = {w.product.data, scratch.bytes - static_cast<size_t>(w.product.data - scratch.data)};
  zero(w.sums[0], n);
  for (const Model& model : models.model) {
    if (model.weight == 0.0) continue;
    for (int side = 0; side < 2; ++side) {
      const bool of_images = side == 0;
      const float* rows = of_images ? model.images : model.texts;
      const float* others = of_images ? model.texts : model.images;
      const Partition part = partition_by_thread(stream, count, model.width);
      stream.parallel(part.tasks(), [&](int64_t task, int) {
        for (int64_t i = part.begin(task); i < part.end(task); ++i) {
          std::memcpy(w.chosen + i * model.width, others + indices[i] * model.width,
                      static_cast<size_t>(model.width) * sizeof(float));
        }
      });
      for_blocks(stream, model, rows, w.chosen, count, false, w, w.sums[0],
                 [](int64_t, int64_t, int64_t) {});
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    after[i] = static_cast<float>(static_cast<double>(before[i]) + w.sums[0][i]);
  }
}

size_t learnability_select_scratch(int, In scores, In) {
  Carver carver(nullptr);
  carver.take<uint64_t>(scores.elements());
  return carver.bytes();
}

void learnability_select(Stream& stream, In scores, In taken, In draw, MaybeIn noise, int64_t chunk,
                         double gain, Out indices, Out now_taken, Scratch scratch) {
  constexpr char kName[] = "learnability_select";
  const int64_t n = scores.elements();
  const int64_t count = indices.elements();
  check_elements(kName, "taken", taken, n);
  check_elements(kName, "draw", draw, 4);
  check_elements(kName, "now_taken", now_taken, n);
  if (noise.present()) check_elements(kName, "noise", noise, n);
  if (count > n) {
    fail("ERR_SHAPE", "%s: size of indices must be at most %lld, got %lld", kName,
         static_cast<long long>(n), static_cast<long long>(count));
  }
  check_scratch(
      kName, scratch,
      learnability_select_scratch(stream.threads(), scores, In(nullptr, DType::kInt32, 1, &count)));
  const float* values = scores.data();
  const uint8_t* before = taken.data<uint8_t>();
  const int32_t* words = draw.data<int32_t>();
  const float* given = noise.present() ? noise.data() : nullptr;
  int32_t* chosen = indices.data<int32_t>();
  uint8_t* after = now_taken.data<uint8_t>();
  const Draw stream_of = {static_cast<uint32_t>(words[0]), static_cast<uint32_t>(words[1]),
                          static_cast<uint32_t>(chunk), static_cast<uint32_t>(words[2]),
                          static_cast<uint32_t>(words[3])};
  Carver carver(scratch.data);
  uint64_t* keys = carver.take<uint64_t>(n);
  const double factor = static_cast<double>(static_cast<float>(gain));
  const Partition part = partition(n, kSoftplusElements);
  stream.parallel(part.tasks(), [&](int64_t task, int) {
    for (int64_t i = part.begin(task); i < part.end(task); ++i) {
      const uint32_t index = static_cast<uint32_t>(i);
      const double shift = given != nullptr ? static_cast<double>(given[i])
                                            : gumbel_noise(random_word(stream_of, index));
      keys[i] =
          selection_key(factor * static_cast<double>(values[i]) + shift, before[i] != 0, index);
      after[i] = before[i];
    }
  });
  for (int64_t parent = n / 2; parent-- > 0;) sift_down(keys, n, parent);
  for (int64_t k = 0; k < count; ++k) {
    const int32_t index = index_of_key(keys[0]);
    chosen[k] = index;
    after[index] = 1;
    keys[0] = keys[n - 1 - k];
    sift_down(keys, n - 1 - k, 0);
  }
}

}  // namespace siglip::SIGLIP_CPU
