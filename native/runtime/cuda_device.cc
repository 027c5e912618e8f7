#include "runtime/cuda_device.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <system_error>
#include <thread>
#include <utility>

#include "runtime/cuda.h"
#include "runtime/cuda_handles.h"
#include "runtime/cuda_launcher.h"
#include "runtime/error.h"
#include "runtime/machine.h"

namespace siglip {
namespace {

constexpr size_t kBlockAlignment = 256;
// Blocks that are kept when they are given back, each and together at most.
constexpr size_t kSmallBlock = size_t{4} << 20;
constexpr size_t kIdleBytes = size_t{256} << 20;

size_t padded_bytes(size_t bytes) {
  return (bytes + kBlockAlignment - 1) / kBlockAlignment * kBlockAlignment;
}

// Jobs queued on the GPU ahead of the one it works on: a batch is two or three writes, a run and a
// read.
constexpr size_t kAhead = 12;
// What stays with us when the last allocation is given back.
constexpr size_t kKeptBytes = size_t{64} << 20;
// Smaller writes from plain memory cost no more than from a block of the pool.
constexpr size_t kSmallCopy = size_t{1} << 16;

// How long the end of a job is looked out for before its thread sleeps: longer than one image takes. To
// be woken by an interrupt of the device takes some tens of microseconds.
constexpr std::chrono::milliseconds kLookOut{2};

std::byte* make_pinned(size_t bytes) {
  void* data = nullptr;
  const cudaError_t status = cudaHostAlloc(&data, bytes, cudaHostAllocDefault);
  if (status == cudaSuccess) return static_cast<std::byte*>(data);
  cudaGetLastError();
  return nullptr;
}

void free_pinned(std::byte* data) { cudaFreeHost(data); }

size_t staging_limit() { return std::min(usable_memory() / 8, size_t{2} << 30); }

bool configured_graphs() {
  const char* text = std::getenv("SIGLIP2_CUDA_GRAPHS");
  const std::string value = text == nullptr || *text == '\0' ? "1" : text;
  if (value == "0" || value == "1") return value == "1";
  throw Error("ERR_ARGUMENT", "cuda: SIGLIP2_CUDA_GRAPHS must be 0 or 1, got " + value);
}

int attribute(int device, cudaDeviceAttr which) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, which, device), "an attribute of the device");
  return value;
}

cudaStream_t new_stream() {
  cudaStream_t stream = nullptr;
  check_cuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
  return stream;
}

// A pool of our own: what other code of the process does with the default one stays its business.
cudaMemPool_t new_pool(int device) {
  cudaMemPoolProps properties = {};
  properties.allocType = cudaMemAllocationTypePinned;
  properties.handleTypes = cudaMemHandleTypeNone;
  properties.location.type = cudaMemLocationTypeDevice;
  properties.location.id = device;
  cudaMemPool_t pool = nullptr;
  check_cuda(cudaMemPoolCreate(&pool, &properties), "a pool of memory");
  uint64_t threshold = UINT64_MAX;
  check_cuda(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &threshold),
             "a pool of memory");
  return pool;
}

}  // namespace

class CudaDevice::Allocation final : public Memory {
 public:
  Allocation(CudaDevice& device, void* data, size_t bytes) : Memory(bytes), device_(device) {
    data_ = static_cast<std::byte*>(data);
  }
  ~Allocation() override { device_.free(data_, bytes()); }

 private:
  CudaDevice& device_;
};

Device* open_cuda_device(int index) { return new CudaDevice(index); }

CudaDevice::CudaDevice(int index)
    : Device(DeviceKind::kCuda, "cuda:" + std::to_string(index)),
      graphs_(configured_graphs()),
      staging_(make_pinned, free_pinned, staging_limit()),
      pipeline_(*this, kAhead, "siglip2-gpu" + std::to_string(index)) {
  const CurrentDevice current(index);
  context_.device = index;
  context_.multiprocessors = attribute(index, cudaDevAttrMultiProcessorCount);
  context_.architecture = 10 * attribute(index, cudaDevAttrComputeCapabilityMajor) +
                          attribute(index, cudaDevAttrComputeCapabilityMinor);
  context_.shared_bytes = attribute(index, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  compute_ = new_stream();
  copies_ = new_stream();
  recorder_ = new_stream();
  pool_ = new_pool(index);
  check_cuda(cudaEventCreateWithFlags(&copied_, cudaEventDisableTiming), "an event");
  context_.stream = compute_;
  blas_ = open_cublaslt(context_);
  context_.blas = blas_.get();
}

void CudaDevice::submit(std::unique_ptr<Job> job) {
  try {
    stopped_ = false;
    pipeline_.submit(std::move(job));
  } catch (const std::system_error& error) {
    throw Error("ERR_DEVICE", name() + ": its threads must start, got " + error.what());
  }
}

// No kernel is queued on the second stream and memory is freed only when the device is done with it,
// so what the pool hands out there is at nobody else's use.
std::shared_ptr<Memory> CudaDevice::allocate(size_t bytes, Contents contents) {
  check_usable();
  const CurrentDevice current(context_.device);
  const size_t padded = padded_bytes(bytes);
  void* const data = take(padded);
  if (data == nullptr) {
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    cudaMemGetInfo(&free_bytes, &total_bytes);
    throw Error("ERR_OUT_OF_MEMORY", "memory: an allocation must fit on " + name() + ", got " +
                                         std::to_string(bytes) + " bytes\n" + in_mib(free_bytes) +
                                         " are free of " + in_mib(total_bytes));
  }
  allocations_ += 1;
  auto allocation = std::make_shared<Allocation>(*this, data, bytes);
  if (contents == Contents::kZeros) {
    check_cuda(cudaMemsetAsync(data, 0, padded, copies_), "zeros");
    copies_queued_ = true;
  }
  return allocation;
}

void* CudaDevice::take(size_t padded) {
  {
    const std::lock_guard<std::mutex> lock(idle_mutex_);
    const auto found = idle_.find(padded);
    if (found != idle_.end()) {
      void* const data = *found->second.begin();
      found->second.erase(found->second.begin());
      if (found->second.empty()) idle_.erase(found);
      idle_bytes_ -= padded;
      return data;
    }
  }
  void* data = nullptr;
  cudaError_t status = cudaMallocFromPoolAsync(&data, padded, pool_, copies_);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    // Memory given back in other sizes.
    drop_idle();
    cudaStreamSynchronize(copies_);
    cudaMemPoolTrimTo(pool_, 0);
    status = cudaMallocFromPoolAsync(&data, padded, pool_, copies_);
  }
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return nullptr;
  }
  check_cuda(status, "an allocation");
  copies_queued_ = true;
  return data;
}

void CudaDevice::drop_idle() noexcept {
  const std::lock_guard<std::mutex> lock(idle_mutex_);
  for (const auto& [padded, blocks] : idle_) {
    for (void* block : blocks) cudaFreeAsync(block, copies_);
  }
  idle_.clear();
  idle_bytes_ = 0;
}

void CudaDevice::free(void* data, size_t bytes) noexcept {
  const CurrentDevice current(context_.device);
  const bool last = --allocations_ == 0;
  const bool final = last || stopped_;
  const size_t padded = padded_bytes(bytes);
  bool kept = false;
  if (!final && padded <= kSmallBlock) {
    const std::lock_guard<std::mutex> lock(idle_mutex_);
    try {
      kept = idle_bytes_ + padded <= kIdleBytes && idle_[padded].insert(data).second;
    } catch (...) {
      kept = false;  // no memory of the host to remember it by
    }
    if (kept) idle_bytes_ += padded;
  }
  if (!kept) cudaFreeAsync(data, copies_);
  // Without threads there is nobody who would use the memory again.
  if (final) {
    drop_idle();
    cudaStreamSynchronize(copies_);
    cudaMemPoolTrimTo(pool_, stopped_ ? 0 : kKeptBytes);
  }
  cudaGetLastError();
}

std::unique_ptr<Staging> CudaDevice::stage(size_t bytes, bool patient) {
  if (!patient) pipeline_.expect();
  // A read into plain memory would hold up the thread that queues until it is done.
  if (bytes > kSmallCopy || patient) {
    const CurrentDevice current(context_.device);
    std::unique_ptr<Staging> staging = staging_.take(bytes);
    if (!staging && patient) {
      staging_.grow(bytes);
      staging = staging_.take(bytes);
    }
    if (staging) return staging;
  }
  return std::make_unique<HeapStaging>(bytes);
}

void CudaDevice::expect() { pipeline_.expect(); }

void CudaDevice::copy_in(std::byte* to, const Staging& from, size_t offset, size_t bytes,
                         bool alone) {
  if (alone && under_way_ > 0) {
    used_ = copies_;
    copies_queued_ = true;
  }
  const cudaError_t status =
      cudaMemcpyAsync(to, from.data() + offset, bytes, cudaMemcpyHostToDevice, used_);
  // Nobody waits for a write, so what failed shows in all that comes behind it.
  if (status != cudaSuccess) break_down(status, "a write");
  check_cuda(status, "a write");
  // The next of that size finds a block.
  if (!from.pooled() && bytes > kSmallCopy) staging_.grow(bytes);
}

void CudaDevice::copy_out(Staging& to, const std::byte* from, size_t bytes) {
  check_cuda(cudaMemcpyAsync(to.data(), from, bytes, cudaMemcpyDeviceToHost, used_), "a read");
}

void CudaDevice::fill(std::byte* to, int value, size_t bytes) {
  check_cuda(cudaMemsetAsync(to, value, bytes, used_), "a fill");
}

std::unique_ptr<Launcher> CudaDevice::launcher() {
  return std::make_unique<CudaLauncher>(context_, recorder_, graphs_);
}

void CudaDevice::stop() {
  const CurrentDevice current(context_.device);
  pipeline_.stop();
  stopped_ = true;
  cudaStreamSynchronize(compute_);
  drop_idle();
  cudaStreamSynchronize(copies_);
  cudaMemPoolTrimTo(pool_, 0);
  staging_.shrink();
  cudaGetLastError();
}

void CudaDevice::enter_thread() noexcept { cudaSetDevice(context_.device); }

void CudaDevice::issue(Job& job) {
  check_usable();
  used_ = compute_;
  context_.side = nullptr;
  Stream stream(context_);
  try {
    join_copies();
    job.run(stream);
    if (context_.side != nullptr) used_ = context_.side;
  } catch (...) {
    // A refused launch leaves nothing behind; after one that failed on the device every call fails.
    cudaGetLastError();
    const cudaError_t status = cudaStreamQuery(compute_);
    cudaGetLastError();
    if (status != cudaSuccess && status != cudaErrorNotReady) break_down(status, job.name());
    throw;
  }
}

void* CudaDevice::mark() noexcept {
  cudaEvent_t event = nullptr;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!failure_.empty()) return nullptr;
    if (!marks_.empty()) {
      event = marks_.back();
      marks_.pop_back();
    }
  }
  cudaError_t status = cudaSuccess;
  if (event == nullptr) {
    status = cudaEventCreateWithFlags(&event, cudaEventDisableTiming | cudaEventBlockingSync);
  }
  if (status == cudaSuccess) status = cudaEventRecord(event, used_);
  if (status == cudaSuccess) {
    under_way_ += 1;
    return event;
  }
  break_down(status, "a mark");
  return nullptr;
}

void CudaDevice::await(void* mark, const Job& job) {
  if (mark == nullptr) return check_usable();
  auto* event = static_cast<cudaEvent_t>(mark);
  const cudaError_t status = wait_for(event);
  under_way_ -= 1;
  if (status != cudaSuccess) {
    break_down(status, job.name());
    check_usable();
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  marks_.push_back(event);
}

cudaError_t CudaDevice::wait_for(cudaEvent_t event) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point end = Clock::now() + kLookOut;
  cudaError_t status = cudaEventQuery(event);
  while (status == cudaErrorNotReady && Clock::now() < end) {
    std::this_thread::yield();
    status = cudaEventQuery(event);
  }
  if (status == cudaErrorNotReady) status = cudaEventSynchronize(event);
  cudaGetLastError();
  return status;
}

void CudaDevice::join_copies() {
  if (!copies_queued_.exchange(false)) return;
  check_cuda(cudaEventRecord(copied_, copies_), "a copy");
  check_cuda(cudaStreamWaitEvent(compute_, copied_, 0), "a copy");
}

void CudaDevice::check_usable() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!failure_.empty()) throw Error("ERR_CUDA", failure_);
}

void CudaDevice::break_down(cudaError_t status, const std::string& job) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!failure_.empty()) return;
  failure_ = name() + ": the device must go on working, got " + cudaGetErrorName(status) + " (" +
             cudaGetErrorString(status) + ") in " + job +
             " or in what was queued before it; nothing runs there any more\n"
             "to do: start a new process, since a CUDA device does not recover within one; the CPU "
             "still works here. CUDA_LAUNCH_BLOCKING=1 with SIGLIP2_CUDA_GRAPHS=0 names the step.";
}

}  // namespace siglip
