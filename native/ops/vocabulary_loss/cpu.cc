// Rows that count are gathered in blocks, and a block of rows meets one block of the vocabulary after
// the other: a packed product makes their logits, a pass over them what is wanted, and in the backward
// two more products take the gradient from there. What is held at once depends on neither N nor V.
#include "ops/vocabulary_loss/vocabulary_loss.h"

#include <math.h>

#include "cpu/check.h"
#include "cpu/gemm.h"
#include "cpu/partition.h"
#include "cpu/simd.h"
#include "cpu/tile.h"

namespace siglip::SIGLIP_CPU {
namespace {

constexpr int64_t kRowBlock = 1024;
constexpr int64_t kColumnBlock = 1024;
// Blocks of rows are filled up to a multiple with zeros, so that products come in few sizes.
constexpr int64_t kRowUnit = 32;

struct Extents {
  int64_t rows;
  int64_t vocabulary;
  int64_t width;

  int64_t block_rows() const { return smaller(kRowBlock, ceil_div(rows, kRowUnit) * kRowUnit); }
  int64_t block_columns() const { return smaller(kColumnBlock, vocabulary); }
};

Extents extents_of(const In& hidden, const In& weight) {
  return {hidden.extent(0), weight.extent(0), hidden.extent(1)};
}

struct Operands {
  Extents e;
  const float* hidden;
  const float* weight;
  const float* bias;
  const int32_t* labels;
  const float* row_weights;
};

Operands check_operands(const char* who, const In& hidden, const In& weight, const In& bias,
                        const In& labels, const In& row_weights) {
  check_rank(who, "hidden", hidden, 2);
  check_rank(who, "weight", weight, 2);
  const Extents e = extents_of(hidden, weight);
  check_extent(who, "weight", weight, 1, e.width);
  check_elements(who, "bias", bias, e.vocabulary);
  check_elements(who, "labels", labels, e.rows);
  check_elements(who, "row_weights", row_weights, e.rows);
  const Operands call = {e,           hidden.data(),          weight.data(),
                         bias.data(), labels.data<int32_t>(), row_weights.data()};
  for (int64_t row = 0; row < e.rows; ++row) {
    if (call.row_weights[row] == 0.0F) continue;
    const int64_t label = call.labels[row];
    if (label >= 0 && label < e.vocabulary) continue;
    fail("ERR_ARGUMENT", "%s: labels[%lld] must be in [0, %lld), got %lld", who,
         static_cast<long long>(row), static_cast<long long>(e.vocabulary),
         static_cast<long long>(label));
  }
  return call;
}

// ---- Scratch -----------------------------------------------------------------------------------

// The products of a block of rows with a block of the vocabulary.
GemmShape logits_shape(int64_t rows, int64_t columns, int64_t width) {
  return {rows, columns, width, false, true};
}
GemmShape dhidden_shape(int64_t rows, int64_t columns, int64_t width) {
  return {rows, width, columns, false, false};
}
GemmShape dweight_shape(int64_t rows, int64_t columns, int64_t width) {
  return {columns, width, rows, true, false};
}

// The most that the products of any block need.
size_t product_bytes(int threads, const Extents& e, bool backward) {
  size_t most = 0;
  const auto take = [&](const GemmShape& shape) {
    const size_t bytes = gemm_scratch(threads, shape);
    if (bytes > most) most = bytes;
  };
  const int64_t last_columns = e.vocabulary % kColumnBlock;
  for (int64_t rows = kRowUnit; rows <= e.block_rows(); rows += kRowUnit) {
    for (const int64_t columns : {e.block_columns(), last_columns}) {
      if (columns == 0) continue;
      take(logits_shape(rows, columns, e.width));
      if (!backward) continue;
      take(dhidden_shape(rows, columns, e.width));
      take(dweight_shape(rows, columns, e.width));
    }
  }
  return most;
}

// What a row has seen of the vocabulary.
struct Seen {
  float highest;
  double sum;  // of exp(z − highest)
  float target;
};

struct Workspace {
  int32_t* counting;  // rows that count
  float* hidden;      // of the block, (block rows, width)
  float* logits;      // (block rows, block columns), or their gradient
  Seen* seen;         // of the forward
  float* dhidden;     // of the backward, (block rows, width)
  float* products;    // same: what is added to gradients of former blocks
  float* bias_sums;   // same, (block columns)
  Scratch gemm;
};

Workspace workspace(int threads, const Extents& e, bool backward, Carver& carver) {
  const int64_t rows = e.block_rows();
  const int64_t columns = e.block_columns();
  Workspace w = {};
  w.counting = carver.take<int32_t>(e.rows);
  w.hidden = carver.take<float>(rows * e.width);
  w.logits = carver.take<float>(rows * columns);
  if (backward) {
    w.dhidden = carver.take<float>(rows * e.width);
    w.products = carver.take<float>(larger(rows, columns) * e.width);
    w.bias_sums = carver.take<float>(columns);
  } else {
    w.seen = carver.take<Seen>(rows);
  }
  w.gemm.bytes = product_bytes(threads, e, backward);
  w.gemm.data = carver.take<std::byte>(static_cast<int64_t>(w.gemm.bytes));
  return w;
}

size_t workspace_bytes(int threads, const Extents& e, bool backward) {
  Carver carver(nullptr);
  workspace(threads, e, backward, carver);
  return carver.bytes();
}

// ---- Blocks ------------------------------------------------------------------------------------

int64_t count_rows(const Operands& call, int32_t* counting) {
  int64_t count = 0;
  for (int64_t row = 0; row < call.e.rows; ++row) {
    if (call.row_weights[row] != 0.0F) counting[count++] = static_cast<int32_t>(row);
  }
  return count;
}

// A block of rows that count, and of the vocabulary.
struct Block {
  const int32_t* rows;
  int64_t count;   // of them
  int64_t padded;  // rows of the products
};

Block block_of(const Workspace& w, const Parts& blocks, int64_t index) {
  const int64_t begin = blocks.begin(index);
  const int64_t count = blocks.end(index) - begin;
  return {w.counting + begin, count, ceil_div(count, kRowUnit) * kRowUnit};
}

void copy_floats(int64_t count, const float* from, float* to) {
  std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
}
void zero_floats(int64_t count, float* to) {
  std::memset(to, 0, static_cast<size_t>(count) * sizeof(float));
}

void gather(Stream& stream, const Operands& call, const Block& block, float* hidden) {
  const int64_t width = call.e.width;
  const Partition part = partition_by_thread(stream, block.padded, width);
  stream.parallel(part.tasks(), [&](int64_t task, int) {
    for (int64_t i = part.begin(task); i < part.end(task); ++i) {
      float* to = hidden + i * width;
      if (i < block.count) {
        copy_floats(width, call.hidden + block.rows[i] * width, to);
      } else {
        zero_floats(width, to);
      }
    }
  });
}

// The logits of a block of rows for columns [begin, begin + columns) of the vocabulary.
void multiply_logits(Stream& stream, const Operands& call, const Block& block, int64_t begin,
                     int64_t columns, const Workspace& w) {
  const int64_t width = call.e.width;
  GemmOutput output;
  output.data = w.logits;
  output.stride = columns;
  output.bias = call.bias + begin;
  gemm(stream, logits_shape(block.padded, columns, width), {w.hidden, width},
       {call.weight + begin * width, width}, output, w.gemm);
}

// ---- Rows --------------------------------------------------------------------------------------

// `label` is counted from the block's first column.
void see_row(const float* logits, int64_t columns, int64_t label, Seen* seen) {
  const float lowest = -__builtin_huge_valf();
  Vec highest = splat(lowest);
  for (int64_t j = 0; j < columns; j += kLanes) {
    const int64_t left = columns - j;
    highest =
        max(left >= kLanes ? load(logits + j) : load_partial(logits + j, left, lowest), highest);
  }
  const float now = seen->highest > reduce_max(highest) ? seen->highest : reduce_max(highest);
  const Vec center = splat(now);
  Vec sum[4] = {};
  int64_t j = 0;
  for (; j + 4 * kLanes <= columns; j += 4 * kLanes) {
    for (int i = 0; i < 4; ++i) sum[i] += exp(load(logits + j + i * kLanes) - center);
  }
  for (; j < columns; j += kLanes) {
    const int64_t left = columns - j;
    const Vec e = exp(load_up_to(logits + j, left) - center);
    sum[0] += left >= kLanes ? e : select(lane_numbers(0) < static_cast<int32_t>(left), e, Vec{});
  }
  const double block = reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3]));
  const double before =
      seen->sum == 0.0 ? 0.0 : seen->sum * ::exp(static_cast<double>(seen->highest) - now);
  seen->sum = before + block;
  seen->highest = now;
  if (label >= 0 && label < columns) seen->target = logits[label];
}

// Replaces a row of logits by factor · (exp(z − lse) − onehot).
void differentiate_row(float* logits, int64_t columns, int64_t label, float lse, float factor) {
  const Vec center = splat(lse);
  const Vec scale = splat(factor);
  for (int64_t j = 0; j < columns; j += kLanes) {
    const int64_t left = columns - j;
    store_up_to(logits + j, exp(load_up_to(logits + j, left) - center) * scale, left);
  }
  if (label >= 0 && label < columns) logits[label] -= factor;
}

// y += x
void add_floats(Stream& stream, int64_t count, const float* x, float* y) {
  const Partition part = partition_by_thread(stream, count, 3, kLanes);
  stream.parallel(part.tasks(), [&](int64_t task, int) {
    const int64_t end = part.end(task);
    for (int64_t i = part.begin(task); i < end; i += kLanes) {
      const int64_t left = end - i;
      store_up_to(y + i, load_up_to(y + i, left) + load_up_to(x + i, left), left);
    }
  });
}

}  // namespace

size_t vocabulary_loss_forward_scratch(int threads, In hidden, In weight) {
  return workspace_bytes(threads, extents_of(hidden, weight), false);
}

void vocabulary_loss_forward(Stream& stream, In hidden, In weight, In bias, In labels,
                             In row_weights, Out loss, Out lse, MaybeOut row_losses,
                             Scratch scratch) {
  constexpr char kName[] = "vocabulary_loss_forward";
  const Operands call = check_operands(kName, hidden, weight, bias, labels, row_weights);
  const Extents& e = call.e;
  check_elements(kName, "loss", loss, 1);
  check_elements(kName, "lse", lse, e.rows);
  if (row_losses.present()) check_elements(kName, "row_losses", row_losses, e.rows);
  check_scratch(kName, scratch, workspace_bytes(stream.threads(), e, false));
  Carver carver(scratch.data);
  const Workspace w = workspace(stream.threads(), e, false, carver);
  float* lse_data = lse.data();
  zero_floats(e.rows, lse_data);
  float* row_losses_data = row_losses.present() ? row_losses.data() : nullptr;
  if (row_losses_data != nullptr) zero_floats(e.rows, row_losses_data);

  double total = 0.0;
  const Parts blocks = cut(count_rows(call, w.counting), kRowBlock);
  for (int64_t index = 0; index < blocks.count; ++index) {
    const Block block = block_of(w, blocks, index);
    gather(stream, call, block, w.hidden);
    for (int64_t i = 0; i < block.count; ++i) w.seen[i] = {-__builtin_huge_valf(), 0.0, 0.0F};
    for (int64_t begin = 0; begin < e.vocabulary; begin += kColumnBlock) {
      const int64_t columns = smaller(kColumnBlock, e.vocabulary - begin);
      multiply_logits(stream, call, block, begin, columns, w);
      const Partition part = partition_by_thread(stream, block.count, 4 * columns);
      stream.parallel(part.tasks(), [&](int64_t task, int) {
        for (int64_t i = part.begin(task); i < part.end(task); ++i) {
          see_row(w.logits + i * columns, columns, call.labels[block.rows[i]] - begin, w.seen + i);
        }
      });
    }
    for (int64_t i = 0; i < block.count; ++i) {
      const int64_t row = block.rows[i];
      const double log_sum = static_cast<double>(w.seen[i].highest) + ::log(w.seen[i].sum);
      lse_data[row] = static_cast<float>(log_sum);
      const double term = static_cast<double>(call.row_weights[row]) *
                          (log_sum - static_cast<double>(w.seen[i].target));
      if (row_losses_data != nullptr) row_losses_data[row] = static_cast<float>(term);
      total += term;
    }
  }
  *loss.data() = static_cast<float>(total);
}

size_t vocabulary_loss_backward_scratch(int threads, In hidden, In weight) {
  return workspace_bytes(threads, extents_of(hidden, weight), true);
}

void vocabulary_loss_backward(Stream& stream, In dloss, In hidden, In weight, In bias, In labels,
                              In row_weights, In lse, MaybeOut dhidden, MaybeOut dweight,
                              MaybeOut dbias, Scratch scratch) {
  constexpr char kName[] = "vocabulary_loss_backward";
  const Operands call = check_operands(kName, hidden, weight, bias, labels, row_weights);
  const Extents& e = call.e;
  check_elements(kName, "dloss", dloss, 1);
  check_elements(kName, "lse", lse, e.rows);
  if (dhidden.present()) check_elements(kName, "dhidden", dhidden, e.rows * e.width);
  if (dweight.present()) check_elements(kName, "dweight", dweight, e.vocabulary * e.width);
  if (dbias.present()) check_elements(kName, "dbias", dbias, e.vocabulary);
  check_scratch(kName, scratch, workspace_bytes(stream.threads(), e, true));
  Carver carver(scratch.data);
  const Workspace w = workspace(stream.threads(), e, true, carver);
  const float upstream = *dloss.data();
  const float* lse_data = lse.data();
  float* dhidden_data = dhidden.present() ? dhidden.data() : nullptr;
  float* dweight_data = dweight.present() ? dweight.data() : nullptr;
  float* dbias_data = dbias.present() ? dbias.data() : nullptr;
  if (dhidden_data != nullptr) zero_floats(e.rows * e.width, dhidden_data);

  const Parts blocks = cut(count_rows(call, w.counting), kRowBlock);
  if (blocks.count == 0) {
    if (dweight_data != nullptr) zero_floats(e.vocabulary * e.width, dweight_data);
    if (dbias_data != nullptr) zero_floats(e.vocabulary, dbias_data);
  }
  for (int64_t index = 0; index < blocks.count; ++index) {
    const Block block = block_of(w, blocks, index);
    gather(stream, call, block, w.hidden);
    for (int64_t begin = 0; begin < e.vocabulary; begin += kColumnBlock) {
      const int64_t columns = smaller(kColumnBlock, e.vocabulary - begin);
      multiply_logits(stream, call, block, begin, columns, w);
      const Partition part = partition_by_thread(stream, block.padded, 4 * columns);
      stream.parallel(part.tasks(), [&](int64_t task, int) {
        for (int64_t i = part.begin(task); i < part.end(task); ++i) {
          float* logits = w.logits + i * columns;
          if (i >= block.count) {
            zero_floats(columns, logits);
            continue;
          }
          const int64_t row = block.rows[i];
          differentiate_row(logits, columns, call.labels[row] - begin, lse_data[row],
                            upstream * call.row_weights[row]);
        }
      });

      if (dhidden_data != nullptr) {
        GemmOutput output;
        output.data = begin == 0 ? w.dhidden : w.products;
        output.stride = e.width;
        gemm(stream, dhidden_shape(block.padded, columns, e.width), {w.logits, columns},
             {call.weight + begin * e.width, e.width}, output, w.gemm);
        if (begin > 0) add_floats(stream, block.count * e.width, w.products, w.dhidden);
      }
      if (dweight_data == nullptr && dbias_data == nullptr) continue;
      // Written by the first block of rows, added to by the others.
      const bool first = index == 0;
      float* dweight_block = dweight_data == nullptr ? nullptr : dweight_data + begin * e.width;
      float* dbias_block = dbias_data == nullptr ? nullptr : dbias_data + begin;
      GemmOutput output;
      output.data = first && dweight_block != nullptr ? dweight_block : w.products;
      output.stride = e.width;
      if (dbias_block != nullptr) output.row_sums = first ? dbias_block : w.bias_sums;
      gemm(stream, dweight_shape(block.padded, columns, e.width), {w.logits, columns},
           {w.hidden, e.width}, output, w.gemm);
      if (first) continue;
      if (dweight_block != nullptr) {
        add_floats(stream, columns * e.width, w.products, dweight_block);
      }
      if (dbias_block != nullptr) add_floats(stream, columns, w.bias_sums, dbias_block);
    }
    if (dhidden_data == nullptr) continue;
    for (int64_t i = 0; i < block.count; ++i) {
      copy_floats(e.width, w.dhidden + i * e.width, dhidden_data + block.rows[i] * e.width);
    }
  }
}

}  // namespace siglip::SIGLIP_CPU
