#include <limits>

#include "cpu/check.h"
#include "cpu/epilogue.h"
#include "cpu/packed_product.h"
#include "ops/linear_int8/linear_int8.h"

namespace siglip::SIGLIP_CPU {
namespace {

constexpr int32_t kInfinityBits = 0x7f800000;
constexpr float kLeast = 7.8886090522101181e-31F;  // 2^-100
constexpr int32_t kWeightLevels = 127;
constexpr int64_t kMostSum = std::numeric_limits<int32_t>::max();

// How a row of numbers becomes integers in [-levels, levels].
struct Quantiser {
  float factor;  // x -> q
  float scale;   // q -> x; NaN where the row is not finite
};

// The largest magnitude, as bits: those of NaN and infinity are above those of all numbers.
constexpr int kChains = 4;  // of comparisons, so that their latency does not count
int32_t largest_bits(const float* row, int64_t count) {
  IntVec most[kChains] = {};
  const auto take = [&](int chain, Vec x) {
    const IntVec bits = reinterpret_cast<IntVec>(x) & 0x7fffffff;
    most[chain] = bits > most[chain] ? bits : most[chain];
  };
  int64_t k = 0;
  for (; k + kChains * kLanes <= count; k += kChains * kLanes) {
    for (int chain = 0; chain < kChains; ++chain) take(chain, load(row + k + chain * kLanes));
  }
  for (; k + kLanes <= count; k += kLanes) take(0, load(row + k));
  if (k < count) take(0, load_partial(row + k, count - k));
  for (int chain = 1; chain < kChains; ++chain) {
    most[0] = most[chain] > most[0] ? most[chain] : most[0];
  }
  int32_t largest = 0;
  for (int i = 0; i < kLanes; ++i) largest = most[0][i] > largest ? most[0][i] : largest;
  return largest;
}

Quantiser quantiser_of(const float* row, int64_t count, int32_t levels) {
  const int32_t bits = largest_bits(row, count);
  if (bits >= kInfinityBits) return {0.0F, std::numeric_limits<float>::quiet_NaN()};
  float largest;
  std::memcpy(&largest, &bits, sizeof(largest));
  if (largest < kLeast) return {0.0F, 0.0F};
  return {static_cast<float>(levels) / largest, largest / static_cast<float>(levels)};
}

// put(k, integers, left) for every vector of a row, filled up with zeros; left < kLanes only in the
// end.
template <typename Put>
void quantise(const float* row, int64_t count, const Quantiser& quantiser, const Put& put) {
  const Vec factor = splat(quantiser.factor);
  // Infinity times zero would be NaN.
  const bool zeros = quantiser.factor == 0.0F;
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) {
    put(k, zeros ? IntVec{} : round_to_int(load(row + k) * factor), kLanes);
  }
  if (k < count) {
    const Vec rest = load_partial(row + k, count - k);
    put(k, zeros ? IntVec{} : round_to_int(rest * factor), count - k);
  }
}

// ---- Activations -------------------------------------------------------------------------------

template <typename Cells>
int32_t levels_of(int64_t inputs) {
  if (Cells::kGroup == 4) return 127;
  const int64_t levels = kMostSum / (kWeightLevels * (inputs < 1 ? 1 : inputs));
  return static_cast<int32_t>(levels < 32767 ? levels : 32767);
}

void store_row(PairCells, Cell* cells, const float* row, int64_t count, const Quantiser& by) {
  int16_t* to = reinterpret_cast<int16_t*>(cells);
  quantise(row, count, by, [&](int64_t k, IntVec q, int64_t left) {
    const HalfShortVec shorts = narrow_to_shorts(q);
    if (left >= kLanes) {
      *reinterpret_cast<unaligned::HalfShortVec*>(to + k) = shorts;
      return;
    }
    std::memcpy(to + k, &shorts, static_cast<size_t>(packed_steps(left)) * sizeof(int16_t));
  });
}

#if defined(SIGLIP_ISA_AVX512) || defined(SIGLIP_ISA_AVX2)
// Shifted into the range of uint8; the correction takes that away.
void store_row(ByteCells, Cell* cells, const float* row, int64_t count, const Quantiser& by) {
  uint8_t* to = reinterpret_cast<uint8_t*>(cells);
  int64_t first = 0;
#if defined(SIGLIP_ISA_AVX512)
  constexpr int64_t kStep = 4 * kLanes;
  const Vec factor = splat(by.factor);
  for (; by.factor != 0.0F && first + kStep <= count; first += kStep) {
    const auto integers = [&](int i) {
      return round_to_int(load(row + first + i * kLanes) * factor);
    };
    const IntVec bytes = narrow_to_bytes(integers(0), integers(1), integers(2), integers(3));
    store_cells(to + first, bytes ^ static_cast<Cell>(0x80808080));
  }
#endif
  quantise(row + first, count - first, by, [&](int64_t k, IntVec q, int64_t left) {
    const QuarterByteVec bytes = narrow_to_bytes(q + 128);
    if (left >= kLanes) {
      *reinterpret_cast<unaligned::QuarterByteVec*>(to + first + k) = bytes;
      return;
    }
    std::memcpy(to + first + k, &bytes, static_cast<size_t>(packed_steps(left)));
  });
}
#endif

// ---- Packed weight -----------------------------------------------------------------------------

// Scales and corrections of all rows, then the panels.
template <typename Byte>
struct Packed {
  Packed(Byte* data, int64_t n) : base(data), rows(packed_rows(n)) {}

  auto* scales() const { return as<float>(0); }
  auto* corrections() const { return as<int32_t>(rows * 4); }
  Byte* panels() const { return base + rows * 8; }

  Byte* base;
  int64_t rows;

 private:
  template <typename T>
  auto* as(int64_t offset) const {
    using Element = std::conditional_t<std::is_const_v<Byte>, const T, T>;
    return reinterpret_cast<Element*>(base + offset);
  }
};

template <typename Cells>
void pack(Stream& stream, const float* weight, int64_t n, int64_t k, uint8_t* to) {
  const Packed<uint8_t> packed(to, n);
  const int64_t steps = packed_steps(k);
  const int64_t groups = packed.rows / kPackedRows;
  stream.parallel(groups, [&](int64_t group, int) {
    std::memset(packed.panels() + group * kPackedRows * steps, 0,
                static_cast<size_t>(kPackedRows * steps));
    for (int64_t i = group * kPackedRows; i < (group + 1) * kPackedRows; ++i) {
      const float* row = weight + i * k;
      const Quantiser quantiser =
          i < n ? quantiser_of(row, k, kWeightLevels) : Quantiser{0.0F, 0.0F};
      int32_t sum = 0;
      if (i < n) {
        quantise(row, k, quantiser, [&](int64_t at, IntVec q, int64_t left) {
          for (int64_t lane = 0; lane < kLanes && lane < left; ++lane) {
            sum += q[lane];
            packed.panels()[PackedProduct<Cells>::stored_offset(i, at + lane, steps)] =
                static_cast<uint8_t>(q[lane]);
          }
        });
      }
      packed.scales()[i] = quantiser.scale;
      packed.corrections()[i] = 128 * sum;
    }
  });
}

template <typename Cells>
void multiply(Stream& stream, const PackedShape& shape, const float* x, const uint8_t* weight,
              PackedOutput output, Scratch scratch) {
  const Packed<const uint8_t> packed(weight, shape.n);
  output.column_scales = packed.scales();
  if (Cells::kGroup == 4) output.corrections = packed.corrections();
  const int32_t levels = levels_of<Cells>(shape.k);
  PackedProduct<Cells>(stream.threads(), shape)
      .run(
          stream,
          [&](int64_t row, Cell* cells) {
            const float* from = x + row * shape.k;
            const Quantiser quantiser = quantiser_of(from, shape.k, levels);
            store_row(Cells{}, cells, from, shape.k, quantiser);
            return quantiser.scale;
          },
          packed.panels(), output, scratch);
}

void check_inputs(const char* who, const char* what, int64_t inputs) {
  if (inputs <= kLinearInt8MaxInputs) return;
  fail("ERR_SHAPE", "%s: extent -1 of %s must be at most %lld, got %lld", who, what,
       static_cast<long long>(kLinearInt8MaxInputs), static_cast<long long>(inputs));
}

}  // namespace

void linear_int8_pack(Stream& stream, In weight, Out packed) {
  constexpr char kWho[] = "linear_int8_pack";
  check_rank(kWho, "weight", weight, 2);
  const int64_t n = weight.extent(0);
  const int64_t k = weight.extent(1);
  check_inputs(kWho, "weight", k);
  check_elements(kWho, "packed", packed, linear_int8_packed_bytes(n, k));
  with_int8_cells([&](auto cells) {
    pack<decltype(cells)>(stream, weight.data(), n, k, packed.data<uint8_t>());
  });
}

size_t linear_int8_forward_scratch(int threads, In x, Out y) {
  const PackedShape shape = packed_linear_shape("linear_int8_forward", x, y);
  return with_int8_cells(
      [&](auto cells) { return PackedProduct<decltype(cells)>(threads, shape).scratch_bytes(); });
}

void linear_int8_forward(Stream& stream, In x, In packed, MaybeIn bias, MaybeIn residual,
                         int64_t activation, MaybeOut pre, Out y, Scratch scratch) {
  constexpr char kWho[] = "linear_int8_forward";
  const PackedShape shape = packed_linear_shape(kWho, x, y);
  check_inputs(kWho, "x", shape.k);
  check_elements(kWho, "packed", packed, linear_int8_packed_bytes(shape.n, shape.k));
  const PackedOutput output =
      linear_output<PackedOutput>(kWho, shape.m, shape.n, bias, residual, activation, pre, y);
  check_scratch(kWho, scratch, linear_int8_forward_scratch(stream.threads(), x, y));
  with_int8_cells([&](auto cells) {
    multiply<decltype(cells)>(stream, shape, x.data(), packed.data<uint8_t>(), output, scratch);
  });
}

}  // namespace siglip::SIGLIP_CPU
