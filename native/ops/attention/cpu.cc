// Queries lie side by side in the lanes, keys and head width run over the rows of a register tile:
//   Sᵀ (keys, queries) = K · (c Q)ᵀ    Oᵀ (width, queries) = Vᵀ · Pᵀ    c = scale · log2(e)
// so that K and V are read as they are, one scalar broadcast at a time, the softmax needs no sum
// across lanes, and only Q, dO (in) and O, dQ (out) are transposed. Keys go by in blocks with a
// running maximum and sum per query (online softmax). Masked keys are left out when keys are
// packed, so they cost nothing and whatever they hold never reaches a result.
// With fewer queries than half the lanes (pooling at one token) the lanes run over the head width.
#include "ops/attention/attention.h"

#include <optional>

#include "cpu/check.h"
#include "cpu/logarithm.h"
#include "cpu/matrix_tiles.h"
#include "cpu/segments.h"
#include "cpu/simd.h"
#include "cpu/tile.h"
#include "ops/attention/operands.h"

namespace siglip::SIGLIP_CPU {
namespace {

// Panels and queries of one step of the backward.
constexpr int64_t kBlockPanels = kPanel < 36 ? 72 / kPanel : 2;
constexpr int64_t kQueryBlock = kBlockPanels * kPanel;
constexpr int64_t kKeyBlock = 64;  // blocks of K and V and the scores stay in cache

constexpr int64_t kTaskProducts = int64_t{1} << 16;  // multiply-adds of the least task
constexpr int64_t kForwardChunk = 144;               // queries of one unit of the forward
constexpr int64_t kMostTasks = 256;
constexpr int64_t kBackwardUnits = 16;  // wanted; fewer heads are cut over the keys
constexpr int64_t kLeastKeyChunk = 256;

constexpr float kLog2E = 1.44269504088896341F;
constexpr float kLn2 = 0.693147180559945309F;

// Sizes of a call. `sequences` are the images of a batch, or the segments of a packed one; `packed`
// tells that their keys are of different number.
struct Extents {
  int64_t batch;
  int64_t queries;
  int64_t keys;
  int64_t heads;
  int64_t width;
  int64_t sequences;
  bool packed;
  int64_t stride;  // of q, k and v and their gradients: from one token of a head to the next

  int64_t items() const { return sequences * heads; }
  int64_t result_stride() const { return heads * width; }  // the same of o and dout
  int64_t padded_width() const { return ceil_div(width, kLanes) * kLanes; }
};

// One head of one sequence: where its elements begin and how many rows it has.
struct Item {
  int64_t query;   // of q, dq
  int64_t result;  // of o, dout
  int64_t key;     // of k, v, dk, dv
  int64_t lse;
  int64_t mask;
  int64_t queries;
  int64_t keys;
  bool causal;

  // The last key that a query attends to.
  int64_t last_key(int64_t query) const { return causal ? query : keys - 1; }
};

// Lanes over the head width, one query at a time.
bool few_queries(const Item& item) { return 2 * item.queries <= kLanes; }

// Which items there are: heads of the images of a batch, or of segments.
struct Items {
  Extents e;
  const int32_t* starts;      // null without segments
  const int32_t* key_starts;  // null without segments of keys alone
  const int32_t* order;       // of the segments, the longest first
  const uint8_t* causal;      // of the images of a batch, or null

  Item at(int64_t index) const {
    const int64_t head = index % e.heads;
    int64_t sequence = index / e.heads;
    if (order != nullptr) sequence = order[sequence];
    if (starts != nullptr) {
      const int64_t first = starts[sequence];
      const int64_t size = starts[sequence + 1] - first;
      const int64_t at = first * e.stride + head * e.width;
      const int64_t result = first * e.result_stride() + head * e.width;
      return {at, result, at, head * e.queries + first, 0, size, size, false};
    }
    const int64_t query = sequence * e.queries * e.stride + head * e.width;
    const int64_t result = sequence * e.queries * e.result_stride() + head * e.width;
    const int64_t lse = (sequence * e.heads + head) * e.queries;
    if (key_starts != nullptr) {
      const int64_t first = key_starts[sequence];
      const int64_t size = key_starts[sequence + 1] - first;
      const int64_t key = first * e.stride + head * e.width;
      return {query, result, key, lse, 0, e.queries, size, false};
    }
    const int64_t key = sequence * e.keys * e.stride + head * e.width;
    const bool is_causal = causal != nullptr && causal[sequence] != 0;
    return {query, result, key, lse, sequence * e.keys, e.queries, e.keys, is_causal};
  }
};

Extents extents_of(const In& q, const In& k, const MaybeIn& segments, const MaybeIn& key_segments) {
  const int64_t sequences = segments.present() ? larger(0, segments.elements() - 1) : q.extent(0);
  return {q.extent(0),
          q.extent(1),
          k.extent(1),
          q.extent(-2),
          q.extent(-1),
          sequences,
          segments.present() || key_segments.present(),
          part_stride(q)};
}

Extents checked_extents(const char* who, const In& q, const In& k, const In& v,
                        const Limits& limits) {
  check_operands(who, q, k, v, limits);
  const auto& [key_mask, segments, key_segments, causal] = limits;
  if (segments.present()) check_segments(who, "segments", segments, q.extent(1));
  if (key_segments.present()) check_segments(who, "key_segments", key_segments, k.extent(1));
  return extents_of(q, k, segments, key_segments);
}

// The items of a call; order (S) is memory for their order.
Items items_of(const Extents& e, const Limits& limits, int32_t* order) {
  Items items = {e, nullptr, nullptr, nullptr, nullptr};
  if (limits.causal.present()) items.causal = limits.causal.data<uint8_t>();
  if (limits.segments.present()) items.starts = limits.segments.data<int32_t>();
  if (limits.key_segments.present()) items.key_starts = limits.key_segments.data<int32_t>();
  if (!e.packed) return items;
  longest_first(items.starts == nullptr ? items.key_starts : items.starts, e.sequences, order);
  items.order = order;
  return items;
}

// Consecutive units (parts of items) to a task, so that each is worth its start.
Parts share_out(const Items& items, int64_t units) {
  const Extents& e = items.e;
  double products = 0.0;
  for (int64_t i = 0; i < e.items(); i += e.heads) {
    const Item item = items.at(i);
    products += static_cast<double>(item.queries) * static_cast<double>(item.keys);
  }
  products *= static_cast<double>(e.heads * e.width);
  const int64_t worth = static_cast<int64_t>(products / static_cast<double>(kTaskProducts));
  return {units, larger(1, smaller(smaller(units, kMostTasks), worth))};
}

// ---- Lanes -------------------------------------------------------------------------------------

// 2^x for x <= 0; 2^-125 instead of anything less, NaN for NaN.
inline Vec exp2_nonpositive(Vec x) { return exp2_bounded(max(splat(-125.0F), x)); }

// x in the lanes of the j-th vector whose query attends to a key, else `otherwise`. The panel's first
// query sees no key after `last`, the next one key more, and so on.
inline Vec where_seen(Vec x, Vec otherwise, int64_t key, int64_t last, int j) {
  if (key <= last) return x;
  const IntVec first = IntVec{} + static_cast<int32_t>(smaller(key - last, kPanel));
  return select(lane_numbers(j) >= first, x, otherwise);
}

// body(key, Constant<1>()) for the keys of a block of `size` from `begin` on that a panel sees only in part,
// Constant<0>() for those that all its queries see, which are the first.
template <typename Body>
inline void for_keys(int64_t begin, int64_t size, int64_t last, const Body& body) {
  const int64_t whole = smaller(size, larger(0, last + 1 - begin));
  for (int64_t key = 0; key < whole; ++key) body(key, Constant<0>());
  for (int64_t key = whole; key < size; ++key) body(key, Constant<1>());
}

// y = factor · x
void scale_row(const float* x, float factor, int64_t width, float* y) {
  int64_t d = 0;
  for (; d + kLanes <= width; d += kLanes) store(y + d, load(x + d) * splat(factor));
  if (d < width) store_partial(y + d, load_partial(x + d, width - d) * splat(factor), width - d);
}

void zero_row(int64_t width, float* y) {
  for (int64_t d = 0; d < width; ++d) y[d] = 0.0F;
}

// y = x, followed by zeros up to a whole number of vectors.
void pad_row(const float* x, int64_t width, float* y) {
  int64_t d = 0;
  for (; d + kLanes <= width; d += kLanes) store(y + d, load(x + d));
  if (d < width) store(y + d, load_partial(x + d, width - d));
}

// Lane i = Σ_d a[i][d] · b[i][d] for i < rows (at least 1); the other lanes are of no meaning.
// A stride of zero repeats a row.
Vec row_dots(Rows a, Rows b, int64_t rows, int64_t width) {
  const float* x[kLanes];
  const float* y[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    x[i] = a.at(smaller(i, rows - 1));
    y[i] = b.at(smaller(i, rows - 1));
  }
  Vec sum[kLanes] = {};
  int64_t d = 0;
  for (; d + kLanes <= width; d += kLanes) {
    for (int i = 0; i < kLanes; ++i) sum[i] += load(x[i] + d) * load(y[i] + d);
  }
  if (d < width) {
    for (int i = 0; i < kLanes; ++i) {
      sum[i] += load_partial(x[i] + d, width - d) * load_partial(y[i] + d, width - d);
    }
  }
  transpose(sum);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sum[i] += sum[i + half];
  }
  return sum[0];
}

// ---- Keys --------------------------------------------------------------------------------------

// The keys of one head that count: all of a range, or those the mask lets through.
struct Keys {
  Rows k;
  Rows v;
  int64_t count;
};

// Where packed keys go. index[i] is the i-th key that counts; only a mask needs it.
struct KeyStore {
  float* k;
  float* v;
  int32_t* index;
};

KeyStore take_keys(const Extents& e, int64_t keys, Carver& carver) {
  KeyStore keep;
  keep.k = carver.take<float>(keys * e.padded_width());
  keep.v = carver.take<float>(keys * e.padded_width());
  keep.index = carver.take<int32_t>(keys);
  return keep;
}

// Keys [begin, end) of an item. mask (of the item's sequence) may be null; packed rows are padded
// with zeros.
Keys select_keys(const Extents& e, const Item& item, int64_t begin, int64_t end, const float* k,
                 const float* v, const uint8_t* mask, bool pack, const KeyStore& keep) {
  const Rows all_k = {k + item.key, e.stride};
  const Rows all_v = {v + item.key, e.stride};
  if (mask == nullptr && !pack) {
    return {{all_k.at(begin), e.stride}, {all_v.at(begin), e.stride}, end - begin};
  }
  const int64_t width = e.padded_width();
  int64_t count = 0;
  for (int64_t key = begin; key < end; ++key) {
    if (mask != nullptr) {
      if (mask[key] == 0) continue;
      keep.index[count] = static_cast<int32_t>(key);
    }
    pad_row(all_k.at(key), e.width, keep.k + count * width);
    pad_row(all_v.at(key), e.width, keep.v + count * width);
    ++count;
  }
  return {{keep.k, width}, {keep.v, width}, count};
}

// Packing pays when several panels read the keys, and pads them for loads of whole vectors.
bool wants_packing(const Extents& e, const Item& item) {
  if (few_queries(item)) return e.width % kLanes != 0;
  return item.queries > 2 * kPanel;
}

// Rows come from far away one head at a time, in pieces too short for the processor to foresee.
void prefetch_rows(Rows rows, int64_t begin, int64_t end, int64_t width) {
  constexpr int64_t kLine = 16;  // floats
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t d = 0; d < width; d += kLine) __builtin_prefetch(rows.at(row) + d, 0, 2);
  }
}

// ---- Forward -----------------------------------------------------------------------------------

// Operands of the forward, as pointers.
struct Forward {
  Items items;
  bool narrow;  // products of bfloat16
  const float* q;
  const float* k;
  const float* v;
  const uint8_t* mask;
  float c;
  float* o;
  float* lse;

  const uint8_t* mask_of(const Item& item) const {
    return mask == nullptr ? nullptr : mask + item.mask;
  }
  bool is_narrow(const Item& item) const { return narrow && !few_queries(item); }
};

// One head's keys as left operands of bfloat16: K (keys, width) in pairs of the width, Vᵀ (width, keys)
// in pairs of keys. Filled up with zeros to whole matrix tiles.
struct PairedKeys {
  Cell* k;
  int64_t k_stride;
  Cell* v;
  int64_t v_stride;
};

// What a panel multiplies with them: c · Q in pairs of the width and probabilities in pairs of keys,
// rows of kPanel cells.
struct PairedPanel {
  Cell* queries;
  Cell* probabilities;
};

struct ForwardWorkspace {
  int64_t* item;  // whose keys are packed now
  Keys* keys;
  KeyStore store;
  PairedKeys paired_keys;
  PairedPanel paired_panel;
  float* queries;  // (padded width, kPanel): a panel of c · Q; or one query
  float* scores;   // (kKeyBlock, kPanel), where narrow for all keys; or all scores of one query
  float* outputs;  // (padded width, kPanel), not yet divided by the sum
};

#if defined(SIGLIP_ISA_AVX512)
constexpr int64_t kTilePairs = 2 * kTileCells;  // numbers of a tile's row

int64_t whole_tiles(int64_t size) { return ceil_div(size, kTilePairs) * kTilePairs; }

// A distance between rows that are not all in the same sets of L1.
int64_t tile_stride(int64_t cells) { return cells % 256 == 0 ? cells + kTileCells : cells; }

void take_pairs(const Extents& e, ForwardWorkspace& w, Carver& carver) {
  const int64_t keys = whole_tiles(e.keys);
  const int64_t width = whole_tiles(e.width);
  w.paired_keys.k_stride = tile_stride(width / 2);
  w.paired_keys.v_stride = tile_stride(keys / 2);
  w.paired_keys.k = carver.take<Cell>(keys * w.paired_keys.k_stride);
  w.paired_keys.v = carver.take<Cell>(e.padded_width() * w.paired_keys.v_stride);
  w.paired_panel.queries = carver.take<Cell>(width / 2 * kPanel);
  w.paired_panel.probabilities = carver.take<Cell>(keys / 2 * kPanel);
}
#endif

ForwardWorkspace forward_workspace(const Extents& e, bool narrow, Carver& carver) {
  ForwardWorkspace w = {};
  w.item = carver.take<int64_t>(1);
  w.keys = carver.take<Keys>(1);
  w.store = take_keys(e, e.keys, carver);
  w.queries = carver.take<float>(e.padded_width() * kPanel);
  w.outputs = carver.take<float>(e.padded_width() * kPanel);
#if defined(SIGLIP_ISA_AVX512)
  if (narrow) {
    take_pairs(e, w, carver);
    w.scores = carver.take<float>(whole_tiles(e.keys) * kPanel);
    return w;
  }
#else
  static_cast<void>(narrow);
#endif
  w.scores = carver.take<float>(larger(kKeyBlock * kPanel, e.keys + kLanes));
  return w;
}

// Where the results of a panel of queries go.
struct Results {
  float* o;
  int64_t stride;
  float* lse;
};

// Rows of o and lse from a panel's products, maxima and sums.
template <int kVectors>
void finish_panel(const Vec (&highest)[kVectors], const Vec (&total)[kVectors], int64_t count,
                  int64_t width, const float* outputs, const Results& to) {
  Vec inverse[kVectors];
  for (int j = 0; j < kVectors; ++j) {
    inverse[j] = splat(1.0F) / total[j];
    const int64_t first = j * kLanes;
    if (first < count) {
      store_up_to(to.lse + first, highest[j] * splat(kLn2) + log(total[j]), count - first);
    }
  }
  lanes_to_rows<kVectors>(outputs, inverse, count, width, to.o, to.stride);
}

// Up to kVectors · kLanes queries: `count` rows from q, o and lse on, the first of which attends to the
// keys up to `last` (see where_seen). At least one key.
template <int kVectors>
void forward_panel(const Keys& keys, int64_t last, Rows q, int64_t count, int64_t width, float c,
                   const ForwardWorkspace& w, const Results& to) {
  const Vec lowest = splat(-__builtin_huge_valf());
  rows_to_lanes<kVectors>(q, count, width, c, w.queries);
  Vec highest[kVectors];
  Vec total[kVectors] = {};
  for (int j = 0; j < kVectors; ++j) highest[j] = lowest;

  const Parts blocks = cut(keys.count, kKeyBlock);
  for (int64_t block = 0; block < blocks.count; ++block) {
    const int64_t begin = blocks.begin(block);
    const int64_t size = blocks.end(block) - begin;
    Vec now[kVectors];
    for (int j = 0; j < kVectors; ++j) now[j] = highest[j];
    for_tiles<kVectors>(size, [&](int64_t key, auto rows) {
      constexpr int kRows = decltype(rows)::value;
      Vec tile[kRows][kVectors] = {};
      multiply(width, keys.k.at(begin + key), keys.k.stride, 1, w.queries, kPanel, tile);
      if (begin + key + kRows - 1 > last) {
        for (int i = 0; i < kRows; ++i) {
          for (int j = 0; j < kVectors; ++j) {
            tile[i][j] = where_seen(tile[i][j], lowest, begin + key + i, last, j);
          }
        }
      }
      store_tile(tile, w.scores + key * kPanel, kPanel);
      for (int i = 0; i < kRows; ++i) {
        for (int j = 0; j < kVectors; ++j) now[j] = max(tile[i][j], now[j]);
      }
    });

    Vec rescale[kVectors];  // of the former blocks; in the first, 2^-125 times nothing
    Vec sum[kVectors] = {};
    for (int j = 0; j < kVectors; ++j) rescale[j] = exp2_nonpositive(highest[j] - now[j]);
    for_keys(begin, size, last, [&](int64_t key, auto in_part) {
      for (int j = 0; j < kVectors; ++j) {
        float* p = w.scores + key * kPanel + j * kLanes;
        Vec probability = exp2_nonpositive(load(p) - now[j]);
        if constexpr (decltype(in_part)::value == 1) {
          probability = where_seen(probability, Vec{}, begin + key, last, j);
        }
        store(p, probability);
        sum[j] += probability;
      }
    });
    for (int j = 0; j < kVectors; ++j) {
      total[j] = total[j] * rescale[j] + sum[j];
      highest[j] = now[j];
    }

    for_tiles<kVectors>(width, [&](int64_t d, auto rows) {
      constexpr int kRows = decltype(rows)::value;
      Vec tile[kRows][kVectors] = {};
      if (block > 0) {
        load_tile(w.outputs + d * kPanel, kPanel, tile);
        for (int i = 0; i < kRows; ++i) {
          for (int j = 0; j < kVectors; ++j) tile[i][j] *= rescale[j];
        }
      }
      multiply(size, keys.v.at(begin) + d, 1, keys.v.stride, w.scores, kPanel, tile);
      store_tile(tile, w.outputs + d * kPanel, kPanel);
    });
  }

  finish_panel<kVectors>(highest, total, count, width, w.outputs, to);
}

#if defined(SIGLIP_ISA_AVX512)
// ---- Forward in bfloat16 -----------------------------------------------------------------------

// kTilePairs numbers from p, `left` of which there are, times `factor`.
Vec load_pairs(const float* p, int64_t left, Vec factor) {
  const auto half = [&](int64_t from) {
    return left > from ? load_up_to(p + from, left - from) * factor : Vec{};
  };
  return reinterpret_cast<Vec>(Bfloat16Cells::follow(half(0), half(kLanes)));
}

// Of keys.count rows of K and V.
void pair_keys(const Extents& e, const Keys& keys, const PairedKeys& to) {
  for (int64_t key = 0; key < whole_tiles(keys.count); ++key) {
    for (int64_t d = 0; d < e.width; d += kTilePairs) {
      const Vec pairs =
          key < keys.count ? load_pairs(keys.k.at(key) + d, e.width - d, splat(1.0F)) : Vec{};
      store(reinterpret_cast<float*>(to.k + key * to.k_stride + d / 2), pairs);
    }
  }
  for (int64_t key = 0; key < keys.count; key += kTilePairs) {
    for (int64_t d = 0; d < e.width; d += kLanes) {
      const auto row = [&](int64_t i) {
        return i < keys.count ? load_up_to(keys.v.at(i) + d, e.width - d) : Vec{};
      };
      Vec v[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        v[i] = reinterpret_cast<Vec>(
            Bfloat16Cells::interleave(row(key + 2 * i), row(key + 2 * i + 1)));
      }
      transpose(v);
      for (int64_t i = 0; i < kLanes; ++i) {
        store(reinterpret_cast<float*>(to.v + (d + i) * to.v_stride + key / 2), v[i]);
      }
    }
  }
}

// `count` queries, times c, side by side in the lanes.
template <int kVectors>
void pair_queries(Rows q, int64_t count, int64_t width, float c, Cell* to) {
  for (int64_t j = 0; j < kVectors; ++j) {
    for (int64_t d = 0; d < width; d += kTilePairs) {
      Vec v[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        const int64_t query = j * kLanes + i;
        v[i] = query < count ? load_pairs(q.at(query) + d, width - d, splat(c)) : Vec{};
      }
      transpose(v);
      for (int64_t i = 0; i < kLanes; ++i) {
        store(reinterpret_cast<float*>(to + (d / 2 + i) * kPanel + j * kLanes), v[i]);
      }
    }
  }
}

// sums (rows, kVectors · kLanes) of a panel = left (rows, cells) · right, in matrix tiles or in vectors.
// Tiles are whole: rows and cells are rounded up.
template <int kVectors>
void multiply_pairs(Bfloat16Tiles, const Cell* left, int64_t stride, int64_t rows,
                    const Cell* right, int64_t cells, float* sums) {
  for (int64_t row = 0; row < rows; row += kTileHeight) {
    zero_tile<0>();
    if constexpr (kVectors > 1) zero_tile<1>();
    if constexpr (kVectors > 2) zero_tile<2>();
    for (int64_t k = 0; k < cells; k += kTileCells) {
      load_tile<3>(left + row * stride + k, stride);
      const Cell* from = right + k * kPanel;
      load_tile<4>(from, kPanel);
      Bfloat16Tiles::add_tile<0, 3, 4>();
      if constexpr (kVectors > 1) {
        load_tile<5>(from + kLanes, kPanel);
        Bfloat16Tiles::add_tile<1, 3, 5>();
      }
      if constexpr (kVectors > 2) {
        load_tile<6>(from + 2 * kLanes, kPanel);
        Bfloat16Tiles::add_tile<2, 3, 6>();
      }
    }
    Cell* to = reinterpret_cast<Cell*>(sums + row * kPanel);
    store_tile<0>(to, kPanel);
    if constexpr (kVectors > 1) store_tile<1>(to + kLanes, kPanel);
    if constexpr (kVectors > 2) store_tile<2>(to + 2 * kLanes, kPanel);
  }
}

template <int kVectors>
void multiply_pairs(Bfloat16Cells, const Cell* left, int64_t stride, int64_t rows,
                    const Cell* right, int64_t cells, float* sums) {
  for_tiles<kVectors>(rows, [&](int64_t row, auto height) {
    constexpr int kRows = decltype(height)::value;
    IntVec sum[kRows][kVectors] = {};
    for (int64_t k = 0; k < cells; ++k) {
      IntVec vector[kVectors];
      for (int j = 0; j < kVectors; ++j) vector[j] = load_cells(right + k * kPanel + j * kLanes);
      for (int i = 0; i < kRows; ++i) {
        const IntVec cell = splat_cell(left[(row + i) * stride + k]);
        for (int j = 0; j < kVectors; ++j) {
          sum[i][j] = Bfloat16Cells::add_product(sum[i][j], cell, vector[j]);
        }
      }
    }
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kVectors; ++j) {
        store_cells(sums + (row + i) * kPanel + j * kLanes, sum[i][j]);
      }
    }
  });
}

// As forward_panel, with all scores of the panel at once. At least one key.
template <int kVectors, typename Cells>
void forward_panel_narrow(Cells by, int64_t key_count, Rows q, int64_t count, int64_t width,
                          float c, const ForwardWorkspace& w, const Results& to) {
  const PairedKeys& keys = w.paired_keys;
  const auto& [queries, probabilities] = w.paired_panel;
  pair_queries<kVectors>(q, count, width, c, queries);
  Vec highest[kVectors];
  for (int j = 0; j < kVectors; ++j) highest[j] = splat(-__builtin_huge_valf());
  for (int64_t key = 0; key < key_count; key += kTileHeight) {
    const int64_t rows = smaller(kTileHeight, key_count - key);
    multiply_pairs<kVectors>(by, keys.k + key * keys.k_stride, keys.k_stride, rows, queries,
                             ceil_div(width, 2), w.scores + key * kPanel);
    for (int64_t i = key; i < key + rows; ++i) {
      for (int j = 0; j < kVectors; ++j) {
        highest[j] = max(load(w.scores + i * kPanel + j * kLanes), highest[j]);
      }
    }
  }

  Vec total[kVectors] = {};
  for (int64_t key = 0; key < whole_tiles(key_count); key += 2) {
    for (int j = 0; j < kVectors; ++j) {
      const auto probability = [&](int64_t i) {
        if (i >= key_count) return Vec{};
        return exp2_nonpositive(load(w.scores + i * kPanel + j * kLanes) - highest[j]);
      };
      const Vec lower = probability(key);
      const Vec upper = probability(key + 1);
      total[j] += lower + upper;
      store_cells(probabilities + key / 2 * kPanel + j * kLanes,
                  Bfloat16Cells::interleave(lower, upper));
    }
  }

  multiply_pairs<kVectors>(by, keys.v, keys.v_stride, width, probabilities, ceil_div(key_count, 2),
                           w.outputs);
  finish_panel<kVectors>(highest, total, count, width, w.outputs, to);
}
#endif

// y (padded) = Σ_i weights[i] · rows[i]
void mix_rows(const float* weights, Rows rows, int64_t count, int64_t padded_width, float* y) {
  constexpr int kMost = 8;
  for (int64_t d = 0; d < padded_width; d += kMost * kLanes) {
    with_constant<kMost>((padded_width - d) / kLanes, [&](auto vectors) {
      Vec tile[1][decltype(vectors)::value] = {};
      multiply(count, weights, 0, 1, rows.data + d, rows.stride, tile);
      store_tile(tile, y + d, 0);
    });
  }
}

// One query. The rows of keys are whole vectors long.
void forward_row(const Extents& e, const Keys& keys, const float* q, float c,
                 const ForwardWorkspace& w, float* o, float* lse) {
  const int64_t width = e.padded_width();
  pad_row(q, e.width, w.queries);
  Vec highest = splat(-__builtin_huge_valf());
  for (int64_t key = 0; key < keys.count; key += kLanes) {
    const int64_t left = keys.count - key;
    const Vec s = row_dots({keys.k.at(key), keys.k.stride}, {w.queries, 0}, left, width) * splat(c);
    store(w.scores + key, s);
    for (int64_t i = left; i < kLanes; ++i) w.scores[key + i] = -__builtin_huge_valf();
    highest = max(load(w.scores + key), highest);
  }
  const float most = reduce_max(highest);
  Vec sums = {};
  for (int64_t key = 0; key < keys.count; key += kLanes) {
    const Vec probability = exp2_nonpositive(load(w.scores + key) - splat(most));
    store(w.scores + key, probability);
    sums += probability;  // what is past the last key adds 2^-125 to a sum of at least 1
  }
  const float total = reduce_add(sums);
  mix_rows(w.scores, keys.v, keys.count, width, w.outputs);
  scale_row(w.outputs, 1.0F / total, e.width, o);
  const Vec log_total = log(splat(total));
  *lse = most * kLn2 + log_total[0];
}

// Queries [begin, end) of an item; `next` is the item whose rows will be needed after it.
void forward_unit(const Forward& call, int64_t index, int64_t next, int64_t begin, int64_t end,
                  const ForwardWorkspace& w) {
  const Extents& e = call.items.e;
  const Item item = call.items.at(index);
  if (*w.item != index) {
    *w.keys = select_keys(e, item, 0, item.keys, call.k, call.v, call.mask_of(item),
                          !call.is_narrow(item) && wants_packing(e, item), w.store);
#if defined(SIGLIP_ISA_AVX512)
    if (call.is_narrow(item)) pair_keys(e, *w.keys, w.paired_keys);
#endif
    *w.item = index;
  }
  const Rows q = {call.q + item.query, e.stride};
  float* o = call.o + item.result;
  float* lse = call.lse + item.lse;
  if (w.keys->count == 0) {
    for (int64_t i = begin; i < end; ++i) {
      zero_row(e.width, o + i * e.result_stride());
      lse[i] = -__builtin_huge_valf();
    }
    return;
  }
  if (few_queries(item)) {
    for (int64_t i = begin; i < end; ++i) {
      Keys keys = *w.keys;
      if (item.causal) keys.count = item.last_key(i) + 1;
      forward_row(e, keys, q.at(i), call.c, w, o + i * e.result_stride(), lse + i);
    }
    return;
  }
  const Item after = call.items.at(next);
  const int64_t panels = cut_panels(end - begin).count();
  for_panels(end - begin, [&](int64_t panel, int64_t first, int64_t size, auto vectors) {
    if (next != index) {
      const Parts queries = {after.queries, panels};
      const Parts keys = {after.keys, panels};
      const int64_t from = keys.begin(panel);
      const int64_t to = keys.end(panel);
      prefetch_rows({call.k + after.key, e.stride}, from, to, e.width);
      prefetch_rows({call.v + after.key, e.stride}, from, to, e.width);
      prefetch_rows({call.q + after.query, e.stride}, queries.begin(panel), queries.end(panel),
                    e.width);
    }
    const int64_t at = begin + first;
    const Results to = {o + at * e.result_stride(), e.result_stride(), lse + at};
#if defined(SIGLIP_ISA_AVX512)
    if (call.narrow) {
      with_bfloat16_pairs([&](auto by) {
        forward_panel_narrow<decltype(vectors)::value>(by, w.keys->count, {q.at(at), q.stride},
                                                       size, e.width, call.c, w, to);
      });
      return;
    }
#endif
    Keys seen = *w.keys;
    if (item.causal) seen.count = item.last_key(at + size - 1) + 1;
    forward_panel<decltype(vectors)::value>(seen, item.last_key(at), {q.at(at), q.stride}, size,
                                            e.width, call.c, w, to);
  });
}

// ---- Backward ----------------------------------------------------------------------------------

struct BackwardWorkspace {
  KeyStore store;
  float* dk;             // (keys of a chunk, padded width), before scale
  float* dv;             // same
  float* query_rows;     // (kQueryBlock, padded width)
  float* dout_rows;      // same
  float* query_panels;   // (kBlockPanels, padded width, kPanel), times c
  float* dout_panels;    // same
  float* dquery_panels;  // same, before scale
  float* log2_totals;    // (kQueryBlock): lse in powers of 2
  float* deltas;         // (kQueryBlock): Σ_d dO ∘ O
  float* probabilities;  // (kBlockPanels, kKeyBlock, kPanel)
  float* dscores;        // same
};

int64_t key_chunks(const Extents& e) {
  if (e.packed) return 1;
  const int64_t wanted = ceil_div(kBackwardUnits, larger(1, e.items()));
  return larger(1, smaller(wanted, e.keys / kLeastKeyChunk));
}

BackwardWorkspace backward_workspace(const Extents& e, Carver& carver) {
  const int64_t width = e.padded_width();
  const int64_t keys = ceil_div(e.keys, key_chunks(e));
  BackwardWorkspace w;
  w.store = take_keys(e, keys, carver);
  w.dk = carver.take<float>(keys * width);
  w.dv = carver.take<float>(keys * width);
  w.query_rows = carver.take<float>(kQueryBlock * width);
  w.dout_rows = carver.take<float>(kQueryBlock * width);
  w.query_panels = carver.take<float>(kQueryBlock * width);
  w.dout_panels = carver.take<float>(kQueryBlock * width);
  w.dquery_panels = carver.take<float>(kQueryBlock * width);
  w.log2_totals = carver.take<float>(kQueryBlock);
  w.deltas = carver.take<float>(kQueryBlock);
  w.probabilities = carver.take<float>(kQueryBlock * kKeyBlock);
  w.dscores = carver.take<float>(kQueryBlock * kKeyBlock);
  return w;
}

// Operands of the backward, as pointers.
struct Backward {
  Items items;
  const float* dout;
  const float* q;
  const float* k;
  const float* v;
  const uint8_t* mask;
  const float* o;
  const float* lse;
  float scale;
  float* dk;
  float* dv;
};

// What the keys [begin, begin + size) mean for one panel of queries, the first of which is the
// block's query `first` and attends to the keys up to `last`: P, dS, and their share of dQ.
template <int kVectors>
void backward_panel(const Extents& e, const Keys& keys, int64_t begin, int64_t size, int64_t panel,
                    int64_t first, int64_t last, const BackwardWorkspace& w) {
  const int64_t at = panel * kPanel * e.padded_width();
  const float* queries = w.query_panels + at;
  const float* dout = w.dout_panels + at;
  float* dqueries = w.dquery_panels + at;
  float* probabilities = w.probabilities + panel * kPanel * kKeyBlock;
  float* dscores = w.dscores + panel * kPanel * kKeyBlock;
  Vec log2_total[kVectors];
  Vec delta[kVectors];
  for (int j = 0; j < kVectors; ++j) {
    log2_total[j] = load(w.log2_totals + first + j * kLanes);
    delta[j] = load(w.deltas + first + j * kLanes);
  }

  for_tiles<kVectors>(size, [&](int64_t key, auto rows) {
    Vec tile[decltype(rows)::value][kVectors] = {};
    multiply(e.width, keys.k.at(begin + key), keys.k.stride, 1, queries, kPanel, tile);
    store_tile(tile, probabilities + key * kPanel, kPanel);
  });
  for_keys(begin, size, last, [&](int64_t key, auto in_part) {
    for (int j = 0; j < kVectors; ++j) {
      float* p = probabilities + key * kPanel + j * kLanes;
      Vec probability = exp2_nonpositive(load(p) - log2_total[j]);
      if constexpr (decltype(in_part)::value == 1) {
        probability = where_seen(probability, Vec{}, begin + key, last, j);
      }
      store(p, probability);
    }
  });
  for_tiles<kVectors>(size, [&](int64_t key, auto rows) {
    constexpr int kRows = decltype(rows)::value;
    Vec tile[kRows][kVectors] = {};
    multiply(e.width, keys.v.at(begin + key), keys.v.stride, 1, dout, kPanel, tile);
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kVectors; ++j) {
        const Vec p = load(probabilities + (key + i) * kPanel + j * kLanes);
        tile[i][j] = p * (tile[i][j] - delta[j]);
      }
    }
    store_tile(tile, dscores + key * kPanel, kPanel);
  });
  for_tiles<kVectors>(e.width, [&](int64_t d, auto rows) {
    Vec tile[decltype(rows)::value][kVectors] = {};
    if (begin > 0) load_tile(dqueries + d * kPanel, kPanel, tile);
    multiply(size, keys.k.at(begin) + d, 1, keys.k.stride, dscores, kPanel, tile);
    store_tile(tile, dqueries + d * kPanel, kPanel);
  });
}

// The same for a few queries, in the first panel's memory, `last` being of the first of them, or more
// than all keys. dQ is kept by rows.
void backward_rows(const Extents& e, const Keys& keys, int64_t begin, int64_t size, int64_t count,
                   int64_t last, float c, const BackwardWorkspace& w) {
  const int64_t width = e.padded_width();
  for (int64_t query = 0; query < count; ++query) {
    float* row = w.query_panels;  // dS of this query, contiguous
    for (int64_t key = 0; key < size; key += kLanes) {
      const int64_t left = size - key;
      const Rows q = {w.query_rows + query * width, 0};
      const Rows dout = {w.dout_rows + query * width, 0};
      const Vec s = row_dots({keys.k.at(begin + key), keys.k.stride}, q, left, width);
      const Vec dp = row_dots({keys.v.at(begin + key), keys.v.stride}, dout, left, width);
      Vec p = exp2_nonpositive(s * splat(c) - splat(w.log2_totals[query]));
      for (int i = 0; i < kLanes; ++i) {
        if (begin + key + i > last + query) p[i] = 0.0F;
      }
      const Vec ds = p * (dp - splat(w.deltas[query]));
      for (int i = 0; i < kLanes && i < left; ++i) {
        w.probabilities[(key + i) * kPanel + query] = p[i];
        w.dscores[(key + i) * kPanel + query] = ds[i];
        row[key + i] = ds[i];
      }
    }
    float* share = w.dout_panels;
    float* dquery = w.dquery_panels + query * width;
    mix_rows(row, {keys.k.at(begin), keys.k.stride}, size, width, begin > 0 ? share : dquery);
    if (begin > 0) {
      for (int64_t d = 0; d < width; d += kLanes) {
        store(dquery + d, load(dquery + d) + load(share + d));
      }
    }
  }
}

// dkeys[key][d] (+)= Σ_query weights[key][query] · rows[query][d] over the queries of a block.
void accumulate_keys(const float* weights, const float* rows, int64_t count, int64_t size,
                     int64_t width, bool first, float* dkeys) {
  const Parts columns = cut(width / kLanes, kTileVectors);
  const LaneParts panels = cut_panels(count);
  for (int64_t part = 0; part < columns.count; ++part) {
    const int64_t d = columns.begin(part) * kLanes;
    with_constant<kTileVectors>(columns.end(part) - columns.begin(part), [&](auto vectors) {
      constexpr int kVectors = decltype(vectors)::value;
      for_tiles<kVectors>(size, [&](int64_t key, auto height) {
        Vec tile[decltype(height)::value][kVectors] = {};
        float* target = dkeys + key * width + d;
        if (!first) load_tile(target, width, tile);
        for (int64_t panel = 0; panel < panels.count(); ++panel) {
          const int64_t query = panels.begin(panel);
          multiply(panels.end(panel) - query, weights + (panel * kKeyBlock + key) * kPanel, kPanel,
                   1, rows + query * width + d, width, tile);
        }
        store_tile(tile, target, width);
      });
    });
  }
}

// Queries [query, query + count) against the keys of a chunk, the first of which is the item's
// key `first_key`: adds to dk and dv of the workspace and writes these queries' dq.
void backward_block(const Backward& call, const Item& item, const Keys& keys, int64_t first_key,
                    int64_t query, int64_t count, const BackwardWorkspace& w, float* dq) {
  const Extents& e = call.items.e;
  const int64_t width = e.padded_width();
  const int64_t origin = item.query + query * e.stride;
  const int64_t result = item.result + query * e.result_stride();
  const Rows q = {call.q + origin, e.stride};
  const Rows dout = {call.dout + result, e.result_stride()};
  const Rows o = {call.o + result, e.result_stride()};
  const float* lse = call.lse + item.lse + query;
  const float c = call.scale * kLog2E;

  for (int64_t i = 0; i < count; ++i) {
    pad_row(q.at(i), e.width, w.query_rows + i * width);
    pad_row(dout.at(i), e.width, w.dout_rows + i * width);
  }
  for (int64_t i = 0; i < kQueryBlock; i += kLanes) {
    const int64_t left = count - i;
    if (left <= 0) {
      store(w.log2_totals + i, Vec{});
      store(w.deltas + i, Vec{});
      continue;
    }
    store(w.log2_totals + i, load_up_to(lse + i, left) * splat(kLog2E));
    store(w.deltas + i, row_dots({dout.at(i), dout.stride}, {o.at(i), o.stride}, left, e.width));
  }

  const bool few = few_queries(item);
  if (!few) {
    for_panels(count, [&](int64_t panel, int64_t first, int64_t size, auto vectors) {
      constexpr int kVectors = decltype(vectors)::value;
      const int64_t at = panel * kPanel * width;
      rows_to_lanes<kVectors>({q.at(first), q.stride}, size, e.width, c, w.query_panels + at);
      rows_to_lanes<kVectors>({dout.at(first), dout.stride}, size, e.width, 1.0F,
                              w.dout_panels + at);
    });
  }

  const Parts blocks = cut(keys.count, kKeyBlock);
  for (int64_t block = 0; block < blocks.count; ++block) {
    const int64_t begin = blocks.begin(block);
    const int64_t size = blocks.end(block) - begin;
    // In the order of the chunk's keys; without a limit, no fewer than there are.
    const auto last_key = [&](int64_t i) {
      return item.causal ? query + i - first_key : keys.count + count;
    };
    if (few) {
      backward_rows(e, keys, begin, size, count, last_key(0), c, w);
    } else {
      for_panels(count, [&](int64_t panel, int64_t first, int64_t, auto vectors) {
        backward_panel<decltype(vectors)::value>(e, keys, begin, size, panel, first,
                                                 last_key(first), w);
      });
    }
    const bool first = query == 0;
    accumulate_keys(w.probabilities, w.dout_rows, count, size, width, first, w.dv + begin * width);
    accumulate_keys(w.dscores, w.query_rows, count, size, width, first, w.dk + begin * width);
  }

  float* target = dq + origin;
  if (keys.count == 0) {
    for (int64_t i = 0; i < count; ++i) zero_row(e.width, target + i * e.stride);
  } else if (few) {
    for (int64_t i = 0; i < count; ++i) {
      scale_row(w.dquery_panels + i * width, call.scale, e.width, target + i * e.stride);
    }
  } else {
    for_panels(count, [&](int64_t panel, int64_t first, int64_t size, auto vectors) {
      Vec factor[decltype(vectors)::value];
      for (Vec& f : factor) f = splat(call.scale);
      lanes_to_rows(w.dquery_panels + panel * kPanel * width, factor, size, e.width,
                    target + first * e.stride, e.stride);
    });
  }
}

// One chunk of keys of one head against all its queries.
void backward_unit(const Backward& call, const Item& item, int64_t begin, int64_t end,
                   const BackwardWorkspace& w, float* dq) {
  const Extents& e = call.items.e;
  const uint8_t* mask = call.mask == nullptr ? nullptr : call.mask + item.mask;
  const Keys keys =
      select_keys(e, item, begin, end, call.k, call.v, mask, wants_packing(e, item), w.store);

  const LaneParts blocks = cut_lanes(item.queries, kQueryBlock);
  for (int64_t block = 0; block < blocks.count(); ++block) {
    const int64_t query = blocks.begin(block);
    backward_block(call, item, keys, begin, query, blocks.end(block) - query, w, dq);
  }

  const int64_t width = e.padded_width();
  int64_t next = 0;  // of the keys that count
  for (int64_t key = begin; key < end; ++key) {
    const int64_t at = item.key + key * e.stride;
    const bool counts =
        next < keys.count && item.queries > 0 && (mask == nullptr || w.store.index[next] == key);
    if (counts) {
      scale_row(w.dk + next * width, call.scale, e.width, call.dk + at);
      scale_row(w.dv + next * width, 1.0F, e.width, call.dv + at);
      ++next;
    } else {
      zero_row(e.width, call.dk + at);
      zero_row(e.width, call.dv + at);
    }
  }
}

size_t forward_worker_bytes(const Extents& e, bool narrow) {
  Carver carver(nullptr);
  forward_workspace(e, narrow, carver);
  return carver.bytes();
}

size_t backward_worker_bytes(const Extents& e) {
  Carver carver(nullptr);
  backward_workspace(e, carver);
  return carver.bytes();
}

// dQ of every chunk of keys but the first.
int64_t partial_elements(const Extents& e) {
  return (key_chunks(e) - 1) * e.batch * e.queries * e.stride;
}

// What a call needs besides the workspaces: the order of its segments and parts of dQ.
struct Shared {
  int32_t* order;
  float* partial;
};

Shared take_shared(const Extents& e, int64_t partial, Carver& carver) {
  Shared shared;
  shared.order = carver.take<int32_t>(e.sequences);
  shared.partial = carver.take<float>(partial);
  return shared;
}

size_t shared_bytes(const Extents& e, int64_t partial) {
  Carver carver(nullptr);
  take_shared(e, partial, carver);
  return carver.bytes();
}

}  // namespace

size_t attention_forward_scratch(int threads, In q, In k, MaybeIn segments, MaybeIn key_segments,
                                 int64_t narrow) {
  const Extents e = extents_of(q, k, segments, key_segments);
  return shared_bytes(e, 0) + static_cast<size_t>(threads) *
                                  forward_worker_bytes(e, narrow != 0 && has_bfloat16_pairs());
}

void attention_forward(Stream& stream, In q, In k, In v, MaybeIn key_mask, MaybeIn segments,
                       MaybeIn key_segments, MaybeIn causal, double scale, int64_t narrow, Out o,
                       Out lse, Scratch scratch) {
  constexpr char kName[] = "attention_forward";
  const Limits limits = {key_mask, segments, key_segments, causal};
  const Extents e = checked_extents(kName, q, k, v, limits);
  check_elements(kName, "o", o, e.batch * e.queries * e.result_stride());
  check_elements(kName, "lse", lse, e.batch * e.heads * e.queries);
  check_scratch(kName, scratch,
                attention_forward_scratch(stream.threads(), q, k, segments, key_segments, narrow));
  Carver carver(scratch.data);
  const Shared shared = take_shared(e, 0, carver);
  std::byte* const workers = scratch.data + carver.bytes();
  const bool in_pairs = narrow != 0 && has_bfloat16_pairs();
  const Forward call = {items_of(e, limits, shared.order),
                        in_pairs && !causal.present(),
                        q.data() + part_offset(q, 0),
                        k.data() + part_offset(k, 1),
                        v.data() + part_offset(v, 2),
                        key_mask.present() ? key_mask.data<uint8_t>() : nullptr,
                        static_cast<float>(scale * 1.44269504088896341),
                        o.data(),
                        lse.data()};

  const size_t worker_bytes = forward_worker_bytes(e, in_pairs);
  const auto workspace = [&](int worker) {
    Carver part(workers + static_cast<size_t>(worker) * worker_bytes);
    return forward_workspace(e, in_pairs, part);
  };
  for (int worker = 0; worker < stream.threads(); ++worker) *workspace(worker).item = -1;

  // A unit is a chunk of the queries of an item. Segments have as many as the longest could have;
  // those that one does not have are empty.
  const int64_t most = ceil_div(e.queries, kForwardChunk);
  const int64_t chunks = segments.present() ? smaller(most, 8) : most;
  const Parts tasks = share_out(call.items, e.items() * chunks);
  parallel_as_free(stream, tasks.count, [&](int64_t task, int worker) {
    const ForwardWorkspace w = workspace(worker);
#if defined(SIGLIP_ISA_AVX512)
    std::optional<TileRegisters> registers;
    if (call.narrow && has_bfloat16_tiles()) registers.emplace();
#endif
    for (int64_t unit = tasks.begin(task); unit < tasks.end(task); ++unit) {
      const int64_t index = unit / chunks;
      const Item item = call.items.at(index);
      const Parts vectors = {ceil_div(item.queries, kLanes), chunks};
      const int64_t begin = vectors.begin(unit % chunks) * kLanes;
      const int64_t end = smaller(item.queries, vectors.end(unit % chunks) * kLanes);
      if (begin >= end) continue;
      forward_unit(call, index, smaller((unit + 1) / chunks, e.items() - 1), begin, end, w);
    }
  });
  if (!segments.present()) return;
  const int64_t first = call.items.starts[e.sequences];
  std::memset(o.data() + first * e.result_stride(), 0,
              static_cast<size_t>((e.queries - first) * e.result_stride()) * sizeof(float));
  for (int64_t head = 0; head < e.heads; ++head) {
    for (int64_t row = first; row < e.queries; ++row) {
      call.lse[head * e.queries + row] = -__builtin_huge_valf();
    }
  }
}

size_t attention_backward_scratch(int threads, In q, In k, MaybeIn segments, MaybeIn key_segments) {
  const Extents e = extents_of(q, k, segments, key_segments);
  return shared_bytes(e, partial_elements(e)) +
         static_cast<size_t>(threads) * backward_worker_bytes(e);
}

void attention_backward(Stream& stream, In dout, In q, In k, In v, MaybeIn key_mask,
                        MaybeIn segments, MaybeIn key_segments, MaybeIn causal, In o, In lse,
                        double scale, Out dq, Out dk, Out dv, Scratch scratch) {
  constexpr char kName[] = "attention_backward";
  const Limits limits = {key_mask, segments, key_segments, causal};
  const Extents e = checked_extents(kName, q, k, v, limits);
  check_elements(kName, "dout", dout, e.batch * e.queries * e.result_stride());
  check_elements(kName, "o", o, e.batch * e.queries * e.result_stride());
  check_elements(kName, "lse", lse, e.batch * e.heads * e.queries);
  check_elements(kName, "dq", dq, q.elements());
  check_elements(kName, "dk", dk, k.elements());
  check_elements(kName, "dv", dv, k.elements());
  if (is_joined(q)) {
    check_rank(kName, "dq", dq, 5);
    check_joined(kName, "dk", dk, dq);
    check_joined(kName, "dv", dv, dq);
  }
  check_scratch(kName, scratch,
                attention_backward_scratch(stream.threads(), q, k, segments, key_segments));
  Carver carver(scratch.data);
  const Shared shared = take_shared(e, partial_elements(e), carver);
  std::byte* const workers = scratch.data + carver.bytes();
  const Backward call = {items_of(e, limits, shared.order),
                         dout.data(),
                         q.data() + part_offset(q, 0),
                         k.data() + part_offset(k, 1),
                         v.data() + part_offset(v, 2),
                         key_mask.present() ? key_mask.data<uint8_t>() : nullptr,
                         o.data(),
                         lse.data(),
                         static_cast<float>(scale),
                         dk.data() + part_offset(dk, 1),
                         dv.data() + part_offset(dv, 2)};
  float* dq_data = dq.data() + part_offset(dq, 0);

  const size_t worker_bytes = backward_worker_bytes(e);
  const int64_t size = dq.elements();
  const int64_t chunks = key_chunks(e);
  const Parts tasks = share_out(call.items, e.items() * chunks);
  parallel_as_free(stream, tasks.count, [&](int64_t task, int worker) {
    Carver part(workers + static_cast<size_t>(worker) * worker_bytes);
    const BackwardWorkspace w = backward_workspace(e, part);
    for (int64_t unit = tasks.begin(task); unit < tasks.end(task); ++unit) {
      const Item item = call.items.at(unit / chunks);
      const int64_t chunk = unit % chunks;
      const Parts keys = {item.keys, chunks};
      backward_unit(call, item, keys.begin(chunk), keys.end(chunk), w,
                    chunk == 0 ? dq_data : shared.partial + (chunk - 1) * size);
    }
  });
  // Rows that belong to no sequence.
  const auto zero_rows = [&](float* gradient, int64_t rows, const int32_t* starts) {
    for (int64_t row = starts[e.sequences]; row < rows; ++row) {
      zero_row(e.heads * e.width, gradient + row * e.stride);
    }
  };
  if (segments.present()) zero_rows(dq_data, e.queries, call.items.starts);
  if (e.packed) {
    const int32_t* starts = segments.present() ? call.items.starts : call.items.key_starts;
    zero_rows(call.dk, e.keys, starts);
    zero_rows(call.dv, e.keys, starts);
  }
  if (chunks == 1) return;
  const int64_t tokens = e.batch * e.queries;
  const Parts sums = {tokens, larger(1, smaller(tokens, size * chunks / kTaskProducts))};
  stream.parallel(sums.count, [&](int64_t task, int) {
    for (int64_t token = sums.begin(task); token < sums.end(task); ++token) {
      for (int64_t i = token * e.stride; i < token * e.stride + e.heads * e.width; ++i) {
        float sum = dq_data[i];
        for (int64_t chunk = 1; chunk < chunks; ++chunk) {
          sum += shared.partial[(chunk - 1) * size + i];
        }
        dq_data[i] = sum;
      }
    }
  });
}

}  // namespace siglip::SIGLIP_CPU
