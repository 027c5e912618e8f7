// Blocks of kRows by kColumns dot products at a time: rows of a block are summed by rows' tasks, columns
// by columns' tasks, in float64 and in the order of the blocks. Own pairs are dot products by themselves.
#include "cpu/check.h"
#include "cpu/float64.h"
#include "cpu/gemm.h"
#include "cpu/logarithm.h"
#include "cpu/partition.h"
#include "cpu/simd.h"
#include "cpu/tile.h"
#include "ops/learnability/keys.h"
#include "ops/learnability/learnability.h"

namespace siglip::SIGLIP_CPU {
namespace {

constexpr int64_t kRows = 256;
constexpr int64_t kColumns = 4096;
constexpr int64_t kColumnGrain = 64;   // columns of a task
constexpr int64_t kLossElements = 16;  // that take as long as one loss
constexpr float kLargestShare = 1.0F - 0x1p-12F;

// One of the two models. Logarithms of the sums of its images' rows and of its texts' columns make its
// losses softmax.
struct Model {
  const float* images;
  const float* texts;
  int64_t examples;
  int64_t width;
  float scale;  // exp(t)
  float bias;
  double weight;
  const float* row_logs = nullptr;
  const float* column_logs = nullptr;

  bool softmax() const { return row_logs != nullptr; }
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

  void add_log_sums(const char* who, const MaybeIn& log_sums) {
    if (!log_sums.present()) return;
    const int64_t n = model[0].examples;
    check_rank(who, "log_sums", log_sums, 2);
    check_extent(who, "log_sums", log_sums, 0, 4);
    check_extent(who, "log_sums", log_sums, 1, n);
    for (int m = 0; m < 2; ++m) {
      model[m].row_logs = log_sums.data() + 2 * m * n;
      model[m].column_logs = model[m].row_logs + n;
    }
  }
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
  double* sums[3];     // (examples) each: rows, columns, diagonal
  float* losses;       // a block
  float* chosen;       // (K, width)
  float* chosen_logs;  // (K)
  Scratch product;
};

Workspace workspace(int threads, int64_t examples, int64_t columns, int64_t chosen, int64_t width,
                    Carver& carver) {
  Workspace w;
  for (double*& sums : w.sums) sums = carver.take<double>(examples);
  w.losses = carver.take<float>(smaller(examples, kRows) * smaller(columns, kColumns));
  w.chosen = carver.take<float>(chosen * width);
  w.chosen_logs = carver.take<float>(chosen);
  w.product.bytes = product_scratch(threads, examples, columns, width);
  w.product.data = carver.take<std::byte>(static_cast<int64_t>(w.product.bytes));
  return w;
}

// Enough for either model, all examples against all.
size_t square_scratch(int threads, const In& learner_images, const In& reference_images) {
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

void fill(double* sums, int64_t n, double value) {
  for (int64_t i = 0; i < n; ++i) sums[i] = value;
}

float softplus(float u) { return ::fmaxf(u, 0.0F) + ::log1pf(::expf(-::fabsf(u))); }

// row (n) = visit(row, j), a vector at a time.
template <typename Visit>
void map_row(float* row, int64_t n, const Visit& visit) {
  for (int64_t j = 0; j < n; j += kLanes) {
    const int64_t lanes = n - j;
    if (lanes >= kLanes) {
      store(row + j, visit(load(row + j), j, kLanes));
    } else {
      store_partial(row + j, visit(load_partial(row + j, lanes), j, lanes), lanes);
    }
  }
}

// dots (n) of a row become softplus(S).
void softplus_row(const Model& model, float* dots, int64_t n) {
  map_row(dots, n, [&](Vec dot, int64_t, int64_t) {
    const Vec u = multiply_add(dot, splat(model.scale), splat(model.bias));
    return max(u, splat(0.0F)) + log1p_unit(exp(-abs(u)));
  });
}

// −log(1 − e^x), e^x at most the largest share.
Vec loss_of_share(Vec x) {
  const Vec p = min(exp(x), splat(kLargestShare));
  const Vec rest = splat(1.0F) - p;
  const Vec small = min(p, splat(0.5F));
  return select(p <= splat(0.5F), log1p_unit(small / (splat(1.0F) - small)), -log(rest));
}

// dots (n) of a row become ½ (−log(1 − exp(S − its own)) − log(1 − exp(S − theirs))).
void softmax_row(const Model& model, float own, const float* theirs, float* dots, int64_t n) {
  map_row(dots, n, [&](Vec dot, int64_t j, int64_t lanes) {
    const Vec s = multiply_add(dot, splat(model.scale), splat(model.bias));
    const Vec others = lanes == kLanes ? load(theirs + j) : load_partial(theirs + j, lanes);
    return (loss_of_share(s - splat(own)) + loss_of_share(s - others)) * splat(0.5F);
  });
}

double sum_row(const float* row, int64_t n) {
  return sum_float64(n, [=](Float64Vec* sum, int64_t i, int64_t lanes) {
    add(sum, lanes == kLanes ? load(row + i) : load_partial(row + i, lanes));
  });
}

float own_loss(const Model& model, int64_t i, float logit) {
  if (!model.softmax()) return softplus(-logit);
  return 0.5F * (model.row_logs[i] + model.column_logs[i]) - logit;
}

// sums[i] += weight · l_ii.
void add_own_losses(Stream& stream, const Model& model, double* sums) {
  const Partition part = partition_by_thread(stream, model.examples, model.width);
  stream.parallel(part.tasks(), [&](int64_t task, int) {
    for (int64_t i = part.begin(task); i < part.end(task); ++i) {
      const int64_t row = i * model.width;
      const double dot = dot_float64(model.images + row, model.texts + row, model.width);
      const double logit = dot * static_cast<double>(model.scale) + static_cast<double>(model.bias);
      const float loss = own_loss(model, i, static_cast<float>(logit));
      sums[i] += model.weight * static_cast<double>(loss);
    }
  });
}

// One side of a model against some of the other: rows (examples, width), columns (count, width), and the
// logarithms of their sums where losses are softmax.
struct Sides {
  const float* rows;
  const float* row_logs;
  const float* columns;
  const float* column_logs;
  int64_t count;
};

// Calls visit(row, rows, column, columns) with blocks of dot products in w.losses.
template <typename Visit>
void for_blocks(Stream& stream, const Model& model, const Sides& sides, const Workspace& w,
                const Visit& visit) {
  for (int64_t row = 0; row < model.examples; row += kRows) {
    const int64_t rows = smaller(kRows, model.examples - row);
    for (int64_t column = 0; column < sides.count; column += kColumns) {
      const int64_t n = smaller(kColumns, sides.count - column);
      gemm(stream, block_shape(rows, n, model.width), {sides.rows + row * model.width, model.width},
           {sides.columns + column * model.width, model.width}, {w.losses, n}, w.product);
      visit(row, rows, column, n);
    }
  }
}

// For blocks of l_ij calls visit(rows, column, columns); row_sums += weight · Σ_j l_ij. With `positives`
// pairs i = j count as such.
template <typename Visit>
void for_losses(Stream& stream, const Model& model, const Sides& sides, bool positives,
                const Workspace& w, double* row_sums, const Visit& visit) {
  for_blocks(stream, model, sides, w, [&](int64_t row, int64_t rows, int64_t column, int64_t n) {
    const Partition part = partition_by_thread(stream, rows, n * kLossElements);
    stream.parallel(part.tasks(), [&](int64_t task, int) {
      for (int64_t i = part.begin(task); i < part.end(task); ++i) {
        float* losses = w.losses + i * n;
        const int64_t own = row + i - column;
        const bool here = positives && own >= 0 && own < n;
        const float logit = here ? losses[own] * model.scale + model.bias : 0.0F;
        if (model.softmax()) {
          softmax_row(model, sides.row_logs[row + i], sides.column_logs + column, losses, n);
        } else {
          softplus_row(model, losses, n);
        }
        if (here) losses[own] = own_loss(model, row + i, logit);
        row_sums[row + i] += model.weight * sum_row(losses, n);
      }
    });
    visit(rows, column, n);
  });
}

// logs (examples) = log Σ_j exp(S_ij) of rows with all columns.
void log_sums_of(Stream& stream, const Model& model, const Sides& sides, const Workspace& w,
                 float* logs) {
  double* most = w.sums[0];
  double* sums = w.sums[1];
  fill(most, model.examples, -INFINITY);
  fill(sums, model.examples, 0.0);
  for_blocks(stream, model, sides, w, [&](int64_t row, int64_t rows, int64_t, int64_t n) {
    const Partition part = partition_by_thread(stream, rows, n * kLossElements);
    stream.parallel(part.tasks(), [&](int64_t task, int) {
      for (int64_t i = part.begin(task); i < part.end(task); ++i) {
        float* logits = w.losses + i * n;
        Vec highest = splat(-INFINITY);
        map_row(logits, n, [&](Vec dot, int64_t, int64_t lanes) {
          const Vec s = multiply_add(dot, splat(model.scale), splat(model.bias));
          const Vec seen = lanes == kLanes
                               ? s
                               : select(lane_numbers(0) < IntVec{} + static_cast<int32_t>(lanes), s,
                                        splat(-INFINITY));
          highest = max(highest, seen);
          return s;
        });
        const float now = ::fmaxf(static_cast<float>(most[row + i]), reduce_max(highest));
        const double before = sums[row + i] == 0.0
                                  ? 0.0
                                  : sums[row + i] * ::exp(most[row + i] - static_cast<double>(now));
        map_row(logits, n, [&](Vec s, int64_t, int64_t) { return exp(s - splat(now)); });
        most[row + i] = static_cast<double>(now);
        sums[row + i] = before + sum_row(logits, n);
      }
    });
  });
  for (int64_t i = 0; i < model.examples; ++i) {
    logs[i] = static_cast<float>(most[i] + ::log(sums[i]));
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

size_t learnability_log_sums_scratch(int threads, In learner_images, In reference_images) {
  return square_scratch(threads, learner_images, reference_images);
}

void learnability_log_sums(Stream& stream, In learner_images, In learner_texts, In learner_scale,
                           In learner_bias, In reference_images, In reference_texts,
                           In reference_scale, In reference_bias, double learner_weight,
                           double reference_weight, Out log_sums, Scratch scratch) {
  constexpr char kName[] = "learnability_log_sums";
  const Models models = check_models(
      kName, learner_images, learner_texts, learner_scale, learner_bias, reference_images,
      reference_texts, reference_scale, reference_bias, learner_weight, reference_weight);
  const int64_t n = models.model[0].examples;
  check_elements(kName, "log_sums", log_sums, 4 * n);
  check_scratch(kName, scratch, square_scratch(stream.threads(), learner_images, reference_images));
  float* logs = log_sums.data();
  for (const Model& model : models.model) {
    Carver carver(scratch.data);
    const Workspace w = workspace(stream.threads(), n, n, 0, model.width, carver);
    for (int side = 0; side < 2; ++side, logs += n) {
      if (model.weight == 0.0) {
        for (int64_t i = 0; i < n; ++i) logs[i] = 0.0F;
        continue;
      }
      const float* rows = side == 0 ? model.images : model.texts;
      const float* columns = side == 0 ? model.texts : model.images;
      log_sums_of(stream, model, {rows, nullptr, columns, nullptr, n}, w, logs);
    }
  }
}

size_t learnability_forward_scratch(int threads, In learner_images, In reference_images) {
  return square_scratch(threads, learner_images, reference_images);
}

void learnability_forward(Stream& stream, In learner_images, In learner_texts, In learner_scale,
                          In learner_bias, In reference_images, In reference_texts,
                          In reference_scale, In reference_bias, MaybeIn log_sums,
                          double learner_weight, double reference_weight, MaybeOut diagonal,
                          MaybeOut rows, MaybeOut columns, Scratch scratch) {
  constexpr char kName[] = "learnability_forward";
  Models models = check_models(kName, learner_images, learner_texts, learner_scale, learner_bias,
                               reference_images, reference_texts, reference_scale, reference_bias,
                               learner_weight, reference_weight);
  models.add_log_sums(kName, log_sums);
  const int64_t n = models.model[0].examples;
  if (diagonal.present()) check_elements(kName, "diagonal", diagonal, n);
  if (rows.present()) check_elements(kName, "rows", rows, n);
  if (columns.present()) check_elements(kName, "columns", columns, n);
  check_scratch(kName, scratch, square_scratch(stream.threads(), learner_images, reference_images));
  for (const Model& model : models.model) {
    Carver carver(scratch.data);
    const Workspace w = workspace(stream.threads(), n, n, 0, model.width, carver);
    if (&model == models.model) {
      for (double* sums : w.sums) fill(sums, n, 0.0);
    }
    if (model.weight == 0.0) continue;
    if (diagonal.present()) add_own_losses(stream, model, w.sums[2]);
    if (!rows.present() && !columns.present()) continue;
    double* column_sums = w.sums[1];
    const Sides sides = {model.images, model.row_logs, model.texts, model.column_logs, n};
    for_losses(stream, model, sides, true, w, w.sums[0],
               [&](int64_t count, int64_t column, int64_t width) {
                 if (!columns.present()) return;
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
                            In reference_scale, In reference_bias, MaybeIn log_sums, In scores,
                            In chosen, double learner_weight, double reference_weight, Out y,
                            Scratch scratch) {
  constexpr char kName[] = "learnability_condition";
  Models models = check_models(kName, learner_images, learner_texts, learner_scale, learner_bias,
                               reference_images, reference_texts, reference_scale, reference_bias,
                               learner_weight, reference_weight);
  models.add_log_sums(kName, log_sums);
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
  fill(w.sums[0], n, 0.0);
  for (const Model& model : models.model) {
    if (model.weight == 0.0) continue;
    for (int side = 0; side < 2; ++side) {
      const bool of_images = side == 0;
      const float* others = of_images ? model.texts : model.images;
      const float* other_logs = of_images ? model.column_logs : model.row_logs;
      const Partition part = partition_by_thread(stream, count, model.width);
      stream.parallel(part.tasks(), [&](int64_t task, int) {
        for (int64_t i = part.begin(task); i < part.end(task); ++i) {
          std::memcpy(w.chosen + i * model.width, others + indices[i] * model.width,
                      static_cast<size_t>(model.width) * sizeof(float));
          if (other_logs != nullptr) w.chosen_logs[i] = other_logs[indices[i]];
        }
      });
      const Sides sides = {of_images ? model.images : model.texts,
                           of_images ? model.row_logs : model.column_logs, w.chosen, w.chosen_logs,
                           count};
      for_losses(stream, model, sides, false, w, w.sums[0], [](int64_t, int64_t, int64_t) {});
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
  const Partition part = partition(n, kLossElements);
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
