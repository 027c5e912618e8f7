// Product of a matrix with a constant, packed, narrow weight, and its epilogue:
//
//   sum = x · Wᵀ    pre = sum · row scale · column scale + bias    y = act(pre) + residual
//
// The weight W (n, k) lies in panels of kColumns rows of W, side by side in the lanes; in a panel one
// row of cells (see cells.h) follows the other. A panel is a divisor of 64, so that one formula gives
// the bytes of a packed weight for every instruction set: n is rounded up to 64 and k to 4, and what
// is added is zero.
//
// From the inside out: a register tile of kHeight rows by kWidth vectors over up to kDepth rows of
// cells, so that the panel's part stays in L1 (L2 where it is read in place); a block of rows whose
// cells stay in L2, prepared once and multiplied with panel after panel; a part, what one thread
// works off. An element's sum is one chain per kDepth cells, added in order: which multiply-adds it
// consists of follows from k alone. Nothing outside of the operands is read.
//
// With matrix tiles (Cells::kTiles) a register tile is four of theirs side by side. Prepared rows are
// filled up to whole tiles: with zeros in k, with anything in m, whose sums nobody reads.
#pragma once

#include "cpu/cells.h"
#include "cpu/check.h"
#include "cpu/matrix_tiles.h"
#include "cpu/partition.h"

namespace siglip::SIGLIP_CPU {

struct PackedShape {
  int64_t m;
  int64_t n;
  int64_t k;
};

struct PackedOutput {
  float* data = nullptr;                 // y (m, n)
  const float* column_scales = nullptr;  // (n rounded up), with integer sums
  const int32_t* corrections = nullptr;  // (n rounded up), taken from integer sums first; or none
  const float* bias = nullptr;           // (n), or none
  float* pre = nullptr;                  // (m, n), or none
  bool gelu = false;                     // the tanh approximation
  const float* residual = nullptr;       // (m, n), or none
};

// Of a linear layer with a packed weight, checked; x (…, K), y (…, N).
static inline PackedShape packed_linear_shape(const char* who, const View& x, const View& y) {
  check_not_scalar(who, "x", x);
  check_not_scalar(who, "y", y);
  const PackedShape shape = {x.rows(), y.extent(-1), x.extent(-1)};
  check_elements(who, "y", y, shape.m * shape.n);
  return shape;
}

inline constexpr int64_t kPackedRows = 64;
inline constexpr int64_t kPackedSteps = 4;

static inline int64_t packed_rows(int64_t n) {
  return (n + kPackedRows - 1) / kPackedRows * kPackedRows;
}
static inline int64_t packed_steps(int64_t k) {
  return (k + kPackedSteps - 1) / kPackedSteps * kPackedSteps;
}

// A block of prepared rows: cells of row i at cells + i · stride, and the factor of its sums.
struct PreparedRows {
  Cell* cells;
  float* scales;
};

template <typename Cells>
class PackedProduct {
 public:
  static constexpr int kHeight = Cells::kTiles ? 16 : 6;
#if defined(SIGLIP_ISA_AVX512) || defined(__ARM_NEON)
  static constexpr int kWidth = 4;  // 24 of 32 registers
#else
  static constexpr int kWidth = 2;  // 12 of 16
#endif
  static constexpr int64_t kColumns = kWidth * kLanes;

  PackedProduct(int threads, const PackedShape& shape) : shape_(shape) { plan(threads); }

  size_t scratch_bytes() const {
    return static_cast<size_t>(shared_bytes_ + scratches_ * part_bytes_);
  }

  // Where stored cells of weight row n begin at step k, counted in bytes from the first panel.
  static int64_t stored_offset(int64_t n, int64_t k, int64_t steps) {
    return (n / kColumns * kColumns * steps +
            k / Cells::kStoredGroup * Cells::kStoredGroup * kColumns +
            n % kColumns * Cells::kStoredGroup + k % Cells::kStoredGroup) *
           Cells::kWeightBytes;
  }

  // prepare(row, cells) fills a row's cells, all packed_steps(k) steps of them, and gives its scale.
  template <typename Prepare>
  void run(Stream& stream, const Prepare& prepare, const uint8_t* weights,
           const PackedOutput& output, Scratch scratch) const {
    if (shape_.m == 0 || shape_.n == 0) return;
    const PreparedRows all = carve_rows(scratch.data, shape_.m);
    if (shared_) {
      // A few rows are sooner prepared than a thread is woken.
      const int64_t tasks = shape_.m * shape_.k < kSerialPrepare ? 1 : parts();
      stream.parallel(tasks, [&](int64_t task, int) {
        const Range rows = Range{0, shape_.m}.part(task, tasks, 1);
        prepare_rows(prepare, rows, {all.cells + rows.begin * stride_, all.scales + rows.begin});
      });
    }
    stream.parallel(parts(), [&](int64_t task, int worker) {
      [[maybe_unused]] const Registers registers{};
      const Range rows = Range{0, shape_.m}.part(task / column_parts_, row_parts_, kRowUnit);
      const Range panels = Range{0, panels_}.part(task % column_parts_, column_parts_, 1);
      std::byte* own = scratch.data + shared_bytes_ + worker * part_bytes_;
      const int64_t blocks = ceil_div(rows.size(), block_rows_);
      for (int64_t index = 0; index < blocks; ++index) {
        const Range block = rows.part(index, blocks, kRowUnit);
        PreparedRows prepared = {all.cells + block.begin * stride_, all.scales + block.begin};
        if (!shared_) {
          prepared = carve_rows(own, block_rows_);
          prepare_rows(prepare, block, prepared);
        }
        for (int64_t panel = panels.begin; panel < panels.end; ++panel) {
          std::byte* rest = own + (shared_ ? 0 : rows_bytes(block_rows_));
          const bool last = panel + 1 == panels.end;
#if defined(SIGLIP_ISA_AVX512)
          if constexpr (Cells::kTiles) {
            multiply_panel_by_tiles(block, panel, last, prepared, weights, output, rest);
          }
#endif
          if constexpr (!Cells::kTiles) {
            multiply_panel(block, panel, last, prepared, weights, output, rest);
          }
        }
      }
    });
  }

 private:
#if defined(SIGLIP_ISA_AVX512)
  using Registers = std::conditional_t<Cells::kTiles, TileRegisters, bool>;
#else
  using Registers = bool;
#endif

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

  // A panel's part is 20 KB where it is widened into L1, a block of rows 300 KB, with 512 KB of L2.
  // Of matrix tiles the part is 32 KB of the 48 KB of L1; machines that have them have 2 MB of L2.
#if defined(SIGLIP_ISA_AVX512)
  static constexpr int64_t kDepth = Cells::kTiles ? 128 : 768;
#else
  static constexpr int64_t kDepth = 320;
#endif
  static constexpr int64_t kBlockCells = (Cells::kTiles ? 256 : 75) * 1024;
  // Cuts of k lie at multiples of so many cells, those of m at multiples of so many rows.
  static constexpr int64_t kDepthUnit = Cells::kTiles ? 16 : 4;
  static constexpr int64_t kRowUnit = Cells::kTiles ? 16 : 1;
  // Fewer multiply-adds than this are not worth a task.
  static constexpr int64_t kTaskProducts = int64_t{1} << (Cells::kTiles ? 20 : 17);
  // A worker's share is cut into kTasksPerThread parts, but none smaller than this.
  static constexpr int64_t kPartProducts = int64_t{1} << (Cells::kTiles ? 24 : 22);
  static constexpr int64_t kSerialPrepare = int64_t{1} << 14;

  static constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
  static constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
  static constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
  static constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

  int64_t parts() const { return row_parts_ * column_parts_; }
  int64_t cells_bytes(int64_t rows) const {
    return round_up(round_up(rows, kRowUnit) * stride_ * 4, 64);
  }
  int64_t rows_bytes(int64_t rows) const { return cells_bytes(rows) + round_up(rows * 4, 64); }
  PreparedRows carve_rows(std::byte* base, int64_t rows) const {
    return {reinterpret_cast<Cell*>(base), reinterpret_cast<float*>(base + cells_bytes(rows))};
  }

  template <typename Prepare>
  void prepare_rows(const Prepare& prepare, Range rows, const PreparedRows& to) const {
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      Cell* cells = to.cells + (row - rows.begin) * stride_;
      to.scales[row - rows.begin] = prepare(row, cells);
      for (int64_t i = cells_; i < whole_cells_; ++i) cells[i] = 0;
    }
  }

  void plan(int threads) {
    cells_ = packed_steps(shape_.k) / Cells::kGroup;
    whole_cells_ = Cells::kTiles ? round_up(cells_, kDepthUnit) : cells_;
    // Rows a multiple of 4 KB apart would share the sets of the L1 cache.
    stride_ = whole_cells_ % 256 == 0 ? whole_cells_ + 16 : whole_cells_;
    passes_ = larger(ceil_div(cells_, kDepth), 1);
    panels_ = ceil_div(shape_.n, kColumns);
    const int64_t most_rows = larger(kBlockCells / larger(stride_, 1) / kHeight, 4) * kHeight;
    const int64_t products = shape_.m * shape_.n * larger(shape_.k, 1);
    const int64_t workers = smaller(threads, larger(products / kTaskProducts, 1));
    const int64_t each = products / workers / kPartProducts;
    const int64_t most = workers == 1 ? 1 : workers * larger(smaller(each, kTasksPerThread), 1);
    int64_t best = INT64_MAX;
    for (int64_t row_parts = 1; row_parts <= smaller(most, larger(shape_.m, 1)); ++row_parts) {
      const int64_t column_parts = smaller(most / row_parts, larger(panels_, 1));
      const int64_t rows = ceil_div(ceil_div(shape_.m, kRowUnit), row_parts) * kRowUnit;
      const int64_t blocks = larger(ceil_div(rows, most_rows), 1);
      // Of the largest part, per cell and vector of columns: to multiply, to load the columns of a
      // tile, to read and widen the panel; and what it costs that cells prepared by one thread are
      // read by another.
      const int64_t cost =
          ceil_div(panels_, column_parts) * (4 * rows + ceil_div(rows, kHeight) + 8 * blocks) *
          (column_parts > 1 ? 33 : 32) * ceil_div(row_parts * column_parts, workers);
      if (cost >= best) continue;
      best = cost;
      row_parts_ = row_parts;
      column_parts_ = column_parts;
      block_rows_ = round_up(ceil_div(rows, blocks), kRowUnit);
    }
    scratches_ = parts() == 1 ? 1 : threads;
    shared_ = column_parts_ > 1;
    const int64_t depth = smaller(round_up(ceil_div(cells_, passes_), kDepthUnit), cells_);
    const int64_t panel = (Cells::kTiles ? kDepthUnit : Cells::kInPlace ? 0 : depth) * kColumns;
    part_bytes_ = (panel + block_rows_ * kColumns) * 4;
    part_bytes_ = round_up(part_bytes_, 64);
    if (shared_) {
      shared_bytes_ = rows_bytes(shape_.m);
    } else {
      part_bytes_ += rows_bytes(block_rows_);
    }
  }

  Range pass_cells(int64_t pass) const {
    const int64_t units = ceil_div(cells_, kDepthUnit);
    return {smaller(units * pass / passes_ * kDepthUnit, cells_),
            smaller(units * (pass + 1) / passes_ * kDepthUnit, cells_)};
  }

  // ---- Register tile ----

  // Cache lines wanted soon. They are fetched one by one while a tile is multiplied, since a burst of
  // fetches would stall it for a tenth of its time.
  struct Fetches {
    const uint8_t* ahead;  // of the weight, one line after the other
    int64_t count = 0;     // of results
    const float* results[3 * kHeight * ((kColumns + 15) / 16)];

    // The results late, or the panel that passes by drives them out again.
    void fetch(int64_t index, int64_t left) const {
      __builtin_prefetch(ahead + index * 64, 0, 2);
      if (left < count) __builtin_prefetch(results[left], 1);
    }
  };
  // One every so many cells.
  static constexpr int64_t kFetchCells = 4;

  // Where in y the rows of a tile are.
  struct Place {
    const PackedOutput& output;
    const float* scales;  // of the rows
    int64_t stride;       // of y
    int64_t row;          // first
    int64_t column;       // first
    int64_t width;        // columns there are

    int64_t offset(int64_t i) const { return (row + i) * stride + column; }
    // Whether nothing follows the bias but a residual, and the panel is full.
    bool is_plain() const { return width == kColumns && !output.gelu && output.pre == nullptr; }
  };

  struct Tile {
    const Cell* rows;
    int64_t row_stride;
    const Cell* panel;
    int64_t depth;
    Cell* sums;  // kColumns apart
    bool first;
    const Cell* tail =
        nullptr;  // of matrix tiles: the last row of them, where the panel does not fill it
    const Place* place = nullptr;  // of vectors: where the sums are complete
    const Fetches* fetches = nullptr;
  };

  // All loops over the tile have to be unrolled, or its sums do not stay in registers.
  template <int height>
  static void multiply_tile(const Tile& tile) {
    typename Cells::Sum sum[height][kWidth];
#pragma GCC unroll 8
    for (int i = 0; i < height; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < kWidth; ++j) sum[i][j] = typename Cells::Sum{};
    }
    if (!tile.first) {
#pragma GCC unroll 8
      for (int i = 0; i < height; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < kWidth; ++j) {
          sum[i][j] = reinterpret_cast<typename Cells::Sum>(
              load_cells(tile.sums + i * kColumns + j * kLanes));
        }
      }
    }
    const Cell* row[height];
#pragma GCC unroll 8
    for (int i = 0; i < height; ++i) row[i] = tile.rows + i * tile.row_stride;
    const Cell* panel = tile.panel;
    const int64_t depth = tile.depth;
    const auto add_cells = [&](int64_t k) __attribute__((always_inline)) {
      IntVec columns[kWidth];
#pragma GCC unroll 4
      for (int j = 0; j < kWidth; ++j) columns[j] = load_cells(panel + j * kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < height; ++i) {
        const IntVec cell = splat_cell(row[i][k]);
#pragma GCC unroll 4
        for (int j = 0; j < kWidth; ++j) {
          sum[i][j] = Cells::add_product(sum[i][j], cell, columns[j]);
        }
      }
      panel += kColumns;
    };
    const Fetches& fetches = *tile.fetches;
    int64_t k = 0;
    for (; k + kFetchCells <= depth; k += kFetchCells) {
      fetches.fetch(k / kFetchCells, (depth - k) / kFetchCells - 1);
#pragma GCC unroll 4
      for (int64_t i = 0; i < kFetchCells; ++i) add_cells(k + i);
    }
    for (; k < depth; ++k) add_cells(k);
    if (tile.place == nullptr) {
#pragma GCC unroll 8
      for (int i = 0; i < height; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < kWidth; ++j) {
          store_cells(tile.sums + i * kColumns + j * kLanes, reinterpret_cast<IntVec>(sum[i][j]));
        }
      }
      return;
    }
    const Place& place = *tile.place;
    if (!place.is_plain()) {
      float* values = reinterpret_cast<float*>(tile.sums);
      finish_tile<height>(
          sum, place, [&](int i, int j, Vec v) { store(values + i * kColumns + j * kLanes, v); });
      finish(place, height, [&](int64_t i, int64_t j) { return load(values + i * kColumns + j); });
      return;
    }
    float* to = place.output.data + place.offset(0);
    const auto at = [&](int i, int j) { return i * place.stride + j * kLanes; };
    if (place.output.residual != nullptr) {
      const float* residual = place.output.residual + place.offset(0);
      finish_tile<height>(sum, place, [&](int i, int j, Vec v) {
        store(to + at(i, j), v + load(residual + at(i, j)));
      });
    } else {
      finish_tile<height>(sum, place, [&](int i, int j, Vec v) { store(to + at(i, j), v); });
    }
  }

  // put(i, j, vector of y) for the sums in the registers.
  template <int height, typename Put>
  [[gnu::always_inline]] static void finish_tile(const typename Cells::Sum (&sum)[height][kWidth],
                                                 const Place& place, const Put& put) {
    float scale[height];
#pragma GCC unroll 8
    for (int i = 0; i < height; ++i) scale[i] = place.scales[i];
#pragma GCC unroll 4
    for (int j = 0; j < kWidth; ++j) {
      const Columns columns(place, j * kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < height; ++i) {
        put(i, j, columns.finish(reinterpret_cast<IntVec>(sum[i][j]), scale[i]));
      }
    }
  }

  using TileKernel = void (*)(const Tile&);
  static constexpr TileKernel kTileKernels[kHeight] = {multiply_tile<1>, multiply_tile<2>,
                                                       multiply_tile<3>, multiply_tile<4>,
                                                       multiply_tile<5>, multiply_tile<6>};

  // ---- Epilogue ----

  // What makes sums of a vector of columns numbers of y.
  class Columns {
   public:
    Columns(const Place& place, int64_t from) {
      const PackedOutput& output = place.output;
      const int64_t column = place.column + from;
      const int64_t left = place.width - from;
      if constexpr (Cells::kIntegers) {
        scale_ = load(output.column_scales + column);
        if (output.corrections != nullptr) correction_ = load_cells(output.corrections + column);
      }
      if (output.bias == nullptr || left <= 0) return;
      bias_ =
          left >= kLanes ? load(output.bias + column) : load_partial(output.bias + column, left);
    }

    Vec finish(IntVec sum, float row_scale) const {
      if constexpr (!Cells::kIntegers) return reinterpret_cast<Vec>(sum) + bias_;
      const IntVec exact = reinterpret_cast<IntVec>(reinterpret_cast<UintVec>(sum) -
                                                    reinterpret_cast<UintVec>(correction_));
      return multiply_add(__builtin_convertvector(exact, Vec) * splat(row_scale), scale_, bias_);
    }

   private:
    Vec scale_ = {};
    IntVec correction_ = {};
    Vec bias_ = {};
  };

  // The rest of the epilogue for some rows; value(i, j) is the vector of row i from column j on.
  template <bool whole, typename Value>
  static void finish_rows(const Place& place, int64_t rows, const Value& value) {
    const PackedOutput& output = place.output;
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t offset = place.offset(i);
      for (int64_t j = 0; j < place.width; j += kLanes) {
        const int64_t left = place.width - j;
        const auto put = [&](float* p, Vec v) {
          whole || left >= kLanes ? store(p + j, v) : store_partial(p + j, v, left);
        };
        Vec v = value(i, j);
        if (output.pre != nullptr) put(output.pre + offset, v);
        if (output.gelu) v = rough_gelu(v);
        if (output.residual != nullptr) {
          const float* p = output.residual + offset + j;
          v += whole || left >= kLanes ? load(p) : load_partial(p, left);
        }
        put(output.data + offset, v);
      }
    }
  }

  template <typename Value>
  __attribute__((noinline)) static void finish(const Place& place, int64_t rows,
                                               const Value& value) {
    if (place.width % kLanes == 0) {
      finish_rows<true>(place, rows, value);
    } else {
      finish_rows<false>(place, rows, value);
    }
  }

  // What the epilogue of a tile will write and read.
  void fetch_results(const float* matrix, Range rows, int64_t column, int64_t width,
                     Fetches& fetches) const {
    if (matrix == nullptr) return;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const float* p = matrix + row * shape_.n + column;
      for (int64_t j = 0; j < width; j += 16) fetches.results[fetches.count++] = p + j;
    }
  }

#if defined(SIGLIP_ISA_AVX512)
  // ---- Matrix tiles ----

  // The epilogue of a tile of rows whose sums are there.
  struct Epilogue {
    const Cell* sums;
    Place place;
    int64_t rows;

    // One of `count` parts of it.
    void run(int64_t index, int64_t count) const {
      const Range part = Range{0, rows}.part(index, count, 1);
      if (part.size() == 0) return;
      Place of_part = place;
      of_part.scales += part.begin;
      of_part.row += part.begin;
      const Cell* from = sums + part.begin * kColumns;
      finish(of_part, part.size(), [&](int64_t i, int64_t j) {
        return Columns(of_part, j).finish(load_cells(from + i * kColumns + j), of_part.scales[i]);
      });
    }
  };

  // Four matrix tiles side by side: of the 80 lines that a step loads 64 are in L1. Its multipliers
  // are others than those of vectors, so an epilogue goes on meanwhile.
  static void multiply_matrix_tiles(const Tile& tile, const Epilogue* epilogue) {
    if (tile.first) {
      zero_tile<0>();
      zero_tile<1>();
      zero_tile<2>();
      zero_tile<3>();
    } else {
      load_tile<0>(tile.sums, kColumns);
      load_tile<1>(tile.sums + kLanes, kColumns);
      load_tile<2>(tile.sums + 2 * kLanes, kColumns);
      load_tile<3>(tile.sums + 3 * kLanes, kColumns);
    }
    const int64_t steps = ceil_div(tile.depth, kTileCells);
    for (int64_t step = 0; step < steps; ++step) {
      const int64_t k = step * kTileCells;
      const Cell* panel = k + kTileCells <= tile.depth ? tile.panel + k * kColumns : tile.tail;
      load_tile<4>(tile.rows + k, tile.row_stride);
      load_tile<5>(panel, kColumns);
      Cells::template add_tile<0, 4, 5>();
      load_tile<6>(panel + kLanes, kColumns);
      Cells::template add_tile<1, 4, 6>();
      load_tile<7>(panel + 2 * kLanes, kColumns);
      Cells::template add_tile<2, 4, 7>();
      load_tile<5>(panel + 3 * kLanes, kColumns);
      Cells::template add_tile<3, 4, 5>();
      if (epilogue != nullptr) epilogue->run(step, steps);
    }
    if (steps == 0 && epilogue != nullptr) epilogue->run(0, 1);
    store_tile<0>(tile.sums, kColumns);
    store_tile<1>(tile.sums + kLanes, kColumns);
    store_tile<2>(tile.sums + 2 * kLanes, kColumns);
    store_tile<3>(tile.sums + 3 * kLanes, kColumns);
  }

  void multiply_panel_by_tiles(Range block, int64_t panel, bool last_panel,
                               const PreparedRows& prepared, const uint8_t* weights,
                               const PackedOutput& output, std::byte* scratch) const {
    const int64_t column = panel * kColumns;
    const int64_t width = smaller(shape_.n - column, kColumns);
    const int64_t bytes = kColumns * packed_steps(shape_.k) * Cells::kWeightBytes;
    const Cell* columns = reinterpret_cast<const Cell*>(weights + panel * bytes);
    Cell* sums = reinterpret_cast<Cell*>(scratch);
    // What of the last tiles the panel does not fill is zero.
    Cell* tail = sums + block_rows_ * kColumns;
    const int64_t whole = cells_ / kTileCells * kTileCells;
    if (whole < cells_) {
      std::memset(tail, 0, kTileCells * kColumns * sizeof(Cell));
      std::memcpy(tail, columns + whole * kColumns,
                  static_cast<size_t>((cells_ - whole) * kColumns) * sizeof(Cell));
    }
    const int64_t tiles = ceil_div(block.size(), kHeight);
    const auto epilogue_of = [&](int64_t index) {
      const Range rows = {index * kHeight, smaller((index + 1) * kHeight, block.size())};
      return Epilogue{
          sums + rows.begin * kColumns,
          {output, prepared.scales + rows.begin, shape_.n, block.begin + rows.begin, column, width},
          rows.size()};
    };
    for (int64_t pass = 0; pass < passes_; ++pass) {
      const Range cells = pass_cells(pass);
      const bool last = pass + 1 == passes_;
      // What comes next of the weight is brought into L2 piece by piece between the tiles.
      const int64_t part = cells.size() * kColumns * static_cast<int64_t>(sizeof(Cell));
      const int64_t piece = last && last_panel ? 0 : round_up(ceil_div(part, tiles), 64);
      const Cell* ahead = columns + cells.end * kColumns;
      for (int64_t index = 0; index < tiles; ++index) {
        for (int64_t byte = 0; byte < piece; byte += 64, ahead += 16) {
          __builtin_prefetch(ahead, 0, 2);
        }
        const int64_t row = index * kHeight;
        const Tile tile = {prepared.cells + row * stride_ + cells.begin,
                           stride_,
                           columns + cells.begin * kColumns,
                           cells.size(),
                           sums + row * kColumns,
                           pass == 0,
                           tail};
        if (last && index > 0) {
          const Epilogue epilogue = epilogue_of(index - 1);
          multiply_matrix_tiles(tile, &epilogue);
        } else {
          multiply_matrix_tiles(tile, nullptr);
        }
      }
    }
    epilogue_of(tiles - 1).run(0, 1);
  }
#endif

  // ---- A block of rows by a panel ----

  void multiply_panel(Range block, int64_t panel, bool last_panel, const PreparedRows& prepared,
                      const uint8_t* weights, const PackedOutput& output,
                      std::byte* scratch) const {
    const int64_t column = panel * kColumns;
    const int64_t width = smaller(shape_.n - column, kColumns);
    const int64_t steps = packed_steps(shape_.k);
    const uint8_t* stored = weights + panel * kColumns * steps * Cells::kWeightBytes;
    Cell* sums = reinterpret_cast<Cell*>(scratch);
    Cell* widened = sums + block_rows_ * kColumns;
    const int64_t tiles = ceil_div(block.size(), kHeight);
    for (int64_t pass = 0; pass < passes_; ++pass) {
      const Range cells = pass_cells(pass);
      const uint8_t* from = stored + cells.begin * Cells::kGroup * kColumns * Cells::kWeightBytes;
      const Cell* columns = widened;
      if (Cells::kInPlace) {
        columns = reinterpret_cast<const Cell*>(from);
      } else {
        constexpr int64_t kWider = Cells::kStoredGroup / Cells::kGroup;  // cells of a stored one
        constexpr int64_t kStored = kColumns * Cells::kStoredGroup * Cells::kWeightBytes;
        for (int64_t i = 0; i < cells.size() / kWider; ++i) {
          Cells::widen(from + i * kStored, kColumns, widened + i * kWider * kColumns);
        }
      }
      const bool last = pass + 1 == passes_;
      // What comes next of the weight is brought into L2, as far as there is time for it.
      const int64_t bytes = cells.size() * Cells::kGroup * kColumns * Cells::kWeightBytes;
      const int64_t piece = last && last_panel ? 0 : cells.size() / kFetchCells * 64;
      // Of nearly equal height.
      for (int64_t index = 0; index < tiles; ++index) {
        const Range rows = Range{0, block.size()}.part(index, tiles, 1);
        const Range in_y = {block.begin + rows.begin, block.begin + rows.end};
        Fetches fetches;
        fetches.ahead = index * piece < bytes ? from + bytes + index * piece : from;
        if (last) {
          fetch_results(output.data, in_y, column, width, fetches);
          fetch_results(output.pre, in_y, column, width, fetches);
          fetch_results(output.residual, in_y, column, width, fetches);
        }
        const Place place = {output, prepared.scales + rows.begin, shape_.n, in_y.begin, column,
                             width};
        kTileKernels[rows.size() - 1]({prepared.cells + rows.begin * stride_ + cells.begin, stride_,
                                       columns, cells.size(), sums + rows.begin * kColumns,
                                       pass == 0, nullptr, last ? &place : nullptr, &fetches});
      }
    }
  }

  PackedShape shape_;
  int64_t cells_ = 0;        // of a row
  int64_t whole_cells_ = 0;  // of a prepared row
  int64_t stride_ = 0;       // cells from one prepared row to the next
  int64_t passes_ = 1;       // over k
  int64_t panels_ = 0;
  int64_t row_parts_ = 1;
  int64_t column_parts_ = 1;
  int64_t block_rows_ = 1;
  bool shared_ = false;  // rows are prepared for all parts, since several of them read each
  int64_t shared_bytes_ = 0;
  int64_t part_bytes_ = 0;  // of a worker
  int64_t scratches_ = 1;
};

}  // namespace siglip::SIGLIP_CPU
