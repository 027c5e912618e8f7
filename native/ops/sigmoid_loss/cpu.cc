// Blocks of at most kBlock rows by kBlock columns of the logits. The columns of a block lie in
// panels, (panels, rows, kPanel), so that G is read as it was written by both of its products:
//   dX += G · Y  row by row,     dY += Gᵀ · X  column by column.
// The loss alone holds the dot products of one panel and some rows at a time, with gradients G of one
// block (4 MiB) and packed copies of its embeddings. Neither grows with the batch.
// With s = −z (+1 for a negative pair, −1 for a positive one) no difference of large numbers is
// taken: the loss of a pair is softplus(s S), and its G is s σ(s S).
#include "ops/sigmoid_loss/sigmoid_loss.h"

#include <math.h>

#include "cpu/check.h"
#include "cpu/float64.h"
#include "cpu/simd.h"
#include "cpu/tile.h"

namespace siglip::SIGLIP_CPU {
namespace {

constexpr int64_t kBlock = 1024;
constexpr int64_t kDepth = 192;     // of a product between two visits of its sums to memory
constexpr int64_t kLeastRows = 32;  // of a task; also rows at a time in the forward
constexpr int64_t kTaskProducts = int64_t{1} << 16;  // multiply-adds of the least task
constexpr int64_t kCopyProducts = 8;                 // that take as long as packing one element

struct Extents {
  int64_t rows;
  int64_t columns;
  int64_t width;

  int64_t padded_width() const { return ceil_div(width, kLanes) * kLanes; }
};

Extents extents_of(const In& images, const In& texts) {
  return {images.extent(0), texts.extent(0), images.extent(1)};
}

Extents check_operands(const char* who, const In& images, const In& texts, const In& logit_scale,
                       const In& logit_bias) {
  check_rank(who, "images", images, 2);
  check_rank(who, "texts", texts, 2);
  check_extent(who, "texts", texts, 1, images.extent(1));
  check_elements(who, "logit_scale", logit_scale, 1);
  check_elements(who, "logit_bias", logit_bias, 1);
  return extents_of(images, texts);
}

// Tasks of kLeastRows to 2 · kLeastRows rows, a power of two of them, so that any usual number of
// threads gets equal shares.
Parts share_out(int64_t rows, int64_t products) {
  const int64_t most = smaller(rows / kLeastRows, products / kTaskProducts);
  int64_t count = 1;
  while (2 * count <= most) count *= 2;
  return {rows, count};
}

LaneParts column_blocks(const Extents& e) { return cut_lanes(e.columns, kBlock); }
Parts row_blocks(const Extents& e) { return cut(e.rows, kBlock); }

int64_t panels_of(int64_t columns) { return cut_panels(columns).count(); }

// Tasks of whole panels.
Parts share_out_panels(int64_t columns, int64_t products) {
  const int64_t panels = panels_of(columns);
  return {panels, larger(1, smaller(panels, products / kTaskProducts))};
}

// ---- Packing -----------------------------------------------------------------------------------

// panels[p] (padded width, kPanel) holds the p-th panel of rows side by side in the lanes.
void pack_transposed(Stream& stream, Rows rows, int64_t count, const Extents& e, float* panels) {
  const LaneParts parts = cut_panels(count);
  const Parts tasks = share_out_panels(count, count * e.width * kCopyProducts);
  stream.parallel(tasks.count, [&](int64_t task, int) {
    for (int64_t panel = tasks.begin(task); panel < tasks.end(task); ++panel) {
      const int64_t first = parts.begin(panel);
      const int64_t size = parts.end(panel) - first;
      with_constant<kTileVectors>(ceil_div(size, kLanes), [&](auto vectors) {
        rows_to_lanes<decltype(vectors)::value>({rows.at(first), rows.stride}, size, e.width, 1.0F,
                                                panels + panel * kPanel * e.padded_width());
      });
    }
  });
}

// panels[p] (count, kPanel) holds the p-th panel of columns of the rows, padded with zeros.
void pack(Stream& stream, Rows rows, int64_t count, int64_t width, float* panels) {
  const Parts tasks = share_out(count, count * width * kCopyProducts);
  stream.parallel(tasks.count, [&](int64_t task, int) {
    for_panels(width, [&](int64_t panel, int64_t first, int64_t size, auto vectors) {
      for (int64_t row = tasks.begin(task); row < tasks.end(task); ++row) {
        float* target = panels + (panel * count + row) * kPanel;
        for (int j = 0; j < decltype(vectors)::value; ++j) {
          const float* source = rows.at(row) + first + j * kLanes;
          store(target + j * kLanes, load_up_to(source, size - j * kLanes));
        }
      }
    });
  });
}

// ---- Logits ------------------------------------------------------------------------------------

// dots[i][c] = Σ_d rows[i][d] · panel[d][c], for `count` rows; dots are kPanel apart.
template <int kVectors>
void dot_panel(Rows rows, int64_t count, int64_t width, const float* panel, float* dots) {
  const Parts depths = {width, larger(1, ceil_div(width, kDepth))};
  for (int64_t part = 0; part < depths.count; ++part) {
    const int64_t d = depths.begin(part);
    for_tiles<kVectors>(count, [&](int64_t row, auto height) {
      Vec tile[decltype(height)::value][kVectors] = {};
      if (part > 0) load_tile(dots + row * kPanel, kPanel, tile);
      multiply(depths.end(part) - d, rows.at(row) + d, rows.stride, 1, panel + d * kPanel, kPanel,
               tile);
      store_tile(tile, dots + row * kPanel, kPanel);
    });
  }
}

UintVec bits(Vec v) { return reinterpret_cast<UintVec>(v); }

// e^x for x <= 0, as exp() of simd.h with less to guard; NaN for NaN.
Vec exp_nonpositive(Vec x) {
  x = max(splat(-87.0F), x);
  const Vec rounder = splat(12582912.0F);  // 1.5 · 2^23: adding it rounds to the nearest integer
  const Vec shifted = multiply_add(x, splat(1.44269504088896341F), rounder);
  const Vec n = shifted - rounder;
  Vec r = multiply_add(n, splat(-0.693359375F), x);
  r = multiply_add(n, splat(2.12194440e-4F), r);
  Vec p = splat(1.9875691500e-4F);
  p = multiply_add(p, r, splat(1.3981999507e-3F));
  p = multiply_add(p, r, splat(8.3334519073e-3F));
  p = multiply_add(p, r, splat(4.1665795894e-2F));
  p = multiply_add(p, r, splat(1.6666665459e-1F));
  p = multiply_add(p, r, splat(5.0000001201e-1F));
  p = multiply_add(p, r * r, r) + splat(1.0F);
  // A product keeps every NaN; adding to the exponent's bits would turn some into numbers.
  const UintVec exponent = (bits(shifted) << 23) + 0x3f800000U;
  return p * reinterpret_cast<Vec>(exponent);
}

// The scalars of a call and what they make of the dot product of a pair.
struct Logits {
  float scale;     // exp(t)
  float bias;      // b
  int64_t offset;  // of the positive pair's column

  // The column within a panel that begins at `first` in which row i has its positive pair, or −1.
  int32_t positive(int64_t row, int64_t first) const {
    const int64_t column = row + offset - first;
    return column >= 0 && column < kPanel ? static_cast<int32_t>(column) : -1;
  }
};

// Σ softplus(s S) over a panel of `size` columns. first_row and first_column are global.
template <int kVectors>
void add_loss(const Logits& logits, int64_t first_row, int64_t rows, int64_t first_column,
              int64_t size, const float* dots, Float64Vec* sum) {
  IntVec number[kVectors];
  for (int j = 0; j < kVectors; ++j) number[j] = lane_numbers(j);
  const IntVec end = IntVec{} + static_cast<int32_t>(size);
  for (int64_t i = 0; i < rows; ++i) {
    const IntVec positive = IntVec{} + logits.positive(first_row + i, first_column);
    Vec row_sum = {};
    for (int j = 0; j < kVectors; ++j) {
      const Vec dot = load(dots + i * kPanel + j * kLanes);
      const Vec logit = multiply_add(dot, splat(logits.scale), splat(logits.bias));
      const UintVec sign = reinterpret_cast<UintVec>(number[j] == positive) & 0x80000000U;
      const Vec u = reinterpret_cast<Vec>(bits(logit) ^ sign);
      const Vec e = exp_nonpositive(-abs(u));
      const Vec softplus = max(u, splat(0.0F)) + log1p_unit(e);
      row_sum += reinterpret_cast<Vec>(bits(softplus) & reinterpret_cast<UintVec>(number[j] < end));
    }
    add(sum, row_sum);
  }
}

// Sums over pairs.
struct Sums {
  Float64Vec loss = {};
  Float64Vec gradient = {};  // G of batch 1
  Float64Vec dot = {};       // the same times S − b
};

// Adds to the sums, and replaces the dots of a panel by factor · G; zeros past its last column.
template <int kVectors>
void gradient_panel(const Logits& logits, int64_t first_row, int64_t rows, int64_t first_column,
                    int64_t size, float factor, float* dots, Sums* sums) {
  IntVec number[kVectors];
  for (int j = 0; j < kVectors; ++j) number[j] = lane_numbers(j);
  const IntVec end = IntVec{} + static_cast<int32_t>(size);
  for (int64_t i = 0; i < rows; ++i) {
    const IntVec positive = IntVec{} + logits.positive(first_row + i, first_column);
    Vec row_loss = {};
    Vec row_sum = {};
    Vec row_dot_sum = {};
    for (int j = 0; j < kVectors; ++j) {
      float* target = dots + i * kPanel + j * kLanes;
      const Vec scaled = load(target) * splat(logits.scale);
      const Vec logit = scaled + splat(logits.bias);
      const UintVec sign = reinterpret_cast<UintVec>(number[j] == positive) & 0x80000000U;
      const Vec u = reinterpret_cast<Vec>(bits(logit) ^ sign);
      const Vec e = exp_nonpositive(-abs(u));
      const Vec high = splat(1.0F) / (splat(1.0F) + e);
      const Vec sigmoid = select(u > splat(0.0F), high, e * high);
      const UintVec inside = reinterpret_cast<UintVec>(number[j] < end);
      const Vec g = reinterpret_cast<Vec>((bits(sigmoid) ^ sign) & inside);
      store(target, g * splat(factor));
      const Vec softplus = max(u, splat(0.0F)) + log1p_unit(e);
      row_loss += reinterpret_cast<Vec>(bits(softplus) & inside);
      row_sum += g;
      row_dot_sum += g * scaled;
    }
    add(&sums->loss, row_loss);
    add(&sums->gradient, row_sum);
    add(&sums->dot, row_dot_sum);
  }
}

// ---- Gradients of the embeddings ---------------------------------------------------------------

// A tile of a matrix whose rows need not be whole vectors.
template <int kRows, int kVectors>
void load_columns(const float* p, int64_t stride, int64_t columns, Vec (&tile)[kRows][kVectors]) {
  if (columns >= kVectors * kLanes) {
    load_tile(p, stride, tile);
    return;
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVectors; ++j) {
      tile[i][j] = load_up_to(p + i * stride + j * kLanes, columns - j * kLanes);
    }
  }
}
template <int kRows, int kVectors>
void store_columns(const Vec (&tile)[kRows][kVectors], int64_t columns, float* p, int64_t stride) {
  if (columns >= kVectors * kLanes) {
    store_tile(tile, p, stride);
    return;
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVectors; ++j) {
      store_up_to(p + i * stride + j * kLanes, tile[i][j], columns - j * kLanes);
    }
  }
}

// A block of G: `columns` columns in panels of `rows` rows each.
struct Gradient {
  float* data;
  int64_t rows;
  int64_t columns;

  float* at(int64_t panel, int64_t row) const { return data + (panel * rows + row) * kPanel; }
};

// drows[begin, end) (+)= G · Y; texts are the packed columns' embeddings, drows begin with row 0.
void add_to_rows(const Gradient& g, const float* texts, int64_t begin, int64_t end, int64_t width,
                 bool first, float* drows) {
  const LaneParts panels = cut_panels(g.columns);
  const Parts depths = cut(panels.count(), kDepth / kPanel);
  for_panels(width, [&](int64_t part, int64_t d, int64_t size, auto vectors) {
    constexpr int kVectors = decltype(vectors)::value;
    const float* operand = texts + part * g.columns * kPanel;
    for (int64_t depth = 0; depth < depths.count; ++depth) {
      for_tiles<kVectors>(end - begin, [&](int64_t i, auto height) {
        Vec tile[decltype(height)::value][kVectors] = {};
        const int64_t row = begin + i;
        float* target = drows + row * width + d;
        if (!first || depth > 0) load_columns(target, width, size, tile);
        for (int64_t panel = depths.begin(depth); panel < depths.end(depth); ++panel) {
          const int64_t column = panels.begin(panel);
          multiply(panels.end(panel) - column, g.at(panel, row), kPanel, 1,
                   operand + column * kPanel, kPanel, tile);
        }
        store_columns(tile, size, target, width);
      });
    }
  });
}

// dcolumns of one panel (+)= Gᵀ · X; images are the packed rows, dcolumns begin with the block's
// column 0.
void add_to_columns(const Gradient& g, const float* images, int64_t panel, int64_t width,
                    bool first, float* dcolumns) {
  const LaneParts panels = cut_panels(g.columns);
  const int64_t begin = panels.begin(panel);
  const Parts depths = cut(g.rows, kDepth);
  for_panels(width, [&](int64_t part, int64_t d, int64_t size, auto vectors) {
    constexpr int kVectors = decltype(vectors)::value;
    for (int64_t depth = 0; depth < depths.count; ++depth) {
      const int64_t row = depths.begin(depth);
      const float* operand = images + (part * g.rows + row) * kPanel;
      for_tiles<kVectors>(panels.end(panel) - begin, [&](int64_t i, auto height) {
        Vec tile[decltype(height)::value][kVectors] = {};
        float* target = dcolumns + (begin + i) * width + d;
        if (!first || depth > 0) load_columns(target, width, size, tile);
        multiply(depths.end(depth) - row, g.at(panel, row) + i, 1, kPanel, operand, kPanel, tile);
        store_columns(tile, size, target, width);
      });
    }
  });
}

void zero(int64_t elements, float* y) {
  for (int64_t i = 0; i < elements; ++i) y[i] = 0.0F;
}

// ---- Scratch -----------------------------------------------------------------------------------

struct LossWorkspace {
  float* texts;      // one block of texts, transposed panels
  double* partials;  // the loss of each task
};

Parts loss_tasks(const Extents& e) {
  return share_out(e.rows, e.rows * smaller(e.columns, kBlock) * larger(1, e.width));
}

LossWorkspace loss_workspace(const Extents& e, Carver& carver) {
  const int64_t columns = smaller(e.columns, kBlock);
  LossWorkspace w;
  w.texts = carver.take<float>(panels_of(columns) * kPanel * e.padded_width());
  w.partials = carver.take<double>(loss_tasks(e).count);
  return w;
}

struct TaskSums {
  double loss;
  double gradient;
  double dot;
};

struct GradientWorkspace {
  float* texts_transposed;  // one block of texts
  float* texts;
  float* images;       // one block of images
  float* gradient;     // G of the block
  TaskSums* partials;  // of each task
};

GradientWorkspace gradient_workspace(const Extents& e, Carver& carver) {
  const int64_t columns = smaller(e.columns, kBlock);
  const int64_t rows = smaller(e.rows, kBlock);
  const int64_t width = panels_of(e.width) * kPanel;
  GradientWorkspace w;
  w.texts_transposed = carver.take<float>(panels_of(columns) * kPanel * e.padded_width());
  w.texts = carver.take<float>(columns * width);
  w.images = carver.take<float>(rows * width);
  w.gradient = carver.take<float>(panels_of(columns) * kPanel * rows);
  w.partials = carver.take<TaskSums>(ceil_div(rows, kLeastRows));
  return w;
}

// ---- The call ----------------------------------------------------------------------------------

struct Call {
  Extents extents;
  const float* images;
  const float* texts;
  Logits logits;
  double batch;
};

// Σ softplus(s S).
double sum_losses(Stream& stream, const Call& call, const LossWorkspace& w) {
  const Extents& e = call.extents;
  double total = 0.0;
  const Parts tasks = loss_tasks(e);
  const LaneParts blocks = column_blocks(e);
  for (int64_t block = 0; block < blocks.count(); ++block) {
    const int64_t column = blocks.begin(block);
    const int64_t columns = blocks.end(block) - column;
    pack_transposed(stream, {call.texts + column * e.width, e.width}, columns, e, w.texts);
    stream.parallel(tasks.count, [&](int64_t task, int) {
      alignas(64) float dots[kLeastRows * kPanel];
      Float64Vec sum = {};
      for (int64_t row = tasks.begin(task); row < tasks.end(task); row += kLeastRows) {
        const int64_t rows = smaller(kLeastRows, tasks.end(task) - row);
        for_panels(columns, [&](int64_t panel, int64_t first, int64_t size, auto vectors) {
          constexpr int kVectors = decltype(vectors)::value;
          dot_panel<kVectors>({call.images + row * e.width, e.width}, rows, e.width,
                              w.texts + panel * kPanel * e.padded_width(), dots);
          add_loss<kVectors>(call.logits, row, rows, column + first, size, dots, &sum);
        });
      }
      w.partials[task] = reduce_add(sum);
    });
    for (int64_t task = 0; task < tasks.count; ++task) total += w.partials[task];
  }
  return total;
}

// The sums, and the gradients of the embeddings where there is room for them.
TaskSums sum_gradients(Stream& stream, const Call& call, const GradientWorkspace& w, float* dimages,
                       float* dtexts) {
  const Extents& e = call.extents;
  const float factor = static_cast<float>(static_cast<double>(call.logits.scale) / call.batch);
  TaskSums total = {};
  const LaneParts across = column_blocks(e);
  const Parts down = row_blocks(e);
  for (int64_t column_block = 0; column_block < across.count(); ++column_block) {
    const int64_t column = across.begin(column_block);
    const int64_t columns = across.end(column_block) - column;
    const Rows block_texts = {call.texts + column * e.width, e.width};
    pack_transposed(stream, block_texts, columns, e, w.texts_transposed);
    if (dimages != nullptr) pack(stream, block_texts, columns, e.width, w.texts);
    for (int64_t row_block = 0; row_block < down.count; ++row_block) {
      const int64_t row = down.begin(row_block);
      const int64_t rows = down.end(row_block) - row;
      const Rows block_images = {call.images + row * e.width, e.width};
      const Gradient gradient = {w.gradient, rows, columns};
      if (dtexts != nullptr && (column_block == 0 || down.count > 1)) {
        pack(stream, block_images, rows, e.width, w.images);
      }

      const int64_t products = rows * columns * larger(1, e.width);
      const Parts tasks = share_out(rows, products);
      stream.parallel(tasks.count, [&](int64_t task, int) {
        const int64_t begin = tasks.begin(task);
        const int64_t end = tasks.end(task);
        Sums sums;
        for_panels(columns, [&](int64_t panel, int64_t first, int64_t size, auto vectors) {
          constexpr int kVectors = decltype(vectors)::value;
          float* dots = gradient.at(panel, begin);
          dot_panel<kVectors>({block_images.at(begin), e.width}, end - begin, e.width,
                              w.texts_transposed + panel * kPanel * e.padded_width(), dots);
          gradient_panel<kVectors>(call.logits, row + begin, end - begin, column + first, size,
                                   factor, dots, &sums);
        });
        w.partials[task] = {reduce_add(sums.loss), reduce_add(sums.gradient), reduce_add(sums.dot)};
        if (dimages == nullptr) return;
        add_to_rows(gradient, w.texts, begin, end, e.width, column_block == 0,
                    dimages + row * e.width);
      });
      for (int64_t task = 0; task < tasks.count; ++task) {
        total.loss += w.partials[task].loss;
        total.gradient += w.partials[task].gradient;
        total.dot += w.partials[task].dot;
      }

      if (dtexts == nullptr) continue;
      const Parts panel_tasks = share_out_panels(columns, products);
      stream.parallel(panel_tasks.count, [&](int64_t task, int) {
        for (int64_t p = panel_tasks.begin(task); p < panel_tasks.end(task); ++p) {
          add_to_columns(gradient, w.images, p, e.width, row_block == 0, dtexts + column * e.width);
        }
      });
    }
  }
  return total;
}

// Null where it is not wanted.
float* data_of(const MaybeOut& y) { return y.present() ? y.data() : nullptr; }

}  // namespace

size_t sigmoid_loss_forward_scratch(int, In images, In texts, MaybeOut dimages, MaybeOut dtexts,
                                    MaybeOut dlogit_scale, MaybeOut dlogit_bias) {
  Carver carver(nullptr);
  if (dimages.present() || dtexts.present() || dlogit_scale.present() || dlogit_bias.present()) {
    gradient_workspace(extents_of(images, texts), carver);
  } else {
    loss_workspace(extents_of(images, texts), carver);
  }
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
                sigmoid_loss_forward_scratch(stream.threads(), images, texts, dimages, dtexts,
                                             dlogit_scale, dlogit_bias));
  float* loss_data = loss.data();
  float* dimages_data = data_of(dimages);
  float* dtexts_data = data_of(dtexts);
  float* dlogit_scale_data = data_of(dlogit_scale);
  float* dlogit_bias_data = data_of(dlogit_bias);
  const double scale = ::exp(static_cast<double>(*logit_scale.data()));
  const Call call = {e,
                     images.data(),
                     texts.data(),
                     {static_cast<float>(scale), *logit_bias.data(), offset},
                     static_cast<double>(batch)};
  Carver carver(scratch.data);
  if (dimages_data == nullptr && dtexts_data == nullptr && dlogit_scale_data == nullptr &&
      dlogit_bias_data == nullptr) {
    const double total = sum_losses(stream, call, loss_workspace(e, carver));
    *loss_data = static_cast<float>(total / call.batch);
    return;
  }
  if (e.rows == 0 || e.columns == 0) {
    if (dimages_data != nullptr) zero(images.elements(), dimages_data);
    if (dtexts_data != nullptr) zero(texts.elements(), dtexts_data);
  }
  const TaskSums total =
      sum_gradients(stream, call, gradient_workspace(e, carver), dimages_data, dtexts_data);
  *loss_data = static_cast<float>(total.loss / call.batch);
  if (dlogit_scale_data != nullptr) {
    *dlogit_scale_data = static_cast<float>(total.dot / call.batch);
  }
  if (dlogit_bias_data != nullptr) {
    *dlogit_bias_data = static_cast<float>(total.gradient / call.batch);
  }
}

}  // namespace siglip::SIGLIP_CPU
