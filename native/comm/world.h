// The ranks of an MPI job and what they do together. One thread owns all of MPI (MPI_THREAD_FUNNELED)
// and takes operations in the order in which they were submitted, which must be the same on every
// rank. MPI only moves data here. Sums are ours: every element of a reduction is
//
//   ((x_0 + x_1) + x_2) + … + x_{W−1}    in float32, x_r that of rank r,
//
// whatever the library, the network and the timing, so a run repeats bit for bit and all ranks hold
// the same bits.
#pragma once

#include <mpi.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace siglip {

struct Message {
  int rank;  // the other side
  std::byte* data;
  int64_t bytes;
};

class World {
 public:
  // `run` is called on MPI's thread; `done` after it, there too, with what it threw.
  struct Operation {
    const char* name;
    std::function<void(World&)> run;
    std::function<void(std::exception_ptr)> done;
  };

  // An operation that takes longer than the limit fails: a rank is gone and nobody said so.
  explicit World(double limit_seconds) : limit_(limit_seconds), thread_([this] { serve(); }) {}
  World(const World&) = delete;
  World& operator=(const World&) = delete;
  // Gives up what is under way. Without finalize() before, the launcher sees a rank that failed.
  ~World();

  void submit(Operation operation);

  // Ends all ranks; `reason` goes to standard error. Does not return.
  [[noreturn]] void abort(const std::string& reason);

  // Valid once initialize() is done.
  int rank() const { return rank_; }
  int size() const { return size_; }
  // Among the ranks that share this machine's memory.
  int local_rank() const { return local_rank_; }
  const std::string& library() const { return library_; }

  // For operations, on MPI's thread. Counts are those of all ranks, in order.
  void initialize();
  void finalize();
  void barrier();
  // The parts of all ranks one behind the other; `part` has counts[rank()] bytes.
  void all_gather(const std::byte* part, const std::vector<int64_t>& counts, std::byte* into);
  // Sums `data` over ranks, in place.
  void all_reduce(float* data, int64_t length);
  // Segment r of the sum, counts[r] long, to rank r.
  void reduce_scatter(const float* data, const std::vector<int64_t>& counts, float* into);
  void broadcast(std::byte* data, int64_t bytes, int root);
  // All at once. Between two ranks the first sent is the first received.
  void exchange(const std::vector<Message>& sends, const std::vector<Message>& receives);

 private:
  void serve();
  void wait(std::vector<MPI_Request>& requests);
  void wait(MPI_Request request);
  // Returns when all ranks have come here, so that bulk data then moves without a pause.
  void meet(int64_t bytes);
  void check(int status) const;

  const double limit_;
  int rank_ = 0;
  int size_ = 1;
  int local_rank_ = 0;
  std::string library_;
  const char* current_ = "";  // the operation under way
  std::chrono::steady_clock::time_point began_;
  std::vector<float> scratch_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Operation> queue_;
  std::atomic<bool> aborting_{false};
  std::atomic<bool> leaving_{false};
  std::thread thread_;  // last: it uses what stands above
};

}  // namespace siglip
