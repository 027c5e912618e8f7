// Heads lie in the lanes, tokens over the rows of a register tile; the products back to the width
// have the width in the lanes. Tokens are read where they are.
#include "ops/attention_pool/attention_pool.h"

#include "cpu/check.h"
#include "cpu/float64.h"
#include "cpu/segments.h"
#include "cpu/simd.h"
#include "cpu/tile.h"

namespace siglip::SIGLIP_CPU {
namespace {

constexpr float kLog2E = 1.44269504088896341F;
constexpr float kLn2 = 0.693147180559945309F;
constexpr int64_t kTileColumns = 512;  // of du, summed at a time, in float64 on the stack

struct Extents {
  int64_t batch;
  int64_t tokens;
  int64_t width;
  int64_t heads;
  int64_t sequences;
  bool packed;
  bool shared;  // one u for all sequences

  int64_t vectors_end() const { return width / kLanes * kLanes; }
  int64_t padded_width() const { return ceil_div(width, kLanes) * kLanes; }
  int64_t panels() const { return cut_panels(heads).count(); }
  int64_t queries() const { return heads * width; }  // elements of one u
};

Extents extents_of(const In& x, const In& u, const MaybeIn& segments) {
  const int64_t sequences = segments.present() ? larger(0, segments.elements() - 1) : x.extent(0);
  return {x.extent(0), x.extent(1),        x.extent(2),  u.extent(-2),
          sequences,   segments.present(), u.rank() == 2};
}

Extents check_operands(const char* who, const In& x, const In& u, const MaybeIn& key_mask,
                       const MaybeIn& segments) {
  check_rank(who, "x", x, 3);
  if (u.rank() != 2) check_rank(who, "u", u, 3);
  const Extents e = extents_of(x, u, segments);
  check_extent(who, "u", u, -1, e.width);
  if (!e.shared) check_extent(who, "u", u, 0, e.sequences);
  if (key_mask.present()) check_elements(who, "key_mask", key_mask, e.batch * e.tokens);
  if (segments.present()) {
    check_extent(who, "x", x, 0, 1);
    if (key_mask.present()) {
      fail("ERR_ARGUMENT", "%s: key_mask must be absent with segments, got both", who);
    }
    check_segments(who, "segments", segments, e.tokens);
  }
  return e;
}

// Operands of either direction, as pointers.
struct Call {
  Extents e;
  const float* x;
  const float* u;
  const uint8_t* mask;
  const int32_t* starts;
  const int32_t* order;

  const float* u_of(int64_t sequence) const { return e.shared ? u : u + sequence * e.queries(); }
};

// The tokens of one sequence.
struct Tokens {
  Rows rows;
  int64_t first;
  int64_t count;
  const uint8_t* mask;
};

Tokens tokens_of(const Call& call, int64_t sequence) {
  const Extents& e = call.e;
  const int64_t first = e.packed ? call.starts[sequence] : sequence * e.tokens;
  const int64_t count = e.packed ? call.starts[sequence + 1] - first : e.tokens;
  return {{call.x + first * e.width, e.width},
          first,
          count,
          call.mask == nullptr ? nullptr : call.mask + first};
}

// body(begin, end) over the runs of tokens that count.
template <typename Body>
void for_runs(const Tokens& tokens, const Body& body) {
  if (tokens.mask == nullptr) {
    if (tokens.count > 0) body(int64_t{0}, tokens.count);
    return;
  }
  for (int64_t begin = 0; begin < tokens.count; ++begin) {
    if (tokens.mask[begin] == 0) continue;
    int64_t end = begin + 1;
    while (end < tokens.count && tokens.mask[end] != 0) ++end;
    body(begin, end);
    begin = end;
  }
}

// 2^x for x <= 0; 2^-125 instead of anything less, NaN for NaN.
inline Vec exp2_nonpositive(Vec x) { return exp2_bounded(max(splat(-125.0F), x)); }

inline float log_of(float x) { return static_cast<float>(__builtin_log(static_cast<double>(x))); }

// Heads of (H, D) in the lanes: (padded width, kPanel) per panel, times `factor`.
void pack_heads(const Extents& e, const float* heads, float factor, float* packed) {
  for_panels(e.heads, [&](int64_t panel, int64_t first, int64_t size, auto vectors) {
    rows_to_lanes<decltype(vectors)::value>({heads + first * e.width, e.width}, size, e.width,
                                            factor, packed + panel * e.padded_width() * kPanel);
  });
}

// out (tokens, kPanel) = tokens · panelᵀ; tile(first token, tile) may change a tile before it is kept.
template <int kVectors, typename Change>
void score(const Extents& e, const Tokens& tokens, const float* panel, float* out,
           const Change& change) {
  for_runs(tokens, [&](int64_t begin, int64_t end) {
    for_tiles<kVectors>(end - begin, [&](int64_t row, auto rows) {
      Vec tile[decltype(rows)::value][kVectors] = {};
      multiply(e.width, tokens.rows.at(begin + row), e.width, 1, panel, kPanel, tile);
      change(begin + row, tile);
      store_tile(tile, out + (begin + row) * kPanel, kPanel);
    });
  });
}

// out (heads, D) = factor[head] · Σ_t weights[t][head] · tokens[t]. weights (tokens, kPanel).
void mix_tokens(const Extents& e, const Tokens& tokens, const float* weights, const float* factor,
                int64_t heads, float* out) {
  const Parts columns = cut(e.width / kLanes, kTileVectors);
  for (int64_t part = 0; part < columns.count; ++part) {
    const int64_t d = columns.begin(part) * kLanes;
    with_constant<kTileVectors>(columns.end(part) - columns.begin(part), [&](auto vectors) {
      constexpr int kVectors = decltype(vectors)::value;
      for_tiles<kVectors>(heads, [&](int64_t head, auto rows) {
        constexpr int kRows = decltype(rows)::value;
        Vec tile[kRows][kVectors] = {};
        for_runs(tokens, [&](int64_t begin, int64_t end) {
          multiply(end - begin, weights + begin * kPanel + head, 1, kPanel,
                   tokens.rows.at(begin) + d, e.width, tile);
        });
        for (int i = 0; i < kRows; ++i) {
          for (int j = 0; j < kVectors; ++j) tile[i][j] *= splat(factor[head + i]);
        }
        store_tile(tile, out + head * e.width + d, e.width);
      });
    });
  }
  for (int64_t head = 0; head < heads; ++head) {
    for (int64_t d = e.vectors_end(); d < e.width; ++d) {
      float sum = 0.0F;
      for_runs(tokens, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t)
          sum += weights[t * kPanel + head] * tokens.rows.at(t)[d];
      });
      out[head * e.width + d] = factor[head] * sum;
    }
  }
}

// dtokens[t] (+)= Σ_head ds[t][head] · u[head] + p[t][head] · dy[head] over one panel of heads.
void spread_heads(const Extents& e, const Tokens& tokens, const float* ds, const float* u,
                  const float* p, const float* dy, int64_t heads, bool add, float* dtokens) {
  for_runs(tokens, [&](int64_t begin, int64_t end) {
    const Parts columns = cut(e.width / kLanes, kTileVectors);
    for (int64_t part = 0; part < columns.count; ++part) {
      const int64_t d = columns.begin(part) * kLanes;
      with_constant<kTileVectors>(columns.end(part) - columns.begin(part), [&](auto vectors) {
        constexpr int kVectors = decltype(vectors)::value;
        for_tiles<kVectors>(end - begin, [&](int64_t row, auto rows) {
          Vec tile[decltype(rows)::value][kVectors] = {};
          const int64_t token = begin + row;
          float* target = dtokens + token * e.width + d;
          if (add) load_tile(target, e.width, tile);
          multiply(heads, ds + token * kPanel, kPanel, 1, u + d, e.width, tile);
          multiply(heads, p + token * kPanel, kPanel, 1, dy + d, e.width, tile);
          store_tile(tile, target, e.width);
        });
      });
    }
    for (int64_t token = begin; token < end; ++token) {
      for (int64_t d = e.vectors_end(); d < e.width; ++d) {
        float sum = add ? dtokens[token * e.width + d] : 0.0F;
        for (int64_t head = 0; head < heads; ++head) {
          sum += ds[token * kPanel + head] * u[head * e.width + d];
          sum += p[token * kPanel + head] * dy[head * e.width + d];
        }
        dtokens[token * e.width + d] = sum;
      }
    }
  });
}

struct Workspace {
  int64_t* packed;  // whose u is packed now: a sequence, or 0 where all share it
  float* u;         // panels of log2(e) · u
  float* dy;        // panels of dy
  float* scores;    // (tokens, kPanel), then the probabilities
  float* dscores;   // (tokens, kPanel)
};

Workspace take_workspace(const Extents& e, bool backward, Carver& carver) {
  const int64_t panels = e.panels() * e.padded_width() * kPanel;
  Workspace w = {};
  w.packed = carver.take<int64_t>(1);
  w.u = carver.take<float>(panels);
  w.scores = carver.take<float>(e.tokens * kPanel);
  if (backward) {
    w.dy = carver.take<float>(panels);
    w.dscores = carver.take<float>(e.tokens * kPanel);
  }
  return w;
}

void pack_queries(const Call& call, int64_t sequence, const Workspace& w) {
  const int64_t wanted = call.e.shared ? 0 : sequence;
  if (*w.packed == wanted) return;
  pack_heads(call.e, call.u_of(sequence), kLog2E, w.u);
  *w.packed = wanted;
}

void forward_sequence(const Call& call, int64_t sequence, const Workspace& w, float* y,
                      float* lse) {
  const Extents& e = call.e;
  const Tokens tokens = tokens_of(call, sequence);
  pack_queries(call, sequence, w);
  for_panels(e.heads, [&](int64_t panel, int64_t first, int64_t heads, auto vectors) {
    constexpr int kVectors = decltype(vectors)::value;
    Vec highest[kVectors];
    Vec total[kVectors] = {};
    for (int j = 0; j < kVectors; ++j) highest[j] = splat(-__builtin_huge_valf());
    score<kVectors>(e, tokens, w.u + panel * e.padded_width() * kPanel, w.scores,
                    [&](int64_t, auto& tile) {
                      for (auto& row : tile) {
                        for (int j = 0; j < kVectors; ++j) highest[j] = max(row[j], highest[j]);
                      }
                    });
    bool any = false;
    for_runs(tokens, [&](int64_t begin, int64_t end) {
      any = true;
      for (int64_t t = begin; t < end; ++t) {
        for (int j = 0; j < kVectors; ++j) {
          float* p = w.scores + t * kPanel + j * kLanes;
          const Vec probability = exp2_nonpositive(load(p) - highest[j]);
          store(p, probability);
          total[j] += probability;
        }
      }
    });
    float inverse[kPanel] = {};
    for (int64_t head = 0; head < heads; ++head) {
      const float most = highest[head / kLanes][head % kLanes];
      const float sum = total[head / kLanes][head % kLanes];
      inverse[head] = any ? 1.0F / sum : 0.0F;
      lse[sequence * e.heads + first + head] =
          any ? most * kLn2 + log_of(sum) : -__builtin_huge_valf();
    }
    mix_tokens(e, tokens, w.scores, inverse, heads, y + (sequence * e.heads + first) * e.width);
  });
}

// du (H, D) of this sequence alone; dx of its tokens.
void backward_sequence(const Call& call, int64_t sequence, const float* dy, const float* y,
                       const float* lse, const Workspace& w, float* dx, float* du) {
  const Extents& e = call.e;
  const Tokens tokens = tokens_of(call, sequence);
  const float* dy_heads = dy + sequence * e.queries();
  const float* y_heads = y + sequence * e.queries();
  float* dtokens = dx + tokens.first * e.width;
  pack_queries(call, sequence, w);
  pack_heads(e, dy_heads, 1.0F, w.dy);
  if (tokens.mask != nullptr) {
    for (int64_t t = 0; t < tokens.count; ++t) {
      if (tokens.mask[t] != 0) continue;
      std::memset(dtokens + t * e.width, 0, static_cast<size_t>(e.width) * sizeof(float));
    }
  }
  for_panels(e.heads, [&](int64_t panel, int64_t first, int64_t heads, auto vectors) {
    constexpr int kVectors = decltype(vectors)::value;
    float log2_totals[kPanel] = {};
    float deltas[kPanel] = {};
    float ones[kPanel];
    for (float& one : ones) one = 1.0F;
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t at = (first + head) * e.width;
      log2_totals[head] = lse[sequence * e.heads + first + head] * kLog2E;
      deltas[head] = static_cast<float>(dot_float64(dy_heads + at, y_heads + at, e.width));
    }
    const int64_t at = panel * e.padded_width() * kPanel;
    score<kVectors>(e, tokens, w.u + at, w.scores, [&](int64_t, auto& tile) {
      for (auto& row : tile) {
        for (int j = 0; j < kVectors; ++j) {
          row[j] = exp2_nonpositive(row[j] - load(log2_totals + j * kLanes));
        }
      }
    });
    score<kVectors>(e, tokens, w.dy + at, w.dscores, [&](int64_t token, auto& tile) {
      for (auto& row : tile) {
        for (int j = 0; j < kVectors; ++j) {
          const Vec p = load(w.scores + token * kPanel + j * kLanes);
          row[j] = p * (row[j] - load(deltas + j * kLanes));
        }
        ++token;
      }
    });
    spread_heads(e, tokens, w.dscores, call.u_of(sequence) + first * e.width, w.scores,
                 dy_heads + first * e.width, heads, first > 0, dtokens);
    mix_tokens(e, tokens, w.dscores, ones, heads, du + first * e.width);
  });
}

// The order of the segments, and du of every sequence where they share u.
struct Shared {
  int32_t* order;
  float* du;
};

Shared take_shared(const Extents& e, bool backward, Carver& carver) {
  Shared shared;
  shared.order = carver.take<int32_t>(e.sequences);
  shared.du = carver.take<float>(backward && e.shared ? e.sequences * e.queries() : 0);
  return shared;
}

size_t scratch_bytes(int threads, const Extents& e, bool backward) {
  Carver shared(nullptr);
  take_shared(e, backward, shared);
  Carver worker(nullptr);
  take_workspace(e, backward, worker);
  return shared.bytes() + static_cast<size_t>(threads) * worker.bytes();
}

// body(sequence, workspace) for every sequence, the longest first.
template <typename Body>
void for_sequences(Stream& stream, const Call& call, bool backward, std::byte* workers,
                   const Body& body) {
  Carver sizes(nullptr);
  take_workspace(call.e, backward, sizes);
  const auto workspace = [&](int worker) {
    Carver carver(workers + static_cast<size_t>(worker) * sizes.bytes());
    return take_workspace(call.e, backward, carver);
  };
  for (int worker = 0; worker < stream.threads(); ++worker) *workspace(worker).packed = -1;
  parallel_as_free(stream, call.e.sequences, [&](int64_t task, int worker) {
    body(call.order == nullptr ? task : call.order[task], workspace(worker));
  });
}

Call call_of(const Extents& e, const In& x, const In& u, const MaybeIn& key_mask,
             const MaybeIn& segments, int32_t* order) {
  Call call = {e,       x.data(), u.data(), key_mask.present() ? key_mask.data<uint8_t>() : nullptr,
               nullptr, nullptr};
  if (segments.present()) {
    call.starts = segments.data<int32_t>();
    longest_first(call.starts, e.sequences, order);
    call.order = order;
  }
  return call;
}

}  // namespace

size_t attention_pool_forward_scratch(int threads, In x, In u, MaybeIn segments) {
  if (x.rank() != 3 || u.rank() < 2) return 0;
  return scratch_bytes(threads, extents_of(x, u, segments), false);
}

void attention_pool_forward(Stream& stream, In x, In u, MaybeIn key_mask, MaybeIn segments, Out y,
                            Out lse, Scratch scratch) {
  constexpr char kName[] = "attention_pool_forward";
  const Extents e = check_operands(kName, x, u, key_mask, segments);
  check_elements(kName, "y", y, e.sequences * e.queries());
  check_elements(kName, "lse", lse, e.sequences * e.heads);
  check_scratch(kName, scratch, scratch_bytes(stream.threads(), e, false));
  Carver carver(scratch.data);
  const Shared shared = take_shared(e, false, carver);
  const Call call = call_of(e, x, u, key_mask, segments, shared.order);
  float* y_data = y.data();
  float* lse_data = lse.data();
  for_sequences(stream, call, false, scratch.data + carver.bytes(),
                [&](int64_t sequence, const Workspace& w) {
                  forward_sequence(call, sequence, w, y_data, lse_data);
                });
}

size_t attention_pool_backward_scratch(int threads, In x, In u, MaybeIn segments) {
  if (x.rank() != 3 || u.rank() < 2) return 0;
  return scratch_bytes(threads, extents_of(x, u, segments), true);
}

void attention_pool_backward(Stream& stream, In dy, In x, In u, MaybeIn key_mask, MaybeIn segments,
                             In y, In lse, Out dx, Out du, Scratch scratch) {
  constexpr char kName[] = "attention_pool_backward";
  const Extents e = check_operands(kName, x, u, key_mask, segments);
  check_elements(kName, "dy", dy, e.sequences * e.queries());
  check_elements(kName, "y", y, e.sequences * e.queries());
  check_elements(kName, "lse", lse, e.sequences * e.heads);
  check_elements(kName, "dx", dx, x.elements());
  check_elements(kName, "du", du, u.elements());
  check_scratch(kName, scratch, scratch_bytes(stream.threads(), e, true));
  Carver carver(scratch.data);
  const Shared shared = take_shared(e, true, carver);
  const Call call = call_of(e, x, u, key_mask, segments, shared.order);
  const float* dy_data = dy.data();
  const float* y_data = y.data();
  const float* lse_data = lse.data();
  float* dx_data = dx.data();
  float* du_data = du.data();
  for_sequences(stream, call, true, scratch.data + carver.bytes(),
                [&](int64_t sequence, const Workspace& w) {
                  float* part = (e.shared ? shared.du : du_data) + sequence * e.queries();
                  backward_sequence(call, sequence, dy_data, y_data, lse_data, w, dx_data, part);
                });
  if (e.packed) {
    const int64_t end = call.starts[e.sequences] * e.width;
    std::memset(dx_data + end, 0, static_cast<size_t>(dx.elements() - end) * sizeof(float));
  }
  if (!e.shared) return;
  const Parts columns = cut(e.queries(), kTileColumns);
  stream.parallel(columns.count, [&](int64_t task, int) {
    const int64_t begin = columns.begin(task);
    const int64_t size = columns.end(task) - begin;
    double sum[kTileColumns] = {};
    add_rows_float64(shared.du + begin, e.sequences, e.queries(), size, sum);
    for (int64_t i = 0; i < size; ++i) du_data[begin + i] = static_cast<float>(sum[i]);
  });
}

}  // namespace siglip::SIGLIP_CPU
