// The backward sorts the pairs (id, position) by id, stably, so that every row of the table finds its
// terms in order of position: digits counted by block, their sums, a scatter by rank. Frequent ids
// (padding) make runs that one warp could not sum in time: whole chunks of a run are summed before, and
// chunks of these again.
#include "ops/embedding/embedding.h"

#include "device/reduce.cuh"
#include "device/vector.cuh"
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

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpThreads;
constexpr int kSliceColumns = 256;  // of a row, summed by a warp at a time
constexpr int kLaneColumns = kSliceColumns / kWarpThreads;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- forward

template <int kVector, typename Source, typename Target>
__global__ void __launch_bounds__(kThreads)
    gather_rows(const Source* __restrict__ table, const int32_t* __restrict__ ids, int64_t count,
                int64_t width, uint32_t vocabulary, Target* __restrict__ y) {
  const int64_t row = int64_t{blockIdx.x} * kWarps + warp_index();
  if (row >= count) return;
  const auto id = static_cast<uint32_t>(ids[row]);
  Target* to = y + row * width;
  if (id >= vocabulary) {
    for (int64_t d = lane_index() * kVector; d < width; d += kWarpThreads * kVector) {
      device::store(to + d, device::splat<kVector>(__int_as_float(0x7fffffff)));
    }
    return;
  }
  const Source* from = table + id * width;
#pragma unroll 4
  for (int64_t d = lane_index() * kVector; d < width; d += kWarpThreads * kVector) {
    device::store(to + d, device::load<kVector>(from + d));
  }
}

// ---- sort

constexpr int kMaxDigitBits = 10;
constexpr int kMaxDigits = 1 << kMaxDigitBits;
constexpr int kRounds = 16;  // keys of a thread
constexpr int kWarpKeys = kRounds * kWarpThreads;
constexpr int kTileKeys = kWarps * kWarpKeys;
constexpr uint32_t kNoDigit = 0xffffffffU;

// The keys of a pass: the ids themselves in the first, where what is no row has the key `vocabulary`.
struct Keys {
  const uint32_t* keys;
  uint32_t vocabulary;
  int64_t count;
  int shift;
  uint32_t digits;  // a power of two

  __device__ uint32_t key(int64_t i) const { return min(keys[i], vocabulary); }
  __device__ uint32_t digit_of(uint32_t key) const { return (key >> shift) & (digits - 1); }
};

// counts[digit][block]
__global__ void __launch_bounds__(kThreads) count_digits(Keys keys, uint32_t* __restrict__ counts) {
  __shared__ uint32_t histogram[kMaxDigits];
  for (uint32_t d = threadIdx.x; d < keys.digits; d += kThreads) histogram[d] = 0;
  __syncthreads();
  const int64_t begin = int64_t{blockIdx.x} * kTileKeys;
  for (int r = 0; r < kTileKeys; r += kThreads) {
    const int64_t i = begin + r + threadIdx.x;
    if (i < keys.count) atomicAdd(&histogram[keys.digit_of(keys.key(i))], 1U);
  }
  __syncthreads();
  for (uint32_t d = threadIdx.x; d < keys.digits; d += kThreads) {
    counts[int64_t{d} * gridDim.x + blockIdx.x] = histogram[d];
  }
}

__device__ uint32_t warp_inclusive_sum(uint32_t value) {
#pragma unroll
  for (int distance = 1; distance < kWarpThreads; distance *= 2) {
    const uint32_t lower = __shfl_up_sync(0xffffffffU, value, distance);
    if (lane_index() >= distance) value += lower;
  }
  return value;
}

// Every digit's counts become the sums of the counts before; totals[digit] is the sum of all. A warp a
// digit.
__global__ void __launch_bounds__(kThreads)
    sum_counts(uint32_t* __restrict__ counts, int64_t blocks, uint32_t digits,
               uint32_t* __restrict__ totals) {
  const uint32_t digit = blockIdx.x * kWarps + warp_index();
  if (digit >= digits) return;
  uint32_t* row = counts + digit * blocks;
  uint32_t before = 0;
  for (int64_t begin = 0; begin < blocks; begin += kWarpThreads) {
    const int64_t i = begin + lane_index();
    const uint32_t count = i < blocks ? row[i] : 0;
    const uint32_t sum = warp_inclusive_sum(count);
    if (i < blocks) row[i] = before + sum - count;
    before += __shfl_sync(0xffffffffU, sum, kWarpThreads - 1);
  }
  if (lane_index() == 0) totals[digit] = before;
}

// first[digit] = Σ totals of the digits before; by the whole block.
__device__ void sum_totals(const uint32_t* __restrict__ totals, uint32_t digits, uint32_t* first) {
  constexpr int kEach = kMaxDigits / kThreads;
  __shared__ uint32_t warp_sums[kWarps];
  uint32_t own[kEach];
  uint32_t sum = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const uint32_t digit = threadIdx.x * kEach + i;
    own[i] = digit < digits ? totals[digit] : 0;
    sum += own[i];
  }
  const uint32_t inclusive = warp_inclusive_sum(sum);
  if (lane_index() == kWarpThreads - 1) warp_sums[warp_index()] = inclusive;
  __syncthreads();
  uint32_t before = inclusive - sum;
  for (int w = 0; w < warp_index(); ++w) before += warp_sums[w];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    first[threadIdx.x * kEach + i] = before;
    before += own[i];
  }
  __syncthreads();
}

// Equal digits keep their order: a key's place is the number of lower digits, plus that of the same
// digit in blocks, warps, rounds and lanes before. `positions` is null in the first pass, where they
// are the indices.
__global__ void __launch_bounds__(kThreads)
    scatter_keys(Keys keys, const int32_t* __restrict__ positions,
                 const uint32_t* __restrict__ counts, const uint32_t* __restrict__ totals,
                 uint32_t* __restrict__ keys_out, int32_t* __restrict__ positions_out) {
  __shared__ uint32_t first[kMaxDigits];
  __shared__ uint32_t next[kWarps][kMaxDigits];
  for (uint32_t i = threadIdx.x; i < kWarps * kMaxDigits; i += kThreads) (&next[0][0])[i] = 0;
  sum_totals(totals, keys.digits, first);

  uint32_t* own = next[warp_index()];
  const int64_t begin = int64_t{blockIdx.x} * kTileKeys + warp_index() * kWarpKeys + lane_index();
  uint32_t key[kRounds];
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    const int64_t i = begin + r * kWarpThreads;
    key[r] = i < keys.count ? keys.key(i) : 0;
    if (i < keys.count) atomicAdd(&own[keys.digit_of(key[r])], 1U);
  }
  __syncthreads();
  for (uint32_t d = threadIdx.x; d < keys.digits; d += kThreads) {
    uint32_t at = first[d] + counts[int64_t{d} * gridDim.x + blockIdx.x];
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const uint32_t count = next[w][d];
      next[w][d] = at;
      at += count;
    }
  }
  __syncthreads();
  const uint32_t lower_lanes = (1U << lane_index()) - 1;
#pragma unroll
  for (int r = 0; r < kRounds; ++r) {
    const int64_t i = begin + r * kWarpThreads;
    const bool valid = i < keys.count;
    const uint32_t digit = valid ? keys.digit_of(key[r]) : kNoDigit;
    const uint32_t same = __match_any_sync(0xffffffffU, digit);
    const uint32_t rank = __popc(same & lower_lanes);
    const uint32_t at = valid ? own[digit] + rank : 0;
    __syncwarp();
    if (valid && rank == 0) own[digit] += __popc(same);
    __syncwarp();
    if (!valid) continue;
    keys_out[at] = key[r];
    positions_out[at] = positions == nullptr ? static_cast<int32_t>(i) : positions[i];
  }
}

// starts[v] = the number of keys below v, v in [0, vocabulary].
__global__ void __launch_bounds__(kThreads)
    find_starts(const uint32_t* __restrict__ keys, int64_t count, int64_t vocabulary,
                int32_t* __restrict__ starts) {
  const int64_t v = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (v > vocabulary) return;
  int64_t low = 0;
  int64_t high = count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (keys[middle] < v) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  starts[v] = static_cast<int32_t>(low);
}

// ---- sums

constexpr int64_t kChunk = 128;              // positions of a run that one sum holds
constexpr int64_t kLongChunk = 64 * kChunk;  // of these, the sums of 64
constexpr int kBatch = 4;                    // rows under way at a time

// The columns of a row that a lane sums: kVector neighbours, kSteps times.
template <int kVector>
struct Sum {
  static constexpr int kSteps = kLaneColumns / kVector;
  Floats<kVector> v[kSteps];

  __device__ Sum() {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) v[s] = device::splat<kVector>(0.0F);
  }
  static __device__ int64_t column(int64_t slice, int s) {
    return slice * kSliceColumns + (s * kWarpThreads + lane_index()) * kVector;
  }

  // += row_at(0) + row_at(1) + …, in this order.
  template <typename Rows>
  __device__ void add(int64_t slice, int64_t width, int64_t count, const Rows& row_at) {
    for (int64_t i = 0; i < count; i += kBatch) {
      Floats<kVector> rows[kBatch][kSteps];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        if (i + b >= count) continue;
        const auto* row = row_at(i + b);
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          const int64_t d = column(slice, s);
          if (d < width) rows[b][s] = device::load<kVector>(row + d);
        }
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        if (i + b >= count) continue;
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
#pragma unroll
          for (int j = 0; j < kVector; ++j) v[s][j] += rows[b][s][j];
        }
      }
    }
  }

  __device__ void store(int64_t slice, int64_t width, float* row) const {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int64_t d = column(slice, s);
      if (d < width) device::store(row + d, v[s]);
    }
  }
};

// The sorted pairs, and the sums of those chunks of them that hold one id only; of others, garbage.
template <typename T>
struct Terms {
  const T* dy;
  const uint32_t* keys;
  const int32_t* positions;
  const int32_t* starts;
  float* chunks;       // (count / kChunk, D)
  float* long_chunks;  // (count / kLongChunk, D)
  int64_t count;
  int64_t width;
  int64_t vocabulary;
};

template <int kVector, typename T>
__device__ void add_positions(const Terms<T>& terms, int64_t slice, int64_t begin, int64_t end,
                              Sum<kVector>& sum) {
  sum.add(slice, terms.width, end - begin,
          [&](int64_t i) { return terms.dy + terms.positions[begin + i] * terms.width; });
}

template <int kVector>
__device__ void add_chunks(const float* chunks, int64_t width, int64_t slice, int64_t begin,
                           int64_t end, Sum<kVector>& sum) {
  sum.add(slice, width, end - begin, [&](int64_t i) { return chunks + (begin + i) * width; });
}

// A warp a chunk and slice; kSize is kChunk, or kLongChunk with the chunks summed before.
template <int kVector, int64_t kSize, typename T>
__global__ void __launch_bounds__(kThreads) sum_chunks(Terms<T> terms) {
  const int64_t chunk = int64_t{blockIdx.x} * kWarps + warp_index();
  const int64_t slice = blockIdx.y;
  const int64_t begin = chunk * kSize;
  const int64_t end = begin + kSize;
  if (end > terms.count) return;
  const uint32_t key = terms.keys[begin];
  if (key != terms.keys[end - 1] || key >= terms.vocabulary) return;
  Sum<kVector> sum;
  if constexpr (kSize == kChunk) {
    add_positions(terms, slice, begin, end, sum);
    sum.store(slice, terms.width, terms.chunks + chunk * terms.width);
  } else {
    add_chunks(terms.chunks, terms.width, slice, begin / kChunk, end / kChunk, sum);
    sum.store(slice, terms.width, terms.long_chunks + chunk * terms.width);
  }
}

__device__ int64_t round_down(int64_t a, int64_t b) { return a / b * b; }
__device__ int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

// A warp a row of the table and slice: positions, chunks, long chunks, chunks, positions.
template <int kVector, typename T>
__global__ void __launch_bounds__(kThreads) sum_runs(Terms<T> terms, float* __restrict__ dtable) {
  const int64_t v = int64_t{blockIdx.x} * kWarps + warp_index();
  const int64_t slice = blockIdx.y;
  if (v >= terms.vocabulary) return;
  const int64_t begin = terms.starts[v];
  const int64_t end = terms.starts[v + 1];
  Sum<kVector> sum;
  if (begin < end) {
    const int64_t chunks_begin = min(end, round_up(begin, kChunk));
    const int64_t chunks_end = max(chunks_begin, round_down(end, kChunk));
    add_positions(terms, slice, begin, chunks_begin, sum);
    if (chunks_begin < chunks_end) {
      const int64_t long_begin = min(chunks_end, round_up(chunks_begin, kLongChunk));
      const int64_t long_end = max(long_begin, round_down(chunks_end, kLongChunk));
      add_chunks(terms.chunks, terms.width, slice, chunks_begin / kChunk, long_begin / kChunk, sum);
      add_chunks(terms.long_chunks, terms.width, slice, long_begin / kLongChunk,
                 long_end / kLongChunk, sum);
      add_chunks(terms.chunks, terms.width, slice, long_end / kChunk, chunks_end / kChunk, sum);
    }
    add_positions(terms, slice, chunks_end, end, sum);
  }
  sum.store(slice, terms.width, dtable + v * terms.width);
}

// ---- host

struct Workspace {
  uint32_t* keys[2];
  int32_t* positions[2];
  uint32_t* counts;  // (digits, blocks)
  uint32_t* totals;  // (digits)
  int32_t* starts;   // (V + 1)
  float* chunks;
  float* long_chunks;
  size_t bytes;
};

Workspace carve(std::byte* base, int64_t count, int64_t vocabulary, int64_t width) {
  Workspace w = {};
  const auto take = [&](auto*& part, int64_t elements) {
    part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(base + w.bytes);
    w.bytes += (static_cast<size_t>(elements) * sizeof(*part) + 63) / 64 * 64;
  };
  for (int i = 0; i < 2; ++i) {
    take(w.keys[i], count);
    take(w.positions[i], count);
  }
  take(w.counts, kMaxDigits * ceil_div(count, kTileKeys));
  take(w.totals, kMaxDigits);
  take(w.starts, vocabulary + 1);
  take(w.chunks, count / kChunk * width);
  take(w.long_chunks, count / kLongChunk * width);
  return w;
}

// Sorts into w.keys and w.positions [result].
int sort_ids(cudaStream_t stream, const int32_t* ids, int64_t count, int64_t vocabulary,
             const Workspace& w) {
  int bits = 1;
  while (bits < 31 && (int64_t{1} << bits) <= vocabulary) ++bits;
  const int passes = (bits + kMaxDigitBits - 1) / kMaxDigitBits;
  const int digit_bits = (bits + passes - 1) / passes;
  const auto blocks = static_cast<unsigned>(ceil_div(count, kTileKeys));
  Keys keys = {reinterpret_cast<const uint32_t*>(ids), static_cast<uint32_t>(vocabulary), count, 0,
               1U << digit_bits};
  const int32_t* positions = nullptr;
  for (int pass = 0; pass < passes; ++pass) {
    const int target = pass % 2;
    keys.shift = pass * digit_bits;
    count_digits<<<blocks, kThreads, 0, stream>>>(keys, w.counts);
    check_launch("count_digits");
    sum_counts<<<static_cast<unsigned>(ceil_div(keys.digits, kWarps)), kThreads, 0, stream>>>(
        w.counts, blocks, keys.digits, w.totals);
    check_launch("sum_counts");
    scatter_keys<<<blocks, kThreads, 0, stream>>>(keys, positions, w.counts, w.totals,
                                                  w.keys[target], w.positions[target]);
    check_launch("scatter_keys");
    keys.keys = w.keys[target];
    positions = w.positions[target];
  }
  return (passes - 1) % 2;
}

template <int kVector, typename T>
void sum_terms(cudaStream_t stream, const Terms<T>& terms, float* dtable) {
  const auto launch = [&](const char* name, auto* kernel, int64_t rows, auto... more) {
    if (rows == 0) return;
    const dim3 blocks(static_cast<unsigned>(ceil_div(rows, kWarps)),
                      static_cast<unsigned>(ceil_div(terms.width, kSliceColumns)));
    kernel<<<blocks, kThreads, 0, stream>>>(terms, more...);
    check_launch(name);
  };
  launch("sum_chunks", sum_chunks<kVector, kChunk, T>, terms.count / kChunk);
  launch("sum_chunks", sum_chunks<kVector, kLongChunk, T>, terms.count / kLongChunk);
  launch("sum_runs", sum_runs<kVector, T>, terms.vocabulary, dtable);
}

// Ids and the number of positions are int32.
void check_sizes(const char* who, int64_t count, int64_t vocabulary) {
  constexpr int64_t kLimit = (int64_t{1} << 31) - 1;
  if (count > kLimit || vocabulary > kLimit) {
    fail("ERR_SHAPE", "%s: ids and rows of the table must be less than 2^31, got %lld and %lld",
         who, static_cast<long long>(count), static_cast<long long>(vocabulary));
  }
}

}  // namespace

void embedding_forward(Stream& stream, In table, In ids, Out y) {
  constexpr char kName[] = "embedding_forward";
  check_rank(kName, "table", table, 2);
  const int64_t vocabulary = table.extent(0);
  const int64_t width = table.extent(1);
  const int64_t count = ids.elements();
  check_elements(kName, "y", y, count * width);
  check_sizes(kName, count, vocabulary);
  const int32_t* ids_data = ids.data<int32_t>();
  const auto blocks = static_cast<unsigned>(ceil_div(count, kWarps));
  if (blocks == 0) return;
  with_type(kName, "table", table, [&](auto source) {
    with_type(kName, "y", y, [&](auto target) {
      using Source = decltype(source);
      using Target = decltype(target);
      const Source* table_data = elements_of<Source>(table);
      Target* y_data = elements_of<Target>(y);
      const bool vectors = width % 4 == 0 && device::aligned16(table_data, y_data);
      const auto kernel = vectors ? gather_rows<4, Source, Target> : gather_rows<1, Source, Target>;
      kernel<<<blocks, kThreads, 0, stream.cuda().stream>>>(
          table_data, ids_data, count, width, static_cast<uint32_t>(vocabulary), y_data);
      check_launch("gather_rows");
    });
  });
}

size_t embedding_backward_scratch(int, In, In ids, In dtable) {
  if (dtable.rank() != 2) return 0;
  return carve(nullptr, ids.elements(), dtable.extent(0), dtable.extent(1)).bytes;
}

void embedding_backward(Stream& stream, In dy, In ids, Out dtable, Scratch scratch) {
  constexpr char kName[] = "embedding_backward";
  check_rank(kName, "dtable", dtable, 2);
  const int64_t vocabulary = dtable.extent(0);
  const int64_t width = dtable.extent(1);
  const int64_t count = ids.elements();
  check_elements(kName, "dy", dy, count * width);
  check_sizes(kName, count, vocabulary);
  const Workspace w = carve(scratch.data, count, vocabulary, width);
  check_scratch(kName, scratch, w.bytes);
  const int32_t* ids_data = ids.data<int32_t>();
  float* dtable_data = dtable.data();
  cudaStream_t queue = stream.cuda().stream;

  const int sorted = sort_ids(queue, ids_data, count, vocabulary, w);
  find_starts<<<static_cast<unsigned>(ceil_div(vocabulary + 1, kThreads)), kThreads, 0, queue>>>(
      w.keys[sorted], count, vocabulary, w.starts);
  check_launch("find_starts");
  with_type(kName, "dy", dy, [&](auto type) {
    using T = decltype(type);
    const Terms<T> terms = {elements_of<T>(dy),
                            w.keys[sorted],
                            w.positions[sorted],
                            w.starts,
                            w.chunks,
                            w.long_chunks,
                            count,
                            width,
                            vocabulary};
    if (width % 4 == 0 && device::aligned16(terms.dy, dtable_data)) {
      sum_terms<4>(queue, terms, dtable_data);
    } else {
      sum_terms<1>(queue, terms, dtable_data);
    }
  });
}

}  // namespace siglip::cuda
