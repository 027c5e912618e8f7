// Attention of any head width in plain float32: 256 threads, 16 × 16, to a tile of rows; the other
// side goes by in blocks of 32 rows. Thread (y, x) has rows kRows · y + i of the tile and columns
// x + 16 · j of whatever is computed for them.
#include <string>
#include <type_traits>

#include "ops/attention/cuda_call.cuh"
#include "runtime/error.h"

namespace siglip::cuda::attention {
namespace {

constexpr int kThreads = 256;
constexpr int kOthers = 32;                // rows of a block of the other side
constexpr int kScoreStride = kOthers + 4;  // floats
constexpr unsigned kWholeWarp = 0xffffffffU;

// Rows of a thread: fewer for wide heads, whose tiles would not fit in shared memory.
constexpr int rows_of_thread(int width) { return width <= 128 ? 4 : 2; }

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void set(float* y, float x) { *y = x; }
__device__ __forceinline__ void set(__nv_bfloat16* y, float x) { *y = __float2bfloat16_rn(x); }

// A matrix of a head in global memory: `rows` rows of `width` elements.
template <typename T>
struct Matrix {
  const T* data;
  int64_t stride;
  int rows;
  int width;
};

// Rows [first, first + kCount) to shared memory, zeros for what is not there or masked (mask[row] 0).
template <int kWidth, int kCount, typename T>
__device__ void load_rows(const Matrix<T>& m, int first, const uint8_t* mask, float* shared) {
  for (int i = threadIdx.x; i < kCount * kWidth; i += kThreads) {
    const int row = first + i / kWidth;
    const int d = i % kWidth;
    const bool there = row < m.rows && d < m.width && (mask == nullptr || mask[row] != 0);
    shared[i / kWidth * (kWidth + 4) + d] = there ? to_float(m.data[row * m.stride + d]) : 0.0F;
  }
}

// s[i][j] = Σ_d a[row i][d] · b[column j][d]
template <int kWidth, int kRows>
__device__ __forceinline__ void multiply_rows(const float* a, const float* b,
                                              float (&s)[kRows][2]) {
  constexpr int kStride = kWidth + 4;
  const float* x = a + threadIdx.x / 16 * kRows * kStride;
  const float* y = b + threadIdx.x % 16 * kStride;
#pragma unroll
  for (int i = 0; i < kRows; ++i) s[i][0] = s[i][1] = 0.0F;
#pragma unroll 4
  for (int d = 0; d < kWidth; d += 4) {
    const float4 y0 = *reinterpret_cast<const float4*>(y + d);
    const float4 y1 = *reinterpret_cast<const float4*>(y + 16 * kStride + d);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const float4 xi = *reinterpret_cast<const float4*>(x + i * kStride + d);
      s[i][0] = fmaf(xi.w, y0.w, fmaf(xi.z, y0.z, fmaf(xi.y, y0.y, fmaf(xi.x, y0.x, s[i][0]))));
      s[i][1] = fmaf(xi.w, y1.w, fmaf(xi.z, y1.z, fmaf(xi.y, y1.y, fmaf(xi.x, y1.x, s[i][1]))));
    }
  }
}

// sums[i][j] += Σ_r weights[row i][r] · b[r][column j] over the rows r of a block
template <int kWidth, int kRows>
__device__ __forceinline__ void mix_rows(const float* weights, const float* b,
                                         float (&sums)[kRows][kWidth / 16]) {
  constexpr int kStride = kWidth + 4;
  const float* w = weights + threadIdx.x / 16 * kRows * kScoreStride;
  const float* y = b + threadIdx.x % 16;
#pragma unroll 8
  for (int r = 0; r < kOthers; ++r) {
    float wi[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) wi[i] = w[i * kScoreStride + r];
#pragma unroll
    for (int j = 0; j < kWidth / 16; ++j) {
      const float yj = y[r * kStride + 16 * j];
#pragma unroll
      for (int i = 0; i < kRows; ++i) sums[i][j] = fmaf(wi[i], yj, sums[i][j]);
    }
  }
}

template <int kRows>
__device__ __forceinline__ void keep_scores(const float (&s)[kRows][2], float* scores) {
  float* target = scores + threadIdx.x / 16 * kRows * kScoreStride + threadIdx.x % 16;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    target[i * kScoreStride] = s[i][0];
    target[i * kScoreStride + 16] = s[i][1];
  }
}

// Rows of the tile from `first` on in y.
template <int kWidth, int kRows, typename T>
__device__ void store_rows(const float (&sums)[kRows][kWidth / 16], const float (&factor)[kRows],
                           int rows, int64_t stride, int width, T* y) {
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int row = threadIdx.x / 16 * kRows + i;
    if (row >= rows) continue;
#pragma unroll
    for (int j = 0; j < kWidth / 16; ++j) {
      const int d = threadIdx.x % 16 + 16 * j;
      if (d < width) set(y + row * stride + d, sums[i][j] * factor[i]);
    }
  }
}

// Over the 16 threads of a row.
__device__ __forceinline__ float row_max(float x) {
  for (int lanes = 8; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(kWholeWarp, x, lanes));
  return x;
}
__device__ __forceinline__ float row_sum(float x) {
  for (int lanes = 8; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kWholeWarp, x, lanes);
  return x;
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    attention_forward_simple(Shape shape, const T* q, const T* k, const T* v, float scale, T* o,
                             float* lse) {
  constexpr int kRows = rows_of_thread(kWidth);
  constexpr int kTile = 16 * kRows;
  const Tile tile = find_tile<kTile, false>(shape);
  if (tile.rows <= 0) return;
  extern __shared__ float4 memory[];
  float* const q_tile = reinterpret_cast<float*>(memory);
  float* const k_block = q_tile + kTile * (kWidth + 4);
  float* const v_block = k_block + kOthers * (kWidth + 4);
  float* const scores = v_block + kOthers * (kWidth + 4);

  const int64_t stride = shape.row_stride;
  const int64_t column = static_cast<int64_t>(tile.head) * shape.width;
  const uint8_t* const mask = shape.mask == nullptr ? nullptr : shape.mask + tile.other;
  const Matrix<T> keys = {k + tile.other * stride + column, stride, tile.others, shape.width};
  const Matrix<T> values = {v + tile.other * stride + column, stride, tile.others, shape.width};
  load_rows<kWidth, kTile>(
      Matrix<T>{q + tile.row * stride + column, stride, tile.rows, shape.width}, 0, nullptr,
      q_tile);

  float highest[kRows];
  float total[kRows];  // of this thread's columns
  float sums[kRows][kWidth / 16] = {};
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    highest[i] = -INFINITY;
    total[i] = 0.0F;
  }
  for (int first = 0; first < tile.others; first += kOthers) {
    __syncthreads();
    load_rows<kWidth, kOthers>(keys, first, mask, k_block);
    load_rows<kWidth, kOthers>(values, first, mask, v_block);
    __syncthreads();
    float s[kRows][2];
    multiply_rows<kWidth, kRows>(q_tile, k_block, s);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int key = first + static_cast<int>(threadIdx.x % 16) + 16 * j;
      const bool counts = key < tile.others && (mask == nullptr || mask[key] != 0);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int query = static_cast<int>(threadIdx.x) / 16 * kRows + i;
        s[i][j] = counts && tile.sees<false>(query, key) ? s[i][j] * scale : -INFINITY;
      }
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const float now = fmaxf(highest[i], row_max(fmaxf(s[i][0], s[i][1])));
      const float reference = now == -INFINITY ? 0.0F : now;  // no key yet
      const float rescale = expf(highest[i] - reference);
      s[i][0] = expf(s[i][0] - reference);
      s[i][1] = expf(s[i][1] - reference);
      total[i] = total[i] * rescale + (s[i][0] + s[i][1]);
      highest[i] = now;
#pragma unroll
      for (int j = 0; j < kWidth / 16; ++j) sums[i][j] *= rescale;
    }
    keep_scores(s, scores);
    __syncthreads();
    mix_rows<kWidth, kRows>(scores, v_block, sums);
  }

  float inverse[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const float sum = row_sum(total[i]);
    inverse[i] = sum == 0.0F ? 0.0F : 1.0F / sum;
    const int row = static_cast<int>(threadIdx.x) / 16 * kRows + i;
    if (threadIdx.x % 16 == 0 && row < tile.rows) {
      lse[tile.statistic + row] = sum == 0.0F ? -INFINITY : highest[i] + logf(sum);
    }
  }
  store_rows<kWidth, kRows>(sums, inverse, tile.rows, shape.result_stride(), shape.width,
                            o + tile.row * shape.result_stride() + column);
}

// The gradients of a tile of keys (kOfKeys: first = dK, second = dV, against all queries) or of
// queries (first = dQ, against all keys). `own` and `other` name the sides:
//   own side of keys:     Sᵀ = K Qᵀ, dPᵀ = V dOᵀ;  dK = scale · dSᵀ Q, dV = Pᵀ dO
//   own side of queries:  S = Q Kᵀ,  dP = dO Vᵀ;   dQ = scale · dS K
template <typename T, int kWidth, bool kOfKeys>
__global__ void __launch_bounds__(kThreads)
    attention_backward_simple(Shape shape, const T* q, const T* dout, const T* k, const T* v,
                              const float* lse, const float* delta, float scale, T* first_gradient,
                              T* second_gradient) {
  constexpr int kRows = rows_of_thread(kWidth);
  constexpr int kTile = 16 * kRows;
  const Tile tile = find_tile<kTile, kOfKeys>(shape);
  if (tile.rows <= 0) return;
  extern __shared__ float4 memory[];
  float* const own_a = reinterpret_cast<float*>(memory);    // K or Q
  float* const own_b = own_a + kTile * (kWidth + 4);        // V or dO
  float* const other_a = own_b + kTile * (kWidth + 4);      // Q or K
  float* const other_b = other_a + kOthers * (kWidth + 4);  // dO or V
  float* const p_scores = other_b + kOthers * (kWidth + 4);
  float* const ds_scores = p_scores + kTile * kScoreStride;

  const int64_t stride = shape.row_stride;
  const int64_t column = static_cast<int64_t>(tile.head) * shape.width;
  const int64_t dout_stride = shape.result_stride();
  const int64_t own_at = tile.row * stride + column;
  const int64_t other_at = tile.other * stride + column;
  const uint8_t* mask = shape.mask;
  if (mask != nullptr) mask += kOfKeys ? tile.row : tile.other;
  const uint8_t* const own_mask = kOfKeys ? mask : nullptr;
  const uint8_t* const other_mask = kOfKeys ? nullptr : mask;
  load_rows<kWidth, kTile>(Matrix<T>{(kOfKeys ? k : q) + own_at, stride, tile.rows, shape.width}, 0,
                           own_mask, own_a);
  load_rows<kWidth, kTile>(kOfKeys ? Matrix<T>{v + own_at, stride, tile.rows, shape.width}
                                   : Matrix<T>{dout + tile.row * dout_stride + column, dout_stride,
                                               tile.rows, shape.width},
                           0, own_mask, own_b);
  const Matrix<T> a = {(kOfKeys ? q : k) + other_at, stride, tile.others, shape.width};
  const Matrix<T> b = kOfKeys ? Matrix<T>{dout + tile.other * dout_stride + column, dout_stride,
                                          tile.others, shape.width}
                              : Matrix<T>{v + other_at, stride, tile.others, shape.width};

  float first_sums[kRows][kWidth / 16] = {};
  float second_sums[kRows][kWidth / 16] = {};
  for (int first = 0; first < tile.others; first += kOthers) {
    __syncthreads();
    load_rows<kWidth, kOthers>(a, first, other_mask, other_a);
    load_rows<kWidth, kOthers>(b, first, other_mask, other_b);
    __syncthreads();
    float p[kRows][2];
    float ds[kRows][2];
    multiply_rows<kWidth, kRows>(own_a, other_a, p);
    multiply_rows<kWidth, kRows>(own_b, other_b, ds);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int own = static_cast<int>(threadIdx.x) / 16 * kRows + i;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int other = first + static_cast<int>(threadIdx.x % 16) + 16 * j;
        const int query = kOfKeys ? other : own;
        const int key = kOfKeys ? own : other;
        const bool counts = own < tile.rows && other < tile.others &&
                            (mask == nullptr || mask[key] != 0) && tile.sees<kOfKeys>(own, other);
        const int64_t at = tile.statistic + query;
        // Rounded as by the forward, so that the probabilities of a query add up to 1.
        p[i][j] = counts ? expf(__fmul_rn(p[i][j], scale) - lse[at]) : 0.0F;
        ds[i][j] = counts ? p[i][j] * (ds[i][j] - delta[at]) : 0.0F;
      }
    }
    keep_scores(ds, ds_scores);
    if constexpr (kOfKeys) keep_scores(p, p_scores);
    __syncthreads();
    mix_rows<kWidth, kRows>(ds_scores, other_a, first_sums);
    if constexpr (kOfKeys) mix_rows<kWidth, kRows>(p_scores, other_b, second_sums);
  }

  float factor[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) factor[i] = scale;
  store_rows<kWidth, kRows>(first_sums, factor, tile.rows, stride, shape.width,
                            first_gradient + own_at);
  if constexpr (kOfKeys) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) factor[i] = 1.0F;
    store_rows<kWidth, kRows>(second_sums, factor, tile.rows, stride, shape.width,
                              second_gradient + own_at);
  }
}

// Eight lanes to a row of a head. Lanes of neighbouring heads read neighbouring memory.
template <typename T, int kPiece>
__global__ void __launch_bounds__(kThreads)
    attention_delta(Shape shape, const T* dout, const T* o, float* delta) {
  const int64_t item = (blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x) / 8;
  const bool there = item < shape.batch * shape.queries * shape.heads;
  float sum = 0.0F;
  if (there) {
    const T* x = dout + item * shape.width;
    const T* y = o + item * shape.width;
    for (int d = threadIdx.x % 8 * kPiece; d < shape.width; d += 8 * kPiece) {
      if constexpr (kPiece == 1) {
        sum = fmaf(to_float(x[d]), to_float(y[d]), sum);
      } else {
        T a[kPiece];
        T b[kPiece];
        *reinterpret_cast<uint4*>(a) = *reinterpret_cast<const uint4*>(x + d);
        *reinterpret_cast<uint4*>(b) = *reinterpret_cast<const uint4*>(y + d);
#pragma unroll
        for (int i = 0; i < kPiece; ++i) sum = fmaf(to_float(a[i]), to_float(b[i]), sum);
      }
    }
  }
  for (int lanes = 4; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kWholeWarp, sum, lanes);
  if (!there || threadIdx.x % 8 != 0) return;
  const int64_t head = item % shape.heads;
  const int64_t row = item / shape.heads;
  const int64_t image = row / shape.queries;
  delta[(image * shape.heads + head) * shape.queries + row % shape.queries] = sum;
}

template <typename Kernel>
void allow_shared(Kernel* kernel, int bytes) {
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
             "shared memory of attention");
}

template <typename T, int kWidth>
void run_forward(const CudaContext& cuda, const ForwardCall& call) {
  constexpr int kTile = 16 * rows_of_thread(kWidth);
  constexpr int kBytes = ((kTile + 2 * kOthers) * (kWidth + 4) + kTile * kScoreStride) * 4;
  const auto kernel = attention_forward_simple<T, kWidth>;
  allow_shared(kernel, kBytes);
  kernel<<<tile_blocks(call.shape, call.shape.queries, kTile), kThreads, kBytes, cuda.stream>>>(
      call.shape, static_cast<const T*>(call.q), static_cast<const T*>(call.k),
      static_cast<const T*>(call.v), static_cast<float>(call.scale), static_cast<T*>(call.o),
      call.lse);
  check_launch("attention_forward_simple");
}

template <typename T, int kWidth, bool kOfKeys>
void run_backward(const CudaContext& cuda, const BackwardCall& call) {
  constexpr int kTile = 16 * rows_of_thread(kWidth);
  constexpr int kBytes = (2 * (kTile + kOthers) * (kWidth + 4) + 2 * kTile * kScoreStride) * 4;
  const auto kernel = attention_backward_simple<T, kWidth, kOfKeys>;
  allow_shared(kernel, kBytes);
  const int rows = kOfKeys ? call.shape.keys : call.shape.queries;
  kernel<<<tile_blocks(call.shape, rows, kTile), kThreads, kBytes, cuda.stream>>>(
      call.shape, static_cast<const T*>(call.q), static_cast<const T*>(call.dout),
      static_cast<const T*>(call.k), static_cast<const T*>(call.v), call.lse, call.delta,
      static_cast<float>(call.scale), static_cast<T*>(kOfKeys ? call.dk : call.dq),
      static_cast<T*>(kOfKeys ? call.dv : nullptr));
  check_launch("attention_backward_simple");
}

template <typename Body>
void with_width(int width, const Body& body) {
  if (width <= 16) return body(std::integral_constant<int, 16>());
  if (width <= 32) return body(std::integral_constant<int, 32>());
  if (width <= 64) return body(std::integral_constant<int, 64>());
  if (width <= 80) return body(std::integral_constant<int, 80>());
  if (width <= 96) return body(std::integral_constant<int, 96>());
  if (width <= 128) return body(std::integral_constant<int, 128>());
  if (width <= 256) return body(std::integral_constant<int, 256>());
  throw Error("ERR_SHAPE",
              "attention: head width must be at most 256, got " + std::to_string(width));
}

}  // namespace

int simple_tile_rows(int width) { return 16 * rows_of_thread(width); }

void forward_simple(const CudaContext& cuda, const ForwardCall& call, bool bfloat16) {
  with_width(call.shape.width, [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    if (bfloat16) {
      run_forward<__nv_bfloat16, kWidth>(cuda, call);
    } else {
      run_forward<float, kWidth>(cuda, call);
    }
  });
}

void backward_simple(const CudaContext& cuda, const BackwardCall& call, bool bfloat16) {
  with_width(call.shape.width, [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    if (bfloat16) {
      run_backward<__nv_bfloat16, kWidth, true>(cuda, call);
      run_backward<__nv_bfloat16, kWidth, false>(cuda, call);
    } else {
      run_backward<float, kWidth, true>(cuda, call);
      run_backward<float, kWidth, false>(cuda, call);
    }
  });
}

void compute_delta(const CudaContext& cuda, const BackwardCall& call, bool bfloat16) {
  const Shape& shape = call.shape;
  const int64_t items = shape.batch * shape.queries * shape.heads;
  const unsigned blocks = static_cast<unsigned>((items + kThreads / 8 - 1) / (kThreads / 8));
  const auto launch = [&](auto kernel, auto* x, auto* y) {
    kernel<<<blocks, kThreads, 0, cuda.stream>>>(shape, x, y, call.delta);
  };
  if (!bfloat16) {
    launch(attention_delta<float, 1>, static_cast<const float*>(call.dout),
           static_cast<const float*>(call.o));
  } else if (shape.width % 8 == 0) {
    launch(attention_delta<__nv_bfloat16, 8>, static_cast<const __nv_bfloat16*>(call.dout),
           static_cast<const __nv_bfloat16*>(call.o));
  } else {
    launch(attention_delta<__nv_bfloat16, 1>, static_cast<const __nv_bfloat16*>(call.dout),
           static_cast<const __nv_bfloat16*>(call.o));
  }
  check_launch("attention_delta");
}

}  // namespace siglip::cuda::attention
