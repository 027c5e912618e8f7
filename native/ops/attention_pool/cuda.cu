// Scores, the softmax over a sequence, the mean; backward: scores and their gradients, du, dx. Tokens
// are read where they are, twice per direction, heads are padded to 16 in registers.
#include "ops/attention_pool/attention_pool.h"

#include <type_traits>

#include "device/reduce.cuh"
#include "device/vector.cuh"
#include "ops/attention_pool/fragments.cuh"
#include "runtime/cuda_context.h"
#include "runtime/cuda_dtype.h"

#define SIGLIP_CPU cuda  // the namespace of the checks
#include "cpu/check.h"

namespace siglip::cuda {
namespace {

using device::Floats;
using device::kWarpThreads;
using device::lane_index;
using device::warp_index;

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpThreads;
constexpr int kTile = 32;          // tokens whose weights lie together
constexpr int kHeads = 16;         // of one product
constexpr int kSlice = 64;         // columns of a warp
constexpr int kChunk = 128;        // tokens of a block that spreads heads
constexpr int64_t kMaxParts = 64;  // sums over sequences that are added up in the end
constexpr float kLog2E = 1.44269504088896341F;

__host__ __device__ int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Where the tokens of a sequence are.
struct Span {
  int64_t first;
  int64_t count;
};

struct Extents {
  int64_t batch;
  int64_t tokens;
  int64_t width;
  int64_t heads;
  int64_t sequences;
  bool packed;
  bool shared;  // one u for all sequences

  // Sequences are cut into blocks of `size` tokens. Those of a sequence follow each other; a packed
  // one has as many as it may need wherever it begins, since
  // ⌊end/size⌋ + 1 − ⌊first/size⌋ ≥ ⌈(end − first)/size⌉.
  __host__ __device__ int64_t blocks(int64_t size) const {
    return packed ? tokens / size + sequences : sequences * ceil_div(tokens, size);
  }
  int64_t queries() const { return heads * width; }  // elements of one u
  int64_t weights() const { return blocks(kTile) * heads * kTile; }
  int64_t parts() const { return sequences < kMaxParts ? sequences : kMaxParts; }
};

// Operands as a kernel sees them. Weights (scores, probabilities, their gradients) are
// (tile, head, kTile).
template <typename T>
struct Call {
  Extents e;
  const T* x;
  const float* u;
  const uint8_t* mask;
  const int32_t* starts;  // of packed sequences

  __device__ const float* u_of(int64_t sequence) const {
    return e.shared ? u : u + sequence * e.heads * e.width;
  }
  // Within x whatever the starts are.
  __device__ int64_t start(int64_t sequence) const {
    return min(max(int64_t{starts[sequence]}, int64_t{0}), e.tokens);
  }
  __device__ Span span(int64_t sequence) const {
    if (!e.packed) return {sequence * e.tokens, e.tokens};
    const int64_t first = start(sequence);
    return {first, max(start(sequence + 1) - first, int64_t{0})};
  }
  __device__ int64_t first_block(int64_t sequence, int64_t size) const {
    return e.packed ? start(sequence) / size + sequence : sequence * ceil_div(e.tokens, size);
  }
  // The last sequence whose first block is not behind this one.
  __device__ int64_t sequence_of(int64_t block, int64_t size) const {
    if (!e.packed) return block / ceil_div(e.tokens, size);
    int64_t low = 0;
    int64_t high = e.sequences;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      if (first_block(middle, size) <= block) {
        low = middle;
      } else {
        high = middle;
      }
    }
    return low;
  }
  __device__ bool counts(const Span& span, int64_t token) const {
    return token < span.count && (mask == nullptr || mask[span.first + token] != 0);
  }
  __device__ const T* row(const Span& span, int64_t token) const {
    return x + (span.first + token) * e.width;
  }
};

// The gradient's share of the backward.
struct Gradient {
  const float* dy;
  const float* lse;
  const float* delta;  // ⟨dy, y⟩ per sequence and head
};

// A block a tile and 16 heads, its warps every fourth 32 columns. Forward: scores of the tokens that
// count, −∞ of others. Backward: p and ds, 0 of others.
template <typename T, bool kVectors, bool kBackward>
__global__ void __launch_bounds__(kThreads)
    score_tokens(Call<T> call, Gradient gradient, float* __restrict__ weights,
                 float* __restrict__ dweights) {
  constexpr int kOperands = kBackward ? 2 : 1;
  constexpr int kX = kTermsOfX<T>;
  constexpr int kU = kTermsOfFloat<T>;
  constexpr int kColumns = 32;        // of a step
  constexpr int kStride = kTile + 4;  // of rows in shared memory, which spreads them over the banks
  __shared__ float parts[kWarps][kOperands][kHeads][kStride];

  const int64_t tile = blockIdx.x;
  const int64_t sequence = call.sequence_of(tile, kTile);
  const Span span = call.span(sequence);
  const int64_t begin = (tile - call.first_block(sequence, kTile)) * kTile;
  if (begin >= span.count) return;
  const int64_t width = call.e.width;
  const int64_t first_head = int64_t{blockIdx.y} * kHeads;
  const float* operands[2] = {call.u_of(sequence),
                              kBackward ? gradient.dy + sequence * call.e.heads * width : nullptr};
  const int g = lane_index() / 4;
  const int q = lane_index() % 4;

  float sum[kOperands][2][2][4] = {};  // operand, 16 tokens, 8 heads
#pragma unroll 2
  for (int64_t k = warp_index() * kColumns; k < width; k += kWarps * kColumns) {
    const int64_t d = k + 8 * q;
    Octet<kX> tokens[2][2];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int64_t token = begin + 16 * m + 8 * r + g;
        tokens[m][r] =
            load_octet<kX, kVectors>(call.row(span, token), d, width, token < span.count);
      }
    }
#pragma unroll
    for (int o = 0; o < kOperands; ++o) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int64_t head = first_head + 8 * n + g;
        const Octet<kU> heads =
            load_octet<kU, kVectors>(operands[o] + head * width, d, width, head < call.e.heads);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          uint32_t b[kU][2];
#pragma unroll
          for (int term = 0; term < kU; ++term) {
            b[term][0] = heads.pairs[term][2 * half];
            b[term][1] = heads.pairs[term][2 * half + 1];
          }
#pragma unroll
          for (int m = 0; m < 2; ++m) {
            uint32_t a[kX][4];
#pragma unroll
            for (int term = 0; term < kX; ++term) {
              a[term][0] = tokens[m][0].pairs[term][2 * half];
              a[term][1] = tokens[m][1].pairs[term][2 * half];
              a[term][2] = tokens[m][0].pairs[term][2 * half + 1];
              a[term][3] = tokens[m][1].pairs[term][2 * half + 1];
            }
            multiply(sum[o][m][n], a, b);
          }
        }
      }
    }
  }

#pragma unroll
  for (int o = 0; o < kOperands; ++o) {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          parts[warp_index()][o][8 * n + 2 * q + c % 2][16 * m + 8 * (c / 2) + g] = sum[o][m][n][c];
        }
      }
    }
  }
  __syncthreads();
  const int token = lane_index();
  const bool counts = call.counts(span, begin + token);
  for (int h = warp_index(); h < kHeads && first_head + h < call.e.heads; h += kWarps) {
    float total[kOperands] = {};
#pragma unroll
    for (int o = 0; o < kOperands; ++o) {
#pragma unroll
      for (int w = 0; w < kWarps; ++w) total[o] += parts[w][o][h][token];
    }
    const int64_t at = (tile * call.e.heads + first_head + h) * kTile + token;
    if constexpr (kBackward) {
      const int64_t head = sequence * call.e.heads + first_head + h;
      const float p = counts ? exp2f((total[0] - gradient.lse[head]) * kLog2E) : 0.0F;
      weights[at] = p;
      dweights[at] = counts ? p * (total[1] - gradient.delta[head]) : 0.0F;
    } else {
      weights[at] = counts ? total[0] : -INFINITY;
    }
  }
}

// Scores to probabilities, and lse; a warp a sequence and head.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    normalize_scores(Call<T> call, float* __restrict__ weights, float* __restrict__ lse) {
  const int64_t item = int64_t{blockIdx.x} * kWarps + warp_index();
  if (item >= call.e.sequences * call.e.heads) return;
  const int64_t sequence = item / call.e.heads;
  const int64_t tiles = ceil_div(call.span(sequence).count, kTile);
  const int64_t stride = call.e.heads * kTile;
  float* scores = weights + call.first_block(sequence, kTile) * stride +
                  item % call.e.heads * kTile + lane_index();
  float highest = -INFINITY;
  for (int64_t i = 0; i < tiles; ++i) highest = fmaxf(highest, scores[i * stride]);
  highest = device::warp_max(highest);
  const bool any = highest != -INFINITY;
  float total = 0.0F;
  for (int64_t i = 0; i < tiles; ++i) {
    const float p = any ? exp2f((scores[i * stride] - highest) * kLog2E) : 0.0F;
    scores[i * stride] = p;
    total += p;
  }
  total = device::warp_sum(total);
  const float inverse = any ? 1.0F / total : 0.0F;
  for (int64_t i = 0; i < tiles; ++i) scores[i * stride] *= inverse;
  if (lane_index() == 0) lse[item] = any ? highest + logf(total) : -INFINITY;
}

// out[part] (H, D) = Σ weights[t] · x[t] over the tokens of sequences part, part + parts, …; a block a
// part, slice and 16 heads, its warps every fourth 16 tokens. From the last part on: their tokens are
// those that the scores have left in the cache.
template <typename T, bool kVectors>
__global__ void __launch_bounds__(kThreads)
    mix_tokens(Call<T> call, const float* __restrict__ weights, int64_t parts,
               float* __restrict__ out) {
  constexpr int kX = kTermsOfX<T>;
  constexpr int kWeights = kTermsOfFloat<T>;
  constexpr int kTokens = 16;              // of a step
  constexpr int kSteps = kX == 1 ? 2 : 1;  // under way
  __shared__ float sums[kWarps][4][8][kWarpThreads];

  const int64_t width = call.e.width;
  const int64_t part = parts - 1 - blockIdx.x;
  const int64_t first_head = int64_t{blockIdx.z} * kHeads;
  const int g = lane_index() / 4;
  const int q = lane_index() % 4;
  const int64_t d = int64_t{blockIdx.y} * kSlice + 8 * g;

  float sum[8][4] = {};
  for (int64_t sequence = part; sequence < call.e.sequences; sequence += parts) {
    const Span span = call.span(sequence);
    const float* tiles = weights + call.first_block(sequence, kTile) * call.e.heads * kTile;
#pragma unroll kSteps
    for (int64_t t = warp_index() * kTokens; t < span.count; t += kWarps * kTokens) {
      const Columns<kX> tokens = load_columns<kX, kVectors>(d, width, [&](int i) {
        const int64_t token = t + 4 * q + i;
        return call.counts(span, token) ? call.row(span, token) : nullptr;
      });
      float rows[2][4];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int64_t head = first_head + 8 * r + g;
        const int64_t at = (t / kTile * call.e.heads + head) * kTile + t % kTile + 4 * q;
        const Floats<4> four =
            head < call.e.heads ? device::load<4>(tiles + at) : device::splat<4>(0.0F);
#pragma unroll
        for (int i = 0; i < 4; ++i) rows[r][i] = four[i];
      }
      uint32_t a[kWeights][4];
      split_rows(rows[0], rows[1], a);
#pragma unroll
      for (int j = 0; j < 8; ++j) multiply(sum[j], a, tokens.b[j]);
    }
  }

#pragma unroll
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int c = 0; c < 4; ++c) sums[warp_index()][c][j][lane_index()] = sum[j][c];
  }
  __syncthreads();
  static_assert(kWarps == 4, "a warp an element of C");
  const int c = warp_index();
  Floats<8> total = device::splat<8>(0.0F);
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
#pragma unroll
    for (int j = 0; j < 8; ++j) total[j] += sums[w][c][j][lane_index()];
  }
  const int64_t head = first_head + 8 * (c / 2) + g;
  const int64_t column = int64_t{blockIdx.y} * kSlice + 16 * q + 8 * (c % 2);
  if (head >= call.e.heads || column >= width) return;
  float* target = out + (part * call.e.heads + head) * width + column;
  if constexpr (kVectors) {
    device::store(target, total);
  } else {
    device::store_partial(target, total, width - column);
  }
}

// dx[t] = Σ_head ds[t] u[head] + p[t] dy[head]; a warp a chunk and slice, whose part of u and dy stays
// in registers.
template <typename T, bool kVectors>
__global__ void __launch_bounds__(kThreads)
    spread_heads(Call<T> call, const float* __restrict__ dweights,
                 const float* __restrict__ weights, const float* __restrict__ dy,
                 T* __restrict__ dx) {
  constexpr int kTerms = kTermsOfFloat<T>;
  constexpr int kTokens = 16;  // of a step
  const int64_t width = call.e.width;
  const int64_t heads = call.e.heads;
  const int64_t sequence = call.sequence_of(blockIdx.x, kChunk);
  const Span span = call.span(sequence);
  const int64_t begin = (blockIdx.x - call.first_block(sequence, kChunk)) * kChunk;
  const int64_t end = min(begin + kChunk, span.count);
  const int64_t first_column = (int64_t{blockIdx.y} * kWarps + warp_index()) * kSlice;
  if (begin >= span.count || first_column >= width) return;
  const float* u = call.u_of(sequence);
  dy += sequence * heads * width;
  const int64_t first_weight = call.first_block(sequence, kTile) * heads * kTile;
  dweights += first_weight;
  weights += first_weight;
  const int g = lane_index() / 4;
  const int q = lane_index() % 4;

  Columns<kTerms> u_columns;
  Columns<kTerms> dy_columns;
  for (int64_t t = begin; t < end; t += kTokens) {
    float sum[8][4] = {};
    for (int64_t first_head = 0; first_head < heads; first_head += kHeads) {
      const int64_t head = first_head + 4 * q;
      if (t == begin || heads > kHeads) {
        u_columns = load_columns<kTerms, kVectors>(first_column + 8 * g, width, [&](int i) {
          return head + i < heads ? u + (head + i) * width : nullptr;
        });
        dy_columns = load_columns<kTerms, kVectors>(first_column + 8 * g, width, [&](int i) {
          return head + i < heads ? dy + (head + i) * width : nullptr;
        });
      }
      const auto load_weights = [&](const float* from, uint32_t(&a)[kTerms][4]) {
        float rows[2][4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int64_t at = (t / kTile * heads + head + i) * kTile + t % kTile + g;
#pragma unroll
          for (int r = 0; r < 2; ++r) rows[r][i] = head + i < heads ? from[at + 8 * r] : 0.0F;
        }
        split_rows(rows[0], rows[1], a);
      };
      uint32_t a[kTerms][4];
      load_weights(dweights, a);
#pragma unroll
      for (int j = 0; j < 8; ++j) multiply(sum[j], a, u_columns.b[j]);
      load_weights(weights, a);
#pragma unroll
      for (int j = 0; j < 8; ++j) multiply(sum[j], a, dy_columns.b[j]);
    }
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int64_t token = t + g + 8 * (c / 2);
      const int64_t column = first_column + 16 * q + 8 * (c % 2);
      if (token >= span.count || column >= width) continue;
      Floats<8> values;
#pragma unroll
      for (int j = 0; j < 8; ++j) values[j] = sum[j][c];
      T* target = dx + (span.first + token) * width + column;
      if constexpr (kVectors) {
        device::store(target, values);
      } else {
        device::store_partial(target, values, width - column);
      }
    }
  }
}

// delta (rows) = ⟨dy, y⟩; a warp a row.
__global__ void __launch_bounds__(kThreads)
    dot_rows(const float* __restrict__ dy, const float* __restrict__ y, int64_t rows, int64_t width,
             float* __restrict__ delta) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + warp_index();
  if (row >= rows) return;
  float sum = 0.0F;
#pragma unroll 8
  for (int64_t d = lane_index(); d < width; d += kWarpThreads) {
    sum += dy[row * width + d] * y[row * width + d];
  }
  sum = device::warp_sum(sum);
  if (lane_index() == 0) delta[row] = sum;
}

// out (columns) = Σ parts; a lane a column, a warp every fourth part.
__global__ void __launch_bounds__(kThreads)
    sum_parts(const float* __restrict__ parts, int64_t count, int64_t columns,
              float* __restrict__ out) {
  __shared__ float sums[kWarps][kWarpThreads];
  const int64_t column = int64_t{blockIdx.x} * kWarpThreads + lane_index();
  float sum = 0.0F;
  if (column < columns) {
#pragma unroll 8
    for (int64_t part = warp_index(); part < count; part += kWarps) {
      sum += parts[part * columns + column];
    }
  }
  sums[warp_index()][lane_index()] = sum;
  __syncthreads();
  if (warp_index() > 0 || column >= columns) return;
  float total = 0.0F;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) total += sums[w][lane_index()];
  out[column] = total;
}

// The rows behind the last packed sequence.
template <typename T>
__global__ void __launch_bounds__(kThreads) zero_behind(Call<T> call, T* __restrict__ dx) {
  const int64_t end = call.e.tokens * call.e.width;
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = call.start(call.e.sequences) * call.e.width + int64_t{blockIdx.x} * kThreads +
                   threadIdx.x;
       i < end; i += stride) {
    dx[i] = device::from_float<T>(0.0F);
  }
}

// ---- host

Extents extents_of(const In& x, const In& u, const MaybeIn& segments) {
  const bool packed = segments.present();
  const int64_t sequences = packed ? segments.elements() - 1 : x.extent(0);
  return {x.extent(0), x.extent(1),  x.extent(2), u.extent(-2), sequences < 0 ? 0 : sequences,
          packed,      u.rank() == 2};
}

Extents check_operands(const char* who, const In& x, const In& u, const MaybeIn& key_mask,
                       const MaybeIn& segments) {
  check_rank(who, "x", x, 3);
  if (u.rank() != 2) check_rank(who, "u", u, 3);
  const Extents e = extents_of(x, u, segments);
  check_extent(who, "u", u, -1, e.width);
  if (!e.shared) check_extent(who, "u", u, 0, e.sequences);
  if (key_mask.present()) check_elements(who, "key_mask", key_mask, e.batch * e.tokens);
  if (segments.present()) {
    check_extent(who, "x", x, 0, 1);
    check_rank(who, "segments", segments, 1);
    if (segments.extent(0) < 1) {
      fail("ERR_SHAPE", "%s: segments must have at least 1 element, got 0", who);
    }
    if (key_mask.present()) {
      fail("ERR_ARGUMENT", "%s: key_mask must be absent with segments, got both", who);
    }
  }
  return e;
}

template <typename T>
Call<T> call_of(const Extents& e, const In& x, const In& u, const MaybeIn& key_mask,
                const MaybeIn& segments) {
  return {e, elements_of<T>(x), u.data(), key_mask.present() ? key_mask.data<uint8_t>() : nullptr,
          segments.present() ? segments.data<int32_t>() : nullptr};
}

struct Workspace {
  float* weights;
  float* dweights;
  float* delta;  // (S, H)
  float* parts;  // of du
  size_t bytes;
};

Workspace carve(std::byte* base, const Extents& e, bool backward) {
  Workspace w = {};
  const auto take = [&](float*& part, int64_t elements) {
    part = reinterpret_cast<float*>(base + w.bytes);
    w.bytes += (static_cast<size_t>(elements) * sizeof(float) + 63) / 64 * 64;
  };
  take(w.weights, e.weights());
  if (backward) {
    take(w.dweights, e.weights());
    take(w.delta, e.sequences * e.heads);
    take(w.parts, e.shared ? e.parts() * e.queries() : 0);
  }
  return w;
}

size_t scratch_bytes(const In& x, const In& u, const MaybeIn& segments, bool backward) {
  if (x.rank() != 3 || u.rank() < 2) return 0;
  return carve(nullptr, extents_of(x, u, segments), backward).bytes;
}

// Queues a kernel, unless there is nothing to do.
template <typename... Parameters, typename... Arguments>
void launch(cudaStream_t stream, const char* name, void (*kernel)(Parameters...), int64_t x,
            int64_t y, int64_t z, const Arguments&... arguments) {
  if (x * y * z == 0) return;
  const dim3 blocks(static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z));
  kernel<<<blocks, kThreads, 0, stream>>>(arguments...);
  check_launch(name);
}

// body(std::bool_constant): whether rows are read and written 16 bytes at a time.
template <typename Body>
void with_vectors(bool vectors, const Body& body) {
  if (vectors) {
    body(std::true_type{});
  } else {
    body(std::false_type{});
  }
}

}  // namespace

size_t attention_pool_forward_scratch(int, In x, In u, MaybeIn segments) {
  return scratch_bytes(x, u, segments, false);
}

void attention_pool_forward(Stream& stream, In x, In u, MaybeIn key_mask, MaybeIn segments, Out y,
                            Out lse, Scratch scratch) {
  constexpr char kName[] = "attention_pool_forward";
  const Extents e = check_operands(kName, x, u, key_mask, segments);
  check_elements(kName, "y", y, e.sequences * e.queries());
  check_elements(kName, "lse", lse, e.sequences * e.heads);
  const Workspace w = carve(scratch.data, e, false);
  check_scratch(kName, scratch, w.bytes);
  cudaStream_t queue = stream.cuda().stream;
  float* y_data = y.data();
  float* lse_data = lse.data();
  const int64_t groups = ceil_div(e.heads, kHeads);
  with_type(kName, "x", x, [&](auto type) {
    using T = decltype(type);
    const Call<T> call = call_of<T>(e, x, u, key_mask, segments);
    with_vectors(e.width % 8 == 0 && device::aligned16(call.x, call.u, y_data), [&](auto vectors) {
      constexpr bool kVectors = decltype(vectors)::value;
      launch(queue, "score_tokens", score_tokens<T, kVectors, false>, e.blocks(kTile), groups, 1,
             call, Gradient{}, w.weights, static_cast<float*>(nullptr));
      launch(queue, "normalize_scores", normalize_scores<T>,
             ceil_div(e.sequences * e.heads, kWarps), 1, 1, call, w.weights, lse_data);
      launch(queue, "mix_tokens", mix_tokens<T, kVectors>, e.sequences, ceil_div(e.width, kSlice),
             groups, call, w.weights, e.sequences, y_data);
    });
  });
}

size_t attention_pool_backward_scratch(int, In x, In u, MaybeIn segments) {
  return scratch_bytes(x, u, segments, true);
}

void attention_pool_backward(Stream& stream, In dy, In x, In u, MaybeIn key_mask, MaybeIn segments,
                             In y, In lse, Out dx, Out du, Scratch scratch) {
  constexpr char kName[] = "attention_pool_backward";
  const Extents e = check_operands(kName, x, u, key_mask, segments);
  check_elements(kName, "dy", dy, e.sequences * e.queries());
  check_elements(kName, "y", y, e.sequences * e.queries());
  check_elements(kName, "lse", lse, e.sequences * e.heads);
  check_elements(kName, "dx", dx, x.elements());
  check_dtype(kName, "dx", dx, x.dtype());
  check_elements(kName, "du", du, u.elements());
  const Workspace w = carve(scratch.data, e, true);
  check_scratch(kName, scratch, w.bytes);
  cudaStream_t queue = stream.cuda().stream;
  const Gradient gradient = {dy.data(), lse.data(), w.delta};
  const float* y_data = y.data();
  float* du_data = du.data();
  const int64_t groups = ceil_div(e.heads, kHeads);
  const int64_t rows = e.sequences * e.heads;
  launch(queue, "dot_rows", dot_rows, ceil_div(rows, kWarps), 1, 1, gradient.dy, y_data, rows,
         e.width, w.delta);
  with_type(kName, "x", x, [&](auto type) {
    using T = decltype(type);
    const Call<T> call = call_of<T>(e, x, u, key_mask, segments);
    T* dx_data = elements_of<T>(dx);
    const bool aligned = device::aligned16(call.x, call.u, gradient.dy, dx_data, du_data);
    with_vectors(e.width % 8 == 0 && aligned, [&](auto vectors) {
      constexpr bool kVectors = decltype(vectors)::value;
      launch(queue, "score_tokens", score_tokens<T, kVectors, true>, e.blocks(kTile), groups, 1,
             call, gradient, w.weights, w.dweights);
      launch(queue, "mix_tokens", mix_tokens<T, kVectors>, e.shared ? e.parts() : e.sequences,
             ceil_div(e.width, kSlice), groups, call, w.dweights,
             e.shared ? e.parts() : e.sequences, e.shared ? w.parts : du_data);
      launch(queue, "spread_heads", spread_heads<T, kVectors>, e.blocks(kChunk),
             ceil_div(e.width, kSlice * kWarps), 1, call, w.dweights, w.weights, gradient.dy,
             dx_data);
    });
    if (e.packed) {
      constexpr int64_t kBlocks = 256;
      launch(queue, "zero_behind", zero_behind<T>, kBlocks, 1, 1, call, dx_data);
    }
  });
  if (e.shared) {
    launch(queue, "sum_parts", sum_parts, ceil_div(e.queries(), kWarpThreads), 1, 1, w.parts,
           e.parts(), e.queries(), du_data);
  }
}

}  // namespace siglip::cuda
