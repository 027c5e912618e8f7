// The forward on sm_90a of up to 256 keys. A block is there for the whole call (one to a
// multiprocessor): a warpgroup of it has the copy engine load what comes next, while others, each with 64
// queries at a time, compute. Their products overlap: while one takes exponentials, another multiplies.
// The keys of a warpgroup are halved, so that its own products overlap with its exponentials as well: two
// warpgroups have the scores of all keys in registers at once, three those of one half. The highest score
// of the first half serves the second too, unless that is far above.
#include <algorithm>

#include "ops/attention/cuda_wgmma.cuh"

namespace siglip::cuda::attention {
namespace {

constexpr int kChunk = kBoxRows;  // queries of a warpgroup at a time

// Warpgroups that compute: three where registers suffice.
template <int kWidth>
inline constexpr int kConsumers = kWidth == 64 ? 3 : 2;

struct ForwardExtents {
  int items;  // (image, head)
  int heads;
  int queries;
  int keys;
  int whole;  // items that a block takes whole,
  int parts;  // and what others are cut into
};

// What a block works on at a time: some chunks of an item.
struct Work {
  int item;
  int begin;
  int end;
};

// Places in shared memory for kKeys keys of kWidth elements.
template <int kWidth, int kKeys>
struct ShortPlan {
  static constexpr int kThreads = 128 * (kConsumers<kWidth> + 1);
  static constexpr int kRows = (kKeys + kBoxRows - 1) / kBoxRows * kBoxRows;  // loaded
  static constexpr int kKeyBytes = Columns<kWidth>::tile_bytes(kRows);
  static constexpr int kChunkBytes = Columns<kWidth>::tile_bytes(kChunk);
  static constexpr int kMostStages = 8;
  static constexpr int kFree = kSharedLimit - 1024 - 4 * kMostStages * 8;
  // Of keys and of values in turn; at least six chunks are left space.
  static constexpr int kStages = std::min((kFree - 6 * kChunkBytes) / kKeyBytes, kMostStages);
  static constexpr int kChunkStages =
      std::min((kFree - kStages * kKeyBytes) / kChunkBytes, kMostStages);
  static constexpr int kBarriers = 2 * (kStages + kChunkStages);
  static constexpr int kBytes =
      kStages * kKeyBytes + kChunkStages * kChunkBytes + kBarriers * 8 + 1024;
  static_assert(kStages >= 3 && kChunkStages >= 6 && kBytes <= kSharedLimit,
                "too much shared memory");
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ Work work_of(const ForwardExtents& e, int index) {
  const int chunks = ceil_div(e.queries, kChunk);
  if (index < e.whole) return {index, 0, chunks};
  const int rest = e.items - e.whole;
  const int part = (index - e.whole) / rest;
  return {e.whole + (index - e.whole) % rest, part * chunks / e.parts,
          (part + 1) * chunks / e.parts};
}

// Of the thread's two rows: what was subtracted from the exponents of 2, and sums of its columns.
struct Softmax {
  float reference[2];
  float total[4] = {};

  template <int kCount>
  __device__ __forceinline__ void begin(const float (&s)[kCount], float c) {
    float highest[2];
    row_maxima(s, highest);
    reference[0] = highest[0] * c;
    reference[1] = highest[1] * c;
  }

  // Whether the thread's scores, `highest` in its two rows, or others of its warp are too far above the
  // reference: powers of up to 2^64 lose nothing.
  __device__ __forceinline__ bool exceeded(const float (&highest)[2], float c) const {
    const float above =
        fmaxf(fmaf(highest[0], c, -reference[0]), fmaf(highest[1], c, -reference[1]));
    return __any_sync(0xffffffffU, above > 64.0F);
  }

  // The reference rises to the rows' highest scores; what was taken before is to be multiplied by `factor`.
  __device__ __forceinline__ void raise(const float (&highest)[2], float c, float (&factor)[2]) {
    const float rows[2] = {quad_max(highest[0]), quad_max(highest[1])};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float next = fmaxf(reference[half], rows[half] * c);
      factor[half] = exp2_fast(reference[half] - next);
      reference[half] = next;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) total[i] *= factor[i % 2];
  }

  // Fragments of the exponentials of kSteps · 16 columns of s, from step `first` on.
  template <int kSteps, int kCount>
  __device__ __forceinline__ void exponentials(const float (&s)[kCount], int first, float c,
                                               uint32_t (*p)[4]) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // The fragment's i-th register: rows g and g + 8 in turn, of the first 8 keys, then the next.
        const float* x = s + (first + step) * 8 + i * 2;
        const float low = exp2_fast(fmaf(x[0], c, -reference[i % 2]));
        const float high = exp2_fast(fmaf(x[1], c, -reference[i % 2]));
        total[i] += low + high;
        p[step][i] = pack_bfloat16(low, high);
      }
    }
  }
};

template <int kSteps>
__device__ __forceinline__ void scale_fragments(uint32_t (&p)[kSteps][4],
                                                const float (&factor)[2]) {
#pragma unroll
  for (int i = 0; i < kSteps * 4; ++i) {
    uint32_t& pair = p[i / 4][i % 4];
    pair = pack_bfloat16(low_of_bfloat16(pair) * factor[i % 2],
                         high_of_bfloat16(pair) * factor[i % 2]);
  }
}

// Queues the products of kSteps fragments and the values from row `first` on.
template <int kWidth, int kRows, int kSteps>
__device__ __forceinline__ void queue_sums(WidthSums<kWidth>& sums, const uint32_t (*p)[4],
                                           uint32_t values, int first) {
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    mix_rows<kWidth, kRows>(sums, p[step], values, first + step * 16, first + step > 0 ? 1 : 0);
  }
  wgmma_commit();
}

// Attention of a chunk of queries: sums are queued. It calls queued() while the first scores are computed,
// scored() when the last are, and await_values() before it reads values.
template <int kWidth, int kKeys, typename Queued, typename Scored, typename Await>
__device__ __forceinline__ void attend(Softmax& softmax, WidthSums<kWidth>& sums, uint32_t queries,
                                       uint32_t keys, uint32_t values, int count, float c,
                                       const Queued& queued, const Scored& scored,
                                       const Await& await_values) {
  constexpr int kRows = ShortPlan<kWidth, kKeys>::kRows;
  constexpr int kSteps = kKeys / 16;
  constexpr int kFirst = (kSteps + 1) / 2;  // steps of the first half,
  constexpr int kSecond = kSteps - kFirst;  // and of the second
  constexpr int kSplit = kFirst * 16;
  constexpr bool kAtOnce = kConsumers<kWidth> == 2;
  float s1[kSplit / 2];
  float s2[kSecond * 8];
  uint32_t p[kFirst][4];
  wgmma_fence();
  multiply_rows<kWidth, kChunk, kRows, kSplit>(s1, queries, 0, keys, 0);
  wgmma_commit();
  if constexpr (kAtOnce) {
    multiply_rows<kWidth, kChunk, kRows, kSecond * 16>(s2, queries, 0, keys, kSplit);
    wgmma_commit();
  }
  queued();
  wgmma_wait<kAtOnce ? 1 : 0>();
  keep_in_place(s1);
  if (count < kSplit) limit_keys<kSplit>(s1, count);
  softmax.begin(s1, c);
  float highest[2];
  float factor[2];
  if constexpr (kAtOnce) {
    softmax.exponentials<kFirst / 2>(s1, 0, c, p);
    wgmma_wait<0>();
    keep_in_place(s2);
    scored();
    if (count < kKeys) limit_keys<kSecond * 16>(s2, count - kSplit);
    thread_maxima(s2, highest);
    softmax.exponentials<kFirst - kFirst / 2>(s1, kFirst / 2, c, p + kFirst / 2);
    // Asked here, since the exponentials below go between the products of values as these are queued,
    // which a branch between the two would prevent.
    if (softmax.exceeded(highest, c)) {
      softmax.raise(highest, c, factor);
      scale_fragments(p, factor);
    }
    await_values();
    queue_sums<kWidth, kRows, kFirst>(sums, p, values, 0);
  } else {
    softmax.exponentials<kFirst>(s1, 0, c, p);
    wgmma_fence();
    multiply_rows<kWidth, kChunk, kRows, kSecond * 16>(s2, queries, 0, keys, kSplit);
    wgmma_commit();
    await_values();
    queue_sums<kWidth, kRows, kFirst>(sums, p, values, 0);
    wgmma_wait<1>();
    keep_in_place(s2);
    scored();
    if (count < kKeys) limit_keys<kSecond * 16>(s2, count - kSplit);
    thread_maxima(s2, highest);
    if (softmax.exceeded(highest, c)) {
      wgmma_wait<0>();
      sums.keep();
      softmax.raise(highest, c, factor);
      sums.scale(factor[0], factor[1]);
    }
  }
  constexpr int kGroup = kAtOnce && kSecond % 4 == 0 ? 4 : 2;
#pragma unroll
  for (int first = 0; first < kSecond; first += kGroup) {
    uint32_t group[kGroup][4];
    softmax.exponentials<kGroup>(s2, first, c, group);
    queue_sums<kWidth, kRows, kGroup>(sums, group, values, kSplit + first * 16);
  }
}

#endif  // sm_90a

template <int kWidth, int kKeys>
__global__ void __launch_bounds__(128 * (kConsumers<kWidth> + 1), 1)
    attention_forward_short(const __grid_constant__ ForwardTensors tensors, ForwardExtents e,
                            float c, float* lse) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Plan = ShortPlan<kWidth, kKeys>;
  constexpr int kGroups = kConsumers<kWidth>;
  extern __shared__ char memory[];
  char* const tiles = memory + (1024 - shared_address(memory) % 1024) % 1024;
  char* const chunks = tiles + Plan::kStages * Plan::kKeyBytes;  // queries, then results
  uint64_t* const full =
      reinterpret_cast<uint64_t*>(chunks + Plan::kChunkStages * Plan::kChunkBytes);
  uint64_t* const empty = full + Plan::kStages;
  uint64_t* const chunk_full = empty + Plan::kStages;
  uint64_t* const chunk_empty = chunk_full + Plan::kChunkStages;
  if (threadIdx.x == 0) {
    for (int i = 0; i < Plan::kStages; ++i) {
      barrier_init(full + i, 1);
      barrier_init(empty + i, 4 * kGroups);  // every warp
    }
    for (int i = 0; i < Plan::kChunkStages; ++i) {
      barrier_init(chunk_full + i, 1);
      barrier_init(chunk_empty + i, 1);
    }
    barrier_init_fence();
  }
  __syncthreads();
  // Told to the compiler as the same for a whole warp.
  const unsigned group = __shfl_sync(0xffffffffU, threadIdx.x / 128, 0);
  const int works = e.whole + (e.items - e.whole) * e.parts;

  if (group == kGroups) {  // the producer
    registers_lower<kProducerRegisters<kGroups>>();
    if (threadIdx.x % 128 > 0) return;
    unsigned n = 0;  // tiles, and chunks, so far
    unsigned chunk_n = 0;
    for (int index = blockIdx.x; index < works; index += gridDim.x) {
      const Work work = work_of(e, index);
      const int head = work.item % e.heads;
      const int image = work.item / e.heads;
      const auto load_keys = [&](const TensorMaps& maps) {
        const Place<Plan::kStages> place(n++);
        barrier_wait(empty + place.stage, place.parity ^ 1U);
        load_tile<kWidth, Plan::kRows>(tiles + place.stage * Plan::kKeyBytes, maps,
                                       full + place.stage, head, 0, image);
      };
      const auto load_chunk = [&](int chunk) {
        const Place<Plan::kChunkStages> place(chunk_n++);
        barrier_wait(chunk_empty + place.stage, place.parity ^ 1U);
        load_tile<kWidth, kChunk>(chunks + place.stage * Plan::kChunkBytes, tensors.q,
                                  chunk_full + place.stage, head, chunk * kChunk, image);
      };
      load_keys(tensors.k);
      // What the warpgroups begin with, before values whose place may still be taken.
      int chunk = work.begin;
      for (; chunk < work.end && chunk < work.begin + kGroups; ++chunk) load_chunk(chunk);
      load_keys(tensors.v);
      for (; chunk < work.end; ++chunk) load_chunk(chunk);
    }
    return;
  }

  registers_raise<kConsumerRegisters<kGroups>>();
  const bool elected = threadIdx.x % 128 == 0;
  const int lane = threadIdx.x % 32;
  const int row = static_cast<int>(threadIdx.x) % 128 / 32 * 16 + lane / 4;  // the upper one
  const auto release = [&](uint64_t* barrier) {
    __syncwarp();
    if (lane == 0) barrier_arrive(barrier);
  };
  int storing = -1;  // place of a chunk whose results are on their way
  const auto finish_store = [&] {
    if (!elected || storing < 0) return;
    tma_store_wait_read<0>();
    barrier_arrive(chunk_empty + storing);
    storing = -1;
  };
  unsigned n = 0;
  unsigned first_chunk = 0;  // of the work, counted over all
  for (int index = blockIdx.x; index < works; index += gridDim.x, n += 2) {
    const Work work = work_of(e, index);
    const int head = work.item % e.heads;
    const int image = work.item / e.heads;
    const Place<Plan::kStages> key(n);
    const Place<Plan::kStages> value(n + 1);
    const uint32_t key_tile = shared_address(tiles + key.stage * Plan::kKeyBytes);
    const uint32_t value_tile = shared_address(tiles + value.stage * Plan::kKeyBytes);
    const unsigned count = work.end - work.begin;
    barrier_wait(full + key.stage, key.parity);
    bool held = true;  // keys and values, by this warpgroup
    // Chunks go to the warpgroups in turn, over all works.
    for (unsigned i = (group + first_chunk * (kGroups - 1)) % kGroups; i < count; i += kGroups) {
      const Place<Plan::kChunkStages> place(first_chunk + i);
      char* const tile = chunks + place.stage * Plan::kChunkBytes;
      const int first = (work.begin + static_cast<int>(i)) * kChunk;
      const bool last = i + kGroups >= count;
      barrier_wait(chunk_full + place.stage, place.parity);
      Softmax softmax;
      WidthSums<kWidth> sums;
      attend<kWidth, kKeys>(
          softmax, sums, shared_address(tile), key_tile, value_tile, e.keys, c, finish_store,
          [&] {
            if (last) release(empty + key.stage);
          },
          [&] { barrier_wait(full + value.stage, value.parity); });
      const float total[2] = {quad_sum(softmax.total[0] + softmax.total[2]),
                              quad_sum(softmax.total[1] + softmax.total[3])};
      if (lane % 4 == 0) {
        float* const target = lse + static_cast<int64_t>(work.item) * e.queries;
        const int query = first + row;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if (query + 8 * half < e.queries) {
            target[query + 8 * half] = (softmax.reference[half] + __log2f(total[half])) * kLn2;
          }
        }
      }
      wgmma_wait<0>();
      sums.keep();
      if (last) {
        release(empty + value.stage);
        held = false;
      }

      named_barrier_sync(1 + static_cast<int>(group), 128);  // all have read the queries
      write_tile<kWidth>(sums, 1.0F / total[0], 1.0F / total[1], shared_address(tile), head);
      fence_async_shared();
      named_barrier_sync(1 + static_cast<int>(group), 128);
      if (elected) {
        store_tile<kWidth>(tile, tensors.o, head, first, image);
        tma_store_commit();
        storing = place.stage;
      }
    }
    first_chunk += count;
    if (held) {
      // It had no chunk here: its arrivals must not overtake what is loaded.
      barrier_wait(full + value.stage, value.parity);
      release(empty + key.stage);
      release(empty + value.stage);
    }
  }
  finish_store();
  if (elected) tma_store_wait<0>();
#endif
}

template <int kWidth, int kKeys>
void run_short(const CudaContext& cuda, const ForwardCall& call) {
  using Plan = ShortPlan<kWidth, kKeys>;
  const Shape& shape = call.shape;
  const auto kernel = attention_forward_short<kWidth, kKeys>;
  check_cuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Plan::kBytes),
      "attention_forward_short");
  // What does not fill a round of all multiprocessors is cut, so that more of them have work.
  const int items = static_cast<int>(shape.batch * shape.heads);
  const int whole = items / cuda.multiprocessors * cuda.multiprocessors;
  const int rest = items - whole;
  const int parts =
      rest > 0 ? std::min(cuda.multiprocessors / rest, ceil_div(shape.queries, kChunk)) : 1;
  const ForwardExtents e = {items, shape.heads, shape.queries, shape.keys, whole, parts};
  const int blocks = std::min(whole + rest * parts, cuda.multiprocessors);
  kernel<<<blocks, Plan::kThreads, Plan::kBytes, cuda.stream>>>(
      forward_tensors<kWidth>(call), e, static_cast<float>(call.scale * kLog2E), call.lse);
  check_launch("attention_forward_short");
}

template <int kWidth>
void run_width(const CudaContext& cuda, const ForwardCall& call) {
  const int keys = call.shape.keys;
  if (keys > 256) return forward_long<kWidth>(cuda, call);
  if (keys <= 64) return run_short<kWidth, 64>(cuda, call);
  if (keys <= 128) return run_short<kWidth, 128>(cuda, call);
  if (keys <= 208) return run_short<kWidth, 208>(cuda, call);
  run_short<kWidth, 256>(cuda, call);
}

}  // namespace

bool forward_wgmma(const CudaContext& cuda, const ForwardCall& call) {
  const int width = call.shape.width;
  if (width <= 32 || width > 96) return false;
  if (width <= 64) {
    run_width<64>(cuda, call);
  } else if (width == 72) {
    run_width<72>(cuda, call);
  } else {
    run_width<96>(cuda, call);
  }
  return true;
}

}  // namespace siglip::cuda::attention
