// The forward on sm_90a of up to 256 keys: all scores of a query are in registers at once. A block is
// there for the whole call (one to a multiprocessor): a warpgroup of it loads what comes next, or has
// the copy engine do it, while two, each with 64 queries at a time, compute. Their products overlap:
// while one takes exponentials, the other multiplies.
#include "ops/attention/cuda_wgmma.cuh"

namespace siglip::cuda::attention {
namespace {

constexpr int kConsumers = 2;  // warpgroups
constexpr int kThreads = 128 * (kConsumers + 1);
constexpr int kChunk = kBoxRows;  // queries of a warpgroup at a time

struct ForwardExtents {
  int items;  // (image, head)
  int heads;
  int queries;
  int keys;
};

// Places in shared memory for kKeys keys of kWidth elements.
template <int kWidth, int kKeys>
struct ShortPlan {
  static constexpr int kRows = (kKeys + kBoxRows - 1) / kBoxRows * kBoxRows;  // loaded
  static constexpr int kKeyBytes = Columns<kWidth>::tile_bytes(kRows);
  static constexpr int kChunkBytes = Columns<kWidth>::tile_bytes(kChunk);
  static constexpr int kKeyStages = kRows > 128 ? 2 : kRows > 64 ? (kWidth > 64 ? 3 : 4) : 6;
  static constexpr int kValueStages = kRows > 128 && kWidth > 72 ? 1 : kKeyStages;
  static constexpr int kChunkStages = kWidth > 72 || (kWidth > 64 && kRows > 128) ? 6 : 8;
  static constexpr int kBarriers = 2 * (kKeyStages + kValueStages + kChunkStages);
  static constexpr int kBytes =
      (kKeyStages + kValueStages) * kKeyBytes + kChunkStages * kChunkBytes + kBarriers * 8 + 1024;
  static_assert(kBytes <= kSharedLimit, "too much shared memory");
};

template <int kWidth, int kKeys>
__global__ void __launch_bounds__(kThreads, 1)
    attention_forward_short(const __grid_constant__ ForwardTensors<kWidth> tensors,
                            ForwardExtents e, float c, float* lse) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using C = Columns<kWidth>;
  using Plan = ShortPlan<kWidth, kKeys>;
  constexpr int kRows = Plan::kRows;
  extern __shared__ char memory[];
  char* const keys = memory + (1024 - shared_address(memory) % 1024) % 1024;
  char* const values = keys + Plan::kKeyStages * Plan::kKeyBytes;
  char* const chunks = values + Plan::kValueStages * Plan::kKeyBytes;  // queries, then results
  uint64_t* const key_full =
      reinterpret_cast<uint64_t*>(chunks + Plan::kChunkStages * Plan::kChunkBytes);
  uint64_t* const key_empty = key_full + Plan::kKeyStages;
  uint64_t* const value_full = key_empty + Plan::kKeyStages;
  uint64_t* const value_empty = value_full + Plan::kValueStages;
  uint64_t* const chunk_full = value_empty + Plan::kValueStages;
  uint64_t* const chunk_empty = chunk_full + Plan::kChunkStages;
  if (threadIdx.x == 0) {
    for (int i = 0; i < Plan::kKeyStages; ++i) {
      barrier_init(key_full + i, C::kLoaders);
      barrier_init(key_empty + i, kConsumers);
    }
    for (int i = 0; i < Plan::kValueStages; ++i) {
      barrier_init(value_full + i, C::kLoaders);
      barrier_init(value_empty + i, kConsumers);
    }
    for (int i = 0; i < Plan::kChunkStages; ++i) {
      barrier_init(chunk_full + i, C::kLoaders);
      barrier_init(chunk_empty + i, C::kStorers);
    }
    barrier_init_fence();
  }
  fill_up_tiles<kWidth, kRows>(keys, Plan::kKeyStages + Plan::kValueStages);
  fill_up_tiles<kWidth, kChunk>(chunks, Plan::kChunkStages);
  __syncthreads();
  const unsigned count = ceil_div(e.queries, kChunk);  // chunks of an item
  // Told to the compiler as the same for a whole warp.
  const unsigned group = __shfl_sync(0xffffffffU, threadIdx.x / 128, 0);

  if (group == kConsumers) {  // the producer
    registers_lower<kProducerRegisters<kWidth>>();
    if (threadIdx.x % 128 >= C::kLoaders) return;
    unsigned n = 0;  // items, and chunks, so far
    unsigned chunk_n = 0;
    const auto load_chunk = [&](unsigned chunk, int head, int image) {
      const Place<Plan::kChunkStages> place(chunk_n++);
      barrier_wait(chunk_empty + place.stage, place.parity ^ 1U);
      load_tile<kWidth, kChunk>(chunks + place.stage * Plan::kChunkBytes, tensors.q,
                                chunk_full + place.stage, head, static_cast<int>(chunk) * kChunk,
                                image);
    };
    for (int item = blockIdx.x; item < e.items; item += gridDim.x, ++n) {
      const int head = item % e.heads;
      const int image = item / e.heads;
      const Place<Plan::kKeyStages> key(n);
      barrier_wait(key_empty + key.stage, key.parity ^ 1U);
      load_tile<kWidth, kRows>(keys + key.stage * Plan::kKeyBytes, tensors.k, key_full + key.stage,
                               head, 0, image);
      // What the warpgroups begin with, before values whose place may still be taken.
      unsigned chunk = 0;
      for (; chunk < kConsumers && chunk < count; ++chunk) load_chunk(chunk, head, image);
      const Place<Plan::kValueStages> value(n);
      barrier_wait(value_empty + value.stage, value.parity ^ 1U);
      load_tile<kWidth, kRows>(values + value.stage * Plan::kKeyBytes, tensors.v,
                               value_full + value.stage, head, 0, image);
      for (; chunk < count; ++chunk) load_chunk(chunk, head, image);
    }
    finish_loads<kWidth>();
    return;
  }

  registers_raise<kConsumerRegisters<kWidth>>();
  const bool elected = threadIdx.x % 128 == 0;
  const int lane = threadIdx.x % 32;
  const int row = static_cast<int>(threadIdx.x) % 128 / 32 * 16 + lane / 4;  // the upper one
  int storing = -1;  // place of a chunk whose results are on their way
  const auto finish_store = [&] {
    if (!elected || storing < 0) return;
    tma_store_wait_read<0>();
    barrier_arrive(chunk_empty + storing);
    storing = -1;
  };
  unsigned n = 0;
  unsigned first_chunk = 0;  // of the item, counted over all
  for (int item = blockIdx.x; item < e.items; item += gridDim.x, ++n, first_chunk += count) {
    const int head = item % e.heads;
    const int image = item / e.heads;
    const Place<Plan::kKeyStages> key(n);
    const Place<Plan::kValueStages> value(n);
    const uint32_t key_tile = shared_address(keys + key.stage * Plan::kKeyBytes);
    const uint32_t value_tile = shared_address(values + value.stage * Plan::kKeyBytes);
    wait_loaded<kWidth>(key_full + key.stage, key.parity);
    for (unsigned chunk = (group + first_chunk) % kConsumers; chunk < count; chunk += kConsumers) {
      const unsigned chunk_n = first_chunk + chunk;  // group, modulo kConsumers
      const Place<Plan::kChunkStages> place(chunk_n);
      char* const tile = chunks + place.stage * Plan::kChunkBytes;
      wait_loaded<kWidth>(chunk_full + place.stage, place.parity);

      float s[kKeys / 2];
      wgmma_fence();
      multiply_rows<kWidth, kChunk, kRows, kKeys>(s, shared_address(tile), 0, key_tile, 0);
      wgmma_commit();
      finish_store();
      wgmma_wait<0>();
      keep_in_place(s);

      if (e.keys < kKeys) limit_keys<kKeys>(s, e.keys);
      float highest[2];
      row_maxima(s, highest);
      const float reference[2] = {highest[0] * c, highest[1] * c};
      float total[4] = {};
      wait_loaded<kWidth>(value_full + value.stage, value.parity);
      WidthSums<kWidth> sums;
      // Rows of 16 keys become factors as soon as they are exponentials, in groups of up to 64.
      constexpr int kGroup = kKeys % 64 == 0 ? 4 : 1;
#pragma unroll
      for (int first = 0; first < kKeys / 16; first += kGroup) {
        uint32_t p[kGroup][4];
#pragma unroll
        for (int step = 0; step < kGroup; ++step) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            // The fragment's i-th register: rows g and g + 8 in turn, of the first 8 keys, then the
            // next.
            const float* x = s + (first + step) * 8 + i * 2;
            const float low = exp2_fast(fmaf(x[0], c, -reference[i % 2]));
            const float high = exp2_fast(fmaf(x[1], c, -reference[i % 2]));
            total[i] += low + high;
            p[step][i] = pack_bfloat16(low, high);
          }
        }
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < kGroup; ++step) {
          mix_rows<kWidth, kRows>(sums, p[step], value_tile, (first + step) * 16,
                                  first + step == 0 ? 0 : 1);
        }
        wgmma_commit();
      }
      const float sum[2] = {quad_sum(total[0] + total[2]), quad_sum(total[1] + total[3])};
      if (lane % 4 == 0) {
        float* const target = lse + static_cast<int64_t>(item) * e.queries;
        const int query = static_cast<int>(chunk) * kChunk + row;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if (query + 8 * half < e.queries) {
            target[query + 8 * half] = (reference[half] + __log2f(sum[half])) * kLn2;
          }
        }
      }
      wgmma_wait<0>();
      sums.keep();

      named_barrier_sync(1 + static_cast<int>(group), 128);  // all have read the queries
      write_tile<kWidth>(sums, 1.0F / sum[0], 1.0F / sum[1], shared_address(tile));
      const int first = static_cast<int>(chunk) * kChunk;
      if constexpr (C::kByEngine) {
        fence_async_shared();
        named_barrier_sync(1 + static_cast<int>(group), 128);
        if (elected) {
          store_tile<kWidth>(tile, tensors.o, head, first, image);
          tma_store_commit();
          storing = place.stage;
        }
      } else {
        __syncwarp();
        store_tile<kWidth>(tile, tensors.o, head, first, image);
        __syncwarp();
        if (lane == 0) barrier_arrive(chunk_empty + place.stage);
      }
    }
    // Even if it had no chunk here: its arrivals at a place must not overtake the place's items.
    barrier_wait(value_full + value.stage, value.parity);
    if (elected) {
      barrier_arrive(key_empty + key.stage);
      barrier_arrive(value_empty + value.stage);
    }
  }
  finish_store();
  if (elected) tma_store_wait<0>();
#endif
}

template <int kWidth, int kKeys>
void run_short(const CudaContext& cuda, const ForwardCall& call) {
  const Shape& shape = call.shape;
  const auto kernel = attention_forward_short<kWidth, kKeys>;
  constexpr int kBytes = ShortPlan<kWidth, kKeys>::kBytes;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
             "attention_forward_short");
  const ForwardExtents e = {static_cast<int>(shape.batch * shape.heads), shape.heads, shape.queries,
                            shape.keys};
  const int blocks = e.items < cuda.multiprocessors ? e.items : cuda.multiprocessors;
  kernel<<<blocks, kThreads, kBytes, cuda.stream>>>(
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
