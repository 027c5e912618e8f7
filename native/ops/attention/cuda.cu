// Which kernels a call is computed by. Packed batches are cut into tiles that do not cross segments,
// by a first kernel, as the segments are on the device.
#include "ops/attention/attention.h"

#include <cstdlib>
#include <string>

#define SIGLIP_CPU cuda  // the namespace of the guards
#include "cpu/check.h"
#include "ops/attention/cuda_call.cuh"
#include "ops/attention/operands.h"

namespace siglip::cuda {
namespace {

using attention::BackwardCall;
using attention::ForwardCall;
using attention::Shape;

constexpr int kPlanThreads = 1024;

// tiles[i] = (first row, end, first row of its segment, end) for the tiles of all segments in order;
// rows behind the last segment get tiles of an empty segment; what is left is empty. One block.
__global__ void __launch_bounds__(kPlanThreads)
    plan_tiles(const int32_t* starts, int segments, int rows, int tile_rows, int capacity,
               int4* tiles) {
  __shared__ int warp_sums[32];
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  int before = 0;  // tiles of the segments so far
  for (int base = 0; base <= segments; base += kPlanThreads) {
    const int s = base + static_cast<int>(threadIdx.x);
    int begin = 0;
    int end = 0;
    if (s <= segments) {
      begin = min(max(starts[s], 0), rows);
      end = s < segments ? max(begin, min(starts[s + 1], rows)) : rows;
    }
    const int count = attention::ceil_div(end - begin, tile_rows);
    int running = count;  // of this thread and those before it in the warp
    for (int lanes = 1; lanes < 32; lanes *= 2) {
      const int other = __shfl_up_sync(0xffffffffU, running, lanes);
      if (lane >= lanes) running += other;
    }
    if (lane == 31) warp_sums[warp] = running;
    __syncthreads();
    int total = 0;
    int at = before + running - count;
    for (int w = 0; w < 32; ++w) {
      if (w < warp) at += warp_sums[w];
      total += warp_sums[w];
    }
    __syncthreads();
    for (int i = 0; i < count && at + i < capacity; ++i) {
      const int first = begin + i * tile_rows;
      tiles[at + i] = make_int4(first, min(first + tile_rows, end), s < segments ? begin : 0,
                                s < segments ? end : 0);
    }
    before += total;
  }
  for (int i = before + static_cast<int>(threadIdx.x); i < capacity; i += kPlanThreads) {
    tiles[i] = make_int4(0, 0, 0, 0);
  }
}

// Bytes of the tiles of a packed batch, whatever the kernel.
size_t tiles_bytes(const In& q, const MaybeIn& segments) {
  if (!segments.present()) return 0;
  return sizeof(int4) * static_cast<size_t>(attention::most_tiles(q.extent(1), segments.elements(),
                                                                  attention::kLeastTileRows));
}

size_t delta_bytes(const In& q) {
  return static_cast<size_t>(q.extent(0) * q.extent(1) * q.extent(-2)) * sizeof(float);
}

Shape checked_shape(const char* who, const In& q, const In& k, const In& v, const Limits& limits) {
  check_operands(who, q, k, v, limits);
  check_float(who, "q", q);
  check_dtype(who, "k", k, q.dtype());
  check_dtype(who, "v", v, q.dtype());
  const auto& [key_mask, segments, key_segments, causal] = limits;
  if (segments.present()) {
    check_rank(who, "segments", segments, 1);
    check_dtype(who, "segments", segments, DType::kInt32);
    if (segments.elements() < 1) {
      fail("ERR_SHAPE", "%s: segments must have at least 1 element, got 0", who);
    }
  }
  Shape shape = {};
  shape.batch = q.extent(0);
  shape.queries = static_cast<int>(q.extent(1));
  shape.keys = static_cast<int>(k.extent(1));
  shape.heads = static_cast<int>(q.extent(-2));
  shape.width = static_cast<int>(q.extent(-1));
  shape.row_stride = part_stride(q);
  if (key_mask.present()) shape.mask = key_mask.data<uint8_t>();
  if (key_segments.present()) shape.key_starts = key_segments.data<int32_t>();
  if (causal.present()) shape.causal = causal.data<uint8_t>();
  return shape;
}

// Cuts a packed batch, on the device.
void plan(const CudaContext& cuda, const MaybeIn& segments, int tile_rows, std::byte* memory,
          Shape* shape) {
  if (!segments.present()) return;
  const int count = static_cast<int>(segments.elements()) - 1;
  shape->most_tiles = attention::most_tiles(shape->queries, count, tile_rows);
  int4* tiles = reinterpret_cast<int4*>(memory);
  shape->tiles = tiles;
  plan_tiles<<<1, kPlanThreads, 0, cuda.stream>>>(segments.data<int32_t>(), count, shape->queries,
                                                  tile_rows, shape->most_tiles, tiles);
  check_launch("plan_tiles");
}

// The first element of q, k or v (0, 1 or 2).
template <typename Role>
auto* part_of(const Role& array, int part) {
  return array.bytes() + part_offset(array, part) * static_cast<int64_t>(size_of(array.dtype()));
}

enum class Family { kSimple, kMma, kWgmma };

// The fastest that can do a call. SIGLIP2_CUDA_ATTENTION = simple, mma or wgmma asks for one, which
// is taken where it can.
Family family_of(const CudaContext& cuda, const Shape& shape, bool packed, DType dtype,
                 double scale) {
  // The fast kernels take the highest product for the highest score, so scale is positive.
  if (!(scale > 0.0)) return Family::kSimple;
  // A decoder's limits are known to the simple kernels alone.
  if (shape.causal != nullptr || shape.key_starts != nullptr) return Family::kSimple;
  if (dtype != DType::kBfloat16 || shape.width % 8 != 0 || shape.width > 128) {
    return Family::kSimple;
  }
  const char* variable = std::getenv("SIGLIP2_CUDA_ATTENTION");
  const std::string asked = variable == nullptr ? "" : variable;
  if (asked == "simple") return Family::kSimple;
  const bool wgmma = cuda.architecture == 90 && shape.mask == nullptr && !packed;
  return wgmma && asked != "mma" ? Family::kWgmma : Family::kMma;
}

}  // namespace

size_t attention_forward_scratch(int, In q, In, MaybeIn segments, MaybeIn, int64_t) {
  return tiles_bytes(q, segments);
}

void attention_forward(Stream& stream, In q, In k, In v, MaybeIn key_mask, MaybeIn segments,
                       MaybeIn key_segments, MaybeIn causal, double scale, int64_t, Out o, Out lse,
                       Scratch scratch) {
  constexpr char kName[] = "attention_forward";
  ForwardCall call = {};
  call.shape = checked_shape(kName, q, k, v, {key_mask, segments, key_segments, causal});
  check_elements(kName, "o", o, call.shape.batch * call.shape.queries * call.shape.result_stride());
  check_dtype(kName, "o", o, q.dtype());
  check_elements(kName, "lse", lse, call.shape.batch * call.shape.queries * call.shape.heads);
  check_scratch(kName, scratch, tiles_bytes(q, segments));
  call.q = part_of(q, 0);
  call.k = part_of(k, 1);
  call.v = part_of(v, 2);
  call.scale = scale;
  call.o = o.bytes();
  call.lse = lse.data();
  const CudaContext& cuda = stream.cuda();
  const bool bfloat16 = q.dtype() == DType::kBfloat16;
  const Family family = family_of(cuda, call.shape, segments.present(), q.dtype(), scale);
  if (family == Family::kWgmma && attention::forward_wgmma(cuda, call)) return;
  const bool simple = family == Family::kSimple;
  plan(cuda, segments,
       simple ? attention::simple_tile_rows(call.shape.width)
              : attention::forward_mma_tile_rows(call.shape),
       scratch.data, &call.shape);
  if (simple) return attention::forward_simple(cuda, call, bfloat16);
  attention::forward_mma(cuda, call);
}

size_t attention_backward_scratch(int, In q, In, MaybeIn segments, MaybeIn) {
  return tiles_bytes(q, segments) + delta_bytes(q);
}

void attention_backward(Stream& stream, In dout, In q, In k, In v, MaybeIn key_mask,
                        MaybeIn segments, MaybeIn key_segments, MaybeIn causal, In o, In lse,
                        double scale, Out dq, Out dk, Out dv, Scratch scratch) {
  constexpr char kName[] = "attention_backward";
  BackwardCall call = {};
  call.shape = checked_shape(kName, q, k, v, {key_mask, segments, key_segments, causal});
  check_elements(kName, "lse", lse, call.shape.batch * call.shape.queries * call.shape.heads);
  const auto check = [&](const char* what, const View& view, int64_t elements) {
    check_elements(kName, what, view, elements);
    check_dtype(kName, what, view, q.dtype());
  };
  const int64_t results = call.shape.batch * call.shape.queries * call.shape.result_stride();
  check("dout", dout, results);
  check("o", o, results);
  check("dq", dq, q.elements());
  check("dk", dk, k.elements());
  check("dv", dv, k.elements());
  if (is_joined(q)) {
    check_rank(kName, "dq", dq, 5);
    check_joined(kName, "dk", dk, dq);
    check_joined(kName, "dv", dv, dq);
  }
  const size_t delta_at = tiles_bytes(q, segments);
  check_scratch(kName, scratch, delta_at + delta_bytes(q));
  call.dout = dout.bytes();
  call.q = part_of(q, 0);
  call.k = part_of(k, 1);
  call.v = part_of(v, 2);
  call.o = o.bytes();
  call.lse = lse.data();
  call.scale = scale;
  call.dq = part_of(dq, 0);
  call.dk = part_of(dk, 1);
  call.dv = part_of(dv, 2);
  call.delta = reinterpret_cast<float*>(scratch.data + delta_at);
  const CudaContext& cuda = stream.cuda();
  const bool bfloat16 = q.dtype() == DType::kBfloat16;
  const Family family = family_of(cuda, call.shape, segments.present(), q.dtype(), scale);
  if (family == Family::kWgmma && attention::backward_wgmma(cuda, call)) return;
  const bool simple = family == Family::kSimple;
  plan(cuda, segments,
       simple ? attention::simple_tile_rows(call.shape.width) : attention::kBackwardMmaTileRows,
       scratch.data, &call.shape);
  attention::compute_delta(cuda, call, bfloat16);
  if (key_segments.present()) {
    // Rows behind the last segment.
    const size_t bytes = static_cast<size_t>(k.elements()) * size_of(k.dtype());
    for (void* gradient : {call.dk, call.dv}) {
      check_cuda(cudaMemsetAsync(gradient, 0, bytes, cuda.stream), "zeros of attention");
    }
  }
  if (simple) return attention::backward_simple(cuda, call, bfloat16);
  attention::backward_mma(cuda, call);
}

}  // namespace siglip::cuda
