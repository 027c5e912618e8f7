#include "cpu/peak.h"

#include "cpu/matrix_tiles.h"

namespace siglip::SIGLIP_CPU {
namespace {

// Enough independent chains to fill two pipes of latency 4, and few enough to stay in 16 registers.
constexpr int kChains = 12;

// Makes the compiler forget what it knows of a register.
template <typename V>
inline void forget(V& v) {
#if defined(SIGLIP_ISA_AVX512) && defined(__AVX512F__)
  asm volatile("" : "+v"(v));
#elif defined(__SSE2__) && !defined(SIGLIP_ISA_AVX512)
  asm volatile("" : "+x"(v));
#elif defined(__ARM_NEON)
  asm volatile("" : "+w"(v));
#else
  asm volatile("" : "+m"(v));
#endif
}

template <typename Cells>
double add_products(Stream& stream, int64_t rounds) {
  stream.parallel(stream.threads(), [&](int64_t, int) {
    typename Cells::Sum chain[kChains];
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) chain[i] = typename Cells::Sum{};
    IntVec row = splat_cell(0x3f813f82);
    IntVec columns = splat_cell(0x3f823f81);
    for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
      for (int i = 0; i < kChains; ++i) {
        forget(row);  // or the product would be computed once for all
        chain[i] = Cells::add_product(chain[i], row, columns);
      }
    }
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) forget(chain[i]);
  });
  return 2.0 * kChains * kLanes * Cells::kGroup * static_cast<double>(rounds) * stream.threads();
}

#if defined(SIGLIP_ISA_AVX512)
template <typename Cells>
double add_tiles(Stream& stream, int64_t rounds) {
  stream.parallel(stream.threads(), [&](int64_t, int) {
    const TileRegisters registers;
    for (int64_t round = 0; round < rounds; ++round) {
      Cells::template add_tile<0, 4, 6>();
      Cells::template add_tile<1, 4, 7>();
      Cells::template add_tile<2, 5, 6>();
      Cells::template add_tile<3, 5, 7>();
    }
  });
  constexpr double kProducts = 4.0 * kTileHeight * kLanes * kTileCells * Cells::kGroup;
  return 2.0 * kProducts * static_cast<double>(rounds) * stream.threads();
}
#endif

template <typename Cells>
double add(Stream& stream, int64_t rounds) {
#if defined(SIGLIP_ISA_AVX512)
  if constexpr (Cells::kTiles) return add_tiles<Cells>(stream, rounds);
#endif
  if constexpr (!Cells::kTiles) return add_products<Cells>(stream, rounds);
}

}  // namespace

double multiply_add(Stream& stream, int64_t rounds) {
  stream.parallel(stream.threads(), [&](int64_t, int) {
    Vec chain[kChains];
    // Not from 1, the fixed point of the recurrence, which the compiler would see through.
    for (int i = 0; i < kChains; ++i) chain[i] = splat(2.0F + static_cast<float>(i));
    const Vec factor = splat(0.999F);
    const Vec term = splat(0.001F);
    for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
      for (int i = 0; i < kChains; ++i) chain[i] = chain[i] * factor + term;
    }
    Vec sum = chain[0];
    for (int i = 1; i < kChains; ++i) sum += chain[i];
    volatile float sink = reduce_add(sum);
    (void)sink;
  });
  return 2.0 * kChains * kLanes * static_cast<double>(rounds) * stream.threads();
}

double multiply_add_int8(Stream& stream, int64_t rounds) {
  return with_int8_cells([&](auto cells) { return add<decltype(cells)>(stream, rounds); });
}

double multiply_add_bfloat16(Stream& stream, int64_t rounds) {
  return with_bfloat16_cells([&](auto cells) { return add<decltype(cells)>(stream, rounds); });
}

}  // namespace siglip::SIGLIP_CPU
