#include "comm/world.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>
#include <utility>

#include "runtime/error.h"

namespace siglip {
namespace {

using Clock = std::chrono::steady_clock;

// Floats that a reduction has under way at a time, so that its scratch memory is bounded.
constexpr int64_t kBlock = int64_t{1} << 22;
// Above this many bytes it pays to wait for all ranks before data moves.
constexpr int64_t kBulk = int64_t{1} << 16;
// For so long a wait asks without a pause; then a few times in a millisecond, so that whoever waits
// for a slow rank leaves the processor to those who work.
constexpr auto kEager = std::chrono::microseconds(300);
constexpr auto kPause = std::chrono::microseconds(50);
constexpr auto kAbortGrace = std::chrono::seconds(2);

int to_count(int64_t n) {
  if (n > std::numeric_limits<int>::max()) {
    throw Error("ERR_ARGUMENT",
                "comm: a transfer must be below 2^31 elements in all, got " + std::to_string(n));
  }
  return static_cast<int>(n);
}

int64_t total(const std::vector<int64_t>& counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

// Where each count begins, as MPI wants it.
std::vector<int> starts_of(const std::vector<int>& counts) {
  std::vector<int> starts(counts.size(), 0);
  std::partial_sum(counts.begin(), counts.end() - 1, starts.begin() + 1);
  return starts;
}

// sum = ((x_0 + x_1) + x_2) + … over `size` rows of `length`.
void sum_rows(const float* rows, int size, int64_t length, float* sum) {
  std::copy(rows, rows + length, sum);
  for (int r = 1; r < size; ++r) {
    const float* row = rows + r * length;
    for (int64_t i = 0; i < length; ++i) sum[i] += row[i];
  }
}

}  // namespace

World::~World() {
  leaving_ = true;
  {
    const std::lock_guard lock(mutex_);
    changed_.notify_all();
  }
  thread_.join();
}

void World::submit(Operation operation) {
  const std::lock_guard lock(mutex_);
  queue_.push_back(std::move(operation));
  changed_.notify_all();
}

void World::abort(const std::string& reason) {
  std::fprintf(stderr, "%s\n", reason.c_str());
  std::fflush(stderr);
  aborting_ = true;
  {
    const std::lock_guard lock(mutex_);
    changed_.notify_all();
  }
  // MPI's thread ends the job. Should it hang inside of MPI, the launcher sees this process fail.
  std::this_thread::sleep_for(kAbortGrace);
  _exit(1);
}

void World::serve() {
  for (;;) {
    Operation operation;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return !queue_.empty() || aborting_ || leaving_; });
      if (!aborting_) {
        if (leaving_) return;
        operation = std::move(queue_.front());
        queue_.pop_front();
      }
    }
    if (aborting_) {
      int ready = 0;
      MPI_Initialized(&ready);
      if (ready != 0) MPI_Abort(MPI_COMM_WORLD, 1);
      _exit(1);
    }
    current_ = operation.name;
    began_ = Clock::now();
    std::exception_ptr error;
    try {
      operation.run(*this);
    } catch (...) {
      error = std::current_exception();
    }
    operation.done(error);
  }
}

void World::check(int status) const {
  if (status == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(status, text, &length);
  throw Error("ERR_COMM", std::string("comm: ") + current_ + " of rank " + std::to_string(rank_) +
                              " must succeed, got " + text);
}

void World::wait(std::vector<MPI_Request>& requests) {
  for (const auto asked = Clock::now();;) {
    int done = 0;
    check(MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done,
                      MPI_STATUSES_IGNORE));
    if (done != 0) return;
    if (aborting_) MPI_Abort(MPI_COMM_WORLD, 1);
    const auto now = Clock::now();
    if (leaving_ || now - began_ > std::chrono::duration<double>(limit_)) {
      throw Error("ERR_COMM", std::string("comm: ") + current_ + " of rank " +
                                  std::to_string(rank_) + " must end within " +
                                  std::to_string(static_cast<int64_t>(limit_)) +
                                  " s, got no answer: another rank has ended or hangs");
    }
    if (now - asked < kEager) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(kPause);
    }
  }
}

void World::wait(MPI_Request request) {
  std::vector<MPI_Request> requests{request};
  wait(requests);
}

void World::meet(int64_t bytes) {
  if (bytes > kBulk) barrier();
}

void World::initialize() {
  int ready = 0;
  MPI_Initialized(&ready);
  if (ready != 0) {
    throw Error("ERR_COMM", "comm: MPI must be opened once in a process, got a second time");
  }
  int provided = 0;
  check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided));
  check(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
  if (provided < MPI_THREAD_FUNNELED) {
    throw Error("ERR_COMM", "comm: MPI must allow a process of several threads, got level " +
                                std::to_string(provided));
  }
  check(MPI_Comm_rank(MPI_COMM_WORLD, &rank_));
  check(MPI_Comm_size(MPI_COMM_WORLD, &size_));
  MPI_Comm machine = MPI_COMM_NULL;
  check(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &machine));
  check(MPI_Comm_rank(machine, &local_rank_));
  check(MPI_Comm_free(&machine));
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = {};
  int length = 0;
  check(MPI_Get_library_version(text, &length));
  library_.assign(text, std::strcspn(text, ",\n"));
}

void World::finalize() { check(MPI_Finalize()); }

void World::barrier() {
  MPI_Request request;
  check(MPI_Ibarrier(MPI_COMM_WORLD, &request));
  wait(request);
}

void World::all_gather(const std::byte* part, const std::vector<int64_t>& counts, std::byte* into) {
  const int64_t bytes = total(counts);
  to_count(bytes);
  const std::vector<int> lengths(counts.begin(), counts.end());
  const std::vector<int> starts = starts_of(lengths);
  meet(bytes);
  MPI_Request request;
  check(MPI_Iallgatherv(part, lengths[static_cast<size_t>(rank_)], MPI_BYTE, into, lengths.data(),
                        starts.data(), MPI_BYTE, MPI_COMM_WORLD, &request));
  wait(request);
}

void World::all_reduce(float* data, int64_t length) {
  const auto world = static_cast<size_t>(size_);
  std::vector<int> lengths(world);
  for (int64_t at = 0; at < length; at += kBlock) {
    // Every rank sums a segment of the block and then gives it to all.
    const int64_t block = std::min(kBlock, length - at);
    for (size_t r = 0; r < world; ++r) {
      const auto segment = static_cast<int64_t>(r);
      lengths[r] = static_cast<int>(block * (segment + 1) / size_ - block * segment / size_);
    }
    const std::vector<int> starts = starts_of(lengths);
    const int own = lengths[static_cast<size_t>(rank_)];
    const std::vector<int> received(world, own);
    const std::vector<int> rows = starts_of(received);
    scratch_.resize(std::max<size_t>(world * static_cast<size_t>(own), 1));
    meet(block * static_cast<int64_t>(sizeof(float)));
    MPI_Request request;
    check(MPI_Ialltoallv(data + at, lengths.data(), starts.data(), MPI_FLOAT, scratch_.data(),
                         received.data(), rows.data(), MPI_FLOAT, MPI_COMM_WORLD, &request));
    wait(request);
    sum_rows(scratch_.data(), size_, own, data + at + starts[static_cast<size_t>(rank_)]);
    check(MPI_Iallgatherv(MPI_IN_PLACE, 0, MPI_FLOAT, data + at, lengths.data(), starts.data(),
                          MPI_FLOAT, MPI_COMM_WORLD, &request));
    wait(request);
  }
}

void World::reduce_scatter(const float* data, const std::vector<int64_t>& counts, float* into) {
  const auto world = static_cast<size_t>(size_);
  to_count(total(counts));
  const std::vector<int> segments(counts.begin(), counts.end());
  const std::vector<int> begins = starts_of(segments);
  const int64_t longest = *std::max_element(counts.begin(), counts.end());
  const int64_t step = std::max<int64_t>(kBlock / size_, 1);
  std::vector<int> lengths(world);
  std::vector<int> starts(world);
  for (int64_t at = 0; at < longest; at += step) {
    for (size_t r = 0; r < world; ++r) {
      lengths[r] = static_cast<int>(std::clamp<int64_t>(counts[r] - at, 0, step));
      starts[r] = lengths[r] == 0 ? 0 : begins[r] + static_cast<int>(at);
    }
    const int own = lengths[static_cast<size_t>(rank_)];
    const std::vector<int> received(world, own);
    const std::vector<int> rows = starts_of(received);
    scratch_.resize(std::max<size_t>(world * static_cast<size_t>(own), 1));
    meet(step * static_cast<int64_t>(sizeof(float)));
    MPI_Request request;
    check(MPI_Ialltoallv(data, lengths.data(), starts.data(), MPI_FLOAT, scratch_.data(),
                         received.data(), rows.data(), MPI_FLOAT, MPI_COMM_WORLD, &request));
    wait(request);
    if (own > 0) sum_rows(scratch_.data(), size_, own, into + at);
  }
}

void World::broadcast(std::byte* data, int64_t bytes, int root) {
  meet(bytes);
  MPI_Request request;
  check(MPI_Ibcast(data, to_count(bytes), MPI_BYTE, root, MPI_COMM_WORLD, &request));
  wait(request);
}

void World::exchange(const std::vector<Message>& sends, const std::vector<Message>& receives) {
  std::vector<MPI_Request> requests(sends.size() + receives.size());
  size_t next = 0;
  for (const Message& from : receives) {
    check(MPI_Irecv(from.data, to_count(from.bytes), MPI_BYTE, from.rank, 0, MPI_COMM_WORLD,
                    &requests[next++]));
  }
  for (const Message& to : sends) {
    check(MPI_Isend(to.data, to_count(to.bytes), MPI_BYTE, to.rank, 0, MPI_COMM_WORLD,
                    &requests[next++]));
  }
  wait(requests);
}

}  // namespace siglip
