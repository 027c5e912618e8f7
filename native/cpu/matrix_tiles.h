// Products of whole tiles in the tile registers of AMX, where Features::amx says so. A register holds
// kTileRows rows of 64 bytes: of a left operand kTileCells cells of each of its rows, of a right one
// the cells of 16 columns, row of cells by row of cells, and of a sum 16 columns. One instruction adds
//
//   sum[i][j] += Σ_c left[i][c] · right[c][j]        c < kTileCells, · as in cpu/cells.h
//
// Loads take any distance between rows. The instructions are written as such, which needs no flag of
// the compiler.
#pragma once

#include "cpu/cells.h"

#if defined(SIGLIP_ISA_AVX512)

namespace siglip::SIGLIP_CPU {

inline constexpr int64_t kTileHeight = 16;
inline constexpr int64_t kTileCells = 16;

#if defined(SIGLIP_EMULATED) || !defined(__x86_64__)
#define SIGLIP_EMULATED_TILES
struct EmulatedTile {
  alignas(64) uint8_t bytes[kTileHeight][64];
};
inline thread_local EmulatedTile emulated_tiles[8];
#endif

// All eight registers of this thread, taken for whole tiles and given back in the end: what is in use
// has to be saved on every switch between threads.
class TileRegisters {
 public:
  TileRegisters() {
#if !defined(SIGLIP_EMULATED_TILES)
    struct alignas(64) {
      uint8_t palette = 1;
      uint8_t start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } shape;
    for (int i = 0; i < 8; ++i) {
      shape.row_bytes[i] = 64;
      shape.rows[i] = kTileHeight;
    }
    asm volatile("ldtilecfg %0" : : "m"(shape));
#endif
  }
  ~TileRegisters() {
#if !defined(SIGLIP_EMULATED_TILES)
    asm volatile("tilerelease" : :);
#endif
  }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

template <int tile>
[[gnu::always_inline]] inline void zero_tile() {
#if defined(SIGLIP_EMULATED_TILES)
  emulated_tiles[tile] = {};
#else
  asm volatile("tilezero %%tmm%c0" : : "i"(tile));
#endif
}

// `stride` in cells.
template <int tile>
[[gnu::always_inline]] inline void load_tile(const Cell* from, int64_t stride) {
#if defined(SIGLIP_EMULATED_TILES)
  for (int64_t i = 0; i < kTileHeight; ++i) {
    std::memcpy(emulated_tiles[tile].bytes[i], from + i * stride, 64);
  }
#else
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2"
               :
               : "r"(from), "r"(4 * stride), "i"(tile)
               : "memory");
#endif
}

template <int tile>
[[gnu::always_inline]] inline void store_tile(Cell* to, int64_t stride) {
#if defined(SIGLIP_EMULATED_TILES)
  for (int64_t i = 0; i < kTileHeight; ++i) {
    std::memcpy(to + i * stride, emulated_tiles[tile].bytes[i], 64);
  }
#else
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(4 * stride), "i"(tile) : "memory");
#endif
}

#if defined(SIGLIP_EMULATED_TILES)
template <typename Cells>
void add_emulated(int sum, int left, int right) {
  for (int64_t i = 0; i < kTileHeight; ++i) {
    IntVec row = load_cells(emulated_tiles[sum].bytes[i]);
    for (int64_t c = 0; c < kTileCells; ++c) {
      Cell cell;
      std::memcpy(&cell, emulated_tiles[left].bytes[i] + 4 * c, sizeof(cell));
      row = Cells::add_product(row, splat_cell(cell), load_cells(emulated_tiles[right].bytes[c]));
    }
    store_cells(emulated_tiles[sum].bytes[i], row);
  }
}
#endif

struct ByteTiles : ByteCells {
  static constexpr bool kTiles = true;

  template <int sum, int left, int right>
  [[gnu::always_inline]] static void add_tile() {
#if defined(SIGLIP_EMULATED_TILES)
    add_emulated<ByteCells>(sum, left, right);
#else
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sum), "i"(left), "i"(right));
#endif
  }
};

struct Bfloat16Tiles : Bfloat16Cells {
  static constexpr bool kTiles = true;

  template <int sum, int left, int right>
  [[gnu::always_inline]] static void add_tile() {
#if defined(SIGLIP_EMULATED_TILES)
    add_emulated<Bfloat16Cells>(sum, left, right);
#else
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sum), "i"(left), "i"(right));
#endif
  }
};

}  // namespace siglip::SIGLIP_CPU

#endif

namespace siglip::SIGLIP_CPU {

// Whether bfloat16 is multiplied by matrix tiles on this machine.
static inline bool has_bfloat16_tiles() {
#if defined(SIGLIP_ISA_AVX512)
  return configured_features().bf16 && configured_features().amx;
#else
  return false;
#endif
}

// Whether it is multiplied in pairs, by matrix tiles or by vectors.
static inline bool has_bfloat16_pairs() {
#if defined(SIGLIP_ISA_AVX512)
  return configured_features().bf16;
#else
  return false;
#endif
}

#if defined(SIGLIP_ISA_AVX512)
// body(cells) with those of the two that this machine has, where it has pairs.
template <typename Body>
static auto with_bfloat16_pairs(const Body& body) {
  if (has_bfloat16_tiles()) return body(Bfloat16Tiles{});
  return body(Bfloat16Cells{});
}
#endif

// body(cells) with the arithmetic of this machine for bfloat16.
template <typename Body>
static auto with_bfloat16_cells(const Body& body) {
#if defined(SIGLIP_ISA_AVX512)
  if (has_bfloat16_pairs()) return with_bfloat16_pairs(body);
#endif
  return body(FloatCells{});
}

// The same for int8.
template <typename Body>
static auto with_int8_cells(const Body& body) {
#if defined(SIGLIP_ISA_AVX512)
  if (configured_features().vnni && configured_features().amx) return body(ByteTiles{});
#endif
#if defined(SIGLIP_ISA_AVX512) || defined(SIGLIP_ISA_AVX2)
  if (configured_features().vnni) return body(ByteCells{});
#endif
  return body(PairCells{});
}

}  // namespace siglip::SIGLIP_CPU
