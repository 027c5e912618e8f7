// What the CUDA kernels of attention share: the extents of a call, and how its rows are cut into the
// tiles that blocks work on.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "runtime/cuda_context.h"

namespace siglip::cuda::attention {

// Extents of a call and what limits its keys.
struct Shape {
  int64_t batch;
  int queries;
  int keys;
  int heads;
  int width;
  const uint8_t* mask;  // (batch, keys), null without
  const int32_t*
      key_starts;  // (batch + 1) of packed keys, null without; `keys` are those of all images
  const uint8_t* causal;  // (batch), null without
  const int4* tiles;      // of a packed batch (see plan_tiles), null for others
  int most_tiles;         // of a packed batch
  int64_t row_stride;     // of q, k and v and their gradients: elements from row to row

  // The same of o and dout.
  __host__ __device__ int64_t result_stride() const { return static_cast<int64_t>(heads) * width; }
};

// Operands, as pointers to float or __nv_bfloat16.
struct ForwardCall {
  Shape shape;
  const void* q;
  const void* k;
  const void* v;
  double scale;
  void* o;
  float* lse;
};

struct BackwardCall {
  Shape shape;
  const void* dout;
  const void* q;
  const void* k;
  const void* v;
  const void* o;
  const float* lse;
  double scale;
  void* dq;
  void* dk;
  void* dv;
  float* delta;  // scratch (batch, heads, queries): Σ_d dO ∘ O
};

// Every head width up to 256, both dtypes, all limits of the keys; products in float32.
void forward_simple(const CudaContext& cuda, const ForwardCall& call, bool bfloat16);
void backward_simple(const CudaContext& cuda, const BackwardCall& call, bool bfloat16);
// delta of a call, which the backwards read.
void compute_delta(const CudaContext& cuda, const BackwardCall& call, bool bfloat16);

// bfloat16, widths that are multiples of 8 up to 128; products by mma.sync.
void forward_mma(const CudaContext& cuda, const ForwardCall& call);
void backward_mma(const CudaContext& cuda, const BackwardCall& call);

// sm_90a, bfloat16 without mask and segments; products by wgmma. False where the shape is not one of
// theirs; nothing has been queued then.
bool forward_wgmma(const CudaContext& cuda, const ForwardCall& call);
bool backward_wgmma(const CudaContext& cuda, const BackwardCall& call);

// Rows of the tiles of a packed batch, for each family of kernels.
inline constexpr int kLeastTileRows = 32;
int simple_tile_rows(int width);
int forward_mma_tile_rows(const Shape& shape);
inline constexpr int kBackwardMmaTileRows = 64;

constexpr double kLog2E = 1.4426950408889634;
constexpr float kLn2 = 0.693147180559945309F;

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// A packed batch has at most so many tiles: those of every segment, and of the rows behind the last.
inline int most_tiles(int64_t rows, int64_t segments, int tile_rows) {
  return static_cast<int>(rows / tile_rows + segments + 1);
}

#ifdef __CUDACC__

// A tile: rows of queries that meet the keys of their sequence, or rows of keys that meet queries.
// Rows are counted over the whole batch.
struct Tile {
  int head;
  int rows;           // of the tile; 0: nothing to do
  int others;         // on the other side
  int64_t row;        // the first
  int64_t other;      // the first
  int64_t statistic;  // where lse and delta of the first query are
  int first;          // of the tile, in its image
  bool causal;

  // Whether a query attends to a key; one is of the tile's rows and the other of the other side.
  template <bool kOfKeys>
  __device__ bool sees(int own, int across) const {
    if (!causal) return true;
    return kOfKeys ? first + own <= across : across <= first + own;
  }
};

// The tile of this block; tiles of one head are neighbours.
template <int kTileRows, bool kOfKeys>
__device__ __forceinline__ Tile find_tile(const Shape& shape) {
  const int own = kOfKeys ? shape.keys : shape.queries;
  const int across = kOfKeys ? shape.queries : shape.keys;
  const unsigned tiles =
      shape.tiles == nullptr ? ceil_div(own, kTileRows) : static_cast<unsigned>(shape.most_tiles);
  const unsigned index = blockIdx.x % tiles;
  const unsigned item = blockIdx.x / tiles;
  Tile tile;
  tile.head = static_cast<int>(item % static_cast<unsigned>(shape.heads));
  tile.first = static_cast<int>(index) * kTileRows;
  tile.causal = false;
  if (shape.tiles != nullptr) {
    const int4 entry = shape.tiles[index];
    tile.rows = entry.y - entry.x;
    tile.others = entry.w - entry.z;
    tile.row = entry.x;
    tile.other = entry.z;
    tile.statistic = static_cast<int64_t>(tile.head) * own + (kOfKeys ? entry.z : entry.x);
    return tile;
  }
  const int64_t image = item / static_cast<unsigned>(shape.heads);
  const int first = tile.first;
  tile.rows = min(kTileRows, own - first);
  tile.others = across;
  tile.row = image * own + first;
  tile.other = image * across;
  tile.statistic = static_cast<int64_t>(item) * shape.queries + (kOfKeys ? 0 : first);
  tile.causal = shape.causal != nullptr && shape.causal[image] != 0;
  if (shape.key_starts != nullptr) {
    const int begin = min(max(shape.key_starts[image], 0), shape.keys);
    const int end = min(max(shape.key_starts[image + 1], begin), shape.keys);
    if (kOfKeys) {
      tile.rows = min(kTileRows, end - begin - first);
      tile.row = begin + first;
    } else {
      tile.others = end - begin;
      tile.other = begin;
    }
  }
  return tile;
}

#endif  // __CUDACC__

// Blocks of a kernel over tiles.
inline unsigned tile_blocks(const Shape& shape, int rows, int tile_rows) {
  const int64_t tiles = shape.tiles == nullptr ? ceil_div(rows, tile_rows) : shape.most_tiles;
  return static_cast<unsigned>(tiles * shape.heads * shape.batch);
}

}  // namespace siglip::cuda::attention
