// Logits exist for one block of prototypes at a time, for all rows: as many prototypes as make a tile
// of 4 MiB, but no fewer than fill a product. Products over the width are those of gemm.h, between them
// every row is worked on alone. Running maxima and sums carry a softmax from block to block:
//   M' = max(M, max_k x_k),   Z' = e^(M − M') Z + Σ_k e^(x_k − M').
#include "ops/prototype_loss/prototype_loss.h"

#include <math.h>

#include "cpu/check.h"
#include "cpu/float64.h"
#include "cpu/gemm.h"
#include "cpu/partition.h"
#include "cpu/simd.h"
#include "cpu/tile.h"

namespace siglip::SIGLIP_CPU {
namespace {

constexpr int64_t kTileLogits = int64_t{1} << 20;
constexpr int64_t kLeastColumns = 256;
constexpr int64_t kExponentials = 8;  // elements read or written that one exponential is worth
constexpr int64_t kFloatTerms = 32;   // vectors summed in float32 before they are in float64
constexpr int64_t kColumnGroup = 64;  // columns that are reduced over the rows together
constexpr float kLowest = -INFINITY;

struct Extents {
  int64_t students;
  int64_t teachers;
  int64_t prototypes;
  int64_t width;

  Parts blocks() const {
    const int64_t rows = larger(1, larger(students, teachers));
    return cut(prototypes, larger(kLeastColumns, kTileLogits / rows));
  }
  int64_t most_columns() const { return ceil_div(prototypes, larger(1, blocks().count)); }
};

Extents extents_of(const In& student, const In& teacher, const In& prototypes) {
  return {student.extent(0), teacher.extent(0), prototypes.extent(0), teacher.extent(1)};
}

// The largest scratch of products that differ in one extent, of the two sizes that equal parts have.
template <typename ShapeOf>
size_t product_scratch(int threads, const Parts& blocks, const ShapeOf& shape_of) {
  if (blocks.count < 1) return 0;
  const size_t fewer = gemm_scratch(threads, shape_of(blocks.size / blocks.count));
  const size_t more = gemm_scratch(threads, shape_of(ceil_div(blocks.size, blocks.count)));
  return fewer > more ? fewer : more;
}

size_t logits_scratch(int threads, const Extents& e) {
  return product_scratch(threads, e.blocks(), [&](int64_t columns) {
    return GemmShape{larger(e.students, e.teachers), columns, e.width, false, true};
  });
}

// tile (rows, columns) = features · prototypesᵀ.
void compute_logits(Stream& stream, const float* features, int64_t rows, const float* prototypes,
                    int64_t columns, int64_t width, float* tile, Scratch scratch) {
  GemmOutput output;
  output.data = tile;
  output.stride = columns;
  gemm(stream, {rows, columns, width, false, true}, {features, width}, {prototypes, width}, output,
       scratch);
}

// ---- Rows --------------------------------------------------------------------------------------

// body(first element, lanes) over the vectors of a row; lanes < kLanes for the last one alone.
template <typename Body>
[[gnu::always_inline]] inline void for_vectors(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, int64_t{kLanes});
  if (i < n) body(i, n - i);
}

// The first lanes of v, the others filled.
Vec keep(Vec v, int64_t lanes, float fill) {
  if (lanes >= kLanes) return v;
  for (int64_t i = lanes; i < kLanes; ++i) v[i] = fill;
  return v;
}

// Σ of term(first element, lanes), whose lanes past the last are not added.
template <typename Term>
[[gnu::always_inline]] inline double sum_row(int64_t n, const Term& term) {
  Float64Vec sum = {};
  for (int64_t begin = 0; begin < n; begin += kFloatTerms * kLanes) {
    Vec part = {};
    for_vectors(smaller(n - begin, kFloatTerms * kLanes), [&](int64_t i, int64_t lanes) {
      part += keep(term(begin + i, lanes), lanes, 0.0F);
    });
    add(&sum, part);
  }
  return reduce_add(sum);
}

// x ← factor · (x − centre), where there is one. Returns the largest.
float scale_row(int64_t n, const float* centre, float factor, float* x) {
  Vec largest = splat(kLowest);
  for_vectors(n, [&](int64_t i, int64_t lanes) {
    Vec v = load_up_to(x + i, lanes);
    if (centre != nullptr) v -= load_up_to(centre + i, lanes);
    v *= splat(factor);
    store_up_to(x + i, v, lanes);
    largest = max(keep(v, lanes, kLowest), largest);
  });
  return reduce_max(largest);
}

// A softmax that is known up to some block.
struct Softmax {
  float high = kLowest;
  double sum = 0.0;

  // Admits values up to `largest`; returns what former sums are to be multiplied by.
  double rise(float largest) {
    if (!(largest > high)) return 1.0;
    const double factor = ::exp(static_cast<double>(high) - static_cast<double>(largest));
    high = largest;
    sum *= factor;
    return factor;
  }
  double log_sum_exp() const { return static_cast<double>(high) + ::log(sum); }
};

// x ← e^(x − high); adds them to the sum.
void add_exponentials(int64_t n, Softmax* softmax, float* x) {
  softmax->sum += sum_row(n, [&](int64_t i, int64_t lanes) {
    const Vec e = exp(load_up_to(x + i, lanes) - splat(softmax->high));
    store_up_to(x + i, e, lanes);
    return e;
  });
}

struct TeacherState {
  Softmax softmax;
  double rescale;  // of sums over the former blocks, by the last one
};

struct StudentState {
  Softmax softmax;
  double cross = 0.0;  // Σ_k e^(teacher's x_k − its high) · s_k / τ_S
};

// ---- The call ----------------------------------------------------------------------------------

struct Operands {
  Extents extents;
  const float* student;
  const float* student_prototypes;
  const float* teacher;
  const float* teacher_prototypes;
  const float* centre;
  const float* weights;
  const int32_t* teacher_rows;  // or none
  float student_factor;         // 1 / τ_S
  float teacher_factor;         // 1 / τ_T

  int64_t teacher_row(int64_t i) const { return teacher_rows == nullptr ? i : teacher_rows[i]; }
};

const int32_t* check_rows(const char* who, const MaybeIn& teacher_rows, const Extents& e) {
  if (!teacher_rows.present()) {
    if (e.students == e.teachers) return nullptr;
    fail("ERR_SHAPE", "%s: student must have as many rows as teacher, %lld, got %lld", who,
         static_cast<long long>(e.teachers), static_cast<long long>(e.students));
  }
  check_elements(who, "teacher_rows", teacher_rows, e.students);
  const auto* rows = teacher_rows.data<int32_t>();
  for (int64_t i = 0; i < e.students; ++i) {
    if (rows[i] >= 0 && rows[i] < e.teachers) continue;
    fail("ERR_ARGUMENT", "%s: teacher_rows[%lld] must be in [0, %lld), got %d", who,
         static_cast<long long>(i), static_cast<long long>(e.teachers), rows[i]);
  }
  return rows;
}

Operands check_operands(const char* who, const In& student, const In& student_prototypes,
                        const In& teacher, const In& teacher_prototypes, const In& centre,
                        const In& weights, const MaybeIn& teacher_rows,
                        const In& teacher_temperature, double student_temperature) {
  check_rank(who, "student", student, 2);
  check_rank(who, "teacher", teacher, 2);
  check_rank(who, "teacher_prototypes", teacher_prototypes, 2);
  const Extents e = extents_of(student, teacher, teacher_prototypes);
  check_extent(who, "student", student, 1, e.width);
  check_extent(who, "teacher_prototypes", teacher_prototypes, 1, e.width);
  check_elements(who, "student_prototypes", student_prototypes, e.prototypes * e.width);
  check_elements(who, "centre", centre, e.prototypes);
  check_elements(who, "weights", weights, e.students);
  check_elements(who, "teacher_temperature", teacher_temperature, 1);
  return {e,
          student.data(),
          student_prototypes.data(),
          teacher.data(),
          teacher_prototypes.data(),
          centre.data(),
          weights.data(),
          check_rows(who, teacher_rows, e),
          static_cast<float>(1.0 / student_temperature),
          1.0F / *teacher_temperature.data()};
}

struct ForwardWorkspace {
  float* teacher_tile;
  float* student_tile;
  TeacherState* teachers;
  StudentState* students;
  Scratch products;
};

ForwardWorkspace forward_workspace(int threads, const Extents& e, Carver& carver) {
  ForwardWorkspace w;
  w.teacher_tile = carver.take<float>(e.teachers * e.most_columns());
  w.student_tile = carver.take<float>(e.students * e.most_columns());
  w.teachers = carver.take<TeacherState>(e.teachers);
  w.students = carver.take<StudentState>(e.students);
  const size_t bytes = logits_scratch(threads, e);
  w.products = {carver.take<std::byte>(static_cast<int64_t>(bytes)), bytes};
  return w;
}

struct BackwardWorkspace {
  float* teacher_tile;
  float* gradient;  // G of a block
  float* dstudent;  // sums of every other block
  Scratch products;
};

GemmShape dstudent_shape(const Extents& e, int64_t columns) {
  return {e.students, e.width, columns, false, false};
}
GemmShape dprototypes_shape(const Extents& e, int64_t columns) {
  return {columns, e.width, e.students, true, false};
}

BackwardWorkspace backward_workspace(int threads, const Extents& e, Carver& carver) {
  BackwardWorkspace w;
  w.teacher_tile = carver.take<float>(e.teachers * e.most_columns());
  w.gradient = carver.take<float>(e.students * e.most_columns());
  w.dstudent = carver.take<float>(e.students * e.width);
  size_t bytes = logits_scratch(threads, e);
  for (const auto shape_of : {dstudent_shape, dprototypes_shape}) {
    const size_t needed =
        product_scratch(threads, e.blocks(), [&](int64_t columns) { return shape_of(e, columns); });
    if (needed > bytes) bytes = needed;
  }
  w.products = {carver.take<std::byte>(static_cast<int64_t>(bytes)), bytes};
  return w;
}

// body(row) for every row of a tile.
template <typename Body>
void for_rows(Stream& stream, int64_t rows, int64_t columns, const Body& body) {
  const Partition part = partition(rows, kExponentials * columns);
  stream.parallel(part.tasks(), [&](int64_t task, int) {
    for (int64_t row = part.begin(task); row < part.end(task); ++row) body(row);
  });
}

// Takes one block of prototypes, of which the tiles hold the logits, into the softmaxes.
void add_block(Stream& stream, const Operands& o, int64_t first, int64_t columns,
               const ForwardWorkspace& w) {
  for_rows(stream, o.extents.teachers, columns, [&](int64_t j) {
    float* x = w.teacher_tile + j * columns;
    TeacherState& state = w.teachers[j];
    state.rescale = state.softmax.rise(scale_row(columns, o.centre + first, o.teacher_factor, x));
    add_exponentials(columns, &state.softmax, x);
  });
  for_rows(stream, o.extents.students, columns, [&](int64_t i) {
    float* x = w.student_tile + i * columns;
    const float* e = w.teacher_tile + o.teacher_row(i) * columns;
    StudentState& state = w.students[i];
    state.softmax.rise(scale_row(columns, nullptr, o.student_factor, x));
    state.cross = state.cross * w.teachers[o.teacher_row(i)].rescale +
                  sum_row(columns, [&](int64_t k, int64_t lanes) {
                    return load_up_to(x + k, lanes) * load_up_to(e + k, lanes);
                  });
    add_exponentials(columns, &state.softmax, x);
  });
}

// The tiles hold logits; leaves q in the teacher's and G in the student's.
void gradient_block(Stream& stream, const Operands& o, int64_t first, int64_t columns, float dloss,
                    const float* student_lse, const float* teacher_lse,
                    const BackwardWorkspace& w) {
  for_rows(stream, o.extents.teachers, columns, [&](int64_t j) {
    float* x = w.teacher_tile + j * columns;
    const Vec lse = splat(teacher_lse[j]);
    for_vectors(columns, [&](int64_t k, int64_t lanes) {
      const Vec centred = load_up_to(x + k, lanes) - load_up_to(o.centre + first + k, lanes);
      store_up_to(x + k, exp(centred * splat(o.teacher_factor) - lse), lanes);
    });
  });
  for_rows(stream, o.extents.students, columns, [&](int64_t i) {
    float* x = w.gradient + i * columns;
    const float* q = w.teacher_tile + o.teacher_row(i) * columns;
    const Vec lse = splat(student_lse[i]);
    const Vec factor = splat(dloss * o.weights[i] * o.student_factor);
    for_vectors(columns, [&](int64_t k, int64_t lanes) {
      const Vec p = exp(load_up_to(x + k, lanes) * splat(o.student_factor) - lse);
      store_up_to(x + k, factor * (p - load_up_to(q + k, lanes)), lanes);
    });
  });
}

// ---- Sinkhorn-Knopp ----------------------------------------------------------------------------

struct SinkhornWorkspace {
  float* tile;
  float* column_lse;  // (most columns)
  Softmax* rows;      // over the prototypes, with their factors
  float* log_factor;  // of each row
  Scratch products;
};

Extents sinkhorn_extents(const In& teacher, const In& prototypes) {
  return {0, teacher.extent(0), prototypes.extent(0), teacher.extent(1)};
}

SinkhornWorkspace sinkhorn_workspace(int threads, const Extents& e, Carver& carver) {
  SinkhornWorkspace w;
  w.tile = carver.take<float>(e.teachers * e.most_columns());
  w.column_lse = carver.take<float>(e.most_columns());
  w.rows = carver.take<Softmax>(e.teachers);
  w.log_factor = carver.take<float>(e.teachers);
  const size_t bytes = logits_scratch(threads, e);
  w.products = {carver.take<std::byte>(static_cast<int64_t>(bytes)), bytes};
  return w;
}

// y[c] = log Σ_j e^(x_jc + shift_j) over the rows of some neighbouring columns.
void column_log_sum_exps(const float* x, int64_t rows, int64_t stride, const float* shift,
                         int64_t columns, float* y) {
  for_vectors(columns, [&](int64_t c, int64_t lanes) {
    Vec high = splat(kLowest);
    for (int64_t j = 0; j < rows; ++j) {
      high = max(load_up_to(x + j * stride + c, lanes) + splat(shift[j]), high);
    }
    Float64Vec sum = {};
    for (int64_t begin = 0; begin < rows; begin += kFloatTerms) {
      Vec part = {};
      for (int64_t j = begin; j < smaller(rows, begin + kFloatTerms); ++j) {
        part += exp(load_up_to(x + j * stride + c, lanes) + splat(shift[j]) - high);
      }
      add(&sum, part);
    }
    const Vec total = narrow(sum);
    for (int64_t lane = 0; lane < lanes; ++lane) {
      y[c + lane] = static_cast<float>(static_cast<double>(high[lane]) +
                                       ::log(static_cast<double>(total[lane])));
    }
  });
}

}  // namespace

size_t prototype_loss_forward_scratch(int threads, In student, In teacher, In teacher_prototypes) {
  Carver carver(nullptr);
  forward_workspace(threads, extents_of(student, teacher, teacher_prototypes), carver);
  return carver.bytes();
}

void prototype_loss_forward(Stream& stream, In student, In student_prototypes, In teacher,
                            In teacher_prototypes, In centre, In weights, MaybeIn teacher_rows,
                            In teacher_temperature, double student_temperature, Out loss,
                            Out student_lse, Out teacher_lse, Scratch scratch) {
  constexpr char kName[] = "prototype_loss_forward";
  const Operands o =
      check_operands(kName, student, student_prototypes, teacher, teacher_prototypes, centre,
                     weights, teacher_rows, teacher_temperature, student_temperature);
  const Extents& e = o.extents;
  check_elements(kName, "loss", loss, 1);
  check_elements(kName, "student_lse", student_lse, e.students);
  check_elements(kName, "teacher_lse", teacher_lse, e.teachers);
  check_scratch(
      kName, scratch,
      prototype_loss_forward_scratch(stream.threads(), student, teacher, teacher_prototypes));
  float* loss_data = loss.data();
  float* student_lse_data = student_lse.data();
  float* teacher_lse_data = teacher_lse.data();
  Carver carver(scratch.data);
  const ForwardWorkspace w = forward_workspace(stream.threads(), e, carver);
  for (int64_t j = 0; j < e.teachers; ++j) w.teachers[j] = {};
  for (int64_t i = 0; i < e.students; ++i) w.students[i] = {};

  const Parts blocks = e.blocks();
  for (int64_t block = 0; block < blocks.count; ++block) {
    const int64_t first = blocks.begin(block);
    const int64_t columns = blocks.end(block) - first;
    compute_logits(stream, o.teacher, e.teachers, o.teacher_prototypes + first * e.width, columns,
                   e.width, w.teacher_tile, w.products);
    compute_logits(stream, o.student, e.students, o.student_prototypes + first * e.width, columns,
                   e.width, w.student_tile, w.products);
    add_block(stream, o, first, columns, w);
  }

  for (int64_t j = 0; j < e.teachers; ++j) {
    teacher_lse_data[j] = static_cast<float>(w.teachers[j].softmax.log_sum_exp());
  }
  double total = 0.0;
  for (int64_t i = 0; i < e.students; ++i) {
    const double lse = w.students[i].softmax.log_sum_exp();
    const double cross = w.students[i].cross / w.teachers[o.teacher_row(i)].softmax.sum;
    student_lse_data[i] = static_cast<float>(lse);
    total += static_cast<double>(o.weights[i]) * (lse - cross);
  }
  *loss_data = static_cast<float>(total);
}

size_t prototype_loss_backward_scratch(int threads, In student, In teacher, In teacher_prototypes) {
  Carver carver(nullptr);
  backward_workspace(threads, extents_of(student, teacher, teacher_prototypes), carver);
  return carver.bytes();
}

void prototype_loss_backward(Stream& stream, In dloss, In student, In student_prototypes,
                             In teacher, In teacher_prototypes, In centre, In weights,
                             MaybeIn teacher_rows, In teacher_temperature, In student_lse,
                             In teacher_lse, double student_temperature, MaybeOut dstudent,
                             MaybeOut dstudent_prototypes, Scratch scratch) {
  constexpr char kName[] = "prototype_loss_backward";
  const Operands o =
      check_operands(kName, student, student_prototypes, teacher, teacher_prototypes, centre,
                     weights, teacher_rows, teacher_temperature, student_temperature);
  const Extents& e = o.extents;
  check_elements(kName, "dloss", dloss, 1);
  check_elements(kName, "student_lse", student_lse, e.students);
  check_elements(kName, "teacher_lse", teacher_lse, e.teachers);
  if (dstudent.present()) check_elements(kName, "dstudent", dstudent, e.students * e.width);
  if (dstudent_prototypes.present()) {
    check_elements(kName, "dstudent_prototypes", dstudent_prototypes, e.prototypes * e.width);
  }
  check_scratch(
      kName, scratch,
      prototype_loss_backward_scratch(stream.threads(), student, teacher, teacher_prototypes));
  const float dloss_value = *dloss.data();
  const float* student_lse_data = student_lse.data();
  const float* teacher_lse_data = teacher_lse.data();
  float* dstudent_data = dstudent.present() ? dstudent.data() : nullptr;
  float* dprototypes_data = dstudent_prototypes.present() ? dstudent_prototypes.data() : nullptr;
  Carver carver(scratch.data);
  const BackwardWorkspace w = backward_workspace(stream.threads(), e, carver);

  const Parts blocks = e.blocks();
  for (int64_t block = 0; block < blocks.count; ++block) {
    const int64_t first = blocks.begin(block);
    const int64_t columns = blocks.end(block) - first;
    const float* prototypes = o.student_prototypes + first * e.width;
    compute_logits(stream, o.teacher, e.teachers, o.teacher_prototypes + first * e.width, columns,
                   e.width, w.teacher_tile, w.products);
    compute_logits(stream, o.student, e.students, prototypes, columns, e.width, w.gradient,
                   w.products);
    gradient_block(stream, o, first, columns, dloss_value, student_lse_data, teacher_lse_data, w);
    if (dstudent_data != nullptr) {
      // A product may not add to itself: two buffers take turns, and the last block's is the result.
      const bool to_result = (blocks.count - 1 - block) % 2 == 0;
      GemmOutput output;
      output.data = to_result ? dstudent_data : w.dstudent;
      output.stride = e.width;
      if (block > 0) output.residual = to_result ? w.dstudent : dstudent_data;
      gemm(stream, dstudent_shape(e, columns), {w.gradient, columns}, {prototypes, e.width}, output,
           w.products);
    }
    if (dprototypes_data != nullptr) {
      GemmOutput output;
      output.data = dprototypes_data + first * e.width;
      output.stride = e.width;
      gemm(stream, dprototypes_shape(e, columns), {w.gradient, columns}, {o.student, e.width},
           output, w.products);
    }
  }
}

size_t sinkhorn_centre_scratch(int threads, In teacher, In prototypes) {
  Carver carver(nullptr);
  sinkhorn_workspace(threads, sinkhorn_extents(teacher, prototypes), carver);
  return carver.bytes();
}

// With a_k the factors of prototypes and b_j those of rows, in logarithms: an iteration makes
// log a_k = −log Σ_j b_j e^(x_jk) and from these log b_j = −log Σ_k a_k e^(x_jk), both up to constants.
// A block has all rows, so its a_k are known before it is added to the sums over prototypes.
void sinkhorn_centre(Stream& stream, In teacher, In prototypes, In temperature, int64_t iterations,
                     Out centre, Scratch scratch) {
  constexpr char kName[] = "sinkhorn_centre";
  check_rank(kName, "teacher", teacher, 2);
  check_rank(kName, "prototypes", prototypes, 2);
  check_extent(kName, "prototypes", prototypes, 1, teacher.extent(1));
  check_elements(kName, "temperature", temperature, 1);
  const Extents e = sinkhorn_extents(teacher, prototypes);
  check_elements(kName, "centre", centre, e.prototypes);
  if (iterations < 1 || iterations > kMostSinkhornIterations) {
    fail("ERR_ARGUMENT", "%s: iterations must be from 1 to %lld, got %lld", kName,
         static_cast<long long>(kMostSinkhornIterations), static_cast<long long>(iterations));
  }
  check_scratch(kName, scratch, sinkhorn_centre_scratch(stream.threads(), teacher, prototypes));
  const float* teacher_data = teacher.data();
  const float* prototypes_data = prototypes.data();
  const float tau = *temperature.data();
  float* centre_data = centre.data();
  Carver carver(scratch.data);
  const SinkhornWorkspace w = sinkhorn_workspace(stream.threads(), e, carver);
  for (int64_t j = 0; j < e.teachers; ++j) w.log_factor[j] = 0.0F;

  const Parts blocks = e.blocks();
  for (int64_t iteration = 0; iteration < iterations; ++iteration) {
    const bool last = iteration + 1 == iterations;
    for (int64_t j = 0; j < e.teachers; ++j) w.rows[j] = {};
    for (int64_t block = 0; block < blocks.count; ++block) {
      const int64_t first = blocks.begin(block);
      const int64_t columns = blocks.end(block) - first;
      compute_logits(stream, teacher_data, e.teachers, prototypes_data + first * e.width, columns,
                     e.width, w.tile, w.products);
      for_rows(stream, e.teachers, columns,
               [&](int64_t j) { scale_row(columns, nullptr, 1.0F / tau, w.tile + j * columns); });
      const Parts groups = cut(columns, kColumnGroup);
      stream.parallel(groups.count, [&](int64_t group, int) {
        const int64_t begin = groups.begin(group);
        column_log_sum_exps(w.tile + begin, e.teachers, columns, w.log_factor,
                            groups.end(group) - begin, w.column_lse + begin);
      });
      if (last) {
        for (int64_t k = 0; k < columns; ++k) centre_data[first + k] = tau * w.column_lse[k];
        continue;
      }
      for_rows(stream, e.teachers, columns, [&](int64_t j) {
        float* x = w.tile + j * columns;
        w.rows[j].rise(scale_row(columns, w.column_lse, 1.0F, x));
        add_exponentials(columns, &w.rows[j], x);
      });
    }
    for (int64_t j = 0; j < e.teachers; ++j) {
      w.log_factor[j] = static_cast<float>(-w.rows[j].log_sum_exp());
    }
  }
}

}  // namespace siglip::SIGLIP_CPU
