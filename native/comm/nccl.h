// NCCL: the collectives of arrays on GPUs. Its library is opened at run time, when it is first asked for:
// the addon neither links it nor brings it along. Where the build had no header of it, it is never there.
//
// NCCL chooses the order of a sum by its library, the machines and links, and the length. While those
// stay, a sum repeats bit for bit, and all ranks hold the same bits.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime/device.h"
#include "runtime/stream.h"

namespace siglip {

struct NcclDescription {
  std::string version;  // "2.30.7"; empty where it is not there
  std::string missing;  // why, and on a line of its own what to do; else empty
};

// SIGLIP2_NCCL is the library's path; else the dynamic loader searches for libnccl.so.2. Looked up once.
const NcclDescription& nccl_description();

// What rank 0 makes and all ranks of a communicator have to know.
using NcclId = std::array<std::byte, 128>;

// Needs no GPU. Throws ERR_COMM where the library is not there or refuses.
NcclId nccl_unique_id();

// One call of NCCL. Reductions are sums of float32 and count floats; what else moves counts bytes. A
// reduce-scatter has `count` floats a rank and reads as many for each, an all-gather likewise.
struct Transfer {
  enum class Kind {
    kAllReduce,
    kReduceScatter,
    kAllGather,
    kReduce,
    kBroadcast,
    kSend,
    kReceive,
  };
  Kind kind;
  const std::byte* from;
  std::byte* into;
  int64_t count;
  int peer;  // the root, or the other side
};

// A rank's place among those that share an id. Work is queued by jobs of one device, in the same order on
// all ranks, on a stream of its own: behind what was queued on the device before, beside what comes
// after. A failure, also one of another rank, is final: what is under way is cut short, and all that
// comes is refused with its reason.
class NcclCommunicator {
 public:
  virtual ~NcclCommunicator() = default;

  // From any thread: whether it may still be used. Throws ERR_COMM with the reason, ERR_DISPOSED once
  // closed.
  virtual void check_usable() = 0;

  // For jobs of the device. Throw ERR_COMM.
  // Joins `size` ranks, this one being `rank`; returns when all have come.
  virtual void open(Stream& stream, const NcclId& id, int rank, int size) = 0;
  // Queues the transfers as one group, so that they may wait for each other.
  virtual void run(Stream& stream, const std::string& name,
                   const std::vector<Transfer>& transfers) = 0;
  // Leaves; returns when all have come.
  virtual void close() = 0;

  // Once the device has done what run() queued, in the order of the runs. Throws ERR_COMM when it was cut
  // short.
  virtual void settle() = 0;

  // From any thread: cuts short what is under way.
  virtual void abort(const std::string& reason) noexcept = 0;
};

// For a GPU. What takes longer than the limit has failed: another rank is gone and nobody said so. Throws
// ERR_COMM where the library is not there.
std::shared_ptr<NcclCommunicator> make_nccl_communicator(Device& device, double limit_seconds);

}  // namespace siglip
