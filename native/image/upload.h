// Pictures resized on a GPU, to the bit as prepare_pictures() does it with Layout::kBytes. Their pixels
// as they are, the weights of their axes and the lists of what the kernels do lie in one block, which goes
// to the device in one copy; the intermediates follow it there.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "device/resample.h"
#include "image/prepare.h"
#include "image/taps.h"
#include "runtime/stream.h"

namespace siglip {

// Consecutive pictures for one upload each, so that one is packed while another travels.
std::vector<std::vector<Picture>> upload_groups(Rounding rounding,
                                                const std::vector<Picture>& pictures);

// Weights that the uploads of one call share, by the sizes of their axes.
using AxisPlans = std::map<std::pair<int64_t, int64_t>, std::unique_ptr<AxisPlan>>;

class Upload {
 public:
  // Pixels are of the host, results of the device.
  Upload(Filter filter, Rounding rounding, std::vector<Picture> pictures);

  // Makes the weights that are not in `plans` yet, which must outlive this. On the CPU's stream, as
  // pack(). Throws ERR_OUT_OF_MEMORY.
  void plan(Stream& stream, AxisPlans& plans);

  // After plan(): bytes of the block, and with the intermediates behind it.
  int64_t bytes() const { return bytes_; }
  int64_t device_bytes() const { return bytes_ + between_bytes_ + device::kResampleMargin; }

  // Writes the block for its address `device`, a multiple of 16 as `to` is. Stops early, leaving
  // anything behind, once `abandoned` is set.
  device::ResampleWork pack(Stream& stream, std::byte* to, std::byte* device,
                            const std::atomic<bool>& abandoned) const;

 private:
  struct Axis {
    int64_t in;
    int64_t out;
    const AxisPlan* plan;
    int64_t longest;  // the most inputs of an output
    int64_t at;       // of its table in the block
  };
  struct Pass {
    int step;
    size_t axis;
    device::ResamplePass on_device;  // pointers apart
    bool reads_pixels;               // else intermediates
    int64_t from_at;                 // in the pixels, or in the intermediates
    int64_t to_at;                   // in the intermediates
    std::byte* to;                   // unless it writes the result
  };

  size_t axis_of(int64_t in, int64_t out);
  void add_picture(const Picture& picture);
  static int64_t tiles_of(const Pass& pass);
  static void write_tiles(const Pass& pass, int32_t index, device::ResampleTile* to);
  static void write_axis(const Axis& axis, std::byte* to);
  device::ResamplePass placed(const Pass& pass, std::byte* device) const;

  Filter filter_;
  Rounding rounding_;
  std::vector<Picture> pictures_;
  std::vector<int64_t> pixels_at_;  // by picture
  std::map<std::pair<int64_t, int64_t>, size_t> axis_of_sizes_;
  std::vector<Axis> axes_;
  std::vector<Pass> passes_;
  int64_t pixel_bytes_ = 0;
  int64_t passes_at_ = 0;
  int64_t tiles_at_ = 0;
  int64_t bytes_ = 0;
  int64_t between_bytes_ = 0;
};

// Queues the resize of what pack() has written, once it is on the device.
void resize_uploaded(Stream& stream, const device::ResampleWork& work);

}  // namespace siglip
