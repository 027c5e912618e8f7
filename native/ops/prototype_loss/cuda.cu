// As on the CPU: logits of one block of prototypes at a time, by the products of cuda/gemm.h, and between
// them a block of threads for every row. Sums over a row are in an order that its length alone decides.
#include <cuda_runtime_api.h>

#include "cuda/gemm.h"
#include "device/reduce.cuh"
#include "ops/prototype_loss/prototype_loss.h"
#include "runtime/cuda_context.h"
#include "runtime/device_carver.h"

#define SIGLIP_CPU cuda  // the namespace of the checks
#include "cpu/check.h"

namespace siglip::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / device::kWarpThreads;
constexpr int64_t kTileLogits = int64_t{1} << 26;
constexpr int64_t kLeastColumns = 1024;
constexpr int64_t kMostRows = int64_t{1} << 31;

int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
unsigned blocks_for(int64_t threads) {
  return static_cast<unsigned>((threads + kThreads - 1) / kThreads);
}

struct Extents {
  int64_t students;
  int64_t teachers;
  int64_t prototypes;
  int64_t width;

  // Of a block of prototypes; the last may have fewer.
  int64_t columns() const {
    const int64_t rows = larger(1, larger(students, teachers));
    return smaller(prototypes, larger(kLeastColumns, kTileLogits / rows));
  }
};

Extents extents_of(const In& student, const In& teacher, const In& prototypes) {
  return {student.extent(0), teacher.extent(0), prototypes.extent(0), teacher.extent(1)};
}

MatrixProduct logits_product(int64_t rows, int64_t columns, int64_t width) {
  MatrixProduct product;
  product.m = rows;
  product.n = columns;
  product.k = width;
  product.transpose_b = true;
  return product;
}
MatrixProduct dstudent_product(const Extents& e, int64_t columns) {
  MatrixProduct product;
  product.m = e.students;
  product.n = e.width;
  product.k = columns;
  return product;
}
MatrixProduct dprototypes_product(const Extents& e, int64_t columns) {
  MatrixProduct product;
  product.m = columns;
  product.n = e.width;
  product.k = e.students;
  product.transpose_a = true;
  return product;
}

// The most that products over whole blocks and over the last one need.
template <typename ProductOf>
size_t product_scratch(int multiprocessors, const Extents& e, const ProductOf& product_of) {
  const int64_t columns = larger(1, e.columns());
  const size_t whole = gemm_scratch(multiprocessors, product_of(columns));
  const int64_t rest = e.prototypes % columns;
  const size_t last = rest == 0 ? 0 : gemm_scratch(multiprocessors, product_of(rest));
  return whole > last ? whole : last;
}

size_t logits_scratch(int multiprocessors, const Extents& e) {
  const size_t teacher = product_scratch(multiprocessors, e, [&](int64_t columns) {
    return logits_product(e.teachers, columns, e.width);
  });
  const size_t student = product_scratch(multiprocessors, e, [&](int64_t columns) {
    return logits_product(larger(1, e.students), columns, e.width);
  });
  return teacher > student ? teacher : student;
}

void run_product(Stream& stream, MatrixProduct product, const float* a, int64_t a_stride,
                 const float* b, float* c, const float* residual, Scratch scratch) {
  product.a = {a, a_stride};
  product.b = {b, product.transpose_b ? product.k : product.n};
  product.c = c;
  product.c_stride = product.n;
  product.residual = residual;
  gemm(stream, product, scratch);
}

// ---- Rows --------------------------------------------------------------------------------------

struct Softmax {
  double sum;
  float high;
};

struct TeacherState {
  Softmax softmax;
  double rescale;  // of sums over the former blocks, by the last one
};

struct StudentState {
  Softmax softmax;
  double cross;  // Σ_k e^(teacher's x_k − its high) · s_k / τ_S
};

__global__ void __launch_bounds__(kThreads)
    begin_kernel(TeacherState* teachers, int64_t m, StudentState* students, int64_t n) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const Softmax empty = {0.0, -INFINITY};
  if (i < m) teachers[i] = {empty, 1.0};
  if (i < n) students[i] = {empty, 0.0};
}

// x ← factor · (x − centre). Returns the largest to all threads of the block.
__device__ float scale_row(float* x, int64_t columns, const float* centre, float factor,
                           float* shared) {
  float largest = -INFINITY;
  for (int64_t k = threadIdx.x; k < columns; k += kThreads) {
    const float value = (x[k] - (centre == nullptr ? 0.0F : centre[k])) * factor;
    x[k] = value;
    largest = fmaxf(largest, value);
  }
  return device::block_max<kWarps>(largest, shared);
}

// x ← e^(x − high). Returns their sum.
__device__ double exponentials(float* x, int64_t columns, float high, double* shared) {
  double sum = 0.0;
  for (int64_t k = threadIdx.x; k < columns; k += kThreads) {
    const float e = expf(x[k] - high);
    x[k] = e;
    sum += static_cast<double>(e);
  }
  return device::block_sum<kWarps>(sum, shared);
}

// Takes a block of values up to `largest` into a softmax; returns the factor of former sums.
__device__ double rise(Softmax* softmax, float largest) {
  if (!(largest > softmax->high)) return 1.0;
  const double factor = exp(static_cast<double>(softmax->high) - static_cast<double>(largest));
  softmax->high = largest;
  softmax->sum *= factor;
  return factor;
}

__device__ double log_sum_exp(const Softmax& softmax) {
  return static_cast<double>(softmax.high) + log(softmax.sum);
}

__global__ void __launch_bounds__(kThreads)
    teacher_kernel(float* tile, int64_t columns, const float* centre, const float* temperature,
                   TeacherState* states) {
  __shared__ float floats[kWarps];
  __shared__ double doubles[kWarps];
  const int64_t j = blockIdx.x;
  float* x = tile + j * columns;
  TeacherState state = states[j];
  state.rescale = rise(&state.softmax, scale_row(x, columns, centre, 1.0F / *temperature, floats));
  state.softmax.sum += exponentials(x, columns, state.softmax.high, doubles);
  if (threadIdx.x == 0) states[j] = state;
}

// The teacher's row of a student's, or −1 where there is none.
__device__ int64_t teacher_row(const int32_t* rows, int64_t i, int64_t teachers) {
  const int64_t row = rows == nullptr ? i : rows[i];
  return row >= 0 && row < teachers ? row : -1;
}

__global__ void __launch_bounds__(kThreads)
    student_kernel(float* tile, const float* teacher_tile, int64_t columns, float factor,
                   const int32_t* rows, int64_t teachers, const TeacherState* teacher_states,
                   StudentState* states) {
  __shared__ float floats[kWarps];
  __shared__ double doubles[kWarps];
  const int64_t i = blockIdx.x;
  float* x = tile + i * columns;
  StudentState state = states[i];
  rise(&state.softmax, scale_row(x, columns, nullptr, factor, floats));
  const int64_t row = teacher_row(rows, i, teachers);
  if (row < 0) {
    state.cross = NAN;
  } else {
    const float* e = teacher_tile + row * columns;
    double cross = 0.0;
    for (int64_t k = threadIdx.x; k < columns; k += kThreads) {
      cross += static_cast<double>(x[k]) * static_cast<double>(e[k]);
    }
    state.cross =
        state.cross * teacher_states[row].rescale + device::block_sum<kWarps>(cross, doubles);
  }
  state.softmax.sum += exponentials(x, columns, state.softmax.high, doubles);
  if (threadIdx.x == 0) states[i] = state;
}

__global__ void __launch_bounds__(kThreads)
    teacher_lse_kernel(const TeacherState* states, int64_t m, float* lse) {
  const int64_t j = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (j < m) lse[j] = static_cast<float>(log_sum_exp(states[j].softmax));
}

// One block for all rows.
__global__ void __launch_bounds__(kThreads)
    loss_kernel(const StudentState* states, const TeacherState* teacher_states,
                const float* weights, const int32_t* rows, int64_t n, int64_t teachers, float* lse,
                float* loss) {
  __shared__ double doubles[kWarps];
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) {
    const double row_lse = log_sum_exp(states[i].softmax);
    const int64_t row = teacher_row(rows, i, teachers);
    const double cross = row < 0 ? NAN : states[i].cross / teacher_states[row].softmax.sum;
    lse[i] = static_cast<float>(row_lse);
    sum += static_cast<double>(weights[i]) * (row_lse - cross);
  }
  sum = device::block_sum<kWarps>(sum, doubles);
  if (threadIdx.x == 0) *loss = static_cast<float>(sum);
}

__global__ void __launch_bounds__(kThreads)
    target_kernel(float* tile, int64_t columns, const float* centre, const float* temperature,
                  const float* lse) {
  const int64_t j = blockIdx.x;
  float* x = tile + j * columns;
  const float factor = 1.0F / *temperature;
  for (int64_t k = threadIdx.x; k < columns; k += kThreads) {
    x[k] = expf((x[k] - centre[k]) * factor - lse[j]);
  }
}

__global__ void __launch_bounds__(kThreads)
    gradient_kernel(float* tile, const float* targets, int64_t columns, float factor,
                    const int32_t* rows, int64_t teachers, const float* lse, const float* weights,
                    const float* dloss) {
  const int64_t i = blockIdx.x;
  float* x = tile + i * columns;
  const int64_t row = teacher_row(rows, i, teachers);
  const float scale = row < 0 ? NAN : *dloss * weights[i] * factor;
  const float* q = targets + (row < 0 ? 0 : row) * columns;
  for (int64_t k = threadIdx.x; k < columns; k += kThreads) {
    x[k] = scale * (expf(x[k] * factor - lse[i]) - q[k]);
  }
}

// ---- The call ----------------------------------------------------------------------------------

Extents check_operands(const char* who, const In& student, const In& student_prototypes,
                       const In& teacher, const In& teacher_prototypes, const In& centre,
                       const In& weights, const MaybeIn& teacher_rows,
                       const In& teacher_temperature) {
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
  if (teacher_rows.present()) {
    check_elements(who, "teacher_rows", teacher_rows, e.students);
  } else {
    check_extent(who, "student", student, 0, e.teachers);
  }
  if (e.students < 1 || e.teachers < 1 || e.prototypes < 1 || e.width < 1 ||
      e.students >= kMostRows || e.teachers >= kMostRows) {
    fail("ERR_SHAPE",
         "%s: extents of student and teacher must be from 1 to 2^31, got %lld and %lld", who,
         static_cast<long long>(e.students), static_cast<long long>(e.teachers));
  }
  return e;
}

const int32_t* rows_of(const MaybeIn& teacher_rows) {
  return teacher_rows.present() ? teacher_rows.data<int32_t>() : nullptr;
}

struct ForwardWorkspace {
  float* teacher_tile;
  float* student_tile;
  TeacherState* teachers;
  StudentState* students;
  Scratch products;
};

ForwardWorkspace forward_workspace(int multiprocessors, const Extents& e, DeviceCarver& carver) {
  ForwardWorkspace w;
  w.teacher_tile = carver.take<float>(e.teachers * e.columns());
  w.student_tile = carver.take<float>(e.students * e.columns());
  w.teachers = carver.take<TeacherState>(e.teachers);
  w.students = carver.take<StudentState>(e.students);
  const size_t bytes = logits_scratch(multiprocessors, e);
  w.products = {carver.take<std::byte>(static_cast<int64_t>(bytes)), bytes};
  return w;
}

struct BackwardWorkspace {
  float* teacher_tile;
  float* gradient;
  float* dstudent;  // sums of every other block
  Scratch products;
};

BackwardWorkspace backward_workspace(int multiprocessors, const Extents& e, DeviceCarver& carver) {
  BackwardWorkspace w;
  w.teacher_tile = carver.take<float>(e.teachers * e.columns());
  w.gradient = carver.take<float>(e.students * e.columns());
  w.dstudent = carver.take<float>(e.students * e.width);
  size_t bytes = logits_scratch(multiprocessors, e);
  for (const auto product_of : {dstudent_product, dprototypes_product}) {
    const size_t needed = product_scratch(multiprocessors, e,
                                          [&](int64_t columns) { return product_of(e, columns); });
    if (needed > bytes) bytes = needed;
  }
  w.products = {carver.take<std::byte>(static_cast<int64_t>(bytes)), bytes};
  return w;
}

// ---- Sinkhorn-Knopp ----------------------------------------------------------------------------

struct SinkhornWorkspace {
  float* tile;
  float* column_lse;
  TeacherState* rows;
  float* log_factor;
  Scratch products;
};

SinkhornWorkspace sinkhorn_workspace(int multiprocessors, const Extents& e, DeviceCarver& carver) {
  SinkhornWorkspace w;
  w.tile = carver.take<float>(e.teachers * e.columns());
  w.column_lse = carver.take<float>(e.columns());
  w.rows = carver.take<TeacherState>(e.teachers);
  w.log_factor = carver.take<float>(e.teachers);
  const size_t bytes = product_scratch(multiprocessors, e, [&](int64_t columns) {
    return logits_product(e.teachers, columns, e.width);
  });
  w.products = {carver.take<std::byte>(static_cast<int64_t>(bytes)), bytes};
  return w;
}

Extents sinkhorn_extents(const In& teacher, const In& prototypes) {
  return {0, teacher.extent(0), prototypes.extent(0), teacher.extent(1)};
}

// y[k] = log Σ_j e^(x_jk / τ + shift_j); times τ into the centre, where it is wanted. A thread a column.
__global__ void __launch_bounds__(kThreads)
    column_kernel(const float* tile, int64_t rows, int64_t columns, const float* temperature,
                  const float* shift, float* y, float* centre) {
  const int64_t k = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (k >= columns) return;
  const float factor = 1.0F / *temperature;
  float high = -INFINITY;
  for (int64_t j = 0; j < rows; ++j) {
    high = fmaxf(high, tile[j * columns + k] * factor + shift[j]);
  }
  double sum = 0.0;
  for (int64_t j = 0; j < rows; ++j) {
    sum += static_cast<double>(expf(tile[j * columns + k] * factor + shift[j] - high));
  }
  y[k] = static_cast<float>(static_cast<double>(high) + log(sum));
  if (centre != nullptr) centre[k] = *temperature * y[k];
}

// Takes x / τ − shift into the softmaxes of rows.
__global__ void __launch_bounds__(kThreads)
    row_kernel(float* tile, int64_t columns, const float* temperature, const float* shift,
               TeacherState* states) {
  __shared__ float floats[kWarps];
  __shared__ double doubles[kWarps];
  const int64_t j = blockIdx.x;
  float* x = tile + j * columns;
  TeacherState state = states[j];
  scale_row(x, columns, nullptr, 1.0F / *temperature, floats);
  rise(&state.softmax, scale_row(x, columns, shift, 1.0F, floats));
  state.softmax.sum += exponentials(x, columns, state.softmax.high, doubles);
  if (threadIdx.x == 0) states[j] = state;
}

__global__ void __launch_bounds__(kThreads)
    factor_kernel(const TeacherState* states, int64_t m, float* log_factor) {
  const int64_t j = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (j < m) log_factor[j] = static_cast<float>(-log_sum_exp(states[j].softmax));
}

}  // namespace

size_t prototype_loss_forward_scratch(int multiprocessors, In student, In teacher,
                                      In teacher_prototypes) {
  DeviceCarver carver(nullptr);
  forward_workspace(multiprocessors, extents_of(student, teacher, teacher_prototypes), carver);
  return carver.bytes();
}

void prototype_loss_forward(Stream& stream, In student, In student_prototypes, In teacher,
                            In teacher_prototypes, In centre, In weights, MaybeIn teacher_rows,
                            In teacher_temperature, double student_temperature, Out loss,
                            Out student_lse, Out teacher_lse, Scratch scratch) {
  constexpr char kName[] = "prototype_loss_forward";
  const Extents e = check_operands(kName, student, student_prototypes, teacher, teacher_prototypes,
                                   centre, weights, teacher_rows, teacher_temperature);
  check_elements(kName, "loss", loss, 1);
  check_elements(kName, "student_lse", student_lse, e.students);
  check_elements(kName, "teacher_lse", teacher_lse, e.teachers);
  const CudaContext& cuda = stream.cuda();
  check_scratch(
      kName, scratch,
      prototype_loss_forward_scratch(cuda.multiprocessors, student, teacher, teacher_prototypes));
  const float* student_data = student.data();
  const float* student_prototypes_data = student_prototypes.data();
  const float* teacher_data = teacher.data();
  const float* teacher_prototypes_data = teacher_prototypes.data();
  const float* centre_data = centre.data();
  const float* temperature_data = teacher_temperature.data();
  const float* weights_data = weights.data();
  const int32_t* rows = rows_of(teacher_rows);
  float* loss_data = loss.data();
  float* student_lse_data = student_lse.data();
  float* teacher_lse_data = teacher_lse.data();
  const auto factor = static_cast<float>(1.0 / student_temperature);
  DeviceCarver carver(scratch.data);
  const ForwardWorkspace w = forward_workspace(cuda.multiprocessors, e, carver);
  begin_kernel<<<blocks_for(larger(e.students, e.teachers)), kThreads, 0, cuda.stream>>>(
      w.teachers, e.teachers, w.students, e.students);
  check_launch(kName);
  for (int64_t first = 0; first < e.prototypes; first += e.columns()) {
    const int64_t columns = smaller(e.columns(), e.prototypes - first);
    run_product(stream, logits_product(e.teachers, columns, e.width), teacher_data, e.width,
                teacher_prototypes_data + first * e.width, w.teacher_tile, nullptr, w.products);
    run_product(stream, logits_product(e.students, columns, e.width), student_data, e.width,
                student_prototypes_data + first * e.width, w.student_tile, nullptr, w.products);
    teacher_kernel<<<static_cast<unsigned>(e.teachers), kThreads, 0, cuda.stream>>>(
        w.teacher_tile, columns, centre_data + first, temperature_data, w.teachers);
    check_launch(kName);
    student_kernel<<<static_cast<unsigned>(e.students), kThreads, 0, cuda.stream>>>(
        w.student_tile, w.teacher_tile, columns, factor, rows, e.teachers, w.teachers, w.students);
    check_launch(kName);
  }
  teacher_lse_kernel<<<blocks_for(e.teachers), kThreads, 0, cuda.stream>>>(w.teachers, e.teachers,
                                                                           teacher_lse_data);
  check_launch(kName);
  loss_kernel<<<1, kThreads, 0, cuda.stream>>>(w.students, w.teachers, weights_data, rows,
                                               e.students, e.teachers, student_lse_data, loss_data);
  check_launch(kName);
}

size_t prototype_loss_backward_scratch(int multiprocessors, In student, In teacher,
                                       In teacher_prototypes) {
  DeviceCarver carver(nullptr);
  backward_workspace(multiprocessors, extents_of(student, teacher, teacher_prototypes), carver);
  return carver.bytes();
}

void prototype_loss_backward(Stream& stream, In dloss, In student, In student_prototypes,
                             In teacher, In teacher_prototypes, In centre, In weights,
                             MaybeIn teacher_rows, In teacher_temperature, In student_lse,
                             In teacher_lse, double student_temperature, MaybeOut dstudent,
                             MaybeOut dstudent_prototypes, Scratch scratch) {
  constexpr char kName[] = "prototype_loss_backward";
  const Extents e = check_operands(kName, student, student_prototypes, teacher, teacher_prototypes,
                                   centre, weights, teacher_rows, teacher_temperature);
  check_elements(kName, "dloss", dloss, 1);
  check_elements(kName, "student_lse", student_lse, e.students);
  check_elements(kName, "teacher_lse", teacher_lse, e.teachers);
  if (dstudent.present()) check_elements(kName, "dstudent", dstudent, e.students * e.width);
  if (dstudent_prototypes.present()) {
    check_elements(kName, "dstudent_prototypes", dstudent_prototypes, e.prototypes * e.width);
  }
  const CudaContext& cuda = stream.cuda();
  check_scratch(
      kName, scratch,
      prototype_loss_backward_scratch(cuda.multiprocessors, student, teacher, teacher_prototypes));
  const float* dloss_data = dloss.data();
  const float* student_data = student.data();
  const float* student_prototypes_data = student_prototypes.data();
  const float* teacher_data = teacher.data();
  const float* teacher_prototypes_data = teacher_prototypes.data();
  const float* centre_data = centre.data();
  const float* temperature_data = teacher_temperature.data();
  const float* weights_data = weights.data();
  const float* student_lse_data = student_lse.data();
  const float* teacher_lse_data = teacher_lse.data();
  const int32_t* rows = rows_of(teacher_rows);
  float* dstudent_data = dstudent.present() ? dstudent.data() : nullptr;
  float* dprototypes_data = dstudent_prototypes.present() ? dstudent_prototypes.data() : nullptr;
  const auto factor = static_cast<float>(1.0 / student_temperature);
  DeviceCarver carver(scratch.data);
  const BackwardWorkspace w = backward_workspace(cuda.multiprocessors, e, carver);
  const int64_t blocks = (e.prototypes + e.columns() - 1) / e.columns();
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = block * e.columns();
    const int64_t columns = smaller(e.columns(), e.prototypes - first);
    const float* prototypes = student_prototypes_data + first * e.width;
    run_product(stream, logits_product(e.teachers, columns, e.width), teacher_data, e.width,
                teacher_prototypes_data + first * e.width, w.teacher_tile, nullptr, w.products);
    run_product(stream, logits_product(e.students, columns, e.width), student_data, e.width,
                prototypes, w.gradient, nullptr, w.products);
    target_kernel<<<static_cast<unsigned>(e.teachers), kThreads, 0, cuda.stream>>>(
        w.teacher_tile, columns, centre_data + first, temperature_data, teacher_lse_data);
    check_launch(kName);
    gradient_kernel<<<static_cast<unsigned>(e.students), kThreads, 0, cuda.stream>>>(
        w.gradient, w.teacher_tile, columns, factor, rows, e.teachers, student_lse_data,
        weights_data, dloss_data);
    check_launch(kName);
    if (dstudent_data != nullptr) {
      // A product may not add to itself: two buffers take turns, and the last block's is the result.
      const bool to_result = (blocks - 1 - block) % 2 == 0;
      float* to = to_result ? dstudent_data : w.dstudent;
      const float* before = to_result ? w.dstudent : dstudent_data;
      run_product(stream, dstudent_product(e, columns), w.gradient, columns, prototypes, to,
                  block > 0 ? before : nullptr, w.products);
    }
    if (dprototypes_data != nullptr) {
      run_product(stream, dprototypes_product(e, columns), w.gradient, columns, student_data,
                  dprototypes_data + first * e.width, nullptr, w.products);
    }
  }
}

size_t sinkhorn_centre_scratch(int multiprocessors, In teacher, In prototypes) {
  DeviceCarver carver(nullptr);
  sinkhorn_workspace(multiprocessors, sinkhorn_extents(teacher, prototypes), carver);
  return carver.bytes();
}

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
  if (e.teachers < 1 || e.prototypes < 1 || e.width < 1 || e.teachers >= kMostRows) {
    fail("ERR_SHAPE", "%s: extents of teacher must be from 1 to 2^31, got %lld", kName,
         static_cast<long long>(e.teachers));
  }
  const CudaContext& cuda = stream.cuda();
  check_scratch(kName, scratch, sinkhorn_centre_scratch(cuda.multiprocessors, teacher, prototypes));
  const float* teacher_data = teacher.data();
  const float* prototypes_data = prototypes.data();
  const float* temperature_data = temperature.data();
  float* centre_data = centre.data();
  DeviceCarver carver(scratch.data);
  const SinkhornWorkspace w = sinkhorn_workspace(cuda.multiprocessors, e, carver);
  check_cuda(cudaMemsetAsync(w.log_factor, 0, static_cast<size_t>(e.teachers) * sizeof(float),
                             cuda.stream),
             kName);
  for (int64_t iteration = 0; iteration < iterations; ++iteration) {
    const bool last = iteration + 1 == iterations;
    begin_kernel<<<blocks_for(e.teachers), kThreads, 0, cuda.stream>>>(w.rows, e.teachers, nullptr,
                                                                       0);
    check_launch(kName);
    for (int64_t first = 0; first < e.prototypes; first += e.columns()) {
      const int64_t columns = smaller(e.columns(), e.prototypes - first);
      run_product(stream, logits_product(e.teachers, columns, e.width), teacher_data, e.width,
                  prototypes_data + first * e.width, w.tile, nullptr, w.products);
      column_kernel<<<blocks_for(columns), kThreads, 0, cuda.stream>>>(
          w.tile, e.teachers, columns, temperature_data, w.log_factor, w.column_lse,
          last ? centre_data + first : nullptr);
      check_launch(kName);
      if (last) continue;
      row_kernel<<<static_cast<unsigned>(e.teachers), kThreads, 0, cuda.stream>>>(
          w.tile, columns, temperature_data, w.column_lse, w.rows);
      check_launch(kName);
    }
    if (last) continue;
    factor_kernel<<<blocks_for(e.teachers), kThreads, 0, cuda.stream>>>(w.rows, e.teachers,
                                                                        w.log_factor);
    check_launch(kName);
  }
}

}  // namespace siglip::cuda
