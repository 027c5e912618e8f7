// The forward on sm_90a of more than 256 keys: they go by in blocks, with an online softmax. A block of
// threads takes tiles of queries, 64 to each of its warpgroups, one after the other; a warpgroup of its
// own has the copy engine load blocks of keys ahead. A warpgroup queues the scores of the next block together
// with the weighted values of the last, and takes exponentials as soon as the former are done.
// The keys that do not fill a block come first, so that later blocks need no limit.
#include "ops/attention/cuda_wgmma.cuh"

namespace siglip::cuda::attention {
namespace {

constexpr int kKeys = 128;  // of a block
[[maybe_unused]] constexpr int kSteps = kKeys / 16;

template <int kWidth, int kConsumers>
struct LongPlan {
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kKeyBytes = Columns<kWidth>::tile_bytes(kKeys);
  static constexpr int kChunkBytes = Columns<kWidth>::tile_bytes(kBoxRows);
  static constexpr int kStages = kWidth > 72 ? 3 : 4;  // blocks of keys, and of values
  static constexpr int kTiles = 2;                     // of queries, each a chunk to a warpgroup
  static constexpr int kTileBytes = kConsumers * kChunkBytes;
  static constexpr int kBytes =
      2 * kStages * kKeyBytes + kTiles * kTileBytes + (4 * kStages + 2 * kTiles) * 8 + 1024;
  static_assert(kBytes <= kSharedLimit, "too much shared memory");
};

struct Extents {
  int items;  // (image, head, tile of queries)
  int tiles;
  int heads;
  int queries;
  int keys;
  int blocks;
};

// First key of the i-th block to be taken: the last block of all comes first.
[[maybe_unused]] __device__ __forceinline__ int block_row(int i, int blocks) {
  return (i == 0 ? blocks - 1 : i - 1) * kKeys;
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// The running softmax of the thread's two rows: highest product, and sums of this thread's columns.
struct Softmax {
  float highest[2];
  float total[2];

  // Scores become exponentials; what was summed up before is to be multiplied by rescale.
  template <int kCount>
  __device__ __forceinline__ void step(float (&s)[kCount], float c, float (&rescale)[2]) {
    float now[2];
    row_maxima(s, now);
    float reference[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      now[half] = fmaxf(highest[half], now[half]);
      reference[half] = now[half] * c;
      rescale[half] = exp2_fast(fmaf(highest[half], c, -reference[half]));
      highest[half] = now[half];
    }
    float sum[4] = {};
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      s[i] = exp2_fast(fmaf(s[i], c, -reference[i / 2 % 2]));
      sum[i % 4] += s[i];
    }
    total[0] = total[0] * rescale[0] + (sum[0] + sum[1]);
    total[1] = total[1] * rescale[1] + (sum[2] + sum[3]);
  }
};

// Fragments of the first kCount / 8 steps of 16 keys.
template <int kCount>
__device__ __forceinline__ void pack_steps(const float (&s)[kCount], uint32_t (&p)[kSteps][4]) {
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) p[i / 4][i % 4] = pack_bfloat16(s[2 * i], s[2 * i + 1]);
}

#endif  // sm_90a

template <int kWidth, int kConsumers>
__global__ void __launch_bounds__(128 * (kConsumers + 1), 1)
    attention_forward_long(const __grid_constant__ ForwardTensors tensors, Extents e, float c,
                           float* lse) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Plan = LongPlan<kWidth, kConsumers>;
  extern __shared__ char memory[];
  char* const keys = memory + (1024 - shared_address(memory) % 1024) % 1024;
  char* const values = keys + Plan::kStages * Plan::kKeyBytes;
  char* const tiles = values + Plan::kStages * Plan::kKeyBytes;  // queries, then results
  uint64_t* const key_full = reinterpret_cast<uint64_t*>(tiles + Plan::kTiles * Plan::kTileBytes);
  uint64_t* const key_empty = key_full + Plan::kStages;
  uint64_t* const value_full = key_empty + Plan::kStages;
  uint64_t* const value_empty = value_full + Plan::kStages;
  uint64_t* const tile_full = value_empty + Plan::kStages;
  uint64_t* const tile_empty = tile_full + Plan::kTiles;
  if (threadIdx.x == 0) {
    for (int i = 0; i < Plan::kStages; ++i) {
      barrier_init(key_full + i, 1);
      barrier_init(key_empty + i, 4 * kConsumers);  // every warp
      barrier_init(value_full + i, 1);
      barrier_init(value_empty + i, 4 * kConsumers);
    }
    for (int i = 0; i < Plan::kTiles; ++i) {
      barrier_init(tile_full + i, kConsumers);
      barrier_init(tile_empty + i, kConsumers);
    }
    barrier_init_fence();
  }
  __syncthreads();
  // Told to the compiler as the same for a whole warp.
  const unsigned group = __shfl_sync(0xffffffffU, threadIdx.x / 128, 0);

  if (group == kConsumers) {  // the producer
    registers_lower<kProducerRegisters<kConsumers>>();
    if (threadIdx.x % 128 > 0) return;
    unsigned n = 0;  // tiles, and blocks, so far
    unsigned block_n = 0;
    for (int item = blockIdx.x; item < e.items; item += gridDim.x, ++n) {
      const int first = item % e.tiles * kConsumers * kBoxRows;
      const int head = item / e.tiles % e.heads;
      const int image = item / e.tiles / e.heads;
      const Place<Plan::kTiles> tile(n);
      barrier_wait(tile_empty + tile.stage, tile.parity ^ 1U);
      for (int i = 0; i < kConsumers; ++i) {
        load_tile<kWidth, kBoxRows>(tiles + tile.stage * Plan::kTileBytes + i * Plan::kChunkBytes,
                                    tensors.q, tile_full + tile.stage, head, first + i * kBoxRows,
                                    image);
      }
      for (int i = 0; i < e.blocks; ++i, ++block_n) {
        const Place<Plan::kStages> place(block_n);
        const int row = block_row(i, e.blocks);
        barrier_wait(key_empty + place.stage, place.parity ^ 1U);
        load_tile<kWidth, kKeys>(keys + place.stage * Plan::kKeyBytes, tensors.k,
                                 key_full + place.stage, head, row, image);
        barrier_wait(value_empty + place.stage, place.parity ^ 1U);
        load_tile<kWidth, kKeys>(values + place.stage * Plan::kKeyBytes, tensors.v,
                                 value_full + place.stage, head, row, image);
      }
    }
    return;
  }

  registers_raise<kConsumerRegisters<kConsumers>>();
  const bool elected = threadIdx.x % 128 == 0;
  const int lane = threadIdx.x % 32;
  const int row = static_cast<int>(threadIdx.x) % 128 / 32 * 16 + lane / 4;  // the upper one
  const auto release = [&](uint64_t* barrier) {
    __syncwarp();
    if (lane == 0) barrier_arrive(barrier);
  };
  int storing = -1;  // place of a tile whose results are on their way
  const auto finish_store = [&] {
    if (!elected || storing < 0) return;
    tma_store_wait_read<0>();
    barrier_arrive(tile_empty + storing);
    storing = -1;
  };
  unsigned n = 0;
  unsigned block_n = 0;
  for (int item = blockIdx.x; item < e.items; item += gridDim.x, ++n, block_n += e.blocks) {
    const int first = (item % e.tiles * kConsumers + static_cast<int>(group)) * kBoxRows;
    const int head = item / e.tiles % e.heads;
    const int image = item / e.tiles / e.heads;
    const Place<Plan::kTiles> tile(n);
    char* const chunk = tiles + tile.stage * Plan::kTileBytes + group * Plan::kChunkBytes;
    barrier_wait(tile_full + tile.stage, tile.parity);
    if (first >= e.queries) {  // nothing for this warpgroup
      for (int i = 0; i < e.blocks; ++i) {
        const Place<Plan::kStages> place(block_n + i);
        barrier_wait(key_full + place.stage, place.parity);
        release(key_empty + place.stage);
        barrier_wait(value_full + place.stage, place.parity);
        release(value_empty + place.stage);
      }
      finish_store();
      if (elected) barrier_arrive(tile_empty + tile.stage);
      continue;
    }
    const uint32_t queries = shared_address(chunk);
    const auto key_block = [&](int stage) {
      return shared_address(keys + stage * Plan::kKeyBytes);
    };
    const auto value_block = [&](int stage) {
      return shared_address(values + stage * Plan::kKeyBytes);
    };

    Softmax softmax = {{-INFINITY, -INFINITY}, {0.0F, 0.0F}};
    float rescale[2];
    uint32_t p[kSteps][4];
    WidthSums<kWidth> sums;
    const Place<Plan::kStages> start(block_n);
    barrier_wait(key_full + start.stage, start.parity);
    const int left = e.keys - block_row(0, e.blocks);
    if (left <= kKeys / 2) {
      float s[kKeys / 4];
      wgmma_fence();
      multiply_rows<kWidth, kBoxRows, kKeys, kKeys / 2>(s, queries, 0, key_block(start.stage), 0);
      wgmma_commit();
      finish_store();
      wgmma_wait<0>();
      keep_in_place(s);
      limit_keys<kKeys / 2>(s, left);
      softmax.step(s, c, rescale);
      pack_steps(s, p);
#pragma unroll
      for (int step = kSteps / 2; step < kSteps; ++step) {
#pragma unroll
        for (int i = 0; i < 4; ++i) p[step][i] = 0;
      }
    } else {
      float s[kKeys / 2];
      wgmma_fence();
      multiply_rows<kWidth, kBoxRows, kKeys, kKeys>(s, queries, 0, key_block(start.stage), 0);
      wgmma_commit();
      finish_store();
      wgmma_wait<0>();
      keep_in_place(s);
      if (left < kKeys) limit_keys<kKeys>(s, left);
      softmax.step(s, c, rescale);
      pack_steps(s, p);
    }
    release(key_empty + start.stage);

    for (int i = 1; i < e.blocks; ++i) {
      const Place<Plan::kStages> place(block_n + i);
      const Place<Plan::kStages> last(block_n + i - 1);
      barrier_wait(key_full + place.stage, place.parity);
      float s[kKeys / 2];
      wgmma_fence();
      multiply_rows<kWidth, kBoxRows, kKeys, kKeys>(s, queries, 0, key_block(place.stage), 0);
      wgmma_commit();
      barrier_wait(value_full + last.stage, last.parity);
      wgmma_fence();
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        mix_rows<kWidth, kKeys>(sums, p[step], value_block(last.stage), 16 * step,
                                step == 0 && i == 1 ? 0 : 1);
      }
      wgmma_commit();
      wgmma_wait<1>();
      keep_in_place(s);
      release(key_empty + place.stage);
      softmax.step(s, c, rescale);
      wgmma_wait<0>();
      sums.keep();
      release(value_empty + last.stage);
      sums.scale(rescale[0], rescale[1]);
      pack_steps(s, p);
    }

    const Place<Plan::kStages> last(block_n + e.blocks - 1);
    barrier_wait(value_full + last.stage, last.parity);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      mix_rows<kWidth, kKeys>(sums, p[step], value_block(last.stage), 16 * step, 1);
    }
    wgmma_commit();
    const float sum[2] = {quad_sum(softmax.total[0]), quad_sum(softmax.total[1])};
    if (lane % 4 == 0) {
      float* const target = lse + (static_cast<int64_t>(image) * e.heads + head) * e.queries;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int query = first + row + 8 * half;
        if (query < e.queries) {
          target[query] = (softmax.highest[half] * c + __log2f(sum[half])) * kLn2;
        }
      }
    }
    wgmma_wait<0>();
    sums.keep();
    release(value_empty + last.stage);

    named_barrier_sync(1 + static_cast<int>(group), 128);  // all have read the queries
    write_tile<kWidth>(sums, 1.0F / sum[0], 1.0F / sum[1], shared_address(chunk), head);
    fence_async_shared();
    named_barrier_sync(1 + static_cast<int>(group), 128);
    if (elected) {
      store_tile<kWidth>(chunk, tensors.o, head, first, image);
      tma_store_commit();
      storing = tile.stage;
    }
  }
  finish_store();
  if (elected) tma_store_wait<0>();
#endif
}

template <int kWidth, int kConsumers>
void run(const CudaContext& cuda, const ForwardCall& call) {
  using Plan = LongPlan<kWidth, kConsumers>;
  const Shape& shape = call.shape;
  const auto kernel = attention_forward_long<kWidth, kConsumers>;
  check_cuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Plan::kBytes),
      "attention_forward_long");
  Extents e;
  e.tiles = ceil_div(shape.queries, kConsumers * kBoxRows);
  e.items = static_cast<int>(shape.batch * shape.heads * e.tiles);
  e.heads = shape.heads;
  e.queries = shape.queries;
  e.keys = shape.keys;
  e.blocks = ceil_div(shape.keys, kKeys);
  const int blocks = e.items < cuda.multiprocessors ? e.items : cuda.multiprocessors;
  kernel<<<blocks, Plan::kThreads, Plan::kBytes, cuda.stream>>>(
      forward_tensors<kWidth>(call), e, static_cast<float>(call.scale * kLog2E), call.lse);
  check_launch("attention_forward_long");
}

}  // namespace

template <int kWidth>
void forward_long(const CudaContext& cuda, const ForwardCall& call) {
  // Three warpgroups hide each other's latencies better, unless more of them would have no queries.
  const int chunks = ceil_div(call.shape.queries, kBoxRows);
  const bool three = ceil_div(chunks, 3) * 3 <= ceil_div(chunks, 2) * 2 + 1;
  if constexpr (kWidth <= 64) {  // wider sums would not fit in their registers
    if (three) return run<kWidth, 3>(cuda, call);
  }
  run<kWidth, 2>(cuda, call);
}

template void forward_long<64>(const CudaContext&, const ForwardCall&);
template void forward_long<72>(const CudaContext&, const ForwardCall&);
template void forward_long<96>(const CudaContext&, const ForwardCall&);

}  // namespace siglip::cuda::attention
