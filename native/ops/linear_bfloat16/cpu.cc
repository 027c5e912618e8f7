#include "ops/linear_bfloat16/linear_bfloat16.h"

#include "cpu/check.h"
#include "cpu/epilogue.h"
#include "cpu/packed_product.h"
#include "cpu/tile.h"

namespace siglip::SIGLIP_CPU {
namespace {

// put(k, bits, left) for every vector of a row, filled up with zeros; left < kLanes only in the end.
template <typename Put>
void round_row(const float* row, int64_t count, const Put& put) {
  for (int64_t k = 0; k < count; k += kLanes) {
    const int64_t left = count - k;
    put(k, round_to_bfloat16(left >= kLanes ? load(row + k) : load_partial(row + k, left)), left);
  }
}

void store_row(FloatCells, Cell* cells, const float* row, int64_t count) {
  round_row(row, count, [&](int64_t k, UintVec bits, int64_t left) {
    if (left >= kLanes) {
      store_cells(cells + k, reinterpret_cast<IntVec>(bits));
      return;
    }
    std::memcpy(cells + k, &bits, static_cast<size_t>(packed_steps(left)) * sizeof(Cell));
  });
}

#if defined(SIGLIP_ISA_AVX512)
void store_row(Bfloat16Cells, Cell* cells, const float* row, int64_t count) {
  uint16_t* to = reinterpret_cast<uint16_t*>(cells);
  constexpr int64_t kStep = 2 * kLanes;
  int64_t k = 0;
  for (; k + kStep <= count; k += kStep) {
    store_cells(to + k, Bfloat16Cells::follow(load(row + k), load(row + k + kLanes)));
  }
  const int64_t left = count - k;
  if (left == 0) return;
  const Vec second = left > kLanes ? load_partial(row + k + kLanes, left - kLanes) : Vec{};
  const IntVec rest = Bfloat16Cells::follow(load_up_to(row + k, left), second);
  std::memcpy(to + k, &rest, static_cast<size_t>(packed_steps(left)) * sizeof(uint16_t));
}
#endif

void pack(Stream& stream, const float* weight, int64_t n, int64_t k, uint8_t* packed) {
  const int64_t steps = packed_steps(k);
  const int64_t bytes = kPackedRows * steps * FloatCells::kWeightBytes;
  stream.parallel(packed_rows(n) / kPackedRows, [&](int64_t group, int) {
    std::memset(packed + group * bytes, 0, static_cast<size_t>(bytes));
    const int64_t end = (group + 1) * kPackedRows < n ? (group + 1) * kPackedRows : n;
    for (int64_t i = group * kPackedRows; i < end; ++i) {
      round_row(weight + i * k, k, [&](int64_t at, UintVec bits, int64_t left) {
        for (int64_t lane = 0; lane < kLanes && lane < left; ++lane) {
          const uint16_t half = static_cast<uint16_t>(bits[lane] >> 16);
          std::memcpy(packed + PackedProduct<FloatCells>::stored_offset(i, at + lane, steps), &half,
                      sizeof(half));
        }
      });
    }
  });
}

}  // namespace

void linear_bfloat16_pack(Stream& stream, In weight, Out packed) {
  constexpr char kWho[] = "linear_bfloat16_pack";
  check_rank(kWho, "weight", weight, 2);
  const int64_t n = weight.extent(0);
  const int64_t k = weight.extent(1);
  check_elements(kWho, "packed", packed, linear_bfloat16_packed_bytes(n, k));
  pack(stream, weight.data(), n, k, packed.data<uint8_t>());
}

size_t linear_bfloat16_forward_scratch(int threads, In x, Out y) {
  const PackedShape shape = packed_linear_shape("linear_bfloat16_forward", x, y);
  return with_bfloat16_cells(
      [&](auto cells) { return PackedProduct<decltype(cells)>(threads, shape).scratch_bytes(); });
}

void linear_bfloat16_forward(Stream& stream, In x, In packed, MaybeIn bias, MaybeIn residual,
                             int64_t activation, MaybeOut pre, Out y, Scratch scratch) {
  constexpr char kWho[] = "linear_bfloat16_forward";
  const PackedShape shape = packed_linear_shape(kWho, x, y);
  check_elements(kWho, "packed", packed, linear_bfloat16_packed_bytes(shape.n, shape.k));
  const PackedOutput output =
      linear_output<PackedOutput>(kWho, shape.m, shape.n, bias, residual, activation, pre, y);
  check_scratch(kWho, scratch, linear_bfloat16_forward_scratch(stream.threads(), x, y));
  const float* from = x.data();
  with_bfloat16_cells([&](auto cells) {
    PackedProduct<decltype(cells)>(stream.threads(), shape)
        .run(
            stream,
            [&](int64_t row, Cell* to) {
              store_row(decltype(cells){}, to, from + row * shape.k, shape.k);
              return 1.0F;
            },
            packed.data<uint8_t>(), output, scratch);
  });
}

}  // namespace siglip::SIGLIP_CPU
