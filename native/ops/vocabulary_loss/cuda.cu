// Blocks of rows meet blocks of the vocabulary: a product makes their logits, a kernel with a block of
// threads per row what is wanted, and in the backward two more products take the gradient from there. A
// row whose weight is 0 takes part as zeros.
#include "ops/vocabulary_loss/vocabulary_loss.h"

#include "cuda/gemm.h"
#include "device/reduce.cuh"
#include "runtime/cuda_context.h"

#define SIGLIP_CPU cuda  // the namespace of the checks
#include "cpu/check.h"

namespace siglip::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / device::kWarpThreads;
constexpr int64_t kRowBlock = 2048;
constexpr int64_t kColumnBlock = 8192;

struct Extents {
  int64_t rows;
  int64_t vocabulary;
  int64_t width;

  int64_t block_rows() const { return rows < kRowBlock ? rows : kRowBlock; }
  int64_t block_columns() const { return vocabulary < kColumnBlock ? vocabulary : kColumnBlock; }
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
  return {e, hidden.data(), weight.data(), bias.data(), labels.data<int32_t>(), row_weights.data()};
}

// ---- Products ----------------------------------------------------------------------------------

struct Block {
  int64_t row;
  int64_t rows;
  int64_t column;
  int64_t columns;
};

MatrixProduct logits_product(const Extents& e, const Block& b, const float* hidden,
                             const Operands& call, float* logits) {
  MatrixProduct product;
  product.m = b.rows;
  product.n = b.columns;
  product.k = e.width;
  product.transpose_b = true;
  product.a = {hidden, e.width};
  product.b = {call.weight + b.column * e.width, e.width};
  product.bias = call.bias + b.column;
  product.c = logits;
  product.c_stride = b.columns;
  return product;
}

MatrixProduct dhidden_product(const Extents& e, const Block& b, const float* gradient,
                              const Operands& call, float* dhidden) {
  MatrixProduct product;
  product.m = b.rows;
  product.n = e.width;
  product.k = b.columns;
  product.a = {gradient, b.columns};
  product.b = {call.weight + b.column * e.width, e.width};
  product.c = dhidden;
  product.c_stride = e.width;
  return product;
}

MatrixProduct dweight_product(const Extents& e, const Block& b, const float* gradient,
                              const float* hidden, float* dweight, float* dbias) {
  MatrixProduct product;
  product.m = b.columns;
  product.n = e.width;
  product.k = b.rows;
  product.transpose_a = true;
  product.a = {gradient, b.columns};
  product.b = {hidden, e.width};
  product.c = dweight;
  product.c_stride = e.width;
  product.row_sums = dbias;
  return product;
}

// ---- Scratch -----------------------------------------------------------------------------------

// What a row has seen of the vocabulary.
struct Seen {
  float highest;
  float sum;  // of exp(z − highest)
  float target;
};

struct Workspace {
  float* hidden;     // (block rows, width): zeros where a row does not count
  float* logits;     // (block rows, block columns), or their gradient
  Seen* seen;        // (block rows)
  float* terms;      // (rows): of the sum
  float* products;   // of the backward: what is added to gradients of former blocks
  float* bias_sums;  // same, (block columns)
  Scratch gemm;
};

template <typename T>
T* take(std::byte* base, int64_t count, size_t* bytes) {
  T* part = base == nullptr ? nullptr : reinterpret_cast<T*>(base + *bytes);
  *bytes += (static_cast<size_t>(count) * sizeof(T) + 255) / 256 * 256;
  return part;
}

size_t product_bytes(int multiprocessors, const Extents& e) {
  size_t most = 0;
  const Operands none = {e, nullptr, nullptr, nullptr, nullptr, nullptr};
  const auto larger = [&](const MatrixProduct& product) {
    const size_t bytes = gemm_scratch(multiprocessors, product);
    if (bytes > most) most = bytes;
  };
  for (const int64_t rows : {e.block_rows(), e.rows % kRowBlock}) {
    for (const int64_t columns : {e.block_columns(), e.vocabulary % kColumnBlock}) {
      if (rows == 0 || columns == 0) continue;
      const Block block = {0, rows, 0, columns};
      larger(logits_product(e, block, nullptr, none, nullptr));
      larger(dhidden_product(e, block, nullptr, none, nullptr));
      larger(dweight_product(e, block, nullptr, nullptr, nullptr, nullptr));
    }
  }
  return most;
}

Workspace workspace(int multiprocessors, const Extents& e, bool backward, std::byte* base,
                    size_t* bytes) {
  const int64_t rows = e.block_rows();
  const int64_t columns = e.block_columns();
  Workspace w = {};
  w.hidden = take<float>(base, rows * e.width, bytes);
  w.logits = take<float>(base, rows * columns, bytes);
  w.seen = take<Seen>(base, rows, bytes);
  w.terms = take<float>(base, e.rows, bytes);
  if (backward) {
    w.products = take<float>(base, (rows > columns ? rows : columns) * e.width, bytes);
    w.bias_sums = take<float>(base, columns, bytes);
  }
  w.gemm.bytes = product_bytes(multiprocessors, e);
  w.gemm.data = take<std::byte>(base, static_cast<int64_t>(w.gemm.bytes), bytes);
  return w;
}

size_t workspace_bytes(int multiprocessors, const Extents& e, bool backward) {
  size_t bytes = 0;
  workspace(multiprocessors, e, backward, nullptr, &bytes);
  return bytes;
}

// ---- Kernels -----------------------------------------------------------------------------------

// A block a row.
__global__ void __launch_bounds__(kThreads)
    copy_counting(const float* hidden, const float* row_weights, int64_t width, float* y) {
  const int64_t row = blockIdx.x;
  const bool counts = row_weights[row] != 0.0F;
  for (int64_t i = threadIdx.x; i < width; i += kThreads) {
    y[row * width + i] = counts ? hidden[row * width + i] : 0.0F;
  }
}

// A block a row; label is counted from the block of the vocabulary.
__global__ void __launch_bounds__(kThreads)
    see_rows(const float* logits, const int32_t* labels, int64_t column, int64_t columns,
             bool first, Seen* seen) {
  __shared__ float shared[kWarps];
  const int64_t row = blockIdx.x;
  const float* z = logits + row * columns;
  const Seen before = first ? Seen{-INFINITY, 0.0F, 0.0F} : seen[row];
  float highest = before.highest;
  for (int64_t i = threadIdx.x; i < columns; i += kThreads) highest = fmaxf(highest, z[i]);
  highest = device::block_max<kWarps>(highest, shared);
  float sum = 0.0F;
  for (int64_t i = threadIdx.x; i < columns; i += kThreads) sum += expf(z[i] - highest);
  sum = device::block_sum<kWarps>(sum, shared);
  if (threadIdx.x != 0) return;
  Seen now = {highest, sum, before.target};
  if (before.sum != 0.0F) now.sum += before.sum * expf(before.highest - highest);
  const int64_t label = labels[row] - column;
  if (label >= 0 && label < columns) now.target = z[label];
  seen[row] = now;
}

__global__ void finish_rows(const Seen* seen, const float* row_weights, int64_t rows, float* lse,
                            float* terms, float* row_losses) {
  const int64_t row = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (row >= rows) return;
  const float weight = row_weights[row];
  const float log_sum = seen[row].highest + logf(seen[row].sum);
  lse[row] = weight == 0.0F ? 0.0F : log_sum;
  terms[row] = weight == 0.0F ? 0.0F : weight * (log_sum - seen[row].target);
  if (row_losses != nullptr) row_losses[row] = terms[row];
}

// One block.
__global__ void __launch_bounds__(kThreads)
    sum_terms(const float* terms, int64_t rows, float* loss) {
  __shared__ double shared[kWarps];
  double sum = 0.0;
  for (int64_t row = threadIdx.x; row < rows; row += kThreads) {
    sum += static_cast<double>(terms[row]);
  }
  sum = device::block_sum<kWarps>(sum, shared);
  if (threadIdx.x == 0) *loss = static_cast<float>(sum);
}

// A block a row: replaces its logits by dL r (exp(z − lse) − onehot).
__global__ void __launch_bounds__(kThreads)
    differentiate_rows(const float* dloss, const float* lse, const int32_t* labels,
                       const float* row_weights, int64_t column, int64_t columns, float* logits) {
  const int64_t row = blockIdx.x;
  float* z = logits + row * columns;
  const float weight = row_weights[row];
  const float factor = *dloss * weight;
  const int64_t label = labels[row] - column;
  for (int64_t i = threadIdx.x; i < columns; i += kThreads) {
    const float p = expf(z[i] - lse[row]);
    z[i] = weight == 0.0F ? 0.0F : factor * (i == label ? p - 1.0F : p);
  }
}

__global__ void add_floats(const float* x, int64_t count, float* y) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < count) y[i] += x[i];
}

unsigned blocks_of(int64_t count) {
  return static_cast<unsigned>((count + kThreads - 1) / kThreads);
}

void add(const CudaContext& cuda, const float* x, int64_t count, float* y) {
  add_floats<<<blocks_of(count), kThreads, 0, cuda.stream>>>(x, count, y);
  check_launch("add_floats");
}

// body(block) for the blocks of the vocabulary.
template <typename Body>
void for_columns(const Extents& e, int64_t row, int64_t rows, const Body& body) {
  for (int64_t column = 0; column < e.vocabulary; column += kColumnBlock) {
    const int64_t left = e.vocabulary - column;
    body(Block{row, rows, column, left < kColumnBlock ? left : kColumnBlock});
  }
}

}  // namespace

size_t vocabulary_loss_forward_scratch(int multiprocessors, In hidden, In weight) {
  return workspace_bytes(multiprocessors, extents_of(hidden, weight), false);
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
  const CudaContext& cuda = stream.cuda();
  check_scratch(kName, scratch, workspace_bytes(cuda.multiprocessors, e, false));
  size_t bytes = 0;
  const Workspace w = workspace(cuda.multiprocessors, e, false, scratch.data, &bytes);
  float* lse_data = lse.data();
  float* losses = row_losses.present() ? row_losses.data() : nullptr;
  for (int64_t row = 0; row < e.rows; row += kRowBlock) {
    const int64_t rows = e.rows - row < kRowBlock ? e.rows - row : kRowBlock;
    const auto blocks = static_cast<unsigned>(rows);
    copy_counting<<<blocks, kThreads, 0, cuda.stream>>>(call.hidden + row * e.width,
                                                        call.row_weights + row, e.width, w.hidden);
    check_launch("copy_counting");
    for_columns(e, row, rows, [&](const Block& block) {
      gemm(stream, logits_product(e, block, w.hidden, call, w.logits), w.gemm);
      see_rows<<<blocks, kThreads, 0, cuda.stream>>>(w.logits, call.labels + row, block.column,
                                                     block.columns, block.column == 0, w.seen);
      check_launch("see_rows");
    });
    finish_rows<<<blocks_of(rows), kThreads, 0, cuda.stream>>>(
        w.seen, call.row_weights + row, rows, lse_data + row, w.terms + row,
        losses == nullptr ? nullptr : losses + row);
    check_launch("finish_rows");
  }
  sum_terms<<<1, kThreads, 0, cuda.stream>>>(w.terms, e.rows, loss.data());
  check_launch("sum_terms");
}

size_t vocabulary_loss_backward_scratch(int multiprocessors, In hidden, In weight) {
  return workspace_bytes(multiprocessors, extents_of(hidden, weight), true);
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
  const CudaContext& cuda = stream.cuda();
  check_scratch(kName, scratch, workspace_bytes(cuda.multiprocessors, e, true));
  size_t bytes = 0;
  const Workspace w = workspace(cuda.multiprocessors, e, true, scratch.data, &bytes);
  const float* lse_data = lse.data();
  float* dhidden_data = dhidden.present() ? dhidden.data() : nullptr;
  float* dweight_data = dweight.present() ? dweight.data() : nullptr;
  float* dbias_data = dbias.present() ? dbias.data() : nullptr;
  for (int64_t row = 0; row < e.rows; row += kRowBlock) {
    const int64_t rows = e.rows - row < kRowBlock ? e.rows - row : kRowBlock;
    const auto blocks = static_cast<unsigned>(rows);
    copy_counting<<<blocks, kThreads, 0, cuda.stream>>>(call.hidden + row * e.width,
                                                        call.row_weights + row, e.width, w.hidden);
    check_launch("copy_counting");
    for_columns(e, row, rows, [&](const Block& block) {
      gemm(stream, logits_product(e, block, w.hidden, call, w.logits), w.gemm);
      differentiate_rows<<<blocks, kThreads, 0, cuda.stream>>>(
          dloss.data(), lse_data + row, call.labels + row, call.row_weights + row, block.column,
          block.columns, w.logits);
      check_launch("differentiate_rows");
      if (dhidden_data != nullptr) {
        float* target = dhidden_data + row * e.width;
        const bool first = block.column == 0;
        float* product = first ? target : w.products;
        gemm(stream, dhidden_product(e, block, w.logits, call, product), w.gemm);
        if (!first) add(cuda, product, rows * e.width, target);
      }
      if (dweight_data == nullptr && dbias_data == nullptr) return;
      // Written by the first block of rows, added to by the others.
      const bool first = row == 0;
      float* weights = dweight_data == nullptr ? nullptr : dweight_data + block.column * e.width;
      float* biases = dbias_data == nullptr ? nullptr : dbias_data + block.column;
      float* product = first && weights != nullptr ? weights : w.products;
      float* sums = biases == nullptr || first ? biases : w.bias_sums;
      gemm(stream, dweight_product(e, block, w.logits, w.hidden, product, sums), w.gemm);
      if (first) return;
      if (weights != nullptr) add(cuda, product, block.columns * e.width, weights);
      if (biases != nullptr) add(cuda, sums, block.columns, biases);
    });
  }
}

}  // namespace siglip::cuda
