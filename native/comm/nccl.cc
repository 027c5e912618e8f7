#include "comm/nccl.h"

#include "runtime/error.h"

#if defined(SIGLIP_NCCL)
#include <dlfcn.h>
#include <nccl.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

#include "runtime/cuda_context.h"
#include "runtime/cuda_handles.h"
#include "runtime/thread_name.h"
#endif

namespace siglip {

#if defined(SIGLIP_NCCL)

namespace {

using Clock = std::chrono::steady_clock;

// For so long a wait asks without a pause; then a few times in a millisecond.
constexpr auto kEager = std::chrono::microseconds(300);
constexpr auto kPause = std::chrono::microseconds(50);
// Between two looks at what is under way.
constexpr auto kWatch = std::chrono::milliseconds(100);

// The functions that are used, with the prototypes of NVIDIA's header.
struct Library {
#define SIGLIP_NCCL_FUNCTIONS(F) \
  F(AllGather)                   \
  F(AllReduce)                   \
  F(Broadcast)                   \
  F(CommAbort)                   \
  F(CommDestroy)                 \
  F(CommFinalize)                \
  F(CommGetAsyncError)           \
  F(CommInitRankConfig)          \
  F(GetErrorString)              \
  F(GetLastError)                \
  F(GetUniqueId)                 \
  F(GetVersion)                  \
  F(GroupEnd)                    \
  F(GroupStart)                  \
  F(Recv)                        \
  F(Reduce)                      \
  F(ReduceScatter)               \
  F(Send)
#define SIGLIP_DECLARE(name) decltype(&nccl##name) name = nullptr;
  SIGLIP_NCCL_FUNCTIONS(SIGLIP_DECLARE)
#undef SIGLIP_DECLARE

  // Why it could not be opened; empty when it was. Once open, it stays: it has threads of its own.
  std::string open(const char* path) {
    void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return dlerror();
    const char* missing = nullptr;
#define SIGLIP_RESOLVE(name)                                             \
  name = reinterpret_cast<decltype(name)>(dlsym(library, "nccl" #name)); \
  if (name == nullptr) missing = "nccl" #name;
    SIGLIP_NCCL_FUNCTIONS(SIGLIP_RESOLVE)
#undef SIGLIP_RESOLVE
#undef SIGLIP_NCCL_FUNCTIONS
    return missing == nullptr ? "" : std::string(path) + " has no " + missing;
  }
};

struct Opened {
  Library library;
  NcclDescription description;
};

// 23007 is 2.30.7; up to 2.8 it was 2803 for 2.8.3.
std::string version_text(int version) {
  const int major = version >= 10000 ? 10000 : 1000;
  return std::to_string(version / major) + "." + std::to_string(version % major / 100) + "." +
         std::to_string(version % 100);
}

void open_library(Opened* opened) {
  const char* variable = std::getenv("SIGLIP2_NCCL");
  const std::string path = variable == nullptr ? "" : variable;
  const std::string reason = opened->library.open(path.empty() ? "libnccl.so.2" : path.c_str());
  if (!reason.empty()) {
    opened->description.missing =
        reason +
        (path.empty()
             ? "\nto do: install NCCL (Debian: libnccl2; Python: nvidia-nccl-cu13), or set "
               "SIGLIP2_NCCL to the path of its libnccl.so.2"
             : "\nto do: set SIGLIP2_NCCL to the path of libnccl.so.2, or unset it");
    return;
  }
  int version = 0;
  opened->library.GetVersion(&version);
  opened->description.version = version_text(version);
}

const Opened& opened() {
  static const auto* opened = [] {
    auto* made = new Opened();
    open_library(made);
    return made;
  }();
  return *opened;
}

const Library& present_library() {
  const Opened& found = opened();
  if (!found.description.version.empty()) return found.library;
  throw Error("ERR_COMM", "nccl: the library must open, got " + found.description.missing);
}

class OpenNcclCommunicator final : public NcclCommunicator, private Device::Attendant {
 public:
  OpenNcclCommunicator(const Library& library, Device& device, double limit_seconds)
      : library_(library), device_(device), limit_(limit_seconds) {
    device_.attend(*this);
  }
  ~OpenNcclCommunicator() override {
    device_.leave(*this);
    on_stop();
    if (stream_ == nullptr) return;
    const CurrentDevice current(device_index_);
    cudaStreamDestroy(stream_);
    cudaGetLastError();
  }
  OpenNcclCommunicator(const OpenNcclCommunicator&) = delete;
  OpenNcclCommunicator& operator=(const OpenNcclCommunicator&) = delete;

  void check_usable() override {
    const std::lock_guard lock(mutex_);
    if (!failure_.empty()) throw Error("ERR_COMM", failure_);
    if (closed_)
      throw Error("ERR_DISPOSED", "nccl: the communicator must be open, got a closed one");
  }

  void open(Stream& stream, const NcclId& id, int rank, int size) override {
    const std::lock_guard calls(calls_);
    check_usable();
    if (comm_ != nullptr) {
      throw Error("ERR_COMM", "nccl: a communicator must be opened once, got a second time");
    }
    rank_ = rank;
    device_index_ = stream.cuda().device;
    int least = 0;
    int greatest = 0;
    check_cuda(cudaDeviceGetStreamPriorityRange(&least, &greatest), "nccl: priorities");
    // Ahead of kernels that wait, since other ranks wait for it.
    check_cuda(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest),
               "nccl: a stream");
    cudaEvent_t event = nullptr;
    check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "nccl: an event");
    queued_.reset(event);
    ncclUniqueId key;
    static_assert(sizeof(key.internal) == sizeof(NcclId));
    std::memcpy(key.internal, id.data(), id.size());
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    wait(library_.CommInitRankConfig(&comm_, size, key, rank, &config), "open");
    const SignalsBlocked blocked;
    watcher_ = std::thread([this] { watch(); });
  }

  void run(Stream& stream, const std::string& name,
           const std::vector<Transfer>& transfers) override {
    const std::lock_guard calls(calls_);
    check_usable();
    if (comm_ == nullptr) throw Error("ERR_COMM", "nccl: a communicator must be opened before use");
    CudaContext& context = stream.cuda();
    check_cuda(cudaEventRecord(queued_.get(), context.stream), "nccl: an event");
    check_cuda(cudaStreamWaitEvent(stream_, queued_.get(), 0), "nccl: an event");
    ncclResult_t status = library_.GroupStart();
    for (const Transfer& transfer : transfers) {
      const ncclResult_t called = call(transfer);
      if (status == ncclSuccess && called != ncclInProgress) status = called;
    }
    const ncclResult_t ended = library_.GroupEnd();
    wait(status == ncclSuccess ? ended : status, name);
    context.side = stream_;
    {
      const std::lock_guard lock(mutex_);
      under_way_.push_back({name, Clock::now()});
    }
    changed_.notify_all();
  }

  void close() override {
    const std::lock_guard calls(calls_);
    check_usable();
    if (comm_ != nullptr) {
      wait(library_.CommFinalize(comm_), "close");
      library_.CommDestroy(comm_);
      comm_ = nullptr;
    }
    const std::lock_guard lock(mutex_);
    closed_ = true;
  }

  void settle() override {
    const std::lock_guard lock(mutex_);
    under_way_.pop_front();
    if (!failure_.empty()) throw Error("ERR_COMM", failure_);
  }

  void abort(const std::string& reason) noexcept override {
    fail(reason);
    aborting_ = true;
    const std::lock_guard calls(calls_);
    break_down(reason);
  }

 private:
  struct UnderWay {
    std::string name;
    Clock::time_point began;
  };

  // Cuts short what is under way and ends the watch.
  void on_stop() noexcept override {
    abort("nccl: the device must go on working, got its end");
    {
      const std::lock_guard lock(mutex_);
      leaving_ = true;
    }
    changed_.notify_all();
    if (watcher_.joinable()) watcher_.join();
  }

  ncclResult_t call(const Transfer& transfer) const {
    const auto count = static_cast<size_t>(transfer.count);
    const void* from = transfer.from;
    void* into = transfer.into;
    switch (transfer.kind) {
      case Transfer::Kind::kAllReduce:
        return library_.AllReduce(from, into, count, ncclFloat32, ncclSum, comm_, stream_);
      case Transfer::Kind::kReduceScatter:
        return library_.ReduceScatter(from, into, count, ncclFloat32, ncclSum, comm_, stream_);
      case Transfer::Kind::kAllGather:
        return library_.AllGather(from, into, count, ncclUint8, comm_, stream_);
      case Transfer::Kind::kReduce:
        return library_.Reduce(from, into, count, ncclFloat32, ncclSum, transfer.peer, comm_,
                               stream_);
      case Transfer::Kind::kBroadcast:
        return library_.Broadcast(from, into, count, ncclUint8, transfer.peer, comm_, stream_);
      case Transfer::Kind::kSend:
        return library_.Send(from, count, ncclUint8, transfer.peer, comm_, stream_);
      case Transfer::Kind::kReceive:
        return library_.Recv(into, count, ncclUint8, transfer.peer, comm_, stream_);
    }
    return ncclInvalidArgument;
  }

  std::string who(const std::string& name) const {
    return "nccl: " + name + " of rank " + std::to_string(rank_);
  }

  std::string late(const std::string& name) const {
    return who(name) + " must end within " + std::to_string(static_cast<int64_t>(limit_)) +
           " s, got no answer: another rank has ended or hangs";
  }

  bool over(Clock::time_point began) const {
    return Clock::now() - began > std::chrono::duration<double>(limit_);
  }

  std::string text_of(ncclResult_t status) const {
    std::string text = library_.GetErrorString(status);
    const char* last = library_.GetLastError(comm_);
    if (last != nullptr && *last != '\0') text += std::string(": ") + last;
    return text + "\nto do: NCCL_DEBUG=WARN makes NCCL say more";
  }

  // With calls_ held: waits until NCCL has done what it was asked; breaks down, and throws, otherwise.
  void wait(ncclResult_t status, const std::string& name) {
    const auto began = Clock::now();
    while (status == ncclInProgress) {
      if (aborting_ || over(began)) {
        break_down(late(name));
        check_usable();
      }
      if (Clock::now() - began < kEager) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(kPause);
      }
      const ncclResult_t asked = library_.CommGetAsyncError(comm_, &status);
      if (asked != ncclSuccess) status = asked;
    }
    if (status == ncclSuccess) return;
    break_down(who(name) + " must succeed, got " + text_of(status));
    check_usable();
  }

  // The first reason stays.
  void fail(const std::string& reason) noexcept {
    const std::lock_guard lock(mutex_);
    if (failure_.empty() && !closed_) failure_ = reason;
  }

  // With calls_ held. Kernels that wait for other ranks end.
  void break_down(const std::string& reason) noexcept {
    fail(reason);
    if (comm_ == nullptr) return;
    library_.CommAbort(comm_);
    comm_ = nullptr;
  }

  // Notices what failed on the GPU or in another rank, for which nobody here waits.
  void watch() {
    name_this_thread("siglip2-nccl");
    for (;;) {
      {
        std::unique_lock lock(mutex_);
        if (under_way_.empty()) {
          changed_.wait(lock, [this] { return leaving_ || !under_way_.empty(); });
        }
        if (changed_.wait_for(lock, kWatch, [this] { return leaving_; })) return;
      }
      look();
    }
  }

  void look() {
    const std::unique_lock calls(calls_, std::try_to_lock);
    // Who holds it looks itself.
    if (!calls.owns_lock() || comm_ == nullptr) return;
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = library_.CommGetAsyncError(comm_, &state);
    UnderWay oldest = {};
    {
      const std::lock_guard lock(mutex_);
      if (under_way_.empty()) return;
      oldest = under_way_.front();
    }
    const ncclResult_t status = asked == ncclSuccess ? state : asked;
    if (status != ncclSuccess && status != ncclInProgress) {
      break_down(who(oldest.name) + " must succeed, got " + text_of(status));
    } else if (over(oldest.began)) {
      break_down(late(oldest.name));
    }
  }

  const Library& library_;
  Device& device_;
  const double limit_;
  int rank_ = 0;
  int device_index_ = 0;
  cudaStream_t stream_ = nullptr;
  Event queued_;  // what the device had queued before a run

  std::mutex calls_;  // held over calls of NCCL; before mutex_
  ncclComm_t comm_ = nullptr;
  std::atomic<bool> aborting_{false};

  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::deque<UnderWay> under_way_;
  std::string failure_;  // empty: none
  bool closed_ = false;
  bool leaving_ = false;

  std::thread watcher_;
};

}  // namespace

const NcclDescription& nccl_description() { return opened().description; }

NcclId nccl_unique_id() {
  const Library& library = present_library();
  ncclUniqueId key;
  const ncclResult_t status = library.GetUniqueId(&key);
  if (status != ncclSuccess) {
    throw Error("ERR_COMM", std::string("nccl: an id must be made, got ") +
                                library.GetErrorString(status) +
                                "\nto do: NCCL_SOCKET_IFNAME names the network to use; "
                                "NCCL_DEBUG=WARN makes NCCL say more");
  }
  NcclId id;
  std::memcpy(id.data(), key.internal, id.size());
  return id;
}

std::shared_ptr<NcclCommunicator> make_nccl_communicator(Device& device, double limit_seconds) {
  const Library& library = present_library();
  if (device.kind() != DeviceKind::kCuda) {
    throw Error("ERR_DEVICE", "nccl: the device must be a GPU, got " + device.name());
  }
  return std::make_shared<OpenNcclCommunicator>(library, device, limit_seconds);
}

#else  // SIGLIP_NCCL

const NcclDescription& nccl_description() {
  static const NcclDescription description {
    "",
#if defined(SIGLIP_CUDA)
        "this build was made without NCCL's header\n"
        "to do: install NCCL with its header (Debian: libnccl-dev; Python: nvidia-nccl-cu13), or "
        "name "
        "the folder of nccl.h by -DSIGLIP_NCCL_INCLUDE, and run `npm run build:native`"
#else
        "this build has no CUDA kernels, and NCCL is for arrays on GPUs alone"
#endif
  };
  return description;
}

NcclId nccl_unique_id() {
  throw Error("ERR_COMM", "nccl: the library must open, got " + nccl_description().missing);
}

std::shared_ptr<NcclCommunicator> make_nccl_communicator(Device&, double) {
  throw Error("ERR_COMM", "nccl: the library must open, got " + nccl_description().missing);
}

#endif  // SIGLIP_NCCL

}  // namespace siglip
