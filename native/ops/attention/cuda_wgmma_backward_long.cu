// The backward on sm_90a of more than 256 queries or keys, as two kernels of one form. A tile of rows
// stays (64 to each of two warpgroups) and blocks of the other side go by, which a third warpgroup
// has the copy engine load ahead:
//   keys stay      Sᵀ = K Qᵀ, dPᵀ = V dOᵀ, dV += Pᵀ dO, dK += dSᵀ Q
//   queries stay   S = Q Kᵀ, dP = dO Vᵀ, dQ += dS K
// Scores are computed twice, but all sums stay in registers and nothing is added up between blocks of
// threads. The sums of a block are queued behind the scores of the next, so that the tensor cores have
// work while exponentials are taken.
#include "ops/attention/cuda_wgmma.cuh"

namespace siglip::cuda::attention {
namespace {

constexpr int kConsumers = 2;  // warpgroups
constexpr int kThreads = 128 * (kConsumers + 1);
constexpr int kBlock = kBoxRows;  // rows that go by at a time: their scores fit in registers
constexpr int kTiles = 2;         // that stay, now and next

template <int kWidth>
struct LongBackwardPlan {
  static constexpr int kChunkBytes = Columns<kWidth>::tile_bytes(kBoxRows);
  static constexpr int kTileBytes = 2 * kConsumers * kChunkBytes;  // of two tensors
  static constexpr int kBlockBytes = 2 * kChunkBytes;
  static constexpr int kStages = kWidth > 72 ? 4 : 5;
  static constexpr int kBytes = kTiles * kTileBytes + kStages * kBlockBytes +
                                kConsumers * kChunkBytes + kStages * 2 * kBlock * 4 +
                                2 * (kTiles + kStages) * 8 + 1024;
  static_assert(kBytes <= kSharedLimit, "too much shared memory");
};

struct Extents {
  int items;  // (image, head, tile)
  int tiles;
  int heads;
  int queries;
  int keys;
  int blocks;
};

// The first of a pair has scores' other factor and is summed up with dS: (K, V), (Q, dO).
struct LongBackwardTensors {
  TensorMaps stay[2];
  TensorMaps pass[2];
  TensorMaps first_gradient;   // dK or dQ
  TensorMaps second_gradient;  // dV
};

template <int kWidth, bool kOfKeys>
__global__ void __launch_bounds__(kThreads, 1)
    attention_backward_long(const __grid_constant__ LongBackwardTensors tensors, Extents e,
                            float scale, const float* lse, const float* delta) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Plan = LongBackwardPlan<kWidth>;
  constexpr int kChunkBytes = Plan::kChunkBytes;
  extern __shared__ char memory[];
  char* const tiles = memory + (1024 - shared_address(memory) % 1024) % 1024;
  char* const blocks = tiles + kTiles * Plan::kTileBytes;
  char* const results = blocks + Plan::kStages * Plan::kBlockBytes;  // one to a warpgroup
  // Of the queries of a block that goes by: lse, and Σ_d dO ∘ O.
  float(*const statistics)[2][kBlock] =
      reinterpret_cast<float(*)[2][kBlock]>(results + kConsumers * kChunkBytes);
  uint64_t* const tile_full = reinterpret_cast<uint64_t*>(statistics + Plan::kStages);
  uint64_t* const tile_empty = tile_full + kTiles;
  uint64_t* const full = tile_empty + kTiles;
  uint64_t* const empty = full + Plan::kStages;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kTiles; ++i) {
      barrier_init(tile_full + i, 2 * kConsumers);
      barrier_init(tile_empty + i, 4 * kConsumers);  // every warp
    }
    for (int i = 0; i < Plan::kStages; ++i) {
      barrier_init(full + i, 2 + (kOfKeys ? 128 : 0));
      barrier_init(empty + i, 4 * kConsumers);
    }
    barrier_init_fence();
  }
  __syncthreads();
  // Told to the compiler as the same for a whole warp.
  const unsigned group = __shfl_sync(0xffffffffU, threadIdx.x / 128, 0);
  const int thread = static_cast<int>(threadIdx.x) % 128;

  if (group == kConsumers) {  // the producer
    registers_lower<kProducerRegisters<kConsumers>>();
    if (!kOfKeys && thread > 0) return;
    unsigned n = 0;  // tiles, and blocks, so far
    unsigned block_n = 0;
    for (int item = blockIdx.x; item < e.items; item += gridDim.x, ++n) {
      const int first = item % e.tiles * kConsumers * kBoxRows;
      const int head = item / e.tiles % e.heads;
      const int image = item / e.tiles / e.heads;
      const Place<kTiles> tile(n);
      barrier_wait(tile_empty + tile.stage, tile.parity ^ 1U);
      if (thread == 0) {
        for (int i = 0; i < 2 * kConsumers; ++i) {
          load_tile<kWidth, kBoxRows>(tiles + tile.stage * Plan::kTileBytes + i * kChunkBytes,
                                      tensors.stay[i % 2], tile_full + tile.stage, head,
                                      first + i / 2 * kBoxRows, image);
        }
      }
      const int64_t statistic = (static_cast<int64_t>(image) * e.heads + head) * e.queries;
      for (int i = 0; i < e.blocks; ++i, ++block_n) {
        const Place<Plan::kStages> place(block_n);
        barrier_wait(empty + place.stage, place.parity ^ 1U);
        if (thread == 0) {
          for (int j = 0; j < 2; ++j) {
            load_tile<kWidth, kBlock>(blocks + place.stage * Plan::kBlockBytes + j * kChunkBytes,
                                      tensors.pass[j], full + place.stage, head, i * kBlock, image);
          }
        }
        if constexpr (kOfKeys) {
          // Queries that are not there have rows of zeros: they add nothing if these are zeros too.
          const int row = i * kBlock + thread % kBlock;
          const float* const source = thread < kBlock ? lse : delta;
          const uint32_t target =
              shared_address(&statistics[place.stage][thread / kBlock][thread % kBlock]);
          asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(target),
                       "l"(row < e.queries ? source + statistic + row : source),
                       "r"(row < e.queries ? 4 : 0)
                       : "memory");
          barrier_arrive_after_copies(full + place.stage);
        }
      }
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
    return;
  }

  registers_raise<kConsumerRegisters<kConsumers>>();
  const bool elected = thread == 0;
  const int lane = thread % 32;
  const int row = thread / 32 * 16 + lane / 4;  // the upper one of a chunk
  const int barrier = 1 + static_cast<int>(group);
  char* const result = results + group * kChunkBytes;
  const float log2_e = static_cast<float>(kLog2E);
  const float scale_log2 = scale * log2_e;
  const auto release = [&](uint64_t* target) {
    __syncwarp();
    if (lane == 0) barrier_arrive(target);
  };
  // Rounds 64 rows of a result and has them stored.
  const auto store = [&](const WidthSums<kWidth>& sums, float factor, const TensorMaps& target,
                         int head, int first, int image) {
    if (elected) tma_store_wait_read<0>();
    named_barrier_sync(barrier, 128);
    write_tile<kWidth>(sums, factor, factor, shared_address(result), head);
    fence_async_shared();
    named_barrier_sync(barrier, 128);
    if (elected) {
      store_tile<kWidth>(result, target, head, first, image);
      tma_store_commit();
    }
  };

  const int rows = kOfKeys ? e.keys : e.queries;
  unsigned n = 0;
  unsigned block_n = 0;
  for (int item = blockIdx.x; item < e.items; item += gridDim.x, ++n, block_n += e.blocks) {
    const int first = (item % e.tiles * kConsumers + static_cast<int>(group)) * kBoxRows;
    const int head = item / e.tiles % e.heads;
    const int image = item / e.tiles / e.heads;
    const Place<kTiles> tile(n);
    if (first >= rows) {  // nothing for this warpgroup
      barrier_wait(tile_full + tile.stage, tile.parity);
      release(tile_empty + tile.stage);
      for (int i = 0; i < e.blocks; ++i) {
        const Place<Plan::kStages> place(block_n + i);
        barrier_wait(full + place.stage, place.parity);
        release(empty + place.stage);
      }
      continue;
    }
    float totals[2] = {};  // of the queries that stay
    float offsets[2] = {};
    if constexpr (!kOfKeys) {
      const int64_t statistic = (static_cast<int64_t>(image) * e.heads + head) * e.queries;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int query = first + row + 8 * half;
        if (query < e.queries) {
          totals[half] = lse[statistic + query] * log2_e;
          offsets[half] = delta[statistic + query];
        }
      }
    }
    const uint32_t stay =
        shared_address(tiles + tile.stage * Plan::kTileBytes + 2 * group * kChunkBytes);
    const auto block_at = [&](int i) {
      const Place<Plan::kStages> place(block_n + i);
      return shared_address(blocks + place.stage * Plan::kBlockBytes);
    };
    float s[kBlock / 2];
    float ds[kBlock / 2];
    uint32_t p[kBlock / 16][4];
    uint32_t packed[kBlock / 16][4];
    WidthSums<kWidth> first_sums;
    WidthSums<kWidth> second_sums;
    // Queues the scores of block i and their gradients.
    const auto queue_scores = [&](int i) {
      const Place<Plan::kStages> place(block_n + i);
      barrier_wait(full + place.stage, place.parity);
      wgmma_fence();
      multiply_rows<kWidth, kBoxRows, kBlock, kBlock>(s, stay, 0, block_at(i), 0);
      wgmma_commit();
      multiply_rows<kWidth, kBoxRows, kBlock, kBlock>(ds, stay + kChunkBytes, 0,
                                                      block_at(i) + kChunkBytes, 0);
      wgmma_commit();
    };
    // Queues the sums of block i.
    const auto queue_sums = [&](int i) {
      const int add = i > 0 ? 1 : 0;
      wgmma_fence();
      if constexpr (kOfKeys) {
#pragma unroll
        for (int step = 0; step < kBlock / 16; ++step) {
          mix_rows<kWidth, kBlock>(second_sums, p[step], block_at(i) + kChunkBytes, 16 * step,
                                   step > 0 ? 1 : add);
        }
      }
#pragma unroll
      for (int step = 0; step < kBlock / 16; ++step) {
        mix_rows<kWidth, kBlock>(first_sums, packed[step], block_at(i), 16 * step,
                                 step > 0 ? 1 : add);
      }
      wgmma_commit();
    };
    // s becomes the probabilities of block i,
    const auto take_exponentials = [&](int i) {
      keep_in_place(s);
      if constexpr (kOfKeys) {
        const float* const block_totals =
            statistics[Place<Plan::kStages>(block_n + i).stage][0] + lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < kBlock / 8; ++j) {
          const float2 total = *reinterpret_cast<const float2*>(block_totals + 8 * j);
          const float low = total.x * log2_e;
          const float high = total.y * log2_e;
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            s[4 * j + k] = exp2_fast(fmaf(s[4 * j + k], scale_log2, -(k % 2 == 0 ? low : high)));
          }
        }
      } else {
        if (e.keys - i * kBlock < kBlock) limit_keys<kBlock>(s, e.keys - i * kBlock);
#pragma unroll
        for (int j = 0; j < kBlock / 2; ++j) {
          s[j] = exp2_fast(fmaf(s[j], scale_log2, -totals[j / 2 % 2]));
        }
      }
    };
    // and ds the gradients of the scores.
    const auto take_gradients = [&](int i) {
      keep_in_place(ds);
      if constexpr (kOfKeys) {
        const float* const block_offsets =
            statistics[Place<Plan::kStages>(block_n + i).stage][1] + lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < kBlock / 8; ++j) {
          const float2 offset = *reinterpret_cast<const float2*>(block_offsets + 8 * j);
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            ds[4 * j + k] = s[4 * j + k] * (ds[4 * j + k] - (k % 2 == 0 ? offset.x : offset.y));
          }
        }
      } else {
#pragma unroll
        for (int j = 0; j < kBlock / 2; ++j) ds[j] = s[j] * (ds[j] - offsets[j / 2 % 2]);
      }
    };
    const auto pack = [&] {
      if constexpr (kOfKeys) pack_scores<kBlock>(s, p);
      pack_scores<kBlock>(ds, packed);
    };
    const auto finish_sums = [&](int i) {
      wgmma_wait<0>();
      first_sums.keep();
      if constexpr (kOfKeys) second_sums.keep();
      release(empty + Place<Plan::kStages>(block_n + i).stage);
    };
    barrier_wait(tile_full + tile.stage, tile.parity);
    queue_scores(0);
    wgmma_wait<1>();
    take_exponentials(0);
    wgmma_wait<0>();
    take_gradients(0);
    pack();
    for (int i = 1; i < e.blocks; ++i) {
      queue_scores(i);
      queue_sums(i - 1);
      wgmma_wait<2>();
      take_exponentials(i);
      wgmma_wait<1>();
      take_gradients(i);
      finish_sums(i - 1);
      pack();
    }
    release(tile_empty + tile.stage);
    queue_sums(e.blocks - 1);
    finish_sums(e.blocks - 1);
    if constexpr (kOfKeys) {
      store(second_sums, 1.0F, tensors.second_gradient, head, first, image);
    }
    store(first_sums, scale, tensors.first_gradient, head, first, image);
  }
  if (elected) tma_store_wait<0>();
#endif
}

template <int kWidth, bool kOfKeys>
void run(const CudaContext& cuda, const BackwardCall& call, const LongBackwardTensors& tensors) {
  const Shape& shape = call.shape;
  const auto kernel = attention_backward_long<kWidth, kOfKeys>;
  constexpr int kBytes = LongBackwardPlan<kWidth>::kBytes;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
             "attention_backward_long");
  Extents e;
  e.tiles = ceil_div(kOfKeys ? shape.keys : shape.queries, kConsumers * kBoxRows);
  e.items = static_cast<int>(shape.batch * shape.heads * e.tiles);
  e.heads = shape.heads;
  e.queries = shape.queries;
  e.keys = shape.keys;
  e.blocks = ceil_div(kOfKeys ? shape.queries : shape.keys, kBlock);
  const int grid = e.items < cuda.multiprocessors ? e.items : cuda.multiprocessors;
  kernel<<<grid, kThreads, kBytes, cuda.stream>>>(tensors, e, static_cast<float>(call.scale),
                                                  call.lse, call.delta);
  check_launch("attention_backward_long");
}

}  // namespace

template <int kWidth>
void backward_long(const CudaContext& cuda, const BackwardCall& call) {
  const auto [q, k, v, dout, dq, dk, dv] = backward_maps<kWidth>(call);
  run<kWidth, true>(cuda, call, {{k, v}, {q, dout}, dk, dv});
  run<kWidth, false>(cuda, call, {{q, dout}, {k, v}, dq, dq});
}

template void backward_long<64>(const CudaContext&, const BackwardCall&);
template void backward_long<72>(const CudaContext&, const BackwardCall&);
template void backward_long<96>(const CudaContext&, const BackwardCall&);

}  // namespace siglip::cuda::attention
