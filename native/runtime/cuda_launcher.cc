#include "runtime/cuda_launcher.h"

#include <utility>

namespace siglip {
namespace {

// A caller who works on batches has a few sets of buffers in use at a time.
constexpr size_t kGraphs = 8;
constexpr size_t kRemembered = 64;

// Keeps a graph until its replay is over.
class Replay final : public Launch {
 public:
  explicit Replay(GraphExec graph) : graph_(std::move(graph)) {}
  void read_times(double*) override {}

 private:
  GraphExec graph_;
};

// An event before the first step and behind every one.
class TimedLaunch final : public Launch {
 public:
  explicit TimedLaunch(const CudaContext& context) : context_(context) {}

  void mark() {
    cudaEvent_t event = nullptr;
    check_cuda(cudaEventCreateWithFlags(&event, cudaEventDefault), "an event");
    events_.emplace_back(event);
    check_cuda(cudaEventRecord(event, context_.stream), "an event");
  }

  void read_times(double* nanoseconds) override {
    const CurrentDevice current(context_.device);
    for (size_t i = 0; i + 1 < events_.size(); ++i) {
      float milliseconds = 0;
      check_cuda(cudaEventElapsedTime(&milliseconds, events_[i].get(), events_[i + 1].get()),
                 "the time of a step");
      nanoseconds[i] = 1e6 * static_cast<double>(milliseconds);
    }
  }

 private:
  const CudaContext& context_;
  std::vector<Event> events_;
};

void call_all(const Steps& steps) {
  for (size_t i = 0; i < steps.count; ++i) steps.call(i);
}

// What the context's stream is while steps are recorded.
class Redirected {
 public:
  Redirected(CudaContext& context, cudaStream_t to) : context_(context), before_(context.stream) {
    context_.stream = to;
  }
  ~Redirected() { context_.stream = before_; }
  Redirected(const Redirected&) = delete;
  Redirected& operator=(const Redirected&) = delete;

 private:
  CudaContext& context_;
  cudaStream_t before_;
};

}  // namespace

CudaLauncher::CudaLauncher(CudaContext& context, cudaStream_t recorder, bool graphs)
    : context_(context), recorder_(recorder), graphs_(graphs), recorded_(kGraphs, kRemembered) {}

CudaLauncher::~CudaLauncher() = default;

std::unique_ptr<Launch> CudaLauncher::launch(Stream&, const Addresses& addresses,
                                             const Steps& steps, bool profile) {
  if (profile) {
    auto timed = std::make_unique<TimedLaunch>(context_);
    timed->mark();
    for (size_t i = 0; i < steps.count; ++i) {
      steps.call(i);
      timed->mark();
    }
    return timed;
  }
  if (graphs_ && steps.count > 1) {
    GraphExec* known = recorded_.find(addresses);
    if (known == nullptr && recorded_.returning(addresses)) {
      GraphExec made = record(steps);
      graphs_ = made != nullptr;
      if (made) known = &recorded_.insert(addresses, std::move(made));
    }
    if (known != nullptr) {
      check_cuda(cudaGraphLaunch(known->get(), context_.stream), "a graph");
      return std::make_unique<Replay>(*known);
    }
  }
  call_all(steps);
  return nullptr;
}

GraphExec CudaLauncher::record(const Steps& steps) {
  // Of this thread alone: JavaScript's may allocate meanwhile.
  if (cudaStreamBeginCapture(recorder_, cudaStreamCaptureModeThreadLocal) != cudaSuccess) {
    cudaGetLastError();
    return nullptr;
  }
  bool complete = true;
  try {
    const Redirected redirected(context_, recorder_);
    call_all(steps);
  } catch (...) {
    // An eager run comes next and says what is wrong, if it is not the recording itself.
    complete = false;
  }
  cudaGraph_t captured = nullptr;
  complete = cudaStreamEndCapture(recorder_, &captured) == cudaSuccess && complete;
  const Graph graph(captured);
  cudaGraphExec_t made = nullptr;
  complete = complete && cudaGraphInstantiate(&made, captured, 0) == cudaSuccess;
  cudaGetLastError();
  if (!complete) return nullptr;
  const int device = context_.device;
  return GraphExec(made, [device](cudaGraphExec_t exec) {
    const CurrentDevice current(device);
    cudaGraphExecDestroy(exec);
  });
}

}  // namespace siglip
