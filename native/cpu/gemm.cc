// Three levels, from the inside out:
//  - a register tile of kHeight rows by kWidth vectors, over up to kDepth steps of k;
//  - a part, what one thread works off: A in blocks of kRows x kDepth that stay in the L2 cache, B
//    in panels of kColumns columns, one of which stays in L1 while all rows of the block pass by;
//  - the product: parts chosen so that every thread gets the same few and little is packed twice.
// An element of C is chains of up to kChain multiply-adds over k, added in order.
//
// B is packed into panels, unless it came packed or is read in place because so few rows use it. A
// is packed tile by tile, kHeight rows side by side: a step of k then finds its rows in one cache
// line, where rows far apart compete for the same sets and ways of L1 (a tenth of the speed). Only
// where few columns use it is A read in place. With few rows and B transposed nothing is packed:
// every element of C is a dot product of two rows in memory.
#include "cpu/gemm.h"

#include "cpu/partition.h"
#include "cpu/simd.h"

namespace siglip::SIGLIP_CPU {
namespace {

// Sums take all but the few registers that the operands need.
constexpr int kHeight = 6;
#if defined(SIGLIP_ISA_AVX512) || defined(__ARM_NEON)
constexpr int kWidth = 4;  // 24 of 32
#else
constexpr int kWidth = 2;  // 12 of 16
#endif
constexpr int64_t kColumns = kWidth * kLanes;

// Blocks of A: at most kRows x kDepth, that they fit an L2 cache, 512 KB or, on machines with AVX-512, 1 MB
// and more, or what a neighbour leaves of it, along with what streams through. A panel of B is 24 KB and
// stays in L1; where it has 64 columns it is 192 KB, and the tile's rows of A stay there. 768 and 1,152 are
// multiples, or nearly.
#if defined(SIGLIP_ISA_AVX512)
constexpr int64_t kDepth = 768;
constexpr int64_t kRows = 150;
#else
constexpr int64_t kDepth = 384;
constexpr int64_t kRows = 102;
#endif
// With several blocks of rows, so many columns of B are kept packed for them.
constexpr int64_t kColumnBlock = 2048;

// Every cut of k is at a multiple of this.
constexpr int64_t kDepthUnit = 4;
// Fewer multiply-adds than this are not worth a task.
constexpr int64_t kTaskProducts = int64_t{1} << 17;
// A worker's share is cut into kTasksPerThread parts, but none smaller than this.
constexpr int64_t kPartProducts = int64_t{1} << 22;
// B is read in place by no more row tiles than this.
constexpr int64_t kInPlaceTiles = 2;
// Rows of A are packed for no fewer columns than this.
constexpr int64_t kPackColumns = 64;
// With no more rows than this, and B transposed, elements of C may be dot products.
constexpr int64_t kDotRows = 32;
// A long sum over the rows of two matrices is cut into pieces of no fewer rows than this, as long
// as all partial results together have no more elements than that.
constexpr int64_t kSplitDepth = 512;
constexpr int64_t kSplitElements = int64_t{1} << 18;

constexpr int64_t kLine = 16;  // floats of a cache line

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

struct Range {
  int64_t begin;
  int64_t end;

  int64_t size() const { return end - begin; }
  // One of `count` nearly equal ones, cut at multiples of `unit` from the beginning.
  Range part(int64_t index, int64_t count, int64_t unit) const {
    const int64_t units = ceil_div(size(), unit);
    return {smaller(begin + units * index / count * unit, end),
            smaller(begin + units * (index + 1) / count * unit, end)};
  }
};

inline void fetch_for_reading(const float* p) { __builtin_prefetch(p); }
inline void fetch_for_writing(const float* p) { __builtin_prefetch(p, 1); }
inline void fetch_to_second_level(const float* p) { __builtin_prefetch(p, 0, 2); }

// ---- Register tile ------------------------------------------------------------------------------

// Cache lines of a rectangle wanted soon, row after row. They are fetched one by one while tiles are
// multiplied, since a burst of fetches would stall them.
struct Stretch {
  const float* row = nullptr;
  int64_t stride = 0;  // floats from one row of the rectangle to the next
  int64_t width = 1;   // floats of a row
  int64_t at = 0;      // in the row
  int64_t left = 0;    // lines to fetch

  void fetch() {
    fetch_to_second_level(row + at);
    --left;
    at += kLine;
    if (at < width) return;
    at = 0;
    row += stride;
  }
};

struct Tile {
  const float* a;
  int64_t a_stride;
  const float* b;
  int64_t b_stride;
  int64_t depth;
  float* c;
  int64_t c_stride;
  // Added in the end where not null; the latter two have the stride of `result`, which is where the
  // finished tile will be.
  const float* result;
  const float* bias;
  const float* partial;
  const float* residual;
  int64_t added_stride;
  const float* next_a;  // the next tile's rows where A is packed, to be had in L1
  Stretch next_b;       // of the next panel, to be had in L2
};

// Fetches come once in so many steps of k.
constexpr int64_t kFetchSteps = 4;

// Longer chains of multiply-adds round too much: after so many steps of k a new one begins.
constexpr int64_t kChain = 384;

// In a packed A the kHeight rows lie side by side; else they are a_stride apart. All loops over the
// tile have to be unrolled, or its sums do not stay in registers.
template <int height, int width, bool packed_a>
void multiply_tile(const Tile& tile) {
  Vec sum[height][width];
#pragma GCC unroll 8
  for (int i = 0; i < height; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < width; ++j) sum[i][j] = splat(0.0F);
    fetch_for_writing(tile.result + i * tile.added_stride);
  }
  const float* a[height];
#pragma GCC unroll 8
  for (int i = 0; i < height; ++i) a[i] = tile.a + i * tile.a_stride;
  const float* b = tile.b;
  const int64_t b_stride = tile.b_stride;
  Stretch next_b = tile.next_b;
  const int64_t fetches = ceil_div(next_b.left, ceil_div(tile.depth, kFetchSteps));
  alignas(64) float former[height * width * kLanes] = {};  // sums of the chains before
  for (int64_t begin = 0; begin < tile.depth; begin += kFetchSteps) {
    const int64_t end = smaller(begin + kFetchSteps, tile.depth);
    if (kDepth > kChain && begin > 0 && begin % kChain == 0) {
#pragma GCC unroll 8
      for (int i = 0; i < height; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < width; ++j) {
          float* const at = former + (i * width + j) * kLanes;
          store(at, sum[i][j] + load(at));
          sum[i][j] = splat(0.0F);
        }
      }
    }
    if (packed_a) {
#pragma GCC unroll 16
      for (int64_t i = 0; i < kFetchSteps * kHeight; i += kLine) {
        fetch_for_reading(tile.next_a + begin * kHeight + i);
      }
    }
    for (int64_t i = 0; i < fetches && next_b.left > 0; ++i) next_b.fetch();
#pragma GCC unroll 4
    for (int64_t k = begin; k < end; ++k) {
      Vec columns[width];
#pragma GCC unroll 4
      for (int j = 0; j < width; ++j) columns[j] = load(b + j * kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < height; ++i) {
        const Vec row = splat(packed_a ? a[0][k * kHeight + i] : a[i][k]);
#pragma GCC unroll 4
        for (int j = 0; j < width; ++j) sum[i][j] = multiply_add(row, columns[j], sum[i][j]);
      }
      b += b_stride;
    }
  }
  if (kDepth > kChain && tile.depth > kChain) {
#pragma GCC unroll 8
    for (int i = 0; i < height; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < width; ++j) sum[i][j] += load(former + (i * width + j) * kLanes);
    }
  }
  if (tile.partial != nullptr) {
#pragma GCC unroll 8
    for (int i = 0; i < height; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < width; ++j) {
        sum[i][j] += load(tile.partial + i * tile.added_stride + j * kLanes);
      }
    }
  }
  if (tile.bias != nullptr) {
#pragma GCC unroll 4
    for (int j = 0; j < width; ++j) {
      const Vec bias = load(tile.bias + j * kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < height; ++i) sum[i][j] += bias;
    }
  }
  if (tile.residual != nullptr) {
#pragma GCC unroll 8
    for (int i = 0; i < height; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < width; ++j) {
        sum[i][j] += load(tile.residual + i * tile.added_stride + j * kLanes);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < height; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < width; ++j) store(tile.c + i * tile.c_stride + j * kLanes, sum[i][j]);
  }
}

using TileKernel = void (*)(const Tile&);

template <int height, bool packed_a>
constexpr TileKernel kTileRow[4] = {
    multiply_tile<height, 1, packed_a>, multiply_tile<height, 2, packed_a>,
    multiply_tile<height, kWidth == 4 ? 3 : 2, packed_a>, multiply_tile<height, kWidth, packed_a>};

template <bool packed_a>
TileKernel tile_kernel(int64_t height, int64_t width) {
  static constexpr const TileKernel* kKernels[kHeight] = {
      kTileRow<1, packed_a>, kTileRow<2, packed_a>, kTileRow<3, packed_a>,
      kTileRow<4, packed_a>, kTileRow<5, packed_a>, kTileRow<6, packed_a>};
  return kKernels[height - 1][width - 1];
}

// ---- Epilogue -----------------------------------------------------------------------------------

// What of the epilogue is left to do for a rectangle of sums.
struct Finish {
  bool partial;  // add what is in C
  bool bias;
  bool rest;  // pre, GELU or its gradient, residual
};

// GELU alone, of whole vectors: by far the most frequent.
void finish_gelu(const float* sums, int64_t sums_stride, float* c, int64_t stride, int64_t height,
                 int64_t width) {
  for (int64_t i = 0; i < height; ++i) {
    for (int64_t j = 0; j < width; j += kLanes) {
      store(c + i * stride + j, gelu(load(sums + i * sums_stride + j)));
    }
  }
}

template <bool whole>
void finish_rows(const float* sums, int64_t sums_stride, Finish todo, const GemmOutput& output,
                 int64_t row, int64_t column, int64_t height, int64_t width) {
  for (int64_t i = 0; i < height; ++i) {
    const int64_t offset = (row + i) * output.stride + column;
    for (int64_t j = 0; j < width; j += kLanes) {
      const int64_t left = width - j;
      const auto get = [&](const float* p) {
        return whole || left >= kLanes ? load(p + j) : load_partial(p + j, left);
      };
      const auto put = [&](float* p, Vec v) {
        whole || left >= kLanes ? store(p + j, v) : store_partial(p + j, v, left);
      };
      Vec v = get(sums + i * sums_stride);
      if (todo.partial) v += get(output.data + offset);
      if (todo.bias && output.bias != nullptr) v += get(output.bias + column);
      if (todo.rest) {
        if (output.pre != nullptr) put(output.pre + offset, v);
        if (output.gelu) v = gelu(v);
        if (output.gelu_of != nullptr) v *= gelu_gradient(get(output.gelu_of + offset));
        if (output.residual != nullptr) v += get(output.residual + offset);
      }
      put(output.data + offset, v);
    }
  }
}

// The rectangle of C at (row, column), from its sums; what a tile does not do in its registers:
// pre, GELU or its gradient, and panels whose last vector is not full.
__attribute__((noinline)) void finish(const float* sums, int64_t sums_stride, Finish todo,
                                      const GemmOutput& output, int64_t row, int64_t column,
                                      int64_t height, int64_t width) {
  if (width % kLanes == 0) {
    const bool gelu_alone = !todo.partial && !todo.bias && todo.rest && output.gelu &&
                            output.pre == nullptr && output.gelu_of == nullptr &&
                            output.residual == nullptr;
    if (gelu_alone) {
      finish_gelu(sums, sums_stride, output.data + row * output.stride + column, output.stride,
                  height, width);
      return;
    }
    finish_rows<true>(sums, sums_stride, todo, output, row, column, height, width);
  } else {
    finish_rows<false>(sums, sums_stride, todo, output, row, column, height, width);
  }
}

// ---- Packing ------------------------------------------------------------------------------------

// Vectors as rows of four-by-four blocks side by side; transposes each block.
inline void transpose_quads(Vec& r0, Vec& r1, Vec& r2, Vec& r3) {
#if defined(SIGLIP_ISA_AVX512) && defined(__AVX512F__)
  const __m512 a = _mm512_maskz_unpacklo_ps(kAllLanes, r0, r1);
  const __m512 b = _mm512_maskz_unpackhi_ps(kAllLanes, r0, r1);
  const __m512 c = _mm512_maskz_unpacklo_ps(kAllLanes, r2, r3);
  const __m512 d = _mm512_maskz_unpackhi_ps(kAllLanes, r2, r3);
  r0 = _mm512_maskz_shuffle_ps(kAllLanes, a, c, 0x44);
  r1 = _mm512_maskz_shuffle_ps(kAllLanes, a, c, 0xee);
  r2 = _mm512_maskz_shuffle_ps(kAllLanes, b, d, 0x44);
  r3 = _mm512_maskz_shuffle_ps(kAllLanes, b, d, 0xee);
#elif defined(SIGLIP_ISA_AVX2) && defined(__AVX2__)
  const __m256 a = _mm256_unpacklo_ps(r0, r1);
  const __m256 b = _mm256_unpackhi_ps(r0, r1);
  const __m256 c = _mm256_unpacklo_ps(r2, r3);
  const __m256 d = _mm256_unpackhi_ps(r2, r3);
  r0 = _mm256_shuffle_ps(a, c, 0x44);
  r1 = _mm256_shuffle_ps(a, c, 0xee);
  r2 = _mm256_shuffle_ps(b, d, 0x44);
  r3 = _mm256_shuffle_ps(b, d, 0xee);
#else
  const Vec a = r0;
  const Vec b = r1;
  const Vec c = r2;
  const Vec d = r3;
  for (int q = 0; q < kLanes; q += 4) {
    r0[q] = a[q], r0[q + 1] = b[q], r0[q + 2] = c[q], r0[q + 3] = d[q];
    r1[q] = a[q + 1], r1[q + 1] = b[q + 1], r1[q + 2] = c[q + 1], r1[q + 3] = d[q + 1];
    r2[q] = a[q + 2], r2[q + 1] = b[q + 2], r2[q + 2] = c[q + 2], r2[q + 3] = d[q + 2];
    r3[q] = a[q + 3], r3[q + 1] = b[q + 3], r3[q + 2] = c[q + 3], r3[q + 3] = d[q + 3];
  }
#endif
}

// Four floats from rows[0], the next four from rows[4], and so on.
inline Vec load_quads(const float* const* rows, int64_t k) {
#if defined(SIGLIP_ISA_AVX512) && defined(__AVX512F__)
  __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(rows[0] + k));
  v = _mm512_maskz_insertf32x4(kAllLanes, v, _mm_loadu_ps(rows[4] + k), 1);
  v = _mm512_maskz_insertf32x4(kAllLanes, v, _mm_loadu_ps(rows[8] + k), 2);
  return _mm512_maskz_insertf32x4(kAllLanes, v, _mm_loadu_ps(rows[12] + k), 3);
#elif defined(SIGLIP_ISA_AVX2) && defined(__AVX2__)
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(rows[0] + k)),
                              _mm_loadu_ps(rows[4] + k), 1);
#else
  float lanes[kLanes];
  for (int q = 0; q < kLanes; q += 4) std::memcpy(lanes + q, rows[q] + k, 4 * sizeof(float));
  return load(lanes);
#endif
}

// A panel of op(B) from rows of a transposed B. Lanes beyond the last column repeat it; what comes
// of them is never stored.
void pack_panel_transposed(const GemmOperand& b, Range columns, Range ks, float* panel,
                           int64_t panel_stride) {
  for (int64_t j = 0; j < columns.size(); j += kLanes) {
    const float* rows[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      rows[i] = b.data + smaller(columns.begin + j + i, columns.end - 1) * b.stride + ks.begin;
    }
    float* to = panel + j;
    int64_t k = 0;
    for (; k + 4 <= ks.size(); k += 4) {
      Vec r0 = load_quads(rows, k);
      Vec r1 = load_quads(rows + 1, k);
      Vec r2 = load_quads(rows + 2, k);
      Vec r3 = load_quads(rows + 3, k);
      transpose_quads(r0, r1, r2, r3);
      store(to + k * panel_stride, r0);
      store(to + (k + 1) * panel_stride, r1);
      store(to + (k + 2) * panel_stride, r2);
      store(to + (k + 3) * panel_stride, r3);
    }
    for (; k < ks.size(); ++k) {
      for (int i = 0; i < kLanes; ++i) to[k * panel_stride + i] = rows[i][k];
    }
  }
}

void pack_panel(const GemmOperand& b, Range columns, Range ks, float* panel, int64_t panel_stride) {
  for (int64_t k = 0; k < ks.size(); ++k) {
    const float* from = b.data + (ks.begin + k) * b.stride + columns.begin;
    float* to = panel + k * panel_stride;
    if (columns.size() == kColumns) {
      for (int j = 0; j < kColumns; j += kLanes) store(to + j, load(from + j));
      continue;
    }
    for (int64_t j = 0; j < columns.size(); j += kLanes) {
      const int64_t left = columns.size() - j;
      store(to + j, left >= kLanes ? load(from + j) : load_partial(from + j, left));
    }
  }
}

// Copied eight at a time, the last two of which the next step of k overwrites.
constexpr int64_t kChunk = 8;
typedef float Chunk __attribute__((vector_size(kChunk * sizeof(float)), aligned(4), may_alias));

// `height` columns of a transposed A, side by side with kHeight floats per step of k; their sums
// too if wanted. `readable` is how many columns there are from the first of these on.
void pack_rows_transposed(const float* a, int64_t stride, int64_t height, int64_t readable,
                          int64_t depth, float* packed, float* sums, bool accumulate) {
  Chunk sum = {};
  if (readable >= kChunk) {
    for (int64_t k = 0; k < depth; ++k) {
      const Chunk chunk = *reinterpret_cast<const Chunk*>(a + k * stride);
      *reinterpret_cast<Chunk*>(packed + k * kHeight) = chunk;
      sum += chunk;
    }
  } else {
    for (int64_t k = 0; k < depth; ++k) {
      for (int64_t i = 0; i < height; ++i) {
        packed[k * kHeight + i] = a[k * stride + i];
        sum[i] += a[k * stride + i];
      }
    }
  }
  if (sums == nullptr) return;
  for (int64_t i = 0; i < height; ++i) sums[i] = accumulate ? sums[i] + sum[i] : sum[i];
}

// `height` rows of A, likewise side by side.
void pack_rows(const float* a, int64_t stride, int64_t height, int64_t depth, float* packed) {
  const float* rows[kHeight];
  // Lanes beyond the last row are never multiplied; they repeat it.
  for (int i = 0; i < kHeight; ++i) rows[i] = a + smaller(i, height - 1) * stride;
  int64_t k = 0;
#if defined(__SSE2__)
  static_assert(kHeight == 6, "four rows and two");
  for (; k + 4 <= depth; k += 4) {
    __m128 r0 = _mm_loadu_ps(rows[0] + k);
    __m128 r1 = _mm_loadu_ps(rows[1] + k);
    __m128 r2 = _mm_loadu_ps(rows[2] + k);
    __m128 r3 = _mm_loadu_ps(rows[3] + k);
    _MM_TRANSPOSE4_PS(r0, r1, r2, r3);
    const __m128 r4 = _mm_loadu_ps(rows[4] + k);
    const __m128 r5 = _mm_loadu_ps(rows[5] + k);
    const __m128 low = _mm_unpacklo_ps(r4, r5);
    const __m128 high = _mm_unpackhi_ps(r4, r5);
    float* to = packed + k * kHeight;
    _mm_storeu_ps(to, r0);
    _mm_storel_pi(reinterpret_cast<__m64*>(to + 4), low);
    _mm_storeu_ps(to + 6, r1);
    _mm_storeh_pi(reinterpret_cast<__m64*>(to + 10), low);
    _mm_storeu_ps(to + 12, r2);
    _mm_storel_pi(reinterpret_cast<__m64*>(to + 16), high);
    _mm_storeu_ps(to + 18, r3);
    _mm_storeh_pi(reinterpret_cast<__m64*>(to + 22), high);
  }
#endif
  for (; k < depth; ++k) {
    for (int i = 0; i < kHeight; ++i) packed[k * kHeight + i] = rows[i][k];
  }
}

// ---- One thread's part --------------------------------------------------------------------------

// Steps of k, `stride` floats apart, of some columns of op(B).
struct Panel {
  const float* data;
  int64_t stride;
};

struct Block {
  Range rows;
  Range columns;
  Range ks;
  bool first;  // nothing of k has been worked off before
  bool last;   // k ends here
};

struct Product {
  const GemmShape& shape;
  const GemmOperand& a;
  const GemmOperand& b;
  const GemmOutput& output;
};

class Part {
 public:
  Part(const Product& product, Range rows, Range columns, Range ks, float* scratch)
      : shape_(product.shape),
        a_(product.a),
        b_(product.b),
        output_(product.output),
        rows_(rows),
        columns_(columns),
        ks_(ks),
        packed_a_(scratch),
        packed_b_(scratch + packed_a_floats(rows.size(), ks.size())) {}

  // Of the scratch of a part no larger than that.
  static int64_t scratch_floats(const GemmShape& shape, int64_t rows, int64_t columns) {
    const int64_t a = packed_a_floats(rows, shape.k);
    if (shape.packed_b) return a;
    const int64_t panels =
        rows > kRows ? round_up(smaller(columns, kColumnBlock), kColumns) : kColumns;
    return a + panels * round_up(smaller(shape.k, kDepth), kDepthUnit);
  }

  // How k is cut; what is packed ahead is packed for this.
  static int64_t pass_count(int64_t depth) { return larger(ceil_div(depth, kDepth), 1); }

  // Blocks of columns, in them passes over k, in them blocks of rows.
  void multiply() {
    const int64_t row_blocks = ceil_div(rows_.size(), kRows);
    const int64_t passes = pass_count(ks_.size());
    const int64_t column_blocks = shape_.packed_b ? 1 : ceil_div(columns_.size(), kColumnBlock);
    const auto block = [&](int64_t index) {
      const int64_t pass = index / row_blocks % passes;
      return Block{rows_.part(index % row_blocks, row_blocks, 1),
                   columns_.part(index / row_blocks / passes, column_blocks, kColumns),
                   ks_.part(pass, passes, kDepthUnit), pass == 0, pass + 1 == passes};
    };
    keep_panels_ = row_blocks > 1;
    const int64_t blocks = row_blocks * passes * column_blocks;
    for (int64_t index = 0; index < blocks; ++index) {
      now_ = block(index);
      multiply_block();
    }
  }

 private:
  static int64_t packed_a_floats(int64_t rows, int64_t depth) {
    // Of up to kHeight - 1 rows in every tile nothing is stored; the chunk reaches over the end.
    const int64_t tiles = ceil_div(smaller(rows, kRows), kHeight);
    return round_up(tiles * kHeight * round_up(smaller(depth, kDepth), kDepthUnit) + kChunk, kLine);
  }

  int64_t depth() const { return now_.ks.size(); }

  void multiply_block() {
    tiles_ = ceil_div(now_.rows.size(), kHeight);
    prepare_rows();
    for (int64_t column = now_.columns.begin; column < now_.columns.end; column += kColumns) {
      multiply_panel({column, smaller(column + kColumns, now_.columns.end)});
    }
  }

  // Tiles of nearly equal height, the higher ones first.
  template <typename Body>
  void for_each_tile(const Body& body) const {
    const int64_t height = now_.rows.size() / tiles_;
    const int64_t higher = now_.rows.size() % tiles_;
    int64_t row = now_.rows.begin;
    for (int64_t tile = 0; tile < tiles_; ++tile) {
      const int64_t end = row + height + (tile < higher ? 1 : 0);
      body(tile, Range{row, end});
      row = end;
    }
  }

  void prepare_rows() {
    if (shape_.transpose_a) {
      rows_packed_ = true;
      const bool sums = output_.row_sums != nullptr && now_.columns.begin == 0;
      for_each_tile([&](int64_t tile, Range rows) {
        pack_rows_transposed(a_.data + now_.ks.begin * a_.stride + rows.begin, a_.stride,
                             rows.size(), shape_.m - rows.begin, depth(),
                             packed_a_ + tile * kHeight * depth(),
                             sums ? output_.row_sums + rows.begin : nullptr, !now_.first);
      });
      return;
    }
    rows_packed_ = now_.columns.size() >= kPackColumns;
    if (!rows_packed_) return;
    for_each_tile([&](int64_t tile, Range rows) {
      pack_rows(a_.data + rows.begin * a_.stride + now_.ks.begin, a_.stride, rows.size(), depth(),
                packed_a_ + tile * kHeight * depth());
    });
  }

  // The panel of `columns`, packed if need be.
  Panel prepare_panel(Range columns) {
    if (shape_.packed_b) return {packed_panel(columns.begin), kColumns};
    const int64_t width = round_up(columns.size(), kLanes);
    if (b_in_place(columns)) {
      return {b_.data + now_.ks.begin * b_.stride + columns.begin, b_.stride};
    }
    float* packed = packed_b_;
    if (keep_panels_) packed += (columns.begin - now_.columns.begin) * depth();
    if (now_.rows.begin == rows_.begin) {
      if (shape_.transpose_b) {
        pack_panel_transposed(b_, columns, now_.ks, packed, width);
      } else {
        pack_panel(b_, columns, now_.ks, packed, width);
      }
    }
    return {packed, width};
  }

  // Pass after pass of k, in each panel after panel.
  const float* packed_panel(int64_t column) const {
    const int64_t columns = gemm_packed_floats(shape_.n, 1);
    return b_.data + now_.ks.begin * columns + column * depth();
  }

  bool b_in_place(Range columns) const {
    return !shape_.transpose_b && !keep_panels_ && tiles_ <= kInPlaceTiles &&
           columns.size() % kLanes == 0;
  }

  // What is read, or packed, after the panel of `columns`: the share of one of the tiles.
  Stretch ahead_of(Range columns, int64_t tile) const {
    const Range next = {columns.end, smaller(columns.end + kColumns, now_.columns.end)};
    if (next.size() == 0 || b_in_place(columns)) return {};
    Range rows = {0, 1};
    Range width = {0, depth() * kColumns};
    Stretch stretch;
    if (shape_.packed_b) {
      stretch.row = packed_panel(next.begin);
    } else if (now_.rows.begin != rows_.begin) {
      stretch.row = packed_b_ + (next.begin - now_.columns.begin) * depth();
    } else {
      rows = shape_.transpose_b ? next : now_.ks;
      width = shape_.transpose_b ? now_.ks : next;
      stretch.row = b_.data + rows.begin * b_.stride + width.begin;
      stretch.stride = b_.stride;
    }
    const int64_t per_row = ceil_div(width.size(), kLine);
    const Range share = Range{0, rows.size() * per_row}.part(tile, tiles_, 1);
    stretch.width = width.size();
    stretch.row += share.begin / per_row * stretch.stride;
    stretch.at = share.begin % per_row * kLine;
    stretch.left = share.size();
    return stretch;
  }

  void multiply_panel(Range columns) {
    const int64_t vectors = ceil_div(columns.size(), kLanes);
    const bool whole = columns.size() == vectors * kLanes;
    const Panel panel = prepare_panel(columns);

    // In the tile's registers, if possible.
    const bool pointwise = output_.gelu || output_.pre != nullptr || output_.gelu_of != nullptr;
    const bool direct = whole && !(now_.last && pointwise);
    const Finish left = {!whole && !now_.first, !whole && now_.last && output_.bias != nullptr,
                         now_.last};
    alignas(64) float sums[kHeight * kColumns];
    Tile tile;
    tile.b = panel.data;
    tile.b_stride = panel.stride;
    tile.depth = depth();
    tile.c = sums;
    tile.c_stride = direct ? output_.stride : kColumns;
    tile.bias =
        whole && now_.last && output_.bias != nullptr ? output_.bias + columns.begin : nullptr;
    tile.partial = nullptr;
    tile.residual = nullptr;
    tile.added_stride = output_.stride;
    for_each_tile([&](int64_t index, Range rows) {
      float* c = output_.data + rows.begin * output_.stride + columns.begin;
      tile.next_b = ahead_of(columns, index);
      tile.result = c;
      if (direct) tile.c = c;
      if (whole && !now_.first) tile.partial = c;
      if (direct && now_.last && output_.residual != nullptr) {
        tile.residual = output_.residual + (c - output_.data);
      }
      if (rows_packed_) {
        tile.a = packed_a_ + index * kHeight * depth();
        tile.a_stride = 0;
        tile.next_a = packed_a_ + (index + 1) % tiles_ * kHeight * depth();
        tile_kernel<true>(rows.size(), vectors)(tile);
      } else {
        tile.a = a_.data + rows.begin * a_.stride + now_.ks.begin;
        tile.a_stride = a_.stride;
        tile_kernel<false>(rows.size(), vectors)(tile);
      }
      if (!direct) {
        finish(sums, kColumns, left, output_, rows.begin, columns.begin, rows.size(),
               columns.size());
      }
    });
  }

  const GemmShape& shape_;
  const GemmOperand& a_;
  const GemmOperand& b_;
  const GemmOutput& output_;
  const Range rows_;
  const Range columns_;
  const Range ks_;
  float* const packed_a_;
  float* const packed_b_;
  bool keep_panels_ = false;  // because another block of rows will want them

  Block now_ = {};  // the one under way
  int64_t tiles_ = 0;
  bool rows_packed_ = false;
};

// ---- Few rows -----------------------------------------------------------------------------------

typedef float Four __attribute__((vector_size(16)));

inline Four fold(Vec v) {
  Four quads[kLanes / 4];
  std::memcpy(quads, &v, sizeof(v));
  Four sum = quads[0];
  for (int q = 1; q < kLanes / 4; ++q) sum += quads[q];
  return sum;
}

// The sums of the lanes of each.
inline Four add_across(Four a, Four b, Four c, Four d) {
#if defined(__SSE__)
  const __m128 ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
  const __m128 cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
  return _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab));
#else
  return Four{(a[0] + a[2]) + (a[1] + a[3]), (b[0] + b[2]) + (b[1] + b[3]),
              (c[0] + c[2]) + (c[1] + c[3]), (d[0] + d[2]) + (d[1] + d[3])};
#endif
}

constexpr int kDotHeight = 3;
constexpr int kDotWidth = 4;

// Dot products of `height` rows of A, a_stride apart, and four rows of B, into dots[i * 4 + j].
template <int height>
void multiply_dots(const float* a, int64_t a_stride, const float* const* b, int64_t depth,
                   float* dots) {
  Vec sum[height][kDotWidth];
#pragma GCC unroll 4
  for (int i = 0; i < height; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kDotWidth; ++j) sum[i][j] = splat(0.0F);
  }
  int64_t k = 0;
  for (; k + kLanes <= depth; k += kLanes) {
    Vec rows[height];
#pragma GCC unroll 4
    for (int i = 0; i < height; ++i) rows[i] = load(a + i * a_stride + k);
#pragma GCC unroll 4
    for (int j = 0; j < kDotWidth; ++j) {
      const Vec column = load(b[j] + k);
#pragma GCC unroll 4
      for (int i = 0; i < height; ++i) sum[i][j] = multiply_add(rows[i], column, sum[i][j]);
    }
  }
  if (k < depth) {
#pragma GCC unroll 4
    for (int j = 0; j < kDotWidth; ++j) {
      const Vec column = load_partial(b[j] + k, depth - k);
#pragma GCC unroll 4
      for (int i = 0; i < height; ++i) {
        sum[i][j] = multiply_add(load_partial(a + i * a_stride + k, depth - k), column, sum[i][j]);
      }
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < height; ++i) {
    const Four sums =
        add_across(fold(sum[i][0]), fold(sum[i][1]), fold(sum[i][2]), fold(sum[i][3]));
    std::memcpy(dots + i * kDotWidth, &sums, sizeof(sums));
  }
}

void multiply_few_rows(const Product& product, Range columns) {
  const GemmOperand& a = product.a;
  const GemmOperand& b = product.b;
  const int64_t depth = product.shape.k;
  for (int64_t column = columns.begin; column < columns.end; column += kDotWidth) {
    const float* rows_of_b[kDotWidth];
    for (int j = 0; j < kDotWidth; ++j) {
      rows_of_b[j] = b.data + smaller(column + j, columns.end - 1) * b.stride;
    }
    for (int64_t row = 0; row < product.shape.m; row += kDotHeight) {
      const int64_t height = smaller(product.shape.m - row, kDotHeight);
      const float* rows_of_a = a.data + row * a.stride;
      float dots[kDotHeight * kDotWidth];
      if (height == 3) {
        multiply_dots<3>(rows_of_a, a.stride, rows_of_b, depth, dots);
      } else if (height == 2) {
        multiply_dots<2>(rows_of_a, a.stride, rows_of_b, depth, dots);
      } else {
        multiply_dots<1>(rows_of_a, a.stride, rows_of_b, depth, dots);
      }
      for (int64_t i = 0; i < height; ++i) {
        float* c = product.output.data + (row + i) * product.output.stride;
        const int64_t end = smaller(column + kDotWidth, columns.end);
        for (int64_t j = column; j < end; ++j) c[j] = dots[i * kDotWidth + j - column];
      }
    }
  }
  finish(product.output.data + columns.begin, product.output.stride, {false, true, true},
         product.output, 0, columns.begin, product.shape.m, columns.size());
}

// ---- The product --------------------------------------------------------------------------------

int64_t products(const GemmShape& shape) { return shape.m * shape.n * shape.k; }

// Then packing B costs more than summing up across lanes does.
bool few_rows(const GemmShape& shape) {
  if (shape.packed_b) return false;
  return shape.m <= smaller(kGemmFewRows + shape.k / 32, kDotRows) && shape.transpose_b &&
         !shape.transpose_a;
}

// Pieces of k that are summed up apart and added at the end: where two tall matrices are multiplied
// into a small one there is not enough of C to share out.
int64_t split_count(const GemmShape& shape) {
  if (shape.packed_b || !shape.transpose_a || shape.transpose_b) return 1;
  return larger(smaller(shape.k / kSplitDepth, kSplitElements / larger(shape.m * shape.n, 1)), 1);
}

int64_t greatest_common_divisor(int64_t a, int64_t b) {
  while (b != 0) {
    const int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

struct Plan {
  int64_t splits = 1;
  int64_t row_parts = 1;
  int64_t column_parts = 1;
  int64_t part_floats = 0;   // scratch of one worker
  int64_t split_floats = 0;  // partial results, of all splits

  int64_t parts() const { return splits * row_parts * column_parts; }
  int64_t floats(int threads) const {
    return split_floats + (parts() == 1 ? 1 : threads) * part_floats;
  }
};

Plan make_plan(int threads, const GemmShape& shape) {
  Plan plan;
  const int64_t workers = smaller(threads, larger(products(shape) / kTaskProducts, 1));
  const int64_t each = products(shape) / workers / kPartProducts;
  const int64_t most = workers == 1 ? 1 : workers * larger(smaller(each, kTasksPerThread), 1);
  if (few_rows(shape)) {
    plan.column_parts = smaller(most, ceil_div(shape.n, kDotWidth));
    return plan;
  }
  plan.splits = split_count(shape);
  const int64_t parts = most / greatest_common_divisor(most, plan.splits);
  int64_t best = INT64_MAX;
  for (int64_t row_parts = 1; row_parts <= smaller(parts, shape.m); ++row_parts) {
    const int64_t column_parts = parts / row_parts;
    const int64_t rows = ceil_div(shape.m, row_parts);
    const int64_t columns =
        smaller(ceil_div(ceil_div(shape.n, kColumns), column_parts) * kColumns, shape.n);
    // Of one part per step of k: to multiply, pack its panels and its rows, in sixteenths of a
    // cycle on a machine with two pipes of eight lanes; so often as a worker has one in turn.
    const int64_t packing = shape.packed_b ? 2 : 8;
    const int64_t turns = ceil_div(plan.splits * row_parts * column_parts, workers);
    const int64_t cost =
        turns * (round_up(rows, kHeight) * columns + packing * columns + 12 * rows);
    if (cost >= best) continue;
    best = cost;
    plan.row_parts = row_parts;
    plan.column_parts = column_parts;
    plan.part_floats = round_up(Part::scratch_floats(shape, rows, columns), kLine);
  }
  if (plan.splits > 1) {
    plan.split_floats = round_up(plan.splits * shape.m * (shape.n + 1), kLine);
  }
  return plan;
}

void multiply_part(const Plan& plan, const Product& product, int64_t part, float* splits,
                   float* scratch) {
  const GemmShape& shape = product.shape;
  const int64_t split = part / (plan.row_parts * plan.column_parts);
  const Range rows =
      Range{0, shape.m}.part(part / plan.column_parts % plan.row_parts, plan.row_parts, 1);
  const Range columns =
      Range{0, shape.n}.part(part % plan.column_parts, plan.column_parts, kColumns);
  const Range ks = Range{0, shape.k}.part(split, plan.splits, kDepthUnit);
  if (plan.splits == 1) {
    Part(product, rows, columns, ks, scratch).multiply();
    return;
  }
  GemmOutput partial;
  partial.data = splits + split * shape.m * shape.n;
  partial.stride = shape.n;
  if (product.output.row_sums != nullptr) {
    partial.row_sums = splits + plan.splits * shape.m * shape.n + split * shape.m;
  }
  Part({shape, product.a, product.b, partial}, rows, columns, ks, scratch).multiply();
}

// Adds the partial results of the splits in their order, for a range of rows.
void add_splits(const Plan& plan, const Product& product, Range rows, float* splits) {
  const GemmShape& shape = product.shape;
  float* sums = splits + rows.begin * shape.n;
  const int64_t count = rows.size() * shape.n;
  for (int64_t j = 0; j < count; j += kLanes) {
    const int64_t left = count - j;
    const auto get = [&](int64_t split) {
      const float* p = sums + split * shape.m * shape.n + j;
      return left >= kLanes ? load(p) : load_partial(p, left);
    };
    Vec sum = get(0);
    for (int64_t split = 1; split < plan.splits; ++split) sum += get(split);
    left >= kLanes ? store(sums + j, sum) : store_partial(sums + j, sum, left);
  }
  finish(sums, shape.n, {false, true, true}, product.output, rows.begin, 0, rows.size(), shape.n);
  if (product.output.row_sums == nullptr) return;
  const float* row_sums = splits + plan.splits * shape.m * shape.n;
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    float sum = row_sums[row];
    for (int64_t split = 1; split < plan.splits; ++split) sum += row_sums[split * shape.m + row];
    product.output.row_sums[row] = sum;
  }
}

}  // namespace

size_t gemm_scratch(int threads, const GemmShape& shape) {
  return static_cast<size_t>(make_plan(threads, shape).floats(threads)) * sizeof(float);
}

void gemm_pack(Stream& stream, int64_t n, int64_t k, const float* b, float* packed) {
  const int64_t panels = gemm_packed_floats(n, 1) / kColumns;
  const int64_t passes = Part::pass_count(k);
  const int64_t tasks = smaller(stream.threads(), panels);
  stream.parallel(tasks, [&](int64_t task, int) {
    const Range part = Range{0, panels}.part(task, tasks, 1);
    for (int64_t pass = 0; pass < passes; ++pass) {
      const Range ks = Range{0, k}.part(pass, passes, kDepthUnit);
      for (int64_t panel = part.begin; panel < part.end; ++panel) {
        float* to = packed + ks.begin * panels * kColumns + panel * kColumns * ks.size();
        const Range columns = {panel * kColumns, smaller((panel + 1) * kColumns, n)};
        // Columns beyond the last are never multiplied, but are written, so that packed weights
        // are the same bits every time.
        if (columns.size() < kColumns) {
          std::memset(to, 0, static_cast<size_t>(kColumns * ks.size()) * sizeof(float));
        }
        if (columns.size() > 0) pack_panel_transposed({b, k}, columns, ks, to, kColumns);
      }
    }
  });
}

void gemm(Stream& stream, const GemmShape& shape, const GemmOperand& a, const GemmOperand& b,
          const GemmOutput& output, Scratch scratch) {
  if (shape.m == 0 || shape.n == 0) return;
  const Plan plan = make_plan(stream.threads(), shape);
  const Product product = {shape, a, b, output};
  if (few_rows(shape)) {
    stream.parallel(plan.column_parts, [&](int64_t task, int) {
      multiply_few_rows(product, Range{0, shape.n}.part(task, plan.column_parts, kDotWidth));
    });
    return;
  }
  float* splits = reinterpret_cast<float*>(scratch.data);
  float* part_scratch = splits + plan.split_floats;
  stream.parallel(plan.parts(), [&](int64_t part, int worker) {
    multiply_part(plan, product, part, splits, part_scratch + worker * plan.part_floats);
  });
  if (plan.splits == 1) return;
  const int64_t tasks = smaller(plan.parts(), shape.m);
  stream.parallel(tasks, [&](int64_t task, int) {
    add_splits(plan, product, Range{0, shape.m}.part(task, tasks, 1), splits);
  });
}

}  // namespace siglip::SIGLIP_CPU
