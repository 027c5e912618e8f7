#define SIGLIP_CPU cuda  // the namespace of the guards
#include "cpu/check.h"
#include "device/reduce.cuh"
#include "device/sum_partials.cuh"
#include "device/vector.cuh"
#include "ops/adam/adam.h"
#include "runtime/cuda_context.h"

namespace siglip::cuda {
namespace {

using device::Floats;

// A small parameter is one block, which spares it the second launch.
constexpr int kSmallWarps = 32;
constexpr int64_t kSmallElements = int64_t{1} << 13;
constexpr int kWarps = 8;
// Elements a block of kWarps takes in one turn, the blocks a multiprocessor should get before they
// take a second one, and the turns after which there are rather more blocks.
constexpr int64_t kTurnElements = int64_t{kWarps} * device::kWarpThreads * 4;
constexpr int64_t kBlocksPerProcessor = 8;
constexpr int64_t kMostTurns = 16;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Blocks {
  int64_t count;
  int64_t elements;  // of every block but the last
};

Blocks blocks_of(int multiprocessors, int64_t size) {
  if (size <= kSmallElements) return {1, kSmallElements};
  const int64_t wanted = ceil_div(size, multiprocessors * kBlocksPerProcessor * kTurnElements);
  const int64_t turns = wanted < kMostTurns ? wanted : kMostTurns;
  return {ceil_div(size, turns * kTurnElements), turns * kTurnElements};
}

struct Operands {
  float* param;
  float* m;
  float* v;
  const float* grad;
  const float* grad_norm;
  const float* schedule;
};

struct Constants {
  double learning_rate;
  double weight_decay;
  float clip_norm;
  float beta1, one_minus_beta1;
  float beta2, one_minus_beta2;
  float eps;
};

struct Sums {
  float update_squares;
  float param_squares;
};

// A moment without gradients decays into the denormals and never leaves them; on the CPU they are
// flushed because they are slow, here so that both do the same. NaN stays.
__device__ inline float flush_denormal(float x) {
  constexpr float kLeastNormal = 1.17549435e-38F;
  return fabsf(x) < kLeastNormal ? 0.0F : x;
}

// The scalars of one update.
struct Step {
  bool taken;
  float clip;
  float correct1, correct2;  // 1 / c1, 1 / c2
  float rate;                // schedule · learning rate
  float decay;               // schedule · weight decay

  __device__ Step(const Operands& on, const Constants& constants) {
    taken = isfinite(*on.grad_norm);
    const float ratio = constants.clip_norm / *on.grad_norm;
    clip = constants.clip_norm <= 0.0F || ratio >= 1.0F ? 1.0F : ratio;
    const double multiplier = static_cast<double>(on.schedule[0]);
    correct1 = 1.0F / on.schedule[1];
    correct2 = 1.0F / on.schedule[2];
    rate = static_cast<float>(multiplier * constants.learning_rate);
    decay = static_cast<float>(multiplier * constants.weight_decay);
  }

  // Updates the operands in place and returns the update.
  __device__ float apply(const Constants& constants, float grad, float* param, float* m,
                         float* v) const {
    if (!taken) return 0.0F;
    const float g = grad * clip;
    *m = flush_denormal(constants.beta1 * *m + constants.one_minus_beta1 * g);
    *v = flush_denormal(constants.beta2 * *v + constants.one_minus_beta2 * (g * g));
    const float direction = (*m * correct1) / (sqrtf(*v * correct2) + constants.eps);
    const float update = rate * direction + decay * *param;
    *param -= update;
    return update;
  }
};

// N is 4, or 1 where an operand does not lie at a multiple of 16 bytes. A grid of one block writes
// the sums themselves, others one partial sum per block.
template <int N, int kBlockWarps>
__global__ void __launch_bounds__(kBlockWarps* device::kWarpThreads)
    adam_kernel(Operands on, Constants constants, int64_t size, int64_t block_elements,
                Sums* partial, float* update_squares, float* param_squares) {
  constexpr int64_t kTurn = int64_t{kBlockWarps} * device::kWarpThreads * N;
  __shared__ float shared[kBlockWarps];
  const Step step(on, constants);
  const int64_t begin = int64_t{blockIdx.x} * block_elements;
  const int64_t end = begin + block_elements < size ? begin + block_elements : size;
  Sums sums = {0.0F, 0.0F};
  int64_t i = begin + int64_t{threadIdx.x} * N;
  for (; i + N <= end; i += kTurn) {
    const Floats<N> g = device::load<N>(on.grad + i);
    Floats<N> param = device::load<N>(on.param + i);
    Floats<N> m = device::load<N>(on.m + i);
    Floats<N> v = device::load<N>(on.v + i);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float update = step.apply(constants, g[j], &param[j], &m[j], &v[j]);
      sums.update_squares = fmaf(update, update, sums.update_squares);
      sums.param_squares = fmaf(param[j], param[j], sums.param_squares);
    }
    device::store(on.param + i, param);
    device::store(on.m + i, m);
    device::store(on.v + i, v);
  }
  if (N > 1) {
    for (; i < end; ++i) {
      const float update = step.apply(constants, on.grad[i], &on.param[i], &on.m[i], &on.v[i]);
      sums.update_squares = fmaf(update, update, sums.update_squares);
      sums.param_squares = fmaf(on.param[i], on.param[i], sums.param_squares);
    }
  }
  sums.update_squares = device::block_sum<kBlockWarps>(sums.update_squares, shared);
  sums.param_squares = device::block_sum<kBlockWarps>(sums.param_squares, shared);
  if (threadIdx.x == 0) {
    if (gridDim.x == 1) {
      *update_squares = sums.update_squares;
      *param_squares = sums.param_squares;
    } else {
      partial[blockIdx.x] = sums;
    }
  }
}

constexpr int kSumThreads = device::kSumWarps * device::kWarpThreads;

// One block for either sum.
__global__ void __launch_bounds__(kSumThreads)
    adam_sums_kernel(const Sums* partial, int64_t count, float* update_squares,
                     float* param_squares) {
  __shared__ double shared[device::kSumWarps];
  const bool update = blockIdx.x == 0;
  const double sum = device::sum_partials(
      update ? &partial->update_squares : &partial->param_squares, count, 2, shared);
  if (threadIdx.x == 0) *(update ? update_squares : param_squares) = static_cast<float>(sum);
}

}  // namespace

void adam_update(Stream& stream, InOut param, InOut m, InOut v, In grad, In grad_norm, In schedule,
                 double learning_rate, double beta1, double beta2, double eps, double weight_decay,
                 double clip_norm, Out update_squares, Out param_squares, Scratch scratch) {
  constexpr char kName[] = "adam_update";
  const int64_t size = param.elements();
  check_elements(kName, "m", m, size);
  check_elements(kName, "v", v, size);
  check_elements(kName, "grad", grad, size);
  check_elements(kName, "grad_norm", grad_norm, 1);
  check_elements(kName, "schedule", schedule, 3);
  check_elements(kName, "update_squares", update_squares, 1);
  check_elements(kName, "param_squares", param_squares, 1);
  const Blocks blocks = blocks_of(stream.cuda().multiprocessors, size);
  check_scratch(kName, scratch, static_cast<size_t>(blocks.count) * sizeof(Sums));
  const Operands on = {param.data(), m.data(),         v.data(),
                       grad.data(),  grad_norm.data(), schedule.data()};
  const Constants constants = {learning_rate,
                               weight_decay,
                               static_cast<float>(clip_norm),
                               static_cast<float>(beta1),
                               static_cast<float>(1.0 - beta1),
                               static_cast<float>(beta2),
                               static_cast<float>(1.0 - beta2),
                               static_cast<float>(eps)};
  Sums* partial = reinterpret_cast<Sums*>(scratch.data);
  float* update_data = update_squares.data();
  float* param_squares_data = param_squares.data();
  const cudaStream_t queue = stream.cuda().stream;

  const bool aligned = device::aligned16(on.param, on.m, on.v, on.grad);
  const int warps = blocks.count == 1 ? kSmallWarps : kWarps;
  const auto kernel = blocks.count == 1
                          ? (aligned ? adam_kernel<4, kSmallWarps> : adam_kernel<1, kSmallWarps>)
                          : (aligned ? adam_kernel<4, kWarps> : adam_kernel<1, kWarps>);
  kernel<<<blocks.count, warps * device::kWarpThreads, 0, queue>>>(
      on, constants, size, blocks.elements, partial, update_data, param_squares_data);
  check_launch(kName);
  if (blocks.count == 1) return;
  adam_sums_kernel<<<2, kSumThreads, 0, queue>>>(partial, blocks.count, update_data,
                                                 param_squares_data);
  check_launch(kName);
}

size_t adam_update_scratch(int multiprocessors, In param) {
  return static_cast<size_t>(blocks_of(multiprocessors, param.elements()).count) * sizeof(Sums);
}

}  // namespace siglip::cuda
