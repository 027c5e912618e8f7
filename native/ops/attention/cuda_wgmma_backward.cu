// The backward on sm_90a of up to 256 queries and keys. A block is there for the whole call and takes one
// head of an image after the other, all of whose rows it has in shared memory, so that each is read
// once; a warpgroup has the copy engine load the next ones into the places that become free.
// Two share out the 64-row chunks of keys and of queries:
//   a chunk of keys     Sᵀ = K Qᵀ, dPᵀ = V dOᵀ, dV += Pᵀ dO, dK += dSᵀ Q
//   a chunk of queries  S = Q Kᵀ, dP = dO Vᵀ, dQ += dS K
// Scores are computed twice, but neither they nor sums leave the registers, and nothing is added up
// between warpgroups: the result does not depend on their order.
#include "ops/attention/cuda_wgmma.cuh"

namespace siglip::cuda::attention {
namespace {

constexpr int kConsumers = 2;  // warpgroups
constexpr int kConsumerThreads = 128 * kConsumers;
constexpr int kThreads = kConsumerThreads + 128;
constexpr int kChunk = kBoxRows;  // rows of a warpgroup
[[maybe_unused]] constexpr int kBlock =
    64;                      // rows of the other side at a time: their scores fit in registers
constexpr int kTensors = 5;  // loaded for a head, in this order
[[maybe_unused]] constexpr int kO = 0;
[[maybe_unused]] constexpr int kDout = 1;
[[maybe_unused]] constexpr int kK = 2;
[[maybe_unused]] constexpr int kQ = 3;
[[maybe_unused]] constexpr int kV = 4;

struct BackwardTensors {
  TensorMaps loads[kTensors];
  TensorMaps dq;
  TensorMaps dk;
  TensorMaps dv;
};

struct Extents {
  int items;  // (image, head)
  int heads;
  int queries;
  int keys;
};

// kRows: of every tile, at least as many as there are queries and keys.
template <int kWidth, int kRows>
struct BackwardPlan {
  static constexpr int kTileBytes = Columns<kWidth>::tile_bytes(kRows);
  static constexpr int kChunkBytes = Columns<kWidth>::tile_bytes(kChunk);
  static constexpr int kRest = kSharedLimit - 1024 - kConsumers * kChunkBytes - 4 * kRows * 4 - 512;
  static constexpr int kMost = kRest / kTileBytes;
  static constexpr int kPlaces = kMost < 2 * kTensors ? kMost : 2 * kTensors;
  static constexpr int kBytes =
      kPlaces * kTileBytes + kConsumers * kChunkBytes + 4 * kRows * 4 + 2 * kPlaces * 8 + 1024;
  static_assert(kPlaces >= 4 && kBytes <= kSharedLimit, "too much shared memory");
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Σ_d of the products of a row of two tiles.
template <int kWidth, int kRows>
__device__ __forceinline__ float row_dot(const char* a, const char* b, int row) {
  using C = Columns<kWidth>;
  float sum = 0.0F;
  const auto add = [&](uint32_t offset) {
    const uint4 x = *reinterpret_cast<const uint4*>(a + offset);
    const uint4 y = *reinterpret_cast<const uint4*>(b + offset);
    const uint32_t xs[4] = {x.x, x.y, x.z, x.w};
    const uint32_t ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum = fmaf(low_of_bfloat16(xs[i]), low_of_bfloat16(ys[i]), sum);
      sum = fmaf(high_of_bfloat16(xs[i]), high_of_bfloat16(ys[i]), sum);
    }
  };
#pragma unroll
  for (int piece = 0; piece < C::kMain / 8; ++piece) {
    add(swizzled<128>(row * 128 + piece * 16));
  }
#pragma unroll
  for (int piece = 0; piece < C::kRest / 8; ++piece) {
    add(kRows * 128 + swizzled<C::kRestBytes>(row * C::kRestBytes + piece * 16));
  }
  return sum;
}

#endif  // sm_90a

template <int kWidth, int kRows>
__global__ void __launch_bounds__(kThreads, 1)
    attention_backward_short(const __grid_constant__ BackwardTensors tensors, Extents e,
                             float scale, const float* lse) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Plan = BackwardPlan<kWidth, kRows>;
  extern __shared__ char memory[];
  char* const tiles = memory + (1024 - shared_address(memory) % 1024) % 1024;
  char* const stages = tiles + Plan::kPlaces * Plan::kTileBytes;  // of results, one to a warpgroup
  // Of the queries of this item and of the last: lse in powers of 2, and Σ_d dO ∘ O.
  float(*const log2_totals)[kRows] =
      reinterpret_cast<float(*)[kRows]>(stages + kConsumers * Plan::kChunkBytes);
  float(*const deltas)[kRows] = log2_totals + 2;
  uint64_t* const full = reinterpret_cast<uint64_t*>(deltas + 2);
  uint64_t* const empty = full + Plan::kPlaces;
  if (threadIdx.x == 0) {
    for (int i = 0; i < Plan::kPlaces; ++i) {
      barrier_init(full + i, 1);
      barrier_init(empty + i, kConsumers);
    }
    barrier_init_fence();
  }
  __syncthreads();
  // Told to the compiler as the same for a whole warp.
  const unsigned group = __shfl_sync(0xffffffffU, threadIdx.x / 128, 0);

  if (group == kConsumers) {  // the producer
    registers_lower<kProducerRegisters<kConsumers>>();
    if (threadIdx.x % 128 > 0) return;
    unsigned n = 0;  // tiles so far
    for (int item = blockIdx.x; item < e.items; item += gridDim.x) {
      for (int tensor = 0; tensor < kTensors; ++tensor, ++n) {
        const Place<Plan::kPlaces> place(n);
        barrier_wait(empty + place.stage, place.parity ^ 1U);
        load_tile<kWidth, kRows>(tiles + place.stage * Plan::kTileBytes, tensors.loads[tensor],
                                 full + place.stage, item % e.heads, 0, item / e.heads);
      }
    }
    return;
  }

  registers_raise<kConsumerRegisters<kConsumers>>();
  const int thread = static_cast<int>(threadIdx.x);
  const bool elected = thread % 128 == 0;
  const int lane = thread % 32;
  const int row = thread % 128 / 32 * 16 + lane / 4;  // the upper one of a chunk
  const int barrier = 1 + static_cast<int>(group);
  char* const stage = stages + group * Plan::kChunkBytes;
  const float scale_log2 = scale * static_cast<float>(kLog2E);
  // Rounds 64 rows of a result and has them stored.
  const auto store = [&](const WidthSums<kWidth>& sums, float factor, const TensorMaps& target,
                         int head, int first, int image) {
    if (elected) tma_store_wait_read<0>();
    named_barrier_sync(barrier, 128);
    write_tile<kWidth>(sums, factor, factor, shared_address(stage), head);
    fence_async_shared();
    named_barrier_sync(barrier, 128);
    if (elected) {
      store_tile<kWidth>(stage, target, head, first, image);
      tma_store_commit();
    }
  };
  // Of query `thread` of an item; +∞, so that its probabilities are zeros, where there is none.
  const auto load_total = [&](int item) {
    if (item >= e.items || thread >= e.queries) return INFINITY;
    return lse[static_cast<int64_t>(item) * e.queries + thread] * static_cast<float>(kLog2E);
  };

  const int key_chunks = ceil_div(e.keys, kChunk);
  const int units = key_chunks + ceil_div(e.queries, kChunk);
  float next_total = load_total(blockIdx.x);
  unsigned n = 0;
  for (int item = blockIdx.x; item < e.items; item += gridDim.x, ++n) {
    const int head = item % e.heads;
    const int image = item / e.heads;
    const auto place_of = [&](int tensor) { return Place<Plan::kPlaces>(n * kTensors + tensor); };
    const auto wait_for = [&](int tensor) {
      const Place<Plan::kPlaces> place = place_of(tensor);
      barrier_wait(full + place.stage, place.parity);
      return tiles + place.stage * Plan::kTileBytes;
    };
    const char* const o_tile = wait_for(kO);
    const char* const dout_tile = wait_for(kDout);
    float* const totals = log2_totals[n % 2];
    float* const offsets = deltas[n % 2];
    if (thread < kRows) {
      totals[thread] = next_total;
      offsets[thread] = row_dot<kWidth, kRows>(o_tile, dout_tile, thread);
    }
    next_total = load_total(item + static_cast<int>(gridDim.x));
    named_barrier_sync(1 + kConsumers, kConsumerThreads);
    if (elected) barrier_arrive(empty + place_of(kO).stage);
    const uint32_t dout = shared_address(dout_tile);
    const uint32_t k = shared_address(wait_for(kK));
    const uint32_t q = shared_address(wait_for(kQ));
    const uint32_t v = shared_address(wait_for(kV));

    for (int unit = static_cast<int>(group); unit < units; unit += kConsumers) {
      if (unit < key_chunks) {
        const int first = unit * kChunk;
        WidthSums<kWidth> dk_sums;
        WidthSums<kWidth> dv_sums;
        for (int other = 0; other < e.queries; other += kBlock) {
          float s[kBlock / 2];
          float ds[kBlock / 2];
          wgmma_fence();
          multiply_rows<kWidth, kRows, kRows, kBlock>(s, k, first, q, other);
          wgmma_commit();
          multiply_rows<kWidth, kRows, kRows, kBlock>(ds, v, first, dout, other);
          wgmma_commit();
          wgmma_wait<1>();
          keep_in_place(s);
          const int column = other + lane % 4 * 2;
#pragma unroll
          for (int i = 0; i < kBlock / 8; ++i) {
            const float2 total = *reinterpret_cast<const float2*>(totals + column + 8 * i);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              s[4 * i + j] =
                  exp2_fast(fmaf(s[4 * i + j], scale_log2, -(j % 2 == 0 ? total.x : total.y)));
            }
          }
          uint32_t p[kBlock / 16][4];
          pack_scores<kBlock>(s, p);
          wgmma_wait<0>();
          keep_in_place(ds);
#pragma unroll
          for (int i = 0; i < kBlock / 8; ++i) {
            const float2 offset = *reinterpret_cast<const float2*>(offsets + column + 8 * i);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              ds[4 * i + j] = s[4 * i + j] * (ds[4 * i + j] - (j % 2 == 0 ? offset.x : offset.y));
            }
          }
          uint32_t packed[kBlock / 16][4];
          pack_scores<kBlock>(ds, packed);
          const int add = other > 0 ? 1 : 0;
          wgmma_fence();
#pragma unroll
          for (int step = 0; step < kBlock / 16; ++step) {
            mix_rows<kWidth, kRows>(dv_sums, p[step], dout, other + 16 * step, step > 0 ? 1 : add);
          }
#pragma unroll
          for (int step = 0; step < kBlock / 16; ++step) {
            mix_rows<kWidth, kRows>(dk_sums, packed[step], q, other + 16 * step,
                                    step > 0 ? 1 : add);
          }
          wgmma_commit();
          wgmma_wait<0>();
          dv_sums.keep();
          dk_sums.keep();
        }
        store(dv_sums, 1.0F, tensors.dv, head, first, image);
        store(dk_sums, scale, tensors.dk, head, first, image);
      } else {
        const int first = (unit - key_chunks) * kChunk;
        const float total[2] = {totals[first + row], totals[first + row + 8]};
        const float offset[2] = {offsets[first + row], offsets[first + row + 8]};
        WidthSums<kWidth> sums;
        for (int other = 0; other < e.keys; other += kBlock) {
          float s[kBlock / 2];
          float ds[kBlock / 2];
          wgmma_fence();
          multiply_rows<kWidth, kRows, kRows, kBlock>(s, q, first, k, other);
          wgmma_commit();
          multiply_rows<kWidth, kRows, kRows, kBlock>(ds, dout, first, v, other);
          wgmma_commit();
          wgmma_wait<1>();
          keep_in_place(s);
          if (e.keys - other < kBlock) limit_keys<kBlock>(s, e.keys - other);
#pragma unroll
          for (int i = 0; i < kBlock / 2; ++i) {
            s[i] = exp2_fast(fmaf(s[i], scale_log2, -total[i / 2 % 2]));
          }
          wgmma_wait<0>();
          keep_in_place(ds);
#pragma unroll
          for (int i = 0; i < kBlock / 2; ++i) ds[i] = s[i] * (ds[i] - offset[i / 2 % 2]);
          uint32_t packed[kBlock / 16][4];
          pack_scores<kBlock>(ds, packed);
          wgmma_fence();
#pragma unroll
          for (int step = 0; step < kBlock / 16; ++step) {
            mix_rows<kWidth, kRows>(sums, packed[step], k, other + 16 * step,
                                    step > 0 || other > 0 ? 1 : 0);
          }
          wgmma_commit();
          wgmma_wait<0>();
          sums.keep();
        }
        store(sums, scale, tensors.dq, head, first, image);
      }
    }
    named_barrier_sync(barrier, 128);  // all have read the tiles
    if (elected) {
      for (int tensor = kDout; tensor < kTensors; ++tensor) {
        barrier_arrive(empty + place_of(tensor).stage);
      }
    }
  }
  if (elected) tma_store_wait<0>();
#endif
}

template <int kWidth, int kRows>
void run(const CudaContext& cuda, const BackwardCall& call) {
  using Plan = BackwardPlan<kWidth, kRows>;
  const Shape& shape = call.shape;
  const auto kernel = attention_backward_short<kWidth, kRows>;
  check_cuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Plan::kBytes),
      "attention_backward_short");
  const BackwardMaps maps = backward_maps<kWidth>(call);
  const TensorMaps o = head_tensor<kWidth>(call.o, shape, shape.queries, shape.result_stride());
  const BackwardTensors tensors = {
      {o, maps.dout, maps.k, maps.q, maps.v}, maps.dq, maps.dk, maps.dv};
  const Extents e = {static_cast<int>(shape.batch * shape.heads), shape.heads, shape.queries,
                     shape.keys};
  const int blocks = e.items < cuda.multiprocessors ? e.items : cuda.multiprocessors;
  kernel<<<blocks, kThreads, Plan::kBytes, cuda.stream>>>(tensors, e,
                                                          static_cast<float>(call.scale), call.lse);
  check_launch("attention_backward_short");
}

template <int kWidth>
void run_width(const CudaContext& cuda, const BackwardCall& call, int rows) {
  if (rows > 256) return backward_long<kWidth>(cuda, call);
  if (rows <= 64) return run<kWidth, 64>(cuda, call);
  if (rows <= 128) return run<kWidth, 128>(cuda, call);
  run<kWidth, 256>(cuda, call);
}

}  // namespace

bool backward_wgmma(const CudaContext& cuda, const BackwardCall& call) {
  const int width = call.shape.width;
  const int rows = call.shape.queries > call.shape.keys ? call.shape.queries : call.shape.keys;
  if (width <= 32 || width > 96) return false;
  if (rows > 256) compute_delta(cuda, call, true);
  if (width <= 64) {
    run_width<64>(cuda, call, rows);
  } else if (width == 72) {
    run_width<72>(cuda, call, rows);
  } else {
    run_width<96>(cuda, call, rows);
  }
  return true;
}

}  // namespace siglip::cuda::attention
